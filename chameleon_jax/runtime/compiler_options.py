"""Options of XLA that train and evaluation steps are compiled with: one table, each entry with its reason.

They go to `jax.jit(compiler_options=…)`, so that they are part of the program and need no environment. The config key
`compiler_options: none` leaves them out; XLA_FLAGS and LIBTPU_INIT_ARGS still say what they do not.
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
        "Gathers of the next weights run beside the products with the present ones: what fully sharded training needs.",
    ),
    Option("xla_tpu_enable_async_collective_fusion_fuse_all_gather", True, _TPU, "The same for all-gathers."),
    Option(
        "xla_tpu_enable_async_collective_fusion_multiple_steps", True, _TPU,
        "One gather may stretch over several products; a layer's weights take longer than any one of them.",
    ),
    Option("xla_tpu_overlap_compute_collective_tc", True, _TPU, "Collectives of the TensorCore overlap its products."),
    Option("xla_enable_async_all_gather", True, _TPU, "All-gathers have a start and an end, with work between."),
    Option(
        "xla_tpu_enable_data_parallel_all_reduce_opt", True, _TPU,
        "Sums of gradients over copies of the model (the data axis) overlap the backward pass.",
    ),
    Option("xla_tpu_data_parallel_opt_different_sized_ops", True, _TPU, "The same, whatever their sizes."),
    Option(
        "xla_tpu_scoped_vmem_limit_kib", 65536, ("tpu v5",),
        "More of the on-chip memory for one fusion, so that large tiles reach the peak (MaxText's setting).",
    ),
    Option("xla_tpu_scoped_vmem_limit_kib", 98304, ("tpu v6 lite",), "The same; this chip has more of it."),
    Option(
        "xla_jf_spmd_threshold_for_windowed_einsum_mib", 1_000_000, ("tpu v6 lite",),
        "Products that are cut into a ring of permutes to overlap are slower here than one gather beside them.",
    ),
    Option(
        "xla_gpu_enable_latency_hiding_scheduler", True, ("gpu",),
        "Orders operations so that collectives run beside products.",
    ),
    Option(
        "xla_gpu_enable_while_loop_double_buffering", True, ("gpu",),
        "Two layers of the scan at a time in the loop's body: gathers of one overlap products of the other.",
    ),
    Option(
        "xla_gpu_enable_pipelined_all_gather", True, ("gpu",),
        "Collectives of one loop iteration may start in the one before.",
    ),
    Option("xla_gpu_enable_pipelined_reduce_scatter", True, ("gpu",), "The same for reduce-scatters."),
    Option("xla_gpu_enable_pipelined_all_reduce", True, ("gpu",), "The same for all-reduces."),
    Option(
        "xla_gpu_all_gather_combine_threshold_bytes", 1 << 30, ("gpu",),
        "Weights of a whole layer in one gather: few large ones fill the links.",
    ),
    Option("xla_gpu_reduce_scatter_combine_threshold_bytes", 1 << 30, ("gpu",), "Gradients of a layer in one scatter."),
    Option("xla_gpu_all_reduce_combine_threshold_bytes", 1 << 30, ("gpu",), "Gradients of a layer in one sum."),
    Option(
        "xla_disable_hlo_passes", "cse_barrier_expander", ("cpu",),
        "This pass takes away the barriers of `jax.checkpoint` before common subexpressions are merged, which then "
        "keeps all that remat is to compute again. oneDNN's products (xla_cpu_use_onednn) are left out: 10 to 15 % "
        "faster where they run, but the train step of the demo hung or crashed with them (jaxlib 0.10.2, AVX2).",
    ),
)  # fmt: skip


def compiler_options(
    mesh: Mesh, choice: Literal["auto", "none"] = "auto", *, remat_outside_loop: bool = True
) -> dict[str, bool | int | str]:
    """What `jax.jit(compiler_options=…)` of a step on `mesh` takes; of `OPTIONS`, those that this compiler knows.

    The options of GPUs hide communication, so a single one has none. On processors, barriers cost a tenth of the demo's
    speed, and are left out where a loop makes them unnecessary (`ExecutionConfig.remat_outside_loop`).
    """
    device = _own_device(mesh)
    if choice == "none" or (device.platform == "gpu" and mesh.size == 1):
        return {}
    options = dict(_known(device))
    if device.platform == "cpu" and not remat_outside_loop:
        options.pop("xla_disable_hlo_passes", None)
    return options


def _own_device(mesh: Mesh) -> Any:
    """A device of the mesh that this process can compile for."""
    devices = list(mesh.devices.flat)
    return next((device for device in devices if device.process_index == jax.process_index()), devices[0])


@functools.cache
def _known(device: Any) -> tuple[tuple[str, bool | int | str], ...]:
    """Names and values for such a device, without those that its compiler refuses: names come and go."""
    kinds = (device.platform, device.device_kind.lower())
    options = {each.name: each.value for each in OPTIONS if set(kinds) & set(each.devices)}
    if device.platform == "tpu":  # libtpu takes strings only
        options = {name: str(value).lower() for name, value in options.items()}
    if _refusal(device, options) is None:
        return tuple(options.items())
    known = {}
    for name, value in options.items():
        reason = _refusal(device, {name: value})
        if reason is None:
            known[name] = value
        else:
            console.print(f"compiler option {name} is left out: {reason}", markup=False)
    return tuple(known.items())


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
