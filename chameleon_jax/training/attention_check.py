"""A look at the attention kernel of this very machine before it trains: does it compute what it should?"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from chameleon_jax.array_types import Array
from chameleon_jax.config import TransformerConfig
from chameleon_jax.errors import TrainingError
from chameleon_jax.models.attention import Visibility
from chameleon_jax.models.attention_choice import KERNELS, resolved
from chameleon_jax.models.attention_kernels import attend_rows
from chameleon_jax.sharding import AXES, constraints_on, replicated

LENGTH = 512
"""Tokens that each device has of a row."""
TIMES_PLAIN, AT_LEAST = 4.0, 1e-4
"""A kernel may deviate from float32 so many times as far as plain attention in the same dtype does, plus so much."""


def check_attention(config: TransformerConfig, where: Any) -> None:
    """Compares the kernel that `config.attention` means on a mesh (or a device) with plain attention.

    Values and gradients, on a random packed batch of two rows per part of the mesh, in the model's heads, head
    dimension and dtype. Nothing is done for 'xla' and 'blockwise', which are plain.

    Raises:
      ConfigError: if `config.attention` names a backend that cannot run there.
      TrainingError: if the kernel deviates by more than the dtype explains.
    """
    if not isinstance(where, Mesh):
        where = Mesh(np.asarray(where).reshape((1,) * len(AXES)), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    shape = dict(where.shape)
    rows, length = 2 * shape.get("data", 1) * shape.get("fsdp", 1), LENGTH * shape.get("sequence", 1)
    backend = resolved(config, where, length).attention
    if backend not in KERNELS:
        return
    compare = jax.jit(functools.partial(_deviations, config, backend, rows, length), out_shardings=replicated(where))
    with jax.set_mesh(where), constraints_on(where):
        found, plain = map(np.asarray, compare(jax.random.key(0)))
    for name, deviation, usual in zip(("values", "gradient of q", "gradient of k", "gradient of v"), found, plain):  # noqa: B905
        if deviation > TIMES_PLAIN * usual + AT_LEAST:
            raise TrainingError(
                f"attention backend {backend!r} on {where.devices.flat[0].device_kind}: its {name} deviate by "
                f"{deviation:.2g} of their size from plain attention, {config.compute_dtype} explains {usual:.1g}. "
                "With this kernel, documents packed into one row may see each other or wrong tokens be learnt from; "
                "set model.attention = 'blockwise'"
            )


def documents(rows: int, length: int) -> np.ndarray:
    """Segment ids `[rows, length]`: five documents, one of them a single token, and padding.

    The first ends elsewhere in each row, so that they do not lie alike in all.
    """
    segments = []
    for row in range(rows):
        lengths = [length // 2 - 3 * row % (length // 4), 1, length // 8, length // 4, length // 16]
        segments.append(np.repeat([1, 2, 3, 4, 5, 0], [*lengths, length - sum(lengths)]))
    return np.stack(segments).astype(np.int32)


def _deviations(config: TransformerConfig, backend: str, rows: int, length: int, key: Array) -> tuple[Array, Array]:
    """Of the kernel and of plain attention in the same dtype from plain attention in float32: the largest difference
    over the largest value, for values and the gradients of q, k and v."""
    D, slots = config.head_dim, jnp.arange(length)
    segments = nn.with_logical_constraint(jnp.asarray(documents(rows, length)), ("batch", "length"))
    seen = Visibility(slots, slots, segments, segments)

    def random(name: int, heads: int, axes: tuple[str | None, ...]) -> Array:
        x = jax.random.normal(jax.random.fold_in(key, name), (rows, length, heads, D))
        return nn.with_logical_constraint(x.astype(config.compute_dtype), axes)

    queries, keys = ("batch", "length", "heads", None), ("batch", None, "kv_heads", None)
    q, upstream = random(0, config.num_heads, queries), random(1, config.num_heads, queries)
    k, v = random(2, config.num_kv_heads, keys), random(3, config.num_kv_heads, keys)

    def attended(backend: str, dtype: str) -> list[Array]:
        out, gradients = jax.vjp(lambda *qkv: attend_rows(*qkv, seen, backend), *(x.astype(dtype) for x in (q, k, v)))
        return [x.astype(jnp.float32) for x in (out, *gradients(upstream.astype(dtype)))]

    with jax.default_matmul_precision("highest"):
        exact = attended("xla", "float32")

    def deviations(backend: str) -> Array:
        def largest(x, right):  # XLA's maximum on a CPU passes over NaN
            return jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x - right), jnp.inf)) / jnp.max(jnp.abs(right))

        return jnp.stack([largest(*pair) for pair in zip(attended(backend, config.compute_dtype), exact, strict=True)])

    return deviations(backend), deviations("xla")
