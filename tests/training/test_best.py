"""The best checkpoint stays and becomes the model; a run that no longer gets better ends."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from chameleon_jax.config import CheckpointConfig, ConfigError
from chameleon_jax.training import loop
from chameleon_jax.training.best import Best
from chameleon_jax.training.loop import train
from chameleon_jax.training.metrics import read_metrics

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


@pytest.fixture
def seen(monkeypatch) -> dict[int, object]:
    """Evaluations give `LOSSES`; the parameters that they saw, by step."""
    seen = {}

    def evaluate(self, params):
        step = self.log._step
        seen[step] = jax.tree.map(np.array, params)
        return {"prose": {"loss": LOSSES[step]}}

    monkeypatch.setattr(loop._Run, "_evaluate", evaluate)
    return seen


@pytest.mark.slow
def test_a_run_keeps_its_best_checkpoint_stops_early_and_does_so_again_after_a_break(
    tiny, compiled_once, seen, tmp_path, capfd
):
    def config(output, **changes):
        return tiny.config(
            output, steps=6, evaluate_every=1, model__num_layers=1, optimizer__schedule="constant", checkpoint__keep=1,
            checkpoint__best="held_out.prose.loss", **changes,
        )  # fmt: skip

    def start(config, batches=tiny.batches):
        return train(config, batches, tiny.is_image_id, held_out={"prose": lambda rows: []})

    def steps(folder):
        return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())

    def same(tree, other):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), tree, other)

    state = start(config(tmp_path / "whole", checkpoint__patience=2))
    assert int(state.step) == 3
    same(state.params, seen[3])
    assert steps(tmp_path / "whole") == [3, 5]
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]["step"] == 5
    said = capfd.readouterr().err
    assert "Stopped early at step 5: the last 2 evaluations were no better than that of step 3" in said
    assert "The best held_out.prose.loss was 2.0000, at step 3" in said

    def broken(first, rows):
        for number, batch in enumerate(tiny.batches(first, rows), first):
            if number == 4:
                raise Interruption
            yield batch

    with pytest.raises(Interruption):
        start(config(tmp_path / "broken", checkpoint__patience=2), broken)
    for _ in range(2):  # going on, and once more when it has ended
        same(start(config(tmp_path / "broken", checkpoint__patience=2)), state)
        assert steps(tmp_path / "broken") == [3, 5]

    # Without patience it goes on to the end, which is better still.
    assert int(start(config(tmp_path / "broken")).step) == 6
    assert steps(tmp_path / "broken") == [6]
