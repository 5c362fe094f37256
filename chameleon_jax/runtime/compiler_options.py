"""The XLA options with which train and evaluation steps are compiled, each with its reason.

They are passed to `jax.jit(compiler_options=…)`, so no environment variables are needed. The config key
`compiler_options: none` omits them; XLA_FLAGS and LIBTPU_INIT_ARGS still apply to all other options.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chameleon_jax.runtime.progress import console


class Option(NamedTuple):
    name: str
    value: bool | int | str
    devices: tuple[str, ...]
    """Platforms and kinds of devices, in lower case."""
    reason: str


_TPU = ("tpu v5", "tpu v5 lite", "tpu v6 lite")  # v5p, v5e, v6e

OPTIONS = (
    Option(
        "xla_tpu_enable_async_collective_fusion", True, _TPU,
        "Gathers of the next weights overlap the matmuls with the current ones, as fully sharded training needs.",
    ),
    Option("xla_tpu_enable_async_collective_fusion_fuse_all_gather", True, _TPU, "The same for all-gathers."),
    Option(
        "xla_tpu_enable_async_collective_fusion_multiple_steps", True, _TPU,
        "One gather may overlap several matmuls, as a layer's weights take longer than any one of them.",
    ),
    Option("xla_tpu_overlap_compute_collective_tc", True, _TPU, "Collectives of the TensorCore overlap its matmuls."),
    Option("xla_enable_async_all_gather", True, _TPU, "All-gathers are split into start and done, with work between."),
    Option(
        "xla_tpu_enable_data_parallel_all_reduce_opt", True, _TPU,
        "Sums of gradients over copies of the model (the data axis) overlap the backward pass.",
    ),
    Option("xla_tpu_data_parallel_opt_different_sized_ops", True, _TPU, "The same, whatever their sizes."),
    Option(
        "xla_tpu_scoped_vmem_limit_kib", 65536, ("tpu v5",),
        "More on-chip memory per fusion, so that large tiles reach the peak (MaxText's setting).",
    ),
    Option("xla_tpu_scoped_vmem_limit_kib", 98304, ("tpu v6 lite",), "The same; this chip has more of it."),
    Option(
        "xla_jf_spmd_threshold_for_windowed_einsum_mib", 1_000_000, ("tpu v6 lite",),
        "Matmuls decomposed into a ring of permutes are slower on this chip than one overlapped gather.",
    ),
    Option(
        "xla_gpu_enable_latency_hiding_scheduler", True, ("gpu",),
        "Orders operations so that collectives overlap matmuls.",
    ),
    Option(
        "xla_gpu_enable_while_loop_double_buffering", True, ("gpu",),
        "Unrolls the scan by two layers, so that gathers of one overlap matmuls of the other.",
    ),
    Option(
        "xla_gpu_enable_pipelined_all_gather", True, ("gpu",),
        "Collectives of a loop iteration may start in the previous one.",
    ),
    Option("xla_gpu_enable_pipelined_reduce_scatter", True, ("gpu",), "The same for reduce-scatters."),
    Option("xla_gpu_enable_pipelined_all_reduce", True, ("gpu",), "The same for all-reduces."),
    Option(
        "xla_gpu_all_gather_combine_threshold_bytes", 1 << 30, ("gpu",),
        "One gather for the weights of a whole layer: few large transfers use the links best.",
    ),
    Option("xla_gpu_reduce_scatter_combine_threshold_bytes", 1 << 30, ("gpu",), "One scatter for a layer's gradients."),
    Option("xla_gpu_all_reduce_combine_threshold_bytes", 1 << 30, ("gpu",), "One all-reduce for a layer's gradients."),
    Option(
        "xla_disable_hlo_passes", "cse_barrier_expander", ("cpu",),
        "This pass removes the barriers of `jax.checkpoint` before common subexpressions are eliminated, which then "
        "keeps in memory what remat should recompute. oneDNN's matmuls (xla_cpu_use_onednn) are not enabled: they are "
        "10 to 15 % faster, but the demo's train step hung or crashed with them (jaxlib 0.10.2, AVX2).",
    ),
)  # fmt: skip

LARGE_MAP = 128
CONVOLUTIONS = Option(
    "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_DOT", ("cpu",),
    f"Convolutions by Eigen and not by YNNPACK, which over maps of {LARGE_MAP} positions a side takes three to nine "
    "times as long for the gradient of a kernel, though a tenth to a third less over those below 64 (jaxlib 0.10.2). "
    "Matrix products stay with YNNPACK.",
)  # fmt: skip


def convolution_options(device: Any, largest_map: int) -> dict[str, bool | int | str]:
    """The `compiler_options` for `jax.jit` of programs of convolutions: `CONVOLUTIONS`, if the compiler knows it.

    Args:
      largest_map: positions a side of the largest map that is convolved.
    """
    wanted = device.platform in CONVOLUTIONS.devices and largest_map >= LARGE_MAP
    return dict(_accepted(device, ((CONVOLUTIONS.name, CONVOLUTIONS.value),) if wanted else ()))


def compiler_options(
    mesh: Mesh,
    choice: Literal["auto", "none"] = "auto",
    *,
    remat_outside_loop: bool = True,
    largest_map: int = 0,
) -> dict[str, bool | int | str]:
    """The `compiler_options` for `jax.jit` of a step on `mesh`: those of `OPTIONS` that the compiler knows.

    The options for GPUs hide communication, so a single GPU gets none. On CPUs the barriers of remat cost a tenth of
    the demo's speed, and are omitted where a loop makes them unnecessary (`ExecutionConfig.remat_outside_loop`).

    Args:
      largest_map: adds `convolution_options`, for a step of convolutions.
    """
    device = _local_device(mesh)
    if choice == "none" or (device.platform == "gpu" and mesh.size == 1):
        return {}
    options = dict(_accepted(device, tuple(options_for(device).items())))
    if device.platform == "cpu" and not remat_outside_loop:
        options.pop("xla_disable_hlo_passes", None)
    return options | convolution_options(device, largest_map)


def _local_device(mesh: Mesh) -> Any:
    """A device of the mesh that belongs to this process, if there is one."""
    devices = list(mesh.devices.flat)
    return next((device for device in devices if device.process_index == jax.process_index()), devices[0])


def options_for(device: Any) -> dict[str, bool | int | str]:
    """The entries of `OPTIONS` for a device, by name."""
    kinds = {device.platform, device.device_kind.lower()}
    options = {each.name: each.value for each in OPTIONS if kinds & set(each.devices)}
    if device.platform == "tpu":  # libtpu only accepts strings
        options = {name: str(value).lower() for name, value in options.items()}
    return options


@functools.cache
def _accepted(
    device: Any, options: tuple[tuple[str, bool | int | str], ...]
) -> tuple[tuple[str, bool | int | str], ...]:
    """Those of `options` that the device's compiler accepts, as names change between versions."""
    if not options or _refusal(device, dict(options)) is None:
        return options
    accepted = []
    for name, value in options:
        reason = _refusal(device, {name: value})
        if reason is None:
            accepted.append((name, value))
        else:
            console.print(f"compiler option {name} is left out: {reason}", markup=False)
    return tuple(accepted)


def _refusal(device: Any, options: dict[str, bool | int | str]) -> str | None:
    """Why a small program cannot be compiled with these options; None if it can."""
    mesh = Mesh(np.asarray([device]), ("data",), axis_types=(AxisType.Auto,))
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    platform = "cuda" if device.platform == "gpu" else device.platform
    with jax.set_mesh(mesh):  # whatever mesh is set outside
        lowered = jax.jit(jnp.negative).trace(number).lower(lowering_platforms=(platform,))
    try:
        lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0][:200]
    return None
