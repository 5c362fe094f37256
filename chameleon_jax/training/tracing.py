"""Profiler traces of some steps, for TensorBoard's profile page, XProf or Perfetto."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.config import RunConfig
from chameleon_jax.runtime.cloud import as_path, is_cloud, upload
from chameleon_jax.runtime.progress import console


class StepTrace:
    """Context manager that traces the steps of `config.profile` into `<output>/profile`."""

    def __init__(self, config: RunConfig, start: int):
        self.folder = as_path(config.output) / "profile"
        self.first = start + config.profile.start + 1
        self.last = min(start + config.profile.start + config.profile.steps, config.steps)
        self.asked = config.profile.steps > 0
        self.step = start  # the last completed step
        self.running = False

    def __enter__(self) -> StepTrace:
        if self.asked and self.first > self.last:
            console.print(
                f"Nothing will be traced: the run ends before step {self.first:,} (profile.start).", style="yellow"
            )
        self.after(self.step, ())
        return self

    def after(self, step: int, metrics: Any) -> None:
        """Starts or stops the trace after `step`, whose results are `metrics`."""
        self.step = step
        if self.asked and step == self.first - 1 < self.last:
            jax.block_until_ready(metrics)
            self.local = tempfile.mkdtemp(prefix="chameleon-") if is_cloud(self.folder) else str(self.folder)
            jax.profiler.start_trace(self.local)
            self.running = True
        if step == self.last:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            if is_cloud(self.folder):
                upload(Path(self.local), self.folder)
                shutil.rmtree(self.local)
            console.print(f"Traced steps {self.first:,} to {self.step:,} into {self.folder}.")

    def __exit__(self, *exception) -> None:
        self._stop()  # if the run ended before the last step to trace
