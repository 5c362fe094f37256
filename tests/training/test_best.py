"""The best checkpoint stays and becomes the model; a run that no longer gets better ends."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from chameleon_jax.batch import Batch
from chameleon_jax.config import CheckpointConfig, ConfigError
from chameleon_jax.training.best import Best
from chameleon_jax.training.loop import train
from chameleon_jax.training.metrics import read_metrics
from tests.training.conftest import VOCABULARY, TinyRun

LOSSES = {1: 5.0, 2: 4.0, 3: 2.0, 4: 3.0, 5: 3.5, 6: 1.0}
"""On a held-out source, after each step."""
BEST = CheckpointConfig(best="held_out.prose.loss", patience=2)


class Interruption(Exception):
    pass


def lines(losses: dict[int, float]) -> list[dict]:
    return [{"step": step, "held_out": {"prose": {"loss": loss}}} for step, loss in losses.items()]


def test_the_lowest_loss_is_the_best_and_patience_counts_evaluations_since():
    best = Best(BEST, ["prose"], [{"step": 0, "loss": 0.1}])
    assert (best.step, best.should_stop) == (None, False)
    taken = [best.update(line["step"], line["held_out"]) for line in lines({**LOSSES, 4: float("nan")})]
    assert taken == [True, True, True, False, False, True]
    for step, should_stop in ((3, False), (4, False), (5, True), (6, False)):
        again = Best(BEST, ["prose"], lines({n: loss for n, loss in LOSSES.items() if n <= step}))
        assert again.should_stop == should_stop
        assert again.step == (6 if step == 6 else 3)
    assert not Best(CheckpointConfig(), ["prose"], lines(LOSSES)).update(1, {})


def test_a_loss_that_is_not_measured_is_named():
    with pytest.raises(
        ConfigError, match=r"checkpoint\.best = 'held_out\.prose\.loss': sources held out: digits, sums"
    ):
        Best(BEST, ["digits", "sums"], [])
    with pytest.raises(ConfigError, match=r"checkpoint\.best.*held_out\.prose has no such tokens"):
        Best(BEST, ["prose"], []).update(1, {"prose": {"image_loss": 1.0}})


@pytest.mark.parametrize("best", ["held_out.prose", "prose.loss", "held_out.prose.accuracy", "loss"])
def test_a_figure_that_cannot_be_is_refused(best):
    with pytest.raises(ConfigError, match=r"must be held_out\.NAME\.loss"):
        CheckpointConfig(best=best)
    with pytest.raises(ConfigError, match=r"needs checkpoint\.best"):
        CheckpointConfig(patience=3)


def batches(first: int, rows: np.ndarray):
    """One batch, except for steps 4 and 5: the same inputs with other targets, from which its loss rises."""
    for number in itertools.count(first):
        batch = TinyRun.batch(0)
        if number in (3, 4):
            batch = batch._replace(targets=(batch.targets + 7) % VOCABULARY)
        yield Batch(*(values[rows] for values in batch))


def held_out(rows: np.ndarray) -> list[Batch]:
    return [Batch(*(values[rows] for values in TinyRun.batch(0)))]


@pytest.mark.slow
def test_a_run_keeps_its_best_checkpoint_stops_early_and_does_so_again_after_a_break(
    tiny, compiled_once, tmp_path, capfd
):
    def config(output, **changes):
        # Without momentum, so that the loss rises at once.
        values = {"steps": 12, "evaluate_every": 1, "model__num_layers": 1, "optimizer__b1": 0.0,
                  "optimizer__schedule": "constant", "checkpoint__keep": 1,
                  "checkpoint__best": "held_out.prose.loss"} | changes  # fmt: skip
        return tiny.config(output, **values)

    def start(config, batches=batches):
        return train(tiny.task(config), batches, held_out={"prose": held_out})

    def steps(folder):
        return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())

    def losses(folder):
        return {line["step"]: line["held_out"]["prose"]["loss"] for line in read_metrics(folder / "metrics.jsonl")}

    def same(tree, other):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), tree, other)

    state = start(config(tmp_path / "whole", checkpoint__patience=2))
    assert int(state.step) == 3
    same(state.params, start(config(tmp_path / "three", steps=3)).params)
    assert steps(tmp_path / "whole") == [3, 5]
    assert list(losses(tmp_path / "whole")) == [1, 2, 3, 4, 5]
    said = capfd.readouterr().err
    assert "Stopped early at step 5: the last 2 evaluations were no better than that of step 3" in said
    assert f"The best held_out.prose.loss was {losses(tmp_path / 'whole')[3]:.4f}, at step 3" in said

    def broken(first, rows):
        for number, batch in enumerate(batches(first, rows), first):
            if number == 4:
                raise Interruption
            yield batch

    with pytest.raises(Interruption):
        start(config(tmp_path / "broken", checkpoint__patience=2), broken)
    for _ in range(2):  # resumed, and once more when it has ended
        same(start(config(tmp_path / "broken", checkpoint__patience=2)), state)
        assert steps(tmp_path / "broken") == [3, 5]

    # Without patience it runs to the end, where the loss is lower still.
    best = int(start(config(tmp_path / "broken")).step)
    by_step = losses(tmp_path / "broken")
    assert best == min(by_step, key=by_step.get) > 5
    assert steps(tmp_path / "broken") == sorted({best, 12})
