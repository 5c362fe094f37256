"""The device mesh, and where every array lives on it. The only file that knows both logical names and mesh axes."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chameleon_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "sequence", "tensor")

RULES = (
    ("batch", ("data", "fsdp")),
    ("length", "sequence"),
    ("layers", None),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
)
"""Logical axis name -> mesh axis. Parameters are cut over fsdp along the model width and over tensor along heads,
feed-forward width and vocabulary; activations over the batch and, for long rows, over their length."""


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """Arranges the devices as data x fsdp x sequence x tensor; one size may be -1 and takes what is left.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.sequence, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(f"mesh = {shape}: must multiply to the {len(devices)} devices at hand")
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a Batch, `[batch, length]`, over data and fsdp, their length over sequence."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def params_shardings(abstract_boxed_params: Any, mesh: Mesh) -> Any:
    """Shardings of a parameter tree, from the logical names that the modules put on it. Axes that the mesh lacks count
    as one device."""
    rules = [(name, axis if axis in mesh.axis_names else None) for name, axis in RULES if isinstance(axis, str | None)]
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract_boxed_params), mesh, rules)


def optimizer_shardings(abstract_opt_state: Any, params_sharding: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer state: moments lie like their parameters, the rest is on every device.

    A moment is known by its path, which ends in the path of its parameter. That also holds for optimizers that treat
    parameters in groups, where each group's state has holes.
    """

    def names(path) -> tuple[str, ...]:
        return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))

    by_path = {names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(params_sharding)}

    def sharding(path, leaf):
        keys = names(path)
        endings = (keys[start:] for start in range(len(keys)))
        found = next((by_path[ending] for ending in endings if ending in by_path), None)
        return found if found is not None and leaf.ndim > 0 else replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, abstract_opt_state)


def logical_rules():
    """Context in which the modules' activation constraints take effect."""
    return nn.logical_axis_rules(RULES)
