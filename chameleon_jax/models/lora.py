"""Low-rank adapters (LoRA, Hu et al. 2021): two thin matrices that learn what to add to a frozen matrix W.

An adapter of matrix `q` is the leaves `q_lora_a` and `q_lora_b` beside it. Legend: L layers, r rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array
from chameleon_jax.config import LoRAConfig

A, B = "_lora_a", "_lora_b"


class Adapter(NamedTuple):
    """a `[*inputs, r]`, b `[r, *outputs]`, float32, and the factor alpha / r."""

    a: Array
    b: Array
    scale: float


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.endswith((A, B))


def add_adapter(y: Array, x: Array, adapter: Adapter | None) -> Array:
    """y + scale * (x a) b, in the dtype of y, for `x` `[..., *inputs]` and y = W x `[..., *outputs]`."""
    if adapter is None:
        return y
    inputs = adapter.a.ndim - 1
    low = jnp.tensordot(x, adapter.a.astype(x.dtype), inputs)
    return y + jnp.tensordot(low, adapter.b.astype(x.dtype), 1) * adapter.scale


def merge(params: dict[str, Any], config: LoRAConfig) -> dict[str, Any]:
    """The parameters of a plain model, with every adapter added to its matrix."""
    merged = {}
    for name, child in params.items():
        if isinstance(child, dict):
            merged[name] = merge(child, config)
        elif not is_adapter(name):
            if name + A in params:
                # The leading axis of all of them counts layers.
                product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(params[name + A], params[name + B])
                child = (child + product * (config.alpha / config.rank)).astype(child.dtype)
            merged[name] = child
    return merged
