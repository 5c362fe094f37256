"""Logging of a run: lines of metrics, the progress bar, and a record of bad steps."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chameleon_jax.errors import TrainingError
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.distributed import is_first
from chameleon_jax.runtime.progress import Bar, console
from chameleon_jax.training.clock import Clock, speed
from chameleon_jax.training.metrics import MetricsFile, append_line, read_metrics
from chameleon_jax.training.samples import Sample, write_samples
from chameleon_jax.training.task import Task, Work
from chameleon_jax.training.trackers import flat, open_trackers

RowsOfBatch = Callable[[int], Sequence[tuple[str, int]]]
"""Maps the number of a batch, from 0, to the source and the number of each of its rows, in order."""


class Log:
    """Collects the metrics of steps and writes them line by line. Only the first process writes.

    Attributes:
      unlogged: metrics of the steps since the last line; some may still be on the devices.
      clock: measures how the time is spent.
    """

    def __init__(self, task: Task, start: int, unlogged: list[dict[str, float]], rows_of: RowsOfBatch | None):
        config = task.config
        self.task, self.config, self.rows_of = task, config, rows_of
        self.folder = as_path(config.output)
        self.unlogged: list[dict[str, Any]] = list(unlogged)
        self._step = start
        self.clock = Clock()
        self._timed_steps = 0
        self._bad_in_a_row = 0
        self._trackers = open_trackers(config) if is_first() else []
        self._file = MetricsFile(self.folder / "metrics.jsonl", start) if is_first() else None
        lines = read_metrics(self._file.path) if self._file else []
        self._computed = sum(line.get("speed", {}).get("seconds", {}).get("compute", 0.0) for line in lines)
        self._began = self._note_session(start) if is_first() else time.time()

    def _note_session(self, start: int) -> float:
        """Adds this process to sessions.jsonl; returns the start time of the first one (Unix time)."""
        path = self.folder / "sessions.jsonl"
        sessions = read_metrics(path) if path.exists() else []
        append_line(path, {"time": time.time(), "step": start})
        times = [session.get("time") for session in sessions]
        return min([time.time(), *(began for began in times if isinstance(began, float))])

    def add(self, metrics: dict[str, Any], timed: bool) -> None:
        """Adds the metrics of a step; `timed` says whether it counts for the throughput."""
        self.unlogged.append(metrics)
        self._step += 1
        self._timed_steps += timed

    def pending(self) -> list[dict[str, float]]:
        """`unlogged` as Python floats, with per-row metrics summed by source."""
        first = self._step - len(self.unlogged) + 1
        self.unlogged = [self._plain(step, each) for step, each in enumerate(self.unlogged, start=first)]
        return self.unlogged

    def _plain(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        rows = {name: metrics[name] for name in ("row_loss_sum", "row_weight_sum") if name in metrics}
        plain = {name: float(value) for name, value in metrics.items() if name not in rows}
        if rows and self.rows_of and is_first():
            for (source, _), *values in zip(self.rows_of(step - 1), *map(np.asarray, rows.values()), strict=True):
                for name, value in zip(rows, values, strict=True):
                    key = f"{name} of {source}"
                    plain[key] = plain.get(key, 0.0) + float(value)
        return plain

    def summary(self, step: int, work: Work) -> dict[str, Any]:
        """The line of metrics for the steps since the last line. All processes compute it, so that they stop together.

        Raises:
          TrainingError: for a bad step, or too many of them in a row, depending on `config.bad_steps`.
        """
        pending = self.pending()
        good = [each for each in pending if not each["bad"]]
        self._record_bad_steps(pending, step - len(pending) + 1)
        self.unlogged = []
        line: dict[str, Any] = {}
        if good:
            line |= self.task.summary(good)
            line |= _per_source(good)
            norms = [each["gradient_norm"] for each in good]
            line |= {"gradient_norm": sum(norms) / len(norms), "max_gradient_norm": max(norms)}
        if len(good) < len(pending):
            line["bad_steps"] = len(pending) - len(good)
        seconds = self.clock.lap()
        steps, self._timed_steps = self._timed_steps, 0
        self._computed += seconds["compute"]
        goodput = self._computed / max(time.time() - self._began, 1e-9)
        line["speed"] = {**speed(work, steps, seconds), "goodput": round(min(goodput, 1.0), 4)}
        return line

    def write(self, step: int, line: dict[str, Any], bar: Bar) -> None:
        figures = self.task.progress(line) if "loss" in line else {}
        unit, rate = next((name, rate) for name, rate in line["speed"].items() if name.endswith("_per_second"))
        figures[f"{unit.removesuffix('_per_second')}/s"] = f"{rate:,.0f}"
        if "mfu" in line["speed"]:
            figures["MFU"] = f"{line['speed']['mfu']:.1%}"
        bar.update(step, **figures)
        if self._file:
            self._file.write(step, **line)
        for tracker in self._trackers:
            tracker.write(step, dict(flat(line)))

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Writes samples to files and trackers."""
        if not is_first():
            return
        folder = write_samples(self.folder / "samples", step, samples)
        console.print(f"Samples of step {step:,}: {folder}")
        for tracker in self._trackers:
            tracker.write_samples(step, samples)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()

    def _record_bad_steps(self, pending: list[dict[str, float]], first: int) -> None:
        """Records steps that were skipped because their loss or gradient was not finite or too large."""
        for step, each in enumerate(pending, start=first):
            if not each["bad"]:
                self._bad_in_a_row = 0
                continue
            self._bad_in_a_row += 1
            record = {
                "step": step,
                **{name: _number(each[key]) for name, key in (("loss", "total_loss"), ("gradient_norm",) * 2)},
                "rows": _by_source(self.rows_of(step - 1)) if self.rows_of else None,
            }
            path = self.folder / "bad_steps.jsonl"
            if is_first():
                append_line(path, record)
            what = f"step {step}: loss {each['total_loss']:.4g}, gradient norm {each['gradient_norm']:.4g}"
            bad = self.config.bad_steps
            if bad.action == "stop":
                raise TrainingError(
                    f"{what}: the loss or its gradient is no longer a number, or too large. Its rows are listed in "
                    f"{path} (see them with `chameleon show`). The last checkpoint is kept; lower "
                    "optimizer.learning_rate or raise optimizer.warmup_steps, or continue without such steps: "
                    "--bad_steps.action skip"
                )
            if self._bad_in_a_row >= bad.limit:
                raise TrainingError(
                    f"{what}: bad step number {self._bad_in_a_row} in a row (bad_steps.limit). The last checkpoint is "
                    f"kept; the rows are listed in {path}"
                )
            console.print(f"{what}: skipped, listed in {path}", style="bold red")


def _per_source(steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Losses of the sources in these steps: {"sources": {"digits": {"loss": 2.5}}}."""
    totals: Counter[str] = Counter()
    for step in steps:
        totals.update({name: value for name, value in step.items() if name.startswith("row_")})
    weights = {
        name.partition(" of ")[2]: value for name, value in totals.items() if name.startswith("row_weight_sum of ")
    }
    losses = {
        source: {"loss": totals[f"row_loss_sum of {source}"] / weight}
        for source, weight in sorted(weights.items())
        if weight > 0
    }
    return {"sources": losses} if losses else {}


def _by_source(rows: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Groups [("a", 3), ("b", 1), ("a", 4)] as [{"source": "a", "rows": [3, 4]}, {"source": "b", "rows": [1]}]."""
    grouped: dict[str, list[int]] = {}
    for name, row in rows:
        grouped.setdefault(name, []).append(row)
    return [{"source": name, "rows": numbers} for name, numbers in grouped.items()]


def _number(value: float) -> float | str:
    """Infinity and NaN as strings, as JSON has neither."""
    return value if math.isfinite(value) else str(value)
