"""Throughput of a run, and how its time is spent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from chameleon_jax.config import TrainConfig
from chameleon_jax.models.flops import (
    adapter_parameters,
    forward_flops_per_token,
    matmul_parameters,
    train_flops_per_token,
)
from chameleon_jax.runtime.accelerators import find_accelerator

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


def flops_per_token(config: TrainConfig, length: int) -> float:
    """FLOPs per trained token of a row, without gradients of frozen weights, which are not computed.

    With adapters, a frozen matrix takes part in two matmuls (forward, and gradient of its input) instead of three;
    attention and the adapters cost as usual. Training only the output layer takes the forward pass and the gradient of
    all its columns.
    """
    model = config.model
    if config.lora.rank:
        saved = 2 * matmul_parameters(model)
        return train_flops_per_token(model, length) - saved + 6 * adapter_parameters(model, config.lora)
    if config.trainable == "image_head":
        return forward_flops_per_token(model, length) + 2 * model.d_model * model.vocab_size
    return train_flops_per_token(model, length)


def speed(config: TrainConfig, length: int, tokens: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Throughput over some steps.

    Args:
      length: tokens per row.
      tokens: number of tokens over all devices, without those of the first step of a process.
      seconds: the result of `Clock.lap`.

    Returns:
      tokens_per_second, without startup and evaluation; tokens and TFLOP/s per device; MFU (model FLOPs utilization,
      the fraction of the bf16 peak) for known devices; and the seconds.
    """
    elapsed = seconds["compute"] + seconds["data"] + seconds["checkpoint"]
    if not tokens:  # only the first step, whose time includes compilation
        tokens, elapsed = config.batch_size * length, sum(seconds.values())
    rate = tokens / max(elapsed, 1e-9)
    device = jax.devices()[0]
    flops = rate * flops_per_token(config, length) / jax.device_count()
    figures: dict[str, Any] = {
        "tokens_per_second": round(rate, 1),
        "tokens_per_second_per_device": round(rate / jax.device_count(), 1),
        "tflops_per_device": round(flops / 1e12, 4),
    }
    accelerator = find_accelerator(device)
    if accelerator:
        figures["mfu"] = round(flops / accelerator.bf16_flops, 4)
    return {**figures, "seconds": {name: round(value, 4) for name, value in seconds.items()}}
