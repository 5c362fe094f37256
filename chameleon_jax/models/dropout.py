"""Dropout whose random bits each device generates for its own part of the activations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from chameleon_jax.array_types import Array, Bool, Float
from chameleon_jax.models.partitioning import mesh_axes, num_partitions


class Dropout(nn.Module):
    """`nn.Dropout` of `[B, T, d]`; for threefry keys with the same bits.

    For other keys (`rbg`) XLA would generate the bits of the whole array on every device. Here each device generates
    those of its own rows and positions from a key of its own, so the mask depends on how batch and length are
    partitioned.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        if self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return jnp.where(_mask(self.make_rng("dropout"), keep, x.shape), x / keep, jnp.zeros_like(x))


def _mask(key: Array, keep: float, shape: tuple[int, int, int]) -> Bool[Array, "B T d"]:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or jax.random.key_impl(key) == "threefry2x32":
        return jax.random.bernoulli(key, keep, shape)
    batch, length, _ = mesh_axes("batch", "length", None)
    parts = (num_partitions(axes) for axes in (batch, length, ()))
    own_shape = tuple(size // part for size, part in zip(shape, parts, strict=True))

    def on_device(key: Array) -> Array:
        for axis in (*batch, *length):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return jax.random.bernoulli(key, keep, own_shape)

    spec = PartitionSpec(batch, length, None)
    return jax.shard_map(on_device, in_specs=PartitionSpec(), out_specs=spec, check_vma=False)(key)
