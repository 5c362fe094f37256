"""Peak figures of accelerators by JAX's device kind, for MFU, rooflines and memory estimates.

The figures are the vendors': dense bf16 matmul throughput, memory, memory bandwidth, and the one-way bandwidth from a
device to its neighbours over all links (TPU: links of the torus; NVIDIA: NVLink within a node).
"""

from __future__ import annotations

from typing import Any, NamedTuple

GIB = 1 << 30


class Accelerator(NamedTuple):
    """One JAX device (a TPU v4 or v5p chip is one device, a TPU7x chip is two)."""

    name: str
    bf16_flops: float
    """FLOP/s."""
    memory: float
    """Bytes."""
    memory_bandwidth: float
    """Bytes/s."""
    interconnect_bandwidth: float
    """Bytes/s."""


_KINDS = (
    # The first entry with a pattern that occurs in the device kind is used.
    (("tpu v4",), Accelerator("TPU v4", 275e12, 32 * GIB, 1.23e12, 6 * 45e9)),
    (("tpu v5 lite", "tpu v5e"), Accelerator("TPU v5e", 197e12, 16 * GIB, 0.82e12, 4 * 45e9)),
    (("tpu v5",), Accelerator("TPU v5p", 459e12, 95 * GIB, 2.77e12, 6 * 90e9)),
    (("tpu v6",), Accelerator("TPU v6e", 918e12, 32 * GIB, 1.64e12, 4 * 90e9)),
    (("tpu7x", "tpu v7"), Accelerator("TPU7x", 1154e12, 96 * GIB, 3.69e12, 6 * 100e9)),
    (("b200",), Accelerator("NVIDIA B200", 2250e12, 180 * GIB, 8.0e12, 900e9)),
    (("h200",), Accelerator("NVIDIA H200", 989e12, 141e9, 4.8e12, 450e9)),
    (("h100",), Accelerator("NVIDIA H100", 989e12, 80 * GIB, 3.35e12, 450e9)),
    (("a100-sxm4-80gb", "a100 80gb"), Accelerator("NVIDIA A100 80GB", 312e12, 80 * GIB, 2.04e12, 300e9)),
    (("a100",), Accelerator("NVIDIA A100 40GB", 312e12, 40 * GIB, 1.56e12, 300e9)),
    (("l4",), Accelerator("NVIDIA L4", 121e12, 24e9, 0.3e12, 32e9)),
)


def find_accelerator(device: Any) -> Accelerator | None:
    """The figures of a `jax.Device`; None for CPUs and for devices that are not listed."""
    if device.platform == "cpu":
        return None
    kind = device.device_kind.lower()
    return next((figures for patterns, figures in _KINDS if any(pattern in kind for pattern in patterns)), None)
