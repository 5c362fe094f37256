"""Throughput of a run, and how its time is spent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from chameleon_jax.runtime.accelerators import find_accelerator
from chameleon_jax.training.task import Work

WAITS = ("startup", "data", "checkpoint", "evaluation")
"""Reasons why a run is not computing. 'startup' is the first step of a process, which includes compilation; 'data' only
counts while the devices are idle."""


class Clock:
    """Measures how the time between two lines of metrics is spent."""

    def __init__(self):
        self._since = time.monotonic()
        self._waits = dict.fromkeys(WAITS, 0.0)

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.add(what, time.monotonic() - began)

    def add(self, what: str, seconds: float) -> None:
        self._waits[what] += seconds

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap: 'compute', and each of `WAITS`."""
        now = time.monotonic()
        waits, self._waits = self._waits, dict.fromkeys(WAITS, 0.0)
        total, self._since = now - self._since, now
        return {"compute": max(total - sum(waits.values()), 0.0), **waits}


def speed(work: Work, steps: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Throughput over some steps.

    Args:
      steps: number of steps, without the first one of a process.
      seconds: the result of `Clock.lap`.

    Returns:
      tokens_per_second (or pictures_per_second), without startup and evaluation; the same and TFLOP/s per device; MFU
      (model FLOPs utilization, the fraction of the bf16 peak) for known devices; and the seconds.
    """
    elapsed = seconds["compute"] + seconds["data"] + seconds["checkpoint"]
    if not steps:  # only the first step, whose time includes compilation
        steps, elapsed = 1, sum(seconds.values())
    steps_per_second, devices = steps / max(elapsed, 1e-9), jax.device_count()
    rate, flops = steps_per_second * work.amount, steps_per_second * work.flops / devices
    figures: dict[str, Any] = {
        f"{work.unit}_per_second": round(rate, 1),
        f"{work.unit}_per_second_per_device": round(rate / devices, 1),
        "tflops_per_device": round(flops / 1e12, 4),
    }
    accelerator = find_accelerator(jax.devices()[0])
    if accelerator:
        figures["mfu"] = round(flops / accelerator.bf16_flops, 4)
    return {**figures, "seconds": {name: round(value, 4) for name, value in seconds.items()}}
