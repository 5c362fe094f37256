"""The fuzzers in small; by hand they run in large, as `harness.py` says."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fuzzer", "cases"), [("pictures.py", 400), ("records.py", 300), ("weights.py", 100), ("configs.py", 30)]
)
def test_nothing_hostile_gets_far(fuzzer, cases):
    figures = harness.run(Path(__file__).parent / fuzzer, cases, workers=1)
    assert figures["not_well"] == []
    assert figures["refused"] > cases / 4  # they are hostile
    assert figures["read"] > 0  # but not hopeless
