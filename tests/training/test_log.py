"""What a run tells: losses by source."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chameleon_jax.training.log import Log
from chameleon_jax.training.task import Work

SOURCES = ("digits", "prose")
ROWS, STEPS = 8, 4
rng = np.random.default_rng(0)
LOSSES, WEIGHTS = rng.random((STEPS, ROWS)).astype(np.float32), rng.integers(1, 9, (STEPS, ROWS)).astype(np.float32)
NAMES = rng.choice(SOURCES, (STEPS, ROWS)).tolist()
BAD = 2
WORK = Work("tokens", 96, 1.0)


def rows_of(number: int) -> list[tuple[str, int]]:
    return [(name, 0) for name in NAMES[number]]


def metrics(number: int) -> dict:
    """Those of step `number` + 1."""
    losses = np.full(ROWS, np.nan, np.float32) if number == BAD else LOSSES[number]
    others = (
        "loss_sum", "weight_sum", "text_loss_sum", "text_weight_sum", "image_loss_sum", "image_weight_sum", "z_loss",
        "gradient_norm", "output_square_sum", "token_sum", "log_z_sum", "max_logit", "total_loss",
    )  # fmt: skip
    return {
        **dict.fromkeys(others, 1.0),
        "row_loss_sum": losses,
        "row_weight_sum": WEIGHTS[number],
        "bad": number == BAD,
    }


def expected(numbers) -> dict[str, float]:
    """Mean losses by source over some steps."""
    good = [number for number in numbers if number != BAD]
    chosen = {name: np.array([[each == name for each in NAMES[number]] for number in good]) for name in SOURCES}
    return {
        name: float(np.sum(LOSSES[good].astype(float)[mask]) / np.sum(WEIGHTS[good].astype(float)[mask]))
        for name, mask in chosen.items()
    }


def test_training_losses_are_told_by_source_and_go_on_after_a_checkpoint(tiny, tmp_path):
    task = tiny.task(tiny.config(tmp_path, bad_steps__action="skip"))
    log = Log(task, 0, [], rows_of)
    for number in range(STEPS):
        log.add(metrics(number), timed=True)
    whole = log.summary(STEPS, WORK)
    assert {name: losses["loss"] for name, losses in whole["sources"].items()} == pytest.approx(expected(range(STEPS)))

    # Stopped between two lines: what is not yet told is in the checkpoint, as plain numbers.
    log = Log(task, 0, [], rows_of)
    for number in range(2):
        log.add(metrics(number), timed=True)
    resumed = Log(task, 2, json.loads(json.dumps(log.pending())), rows_of)
    for number in range(2, STEPS):
        resumed.add(metrics(number), timed=True)
    assert resumed.summary(STEPS, WORK)["sources"] == whole["sources"]


def test_batches_without_sources_have_no_losses_by_source(tiny, tmp_path):
    log = Log(tiny.task(tiny.config(tmp_path)), 0, [], None)
    log.add(metrics(0), timed=True)
    assert "sources" not in log.summary(1, WORK)
