"""The training loop: batches in, checkpoints and metrics out. A run that is killed at any moment resumes exactly."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from chameleon_jax.config import RunConfig, to_dict
from chameleon_jax.errors import FileError, TrainingError
from chameleon_jax.runtime.cloud import as_path, is_cloud
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.distributed import check_same, check_shared, explain_lost_processes, is_first
from chameleon_jax.runtime.progress import console, progress_bar
from chameleon_jax.runtime.versions import versions
from chameleon_jax.sharding import make_mesh, replicated_arrays
from chameleon_jax.training.best import Best
from chameleon_jax.training.checkpoint import Checkpoints
from chameleon_jax.training.feeding import Batches, HeldOut, batches_from, held_out_batches, local_rows, place
from chameleon_jax.training.log import Log, RowsOfBatch
from chameleon_jax.training.metrics import read_metrics
from chameleon_jax.training.optimizer import make_schedule
from chameleon_jax.training.run_folder import only_trainer
from chameleon_jax.training.samples import Sampler
from chameleon_jax.training.state import TrainState, abstract_state, init_state, model_params
from chameleon_jax.training.step import make_evaluation_step, make_signals, make_train_step
from chameleon_jax.training.stopping import StopRequest
from chameleon_jax.training.task import Batch, Params, Task
from chameleon_jax.training.tracing import StepTrace


def train(
    task: Task,
    batches: Batches,
    *,
    data_fingerprint: str = "",
    held_out: Mapping[str, HeldOut] = MappingProxyType({}),
    initial_params: Callable[[Params], Params] | None = None,
    rows_of_batch: RowsOfBatch | None = None,
    sample: Sampler | None = None,
) -> TrainState:
    """Trains for `config.steps` steps, resuming from the newest checkpoint in `config.output` if there is one.

    Args:
      task: what to train; its config is that of the run.
      batches: one batch per step; see `Batches`.
      data_fingerprint: stored with checkpoints; a run cannot be resumed with other data.
      held_out: evaluation data by name.
      initial_params: returns the initial parameters for a tree of `jax.ShapeDtypeStruct` with shardings, without
        adapters (which start at zero). Called if there is no checkpoint. Default: random initialisation.
      rows_of_batch: see `RowsOfBatch`; used for losses by source and to record the rows of bad steps.
      sample: see `Sampler`; called as often as `config.samples` says.

    Returns:
      The state after the last step, or with `checkpoint.best` after the best step.

    Raises:
      ConfigError: if batch or model do not fit the mesh, or processes were started differently.
      TrainingError: if the loss is not finite, or something computes wrong values on these devices.
      FileError: if the folder holds checkpoints of another run, or cannot be written.
      Stopped: after Ctrl-C or SIGTERM, once everything is saved.
    """
    config = task.config
    with StopRequest() as stop:
        mesh = make_mesh(config.mesh)
        target = _check(task, mesh, data_fingerprint)
        checked = task.checked(mesh)
        with (
            only_trainer(as_path(config.output)),
            Checkpoints(as_path(config.output) / "checkpoints", config.checkpoint) as checkpoints,
            explain_lost_processes(),
        ):
            found = checkpoints.restore(target, config, data_fingerprint)
            if not found:
                found = init_state(task, mesh, task.first_params(mesh, target.params, initial_params)), []
            state, unlogged = found
            start = int(state.step)
            if start == config.steps:
                console.print(f"All {start:,} steps of this run are already done.")
            elif start:
                console.print(f"Resuming from the checkpoint at step {start:,} of {config.steps:,}.")
            stop.check(start, config.steps)
            log = Log(task, start, unlogged, rows_of_batch)
            best = _best_so_far(config, held_out, start)
            steps = _Run(checked, mesh, held_out, sample, log, best, stop)

            def save(state: TrainState) -> None:
                checkpoints.keep_best(best.step)
                checkpoints.save(state, config, data_fingerprint, log.pending())

            with contextlib.closing(log), progress_bar("train", config.steps, start) as bar:
                state = steps.run(state, batches_from(batches, start, steps.rows, config.batch_size), bar, save)
            if best.step is not None:
                state = _best_state(best, state, checkpoints, target)
    return state


def _best_so_far(config: RunConfig, held_out: Collection[str], start: int) -> Best:
    path = as_path(config.output) / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return Best(config.checkpoint, held_out, [line for line in lines if line["step"] <= start])


def _best_state(best: Best, last: TrainState, checkpoints: Checkpoints, target: TrainState) -> TrainState:
    """The state after the best step, or the last state if the checkpoint of that step is gone."""
    state = last if best.step == int(last.step) else checkpoints.load(best.step, target)
    if state is None:
        console.print(f"The checkpoint of the best step, {best.step:,}, is gone; using the last one.", style="bold red")
        return last
    console.print(f"The best {best.name} was {best.value:.4f}, at step {best.step:,}; the model is that of this step.")
    return state


def _check(task: Task, mesh: jax.sharding.Mesh, data_fingerprint: str) -> TrainState:
    """Checks config, mesh and output folder before anything is compiled; returns the abstract state."""
    task.check_mesh(mesh)
    check_same({**_comparable(task.config), "data": data_fingerprint, "versions": versions()})
    target = abstract_state(task, mesh)
    for array in replicated_arrays(target, mesh):
        axes, size = " and ".join(array.axes), array.nbytes / 2**20
        console.print(
            f"{array.name} ({size:,.0f} MiB) is not sharded over {axes}: every device holds all of it.", style="yellow"
        )
    _check_folder(as_path(task.config.output), target)
    return target


class _Run:
    """The compiled functions of a run, and the loop over its steps."""

    def __init__(
        self,
        task: Task,
        mesh: jax.sharding.Mesh,
        held_out: Mapping[str, HeldOut],
        sample: Sampler | None,
        log: Log,
        best: Best,
        stop: StopRequest,
    ):
        self.task, self.config, self.mesh, self.held_out, self.sample = task, task.config, mesh, held_out, sample
        self.log, self.best, self.stop = log, best, stop
        self.step_fn = make_train_step(task, mesh)
        self.evaluate_fn = make_evaluation_step(task, mesh)
        self.signals_fn = make_signals(task, mesh)
        self.schedule = make_schedule(self.config.optimizer, self.config.steps)
        self.rows = local_rows(mesh, self.config.batch_size)

    def run(self, state: TrainState, batches: Iterator[Batch], bar, save: Callable[[TrainState], None]) -> TrainState:
        config = self.config
        start, metrics = int(state.step), None
        if self.best.should_stop:
            self._say_stopped_early(start)
            return state
        with StepTrace(config, start) as profile, self.stop.waiting_for("this step"):
            for step in range(start + 1, config.steps + 1):
                batch = self._next(batches, step - 1, metrics)
                if step == start + 1:
                    with self._waiting_for("startup", "the first step, which is being compiled"):
                        self.task.check_batch(self.mesh, batch)
                        state, metrics = self.step_fn(state, self._place(batch))
                        jax.block_until_ready(metrics)
                else:
                    before = metrics
                    state, metrics = self.step_fn(state, self._place(batch))
                    # At most one step is queued: enough to keep the devices busy.
                    jax.block_until_ready(before)
                self.log.add(metrics, timed=step > start + 1)
                profile.after(step, metrics)
                last, improved = step == config.steps, False
                evaluate = last or (config.evaluate_every and step % config.evaluate_every == 0)
                if step % config.log_every == 0 or evaluate:
                    line = self._write_line(state, step, batch, evaluate, bar)
                    improved = evaluate and self.best.update(step, line["held_out"])
                last = last or self.best.should_stop
                if self.sample and (last or step % config.samples.every == 0):
                    with self._waiting_for("evaluation", "the samples"):
                        self.log.write_samples(step, self.sample(model_params(self.task, state)))
                stopping = self.stop.came(step)  # last, to see requests that came during this step
                if step % config.checkpoint.every == 0 or improved or last or stopping:
                    jax.block_until_ready(metrics)  # so that computing does not count as waiting
                    with self._waiting_for("checkpoint", "the checkpoint that is being written"):
                        save(state)
                if last:
                    break
                if stopping:
                    raise self.stop.stopped(step, config.steps)
        if self.best.should_stop:
            self._say_stopped_early(step)
        return state

    def _say_stopped_early(self, step: int) -> None:
        console.print(
            f"Stopped early at step {step:,}: the last {self.best.evaluations_since} evaluations were no better than "
            f"that of step {self.best.step:,} (checkpoint.patience)."
        )

    @contextlib.contextmanager
    def _waiting_for(self, name: str, words: str) -> Iterator[None]:
        """Counts the time as `name`; if a stop is requested meanwhile, the message says that it waits for `words`."""
        with self.log.clock.waiting_for(name), self.stop.waiting_for(words):
            yield

    def _next(self, batches: Iterator[Batch], number: int, metrics: dict[str, Any] | None) -> Batch:
        """The next batch. The wait only counts as time for data if the devices are idle."""
        began = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            raise TrainingError(f"the data ended after {number} batches; {self.config.steps} steps need as many")
        if metrics is None or metrics["total_loss"].is_ready():
            self.log.clock.add("data", time.monotonic() - began)
        return batch

    def _place(self, batch: Batch) -> Batch:
        return place(batch, self.task.batch_shardings(self.mesh), self.config.batch_size, self.rows)

    def _write_line(self, state: TrainState, step: int, batch: Batch, evaluate: bool, bar) -> dict[str, Any]:
        line = self.log.summary(step, self.task.work(batch))
        signals = {name: np.asarray(value) for name, value in self.signals_fn(state.params).items()}
        line |= {name: [round(float(v), 6) for v in value] if value.ndim else float(value)
                 for name, value in signals.items()}  # fmt: skip
        line["learning_rate"] = float(self.schedule(step - 1))
        if evaluate:
            with self._waiting_for("evaluation", "the losses on held-out rows"):
                line["held_out"] = self._evaluate(model_params(self.task, state))
        self.log.write(step, line, bar)
        return line

    def _evaluate(self, params: Any) -> dict[str, dict[str, float]]:
        """Mean losses on each held-out source."""
        results = {}
        for name, batches in self.held_out.items():
            totals: Counter[str] = Counter()
            for batch in held_out_batches(batches, self.rows, self.config.batch_size):
                # Waiting for each result keeps only one batch at a time on the devices.
                totals.update(jax.tree.map(float, self.evaluate_fn(params, self._place(batch))))
            results[name] = self.task.means(totals)
        return results


def _comparable(config: RunConfig) -> dict[str, Any]:
    """The config without what may differ between processes: their numbers, and the path of their copy of the data."""
    return {name: value for name, value in to_dict(config).items() if name not in ("distributed", "data")}


def _check_folder(folder: Path, target: TrainState) -> None:
    """Raises before the first step is compiled if the folder is not writable or lacks space for a checkpoint."""
    with explain_disk_errors(folder):
        if not is_cloud(folder):
            folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{jax.process_index()}"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
        free = math.inf if is_cloud(folder) else shutil.disk_usage(folder).free
    check_shared(folder)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    if is_first() and free < size:
        raise FileError(
            f"{folder}: a checkpoint takes {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; free space or "
            "choose another output folder"
        )
