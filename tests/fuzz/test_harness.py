"""The harness of the fuzzers sees every kind of fault, so that a clean run means something."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest

FAULTY = Path(__file__).parent / "misbehaving.py"


@pytest.fixture(scope="module")
def outcomes():
    return harness.run(FAULTY, 8, workers=1)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (2, "traceback"),
        (3, "traceback"),
        (4, "unnamed"),
        (5, "memory"),
        (6, "crashed"),
        (7, "executed"),
    ],
)
def test_fault_is_found(outcomes, fault, outcome):
    assert {result["seed"]: result["outcome"] for result in outcomes["not_well"]}[fault] == outcome


def test_waiting_is_found(monkeypatch):
    monkeypatch.setattr(harness, "HUNG", 3)
    [result] = harness.run(FAULTY, 1, first=8, workers=1)["not_well"]
    assert result["outcome"] == "hung"


def test_reading_and_refusing_are_well(outcomes):
    assert outcomes["read"] == outcomes["refused"] == 1
    assert len(outcomes["not_well"]) == 6


def test_files_of_a_fault_are_kept(tmp_path):
    harness.run(FAULTY, 1, first=2, workers=1, keep=tmp_path)
    assert (tmp_path / "2" / "2").read_text() == "raises"
