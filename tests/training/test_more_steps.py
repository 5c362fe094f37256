"""`steps` may be raised when a run goes on; what was learnt from stays, and what changes is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from chameleon_jax.config import StageConfig
from chameleon_jax.errors import FileError
from chameleon_jax.training.checkpoint import _check_steps
from chameleon_jax.training.loop import train


@pytest.mark.slow
def test_a_run_with_a_constant_rate_goes_on_as_if_it_had_always_had_more_steps(tiny, compiled_once, tmp_path):
    def run(folder, steps):
        config = tiny.config(folder, steps=steps, optimizer__schedule="constant", model__num_layers=1)
        return train(tiny.task(config), tiny.batches)

    expected = run(tmp_path / "whole", 4)
    run(tmp_path / "raised", 2)
    state = run(tmp_path / "raised", 4)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, expected)
    with pytest.raises(FileError, match="steps = 3: this run has already done 4"):
        run(tmp_path / "raised", 3)
    assert int(run(tmp_path / "raised", 4).step) == 4


@pytest.mark.parametrize("schedule", ["cosine", "exponential", "linear"])
def test_a_rate_that_jumps_is_said(tiny, capfd, schedule):
    before = tiny.config(steps=100, optimizer__schedule=schedule, optimizer__final_fraction=0.1)
    _check_steps(before, dataclasses.replace(before, steps=200), 100, Path("run/100"))
    said = capfd.readouterr().err
    assert "steps was 100, now 200; the learning rate continues at 0.00" in said
    assert "instead of 0.001" in said
    _check_steps(before, dataclasses.replace(before, steps=200), 2, Path("run/2"))  # still warming up
    _check_steps(before, before, 100, Path("run/100"))


def test_stages_that_would_move_over_rows_already_read_are_refused(tiny):
    stages = (StageConfig(0.5, {"a": 1.0}), StageConfig(0.5, {"b": 1.0}))
    before = dataclasses.replace(tiny.config(steps=100), stages=stages)
    after = dataclasses.replace(before, steps=200)
    _check_steps(before, after, 50, Path("run/50"))  # all from the first stage, then and now
    with pytest.raises(FileError, match="stages are shares of all steps, and this run is past the first"):
        _check_steps(before, after, 51, Path("run/51"))
    shorter = dataclasses.replace(before, steps=60)
    with pytest.raises(FileError, match="past the first"):
        _check_steps(before, shorter, 50, Path("run/50"))
