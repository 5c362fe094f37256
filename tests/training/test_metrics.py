"""No good line of a run is lost, whatever stands between them."""

from __future__ import annotations

import json

import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.training.metrics import MetricsFile, append_line, read_metrics

BROKEN = [
    b'{"step": 3, "lo', b"\xff\xfe\x00binary", b"[1, 2]", b"7", b"null", b'"text"', b'{"loss": 2.0}', b'{"step": "3"}',
    b'{"step": true}', b'{"step": 1, "speed": 3}', b"[" * 100_000, b'{"step": 3, "lo{"step": 3, "loss": 1.0}',
]  # fmt: skip


def good(*steps: int) -> list[bytes]:
    return [json.dumps({"step": step, "loss": step / 3}).encode() for step in steps]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_takes_no_other_with_it(tmp_path, broken, capsys):
    path = tmp_path / "metrics.jsonl"
    before, after = good(1, 2), good(4, 5, 6)
    path.write_bytes(b"\n".join([*before, broken, *after]) + b"\n")
    MetricsFile(path, 5).write(6, loss=2.0)
    assert path.read_bytes().splitlines() == [*before, *after[:2], b'{"step": 6, "loss": 2.0}']
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == broken.decode("utf-8", "backslashreplace") + "\n"
    assert capsys.readouterr().err.count("\n") == 1
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 4, 5, 6]


def test_a_last_line_cut_short_by_a_crash_is_no_damage(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(good(1, 2)) + b'\n{"step": 3, "l')
    MetricsFile(path, 9)
    assert path.read_bytes() == b"\n".join(good(1, 2)) + b"\n"
    assert capsys.readouterr().err == ""


def test_a_line_added_after_one_cut_short_stays_readable(tmp_path):
    """sessions.jsonl and bad_steps.jsonl are not rewritten at the start of a run."""
    path = tmp_path / "sessions.jsonl"
    path.write_bytes(good(1)[0] + b'\n{"step": 2, "ti')
    append_line(path, {"step": 3})
    append_line(path, {"step": 4})
    assert [line["step"] for line in read_metrics(path)] == [1, 3, 4]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FileError, match=r"metrics\.jsonl: cannot be read: Is a directory"):
        MetricsFile(tmp_path / "metrics.jsonl", 0)
