"""How the current mesh partitions an activation, by flax's logical axis rules."""

from __future__ import annotations

import math

import flax.linen as nn
import jax


def mesh_axes(*names: str | None) -> tuple[tuple[str, ...], ...]:
    """Axes of the current mesh over which the logical rules partition each axis of an array."""
    mesh = jax.sharding.get_abstract_mesh()

    def present(axes):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        return tuple(axis for axis in axes if axis in mesh.axis_names)

    return tuple(map(present, nn.logical_to_mesh_axes(names)))


def num_partitions(axes: tuple[str, ...]) -> int:
    """Over how many devices these axes of the current mesh partition an axis of an array."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes)
