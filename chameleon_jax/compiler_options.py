"""Options of XLA that a train step is compiled with, by platform, each with its reason.

Those of TPUs go to `jax.jit(compiler_options=…)`, so that they are part of the program and need no
environment; libtpu 0.0.42 takes every name for TPUs. Those of GPUs must be in the environment before JAX starts.
"""

from __future__ import annotations

from typing import Any

_OVERLAP = {
    # Gathers of the next weights run beside the products with the present ones: what fully sharded training lives from.
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    # One gather may stretch over several products; a layer's weights take longer than any one of them.
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}

_GRADIENTS = {
    # Sums of gradients over copies of the model (the data axis) overlap the backward pass, whatever their sizes.
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}

_BY_KIND = {
    # MaxText's settings: more of the on-chip memory for one fusion, so that large tiles reach the peak.
    "tpu v5": {**_OVERLAP, **_GRADIENTS, "xla_tpu_scoped_vmem_limit_kib": "65536"},
    "tpu v5 lite": {**_OVERLAP, **_GRADIENTS},
    "tpu v6 lite": {
        **_OVERLAP,
        **_GRADIENTS,
        "xla_tpu_scoped_vmem_limit_kib": "98304",
        # Products that are cut into a ring of permutes to overlap are slower here than one gather beside them.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    },
}


def train_step_options(device: Any) -> dict[str, str] | None:
    """What `jax.jit(compiler_options=…)` of a train step takes on such a device; None: XLA's own choice.

    Processors get none. oneDNN's matrix products (`xla_cpu_use_onednn`) are 10 to 15 % faster where they run, but with
    the oneDNN in jaxlib 0.10.2 the demo's train step hung or ended with a segmentation fault on a processor with AVX2.
    """
    return _BY_KIND.get(device.device_kind.lower()) if device.platform == "tpu" else None


_GPU = {
    # Orders operations so that collectives run beside products.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    # Two layers of the scan at a time in the loop's body: gathers of one overlap products of the other.
    "xla_gpu_enable_while_loop_double_buffering": "true",
    # Collectives of one loop turn may start in the turn before.
    "xla_gpu_enable_pipelined_all_gather": "true",
    "xla_gpu_enable_pipelined_reduce_scatter": "true",
    "xla_gpu_enable_pipelined_all_reduce": "true",
    # Weights of a whole layer in one gather, gradients in one scatter: few large ones fill the links.
    "xla_gpu_all_gather_combine_threshold_bytes": str(1 << 30),
    "xla_gpu_reduce_scatter_combine_threshold_bytes": str(1 << 30),
    "xla_gpu_all_reduce_combine_threshold_bytes": str(1 << 30),
}


def gpu_flags() -> str:
    """The value for XLA_FLAGS with which a train step on several GPUs overlaps its collectives.

    Set it before Python starts, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9.
    """
    return " ".join(f"--{name}={value}" for name, value in _GPU.items())
