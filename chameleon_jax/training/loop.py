"""The training loop: Batches in, checkpoints and metrics out. Killed at any moment, it goes on where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.batch import Batch
from chameleon_jax.config import TrainConfig
from chameleon_jax.errors import TrainingError
from chameleon_jax.progress import console, progress_bar
from chameleon_jax.sharding import check_length, check_mesh, make_mesh
from chameleon_jax.training.checkpoint import Checkpoints
from chameleon_jax.training.metrics import MetricsFile, per_modality
from chameleon_jax.training.optimizer import make_schedule
from chameleon_jax.training.state import TrainState, abstract_state, init_state
from chameleon_jax.training.step import make_evaluation_step, make_train_step


def train(
    config: TrainConfig,
    batches: Callable[[int], Iterator[Batch]],
    is_image_id: np.ndarray,
    *,
    data_fingerprint: str = "",
    held_out: Mapping[str, Sequence[Batch]] | None = None,
) -> TrainState:
    """Trains for `config.steps` steps, going on from the newest checkpoint in `config.output` if there is one.

    Args:
      config: everything about the run.
      batches: gives the batches from a given number on; called once, with the number of steps already done.
      is_image_id: bool `[vocab_size]`, which ids are image codes.
      data_fingerprint: stored with checkpoints; a run refuses to go on with other data.
      held_out: batches by name whose losses are reported and never learnt from.

    Returns:
      the state after the last step.

    Raises:
      ConfigError: if batch or model do not fit the mesh.
      TrainingError: if the loss stops being a number.
      FileError: if the folder holds checkpoints of another run, or cannot be written.
    """
    mesh = make_mesh(config.mesh)
    check_mesh(config, mesh)
    step_fn = make_train_step(config, is_image_id, mesh)
    evaluate_fn = make_evaluation_step(config, is_image_id, mesh)
    schedule = make_schedule(config.optimizer, config.steps)

    with (
        jax.set_mesh(mesh),
        Checkpoints(Path(config.output) / "checkpoints", config.checkpoint) as checkpoints,
    ):
        state = checkpoints.restore(abstract_state(config, mesh), config, data_fingerprint)
        start = 0 if state is None else int(state.step)
        if start == config.steps:
            console.print(f"All {start:,} steps of this run are done already.")
        elif start:
            console.print(f"Going on from the checkpoint at step {start:,} of {config.steps:,}.")
        state = init_state(config, mesh) if state is None else state
        metrics_file = MetricsFile(Path(config.output) / "metrics.jsonl", start)
        waiting: list[dict[str, Any]] = []  # metrics still on the device, so that steps are queued without a pause
        since, rate = time.monotonic(), 0.0
        with progress_bar("train", config.steps, start) as bar:
            for step, batch in zip(range(start + 1, config.steps + 1), batches(start)):  # noqa: B905
                if step == start + 1:
                    check_length(config, mesh, batch.inputs.shape[1])
                state, metrics = step_fn(state, batch)
                waiting.append(metrics)
                last = step == config.steps
                if step % config.log_every == 0 or last:
                    line = _summary(waiting, step)
                    now = time.monotonic()
                    rate = len(waiting) * batch.inputs.size / (now - since)
                    line |= {"learning_rate": float(schedule(step - 1)), "tokens_per_second": round(rate)}
                    bar.update(step, loss=f"{line['loss']:.3f}", **{"tokens/s": f"{rate:,.0f}"})
                    if last or (config.evaluate_every and step % config.evaluate_every == 0):
                        line["held_out"] = _evaluate(evaluate_fn, state.params, held_out or {})
                    metrics_file.write(step, **line)
                    waiting, since = [], time.monotonic()
                if step % config.checkpoint.every == 0 or last:
                    checkpoints.save(state, config, data_fingerprint)
        if int(state.step) != config.steps:
            raise TrainingError(f"the data ended after {int(state.step)} batches; {config.steps} steps need as many")
    return state


def _evaluate(
    evaluate_fn: Callable[[Any, Batch], dict[str, Any]], params: Any, held_out: Mapping[str, Sequence[Batch]]
) -> dict[str, dict[str, float]]:
    """Mean losses on each held-out source."""
    results = {}
    for name, batches in held_out.items():
        sums = [evaluate_fn(params, batch) for batch in batches]
        results[name] = per_modality(jax.tree.map(lambda *parts: sum(map(float, parts)), *sums))
    return results


def _summary(waiting: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Means over the steps since the last line."""
    totals = {name: sum(float(each[name]) for each in waiting) for name in waiting[0]}
    if not math.isfinite(totals["total_loss"]) or not math.isfinite(totals["gradient_norm"]):
        raise TrainingError(
            f"the loss or its gradient is no longer a number at step {step} or up to {len(waiting) - 1} before. "
            "The last checkpoint is kept; lower optimizer.learning_rate or lengthen optimizer.warmup_steps"
        )
    means = {name: totals[name] / len(waiting) for name in ("z_loss", "gradient_norm")}
    return {**per_modality(totals), **means}
