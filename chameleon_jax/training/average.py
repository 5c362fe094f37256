"""An exponential moving average of the trained parameters, which often generalises better than their last values."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array


class Averaged(NamedTuple):
    """Optimizer state of a run with `ema`, and the average: float32, sharded like the parameters."""

    optimizer: Any
    average: Any


def init_average(trained: Any) -> Any:
    """The average before the first step."""
    return jax.tree.map(
        lambda leaf: jnp.copy(leaf.astype(jnp.float32)), trained
    )  # a copy, as the step donates its state


def update_average(average: Any, trained: Any, decay: float, step: Array) -> Any:
    """The average after step `step`, whose result is `trained`; at step n the decay is at most n / (n + 10)."""
    step = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, step / (step + 10))
    return jax.tree.map(lambda mean, leaf: mean + rate * (leaf.astype(jnp.float32) - mean), average, trained)
