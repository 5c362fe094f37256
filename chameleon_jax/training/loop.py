"""The training loop: Batches in, checkpoints and metrics out. Killed at any moment, it goes on where it was."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.batch import Batch
from chameleon_jax.config import TrainConfig, to_dict
from chameleon_jax.distributed import check_same, check_shared, explain_lost_processes, is_first
from chameleon_jax.errors import Stopped, TrainingError
from chameleon_jax.files import FileError, explain_disk_errors
from chameleon_jax.progress import console, progress_bar
from chameleon_jax.sharding import check_length, check_mesh, make_mesh
from chameleon_jax.training.attention_check import check_attention
from chameleon_jax.training.checkpoint import Checkpoints
from chameleon_jax.training.feeding import local_rows, place
from chameleon_jax.training.log import Log, RowsOfBatch
from chameleon_jax.training.metrics import per_modality
from chameleon_jax.training.optimizer import make_schedule
from chameleon_jax.training.state import TrainState, abstract_state, fresh_adapters, init_state
from chameleon_jax.training.step import make_evaluation_step, make_signals, make_train_step
from chameleon_jax.training.stopping import StopRequest
from chameleon_jax.training.trainable import join, split, with_fresh_image_head
from chameleon_jax.versions import versions

Batches = Callable[[int, np.ndarray], Iterator[Batch]]
"""Gives the batches from a number on, of each only the rows with the given numbers: those this process has to read. On
a single process these are all rows."""


def train(
    config: TrainConfig,
    batches: Batches,
    is_image_id: np.ndarray,
    *,
    data_fingerprint: str = "",
    held_out: Mapping[str, Sequence[Batch]] | None = None,
    initial_params: Callable[[Any], Any] | None = None,
    rows_of_batch: RowsOfBatch | None = None,
) -> TrainState:
    """Trains for `config.steps` steps, going on from the newest checkpoint in `config.output` if there is one.

    Args:
      config: everything about the run.
      batches: see `Batches`; called once, with the number of steps already done.
      is_image_id: bool `[vocab_size]`, which ids are image codes.
      data_fingerprint: stored with checkpoints; a run refuses to go on with other data.
      held_out: batches by name whose losses are reported and never learnt from; all their rows, in every process.
      initial_params: gives the parameters to begin with, from a tree of `jax.ShapeDtypeStruct` with shardings (without
        adapters, which begin at nothing); called unless there is a checkpoint. By default they are drawn at random.
      rows_of_batch: says what batch `number` consists of, to be written down if its step goes wrong.

    Returns:
      the state after the last step.

    Raises:
      ConfigError: if batch or model do not fit the mesh, or processes were started differently.
      TrainingError: if the loss stops being a number, or the attention kernel of this machine computes wrong numbers.
      FileError: if the folder holds checkpoints of another run, or cannot be written.
      Stopped: if the process was asked to stop (SIGTERM); everything is saved.
    """
    mesh = make_mesh(config.mesh)
    check_mesh(config, mesh)
    check_same({**_comparable(config), "data": data_fingerprint, "versions": versions()})
    check_attention(config.model, mesh)
    target = abstract_state(config, mesh)
    _check_folder(Path(config.output), target)
    with (
        jax.set_mesh(mesh),
        Checkpoints(Path(config.output) / "checkpoints", config.checkpoint) as checkpoints,
        StopRequest() as stop,
        explain_lost_processes(),
    ):
        found = checkpoints.restore(target, config, data_fingerprint)
        state, unlogged = found or (_first_state(config, mesh, target, is_image_id, initial_params), [])
        start = int(state.step)
        if start == config.steps:
            console.print(f"All {start:,} steps of this run are done already.")
        elif start:
            console.print(f"Going on from the checkpoint at step {start:,} of {config.steps:,}.")
        log = Log(config, start, unlogged, rows_of_batch)
        run = _Run(config, mesh, is_image_id, log, held_out or {})
        save = lambda state: checkpoints.save(state, config, data_fingerprint, log.pending())  # noqa: E731
        with contextlib.closing(log), progress_bar("train", config.steps, start) as bar:
            state = run.steps(state, batches(start, run.rows), bar, stop, save)
    return state


class _Run:
    """The compiled functions of a run, and the loop over its steps."""

    def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh, is_image_id: np.ndarray, log: Log, held_out):
        self.config, self.mesh, self.log, self.held_out = config, mesh, log, held_out
        self.step_fn = make_train_step(config, is_image_id, mesh)
        self.evaluate_fn = make_evaluation_step(config, is_image_id, mesh)
        self.signals_fn = make_signals(config, mesh)
        self.schedule = make_schedule(config.optimizer, config.steps)
        self.rows = local_rows(mesh, config.batch_size)

    def steps(
        self, state: TrainState, batches: Iterator[Batch], bar, stop: StopRequest, save: Callable[[TrainState], None]
    ) -> TrainState:
        config, clock = self.config, self.log.clock
        start, metrics = int(state.step), None
        profile = _Profile(config, start)
        for step in range(start + 1, config.steps + 1):
            batch = self._next(batches, step - 1, metrics)
            if step == start + 1:
                with clock.waiting_for("startup"):
                    check_length(config, self.mesh, batch.inputs.shape[1])
                    state, metrics = self.step_fn(state, self._place(batch))
                    jax.block_until_ready(metrics)
            else:
                before = metrics
                state, metrics = self.step_fn(state, self._place(batch))
                # At most one step waits for its turn: enough to keep the devices busy, and no more is lost.
                jax.block_until_ready(before)
            self.log.add(metrics, timed=step > start + 1)
            profile.after(step, metrics)
            last, stopping = step == config.steps, stop.came(step)
            if step % config.log_every == 0 or last:
                self._write_line(state, step, batch.inputs.shape[1], bar)
            if step % config.checkpoint.every == 0 or last or stopping:
                jax.block_until_ready(metrics)  # computing is not waiting
                with clock.waiting_for("checkpoint"):
                    save(state)
            if stopping and not last:
                raise Stopped(
                    f"stopped after step {step:,} of {config.steps:,}, as asked (SIGTERM); everything is saved, and "
                    "the same command goes on from there"
                )
        return state

    def _next(self, batches: Iterator[Batch], number: int, metrics: dict[str, Any] | None) -> Batch:
        """The next batch. The wait for it counts only if the devices have nothing left to do at its end."""
        began = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            raise TrainingError(f"the data ended after {number} batches; {self.config.steps} steps need as many")
        if metrics is None or metrics["total_loss"].is_ready():
            self.log.clock.add("data", time.monotonic() - began)
        return batch

    def _place(self, batch: Batch, rows: np.ndarray | None = None) -> Batch:
        return place(batch, self.mesh, self.config.batch_size, self.rows if rows is None else rows)

    def _write_line(self, state: TrainState, step: int, length: int, bar) -> None:
        line = self.log.summary(step, length)
        signals = {name: np.asarray(value) for name, value in self.signals_fn(state.params).items()}
        line |= {name: [round(float(v), 6) for v in value] if value.ndim else float(value)
                 for name, value in signals.items()}  # fmt: skip
        line["learning_rate"] = float(self.schedule(step - 1))
        config = self.config
        if step == config.steps or (config.evaluate_every and step % config.evaluate_every == 0):
            with self.log.clock.waiting_for("evaluation"):
                line["held_out"] = self._evaluate(state.params)
        self.log.write(step, line, bar)

    def _evaluate(self, params: Any) -> dict[str, dict[str, float]]:
        """Mean losses on each held-out source."""
        results, rows = {}, np.arange(self.config.batch_size)
        for name, batches in self.held_out.items():
            sums = [self.evaluate_fn(params, self._place(batch, rows)) for batch in batches]
            results[name] = per_modality(jax.tree.map(lambda *parts: sum(map(float, parts)), *sums))
        return results


class _Profile:
    """Traces the steps that the config asks for into `<output>/profile`."""

    def __init__(self, config: TrainConfig, start: int):
        self.folder = Path(config.output) / "profile"
        self.first = start + config.profile.start + 1
        self.last = start + config.profile.start + config.profile.steps
        self.running = False

    def after(self, step: int, metrics: Any) -> None:
        if self.last < self.first:
            return
        if step == self.first - 1:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        if step == self.last and self.running:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self.running = False
            console.print(f"Traced steps {self.first:,} to {self.last:,} into {self.folder}.")


def _first_state(
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    target: TrainState,
    is_image_id: np.ndarray,
    initial_params: Callable[[Any], Any] | None,
) -> TrainState:
    if initial_params is None and not config.fresh_image_head:
        return init_state(config, mesh)
    if initial_params is None:
        params = init_state(config, mesh).params
    elif config.model.lora.rank:
        params = join(fresh_adapters(config, mesh), initial_params(split(target.params, config)[1]))
    else:
        params = initial_params(target.params)
    if config.fresh_image_head:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, target.params)
        fresh = lambda params, key: with_fresh_image_head(params, config, is_image_id, key)  # noqa: E731
        params = jax.jit(fresh, out_shardings=shardings)(params, jax.random.key(config.seed))
    return init_state(config, mesh, params)


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """What must be the same in all processes; each has its own number, and may have its own copy of the data."""
    return {name: value for name, value in to_dict(config).items() if name not in ("distributed", "data")}


def _check_folder(folder: Path, target: TrainState) -> None:
    """Says before the first step compiles that a folder cannot be written, or has no room for a checkpoint."""
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{jax.process_index()}"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
        free = shutil.disk_usage(folder).free
    check_shared(folder)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    if is_first() and free < size:
        raise FileError(
            f"{folder}: a checkpoint takes {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; free space or "
            "choose another output folder"
        )
