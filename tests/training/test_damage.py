"""Stories of damage: a checkpoint is hit, the run goes on, and ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from chameleon_jax.errors import ChameleonError
from chameleon_jax.training.loop import train
from chameleon_jax.training.metrics import read_metrics


def run(tiny, output: Path, stop_at: int | None = None):
    """The tiny run of eight steps; with `stop_at` it ends before that step's batch."""

    def batches(first, rows):
        for number, batch in enumerate(tiny.batches(first, rows), first):
            if number == stop_at:
                raise ChameleonError("stopped")
            yield batch

    return train(tiny.task(tiny.config(output)), batches)


def losses(output: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(output / "metrics.jsonl")]


def stopped_before_step_8(tiny, output: Path) -> None:
    """Leaves checkpoints of steps 2, 4 and 6."""
    with pytest.raises(ChameleonError, match="stopped"):
        run(tiny, output, stop_at=7)


def array_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "state").rglob("*") if path.parent.name == "d"]


def flip_bytes(folder: Path) -> None:
    """One in each file: some hold copies that are not read."""
    for path in array_files(folder):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 64
        path.write_bytes(content)


def cut_arrays(folder: Path) -> None:
    for path in array_files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_damaged_checkpoints_a_restart_another_one_and_the_end_of_the_run(tiny, tmp_path, capsys):
    """The newest two are hit, written again, and one of them is hit again."""
    expected = run(tiny, tmp_path / "whole")
    output = tmp_path / "[red] run"  # a name that would be a colour
    stopped_before_step_8(tiny, output)
    flip_bytes(output / "checkpoints" / "6")
    cut_arrays(output / "checkpoints" / "4")
    stopped_before_step_8(tiny, output)
    said = capsys.readouterr().err
    for step in (6, 4):
        assert f"{output / 'checkpoints' / str(step)}: damaged" in said
    cut_arrays(output / "checkpoints" / "6")
    state = run(tiny, output)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, expected)
    assert losses(output) == losses(tmp_path / "whole")
    names = {path.name for path in (output / "checkpoints").iterdir()}
    assert names == {"damaged-4", "damaged-6", "damaged-6-2", "4", "6", "8"}
