"""The device mesh, and the sharding of every array on it. The only file that knows both logical and mesh axes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chameleon_jax.config import ConfigError, MeshConfig, RunConfig, TrainConfig, require

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
"""Logical axis name -> mesh axis. Parameters are sharded over fsdp along the model width and over tensor along heads,
feed-forward width and vocabulary; activations along the batch and, for long rows, along their length."""


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """Arranges the devices as data x fsdp x sequence x tensor; one size may be -1, for the remaining devices.

    On TPUs the axes follow the links between chips. The data axis runs across slices, which are only connected by the
    data centre's network, so each slice holds whole copies of the model.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices, or data is not a multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.sequence, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(f"mesh = {shape}: must multiply to the {len(devices)} devices at hand")
    return Mesh(_arrange(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(sizes: list[int], devices: list[Any]) -> np.ndarray:
    """The devices as an array of `sizes`, with neighbours along the inner axes close to each other."""
    if devices[0].platform != "tpu":
        # In the order of their processes: neighbours are in the same machine, as tensor parallelism needs.
        return np.asarray(devices).reshape(sizes)
    # Devices of a topology description have a slice_index only if there are several slices.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, *within = sizes
    require(data % slices == 0, "mesh.data", data, f"must be a multiple of the {slices} slices, which it runs across")
    return mesh_utils.create_hybrid_device_mesh(
        [data // slices, *within], [slices, 1, 1, 1], devices, allow_split_physical_axes=True
    )


def check_length(config: TrainConfig, mesh: Mesh, length: int) -> None:
    """Raises `ConfigError` unless the first batch's rows of `length` tokens match the config and divide evenly."""
    require(
        config.sequence_length in (None, length),
        "sequence_length",
        config.sequence_length,
        f"the rows of the data have {length} tokens",
    )
    for key, parts in (("mesh.sequence", mesh.shape["sequence"]), ("loss_chunk", config.loss_chunk or 1)):
        require(length % parts == 0, key, parts, f"must divide the length of the rows, {length}")


def check_rows(config: RunConfig, mesh: Mesh) -> None:
    """Raises `ConfigError` unless the rows of a batch divide evenly."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation
    require(
        config.batch_size % parts == 0,
        "batch_size",
        config.batch_size,
        f"must be a multiple of {parts}, data x fsdp x accumulation",
    )


def check_mesh(config: TrainConfig, mesh: Mesh) -> None:
    """Raises `ConfigError`, naming the config's key, unless every sharded array divides evenly."""
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    check_rows(config, mesh)
    for name in ("num_heads", "num_kv_heads", "mlp_dim", "vocab_size"):
        size = getattr(config.model, name)
        require(size % tensor == 0, f"model.{name}", size, f"must be a multiple of mesh.tensor = {tensor}")
    require(
        config.model.d_model % fsdp == 0, "model.d_model", config.model.d_model, f"must be a multiple of fsdp = {fsdp}"
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a Batch, `[batch, length]`, over data and fsdp, their length over sequence."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))


def picture_sharding(mesh: Mesh) -> NamedSharding:
    """Of pictures, `[batch, height, width, 3]`, and of one number each: over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def params_shardings(abstract_boxed_params: Any, mesh: Mesh) -> Any:
    """Shardings of a parameter tree from the modules' logical axis names. Axes that the mesh lacks are not sharded."""
    rules = [(name, axis if axis in mesh.axis_names else None) for name, axis in RULES if isinstance(axis, str | None)]
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract_boxed_params), mesh, rules)


def shardings_by_shape(tree: Any, mesh: Mesh) -> Any:
    """Shardings of arrays without logical axes: the last axis over fsdp where it divides evenly. Vectors are
    replicated."""

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if leaf.ndim < 2 or leaf.shape[-1] % mesh.shape["fsdp"]:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "fsdp"))

    return jax.tree.map(sharding, tree)


def optimizer_shardings(abstract_opt_state: Any, params_sharding: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer state: moments are sharded like their parameters, the rest is replicated.

    The path of a moment ends in the path of its parameter, even in optimizers that partition the parameters into
    groups, whose states each lack the others' leaves.
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


class ReplicatedArray(NamedTuple):
    """An array that is not sharded over a mesh axis over which it could be."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    """Of the whole array."""
    axes: tuple[str, ...]
    """Mesh axes over which it is not sharded."""


def replicated_arrays(tree: Any, mesh: Mesh, threshold: int = 1 << 20) -> list[ReplicatedArray]:
    """Arrays of more than `threshold` bytes that are not sharded over fsdp or tensor, largest first.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s, on `mesh`.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        nbytes = math.prod(leaf.shape) * leaf.dtype.itemsize
        cut = {axis for part in leaf.sharding.spec for axis in (part if isinstance(part, tuple) else (part,))}
        axes = tuple(axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1 and axis not in cut)
        if axes and nbytes > threshold:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found.append(ReplicatedArray(name, tuple(leaf.shape), nbytes, axes))
    return sorted(found, key=lambda array: -array.nbytes)


@contextlib.contextmanager
def constraints_on(mesh: Mesh) -> Iterator[None]:
    """A context, also within `jax.jit`, in which modules constrain activations to `mesh`, whatever mesh is set."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
        yield
