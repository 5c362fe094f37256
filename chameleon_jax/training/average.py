"""A moving average of the trained parameters, which often generalises better than the last of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array


class Averaged(NamedTuple):
    """The optimizer's state of a run with `ema`, and the average: float32, cut over devices as the parameters are."""

    optimizer: Any
    average: Any


def begin(trained: Any) -> Any:
    """The average before the first step."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf.astype(jnp.float32)), trained)  # never the parameters themselves


def follow(average: Any, trained: Any, decay: float, step: Array) -> Any:
    """The average after `step` steps, the last of which led to `trained`."""
    step = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, step / (step + 10))
    return jax.tree.map(lambda mean, leaf: mean + rate * (leaf.astype(jnp.float32) - mean), average, trained)
