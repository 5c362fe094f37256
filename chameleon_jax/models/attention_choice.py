"""Which attention backend runs where: 'auto' made definite, and refusals that say what to use instead."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from chameleon_jax.config import ConfigError, TransformerConfig
from chameleon_jax.models.attention_kernels import LANES

KERNELS = ("splash", "cudnn")
"""Backends that are kernels of their own, on the hardware they are made for."""
SHORT = 1024
"""Rows up to this length keep all their scores; longer ones are computed blockwise."""
CUDNN_VERSION = 90600
"""The first release of cuDNN that takes several documents per row."""


def plain_attention(length: int) -> str:
    """The backend of 'auto' where no kernel fits."""
    return "xla" if length <= SHORT else "blockwise"


def choose_attention(config: TransformerConfig, device: Any, length: int, sequence: int = 1) -> str:
    """The backend that `config.attention` means for whole rows of that length.

    Args:
      device: one of those that compute, a `jax.Device` (or of a topology that is only compiled for).
      sequence: over how many devices a row is cut.

    Raises:
      ConfigError: if `config.attention` names a backend that cannot run there.
    """
    if config.attention == "auto":
        natural = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform)
        if natural and _obstacle(natural, config, device, length, sequence) is None:
            return natural
        return plain_attention(length)
    if config.attention in KERNELS:
        obstacle = _obstacle(config.attention, config, device, length, sequence)
        if obstacle is not None:
            raise ConfigError(
                f"model.attention = {config.attention!r}: {obstacle}; use 'auto' or {plain_attention(length)!r}"
            )
    return config.attention


def resolved(config: TransformerConfig, where: Any, length: int) -> TransformerConfig:
    """`config` with the backend that `choose_attention` names for a mesh (its axis "sequence" cuts rows) or a device.

    Raises:
      ConfigError: if `config.attention` names a backend that cannot run there.
    """
    device, sequence = where, 1
    if isinstance(where, jax.sharding.Mesh):
        device, sequence = where.devices.flat[0], where.shape.get("sequence", 1)
    return dataclasses.replace(config, attention=choose_attention(config, device, length, sequence))


def _obstacle(backend: str, config: TransformerConfig, device: Any, length: int, sequence: int) -> str | None:
    """Why the kernel cannot run there; None if it can."""
    if backend == "splash":
        if device.platform not in ("tpu", "cpu"):  # a CPU interprets it
            return f"splash is for TPUs, this is {device.device_kind}"
        if length % (LANES * sequence):
            return f"rows of {length} on {sequence} devices each must be cut into parts that are multiples of {LANES}"
        return None
    if _compute_capability(device) < (9, 0):
        return f"packed rows need an NVIDIA GPU of the Hopper generation or newer, this is {device.device_kind}"
    if config.compute_dtype != "bfloat16":
        return f"cuDNN needs model.compute_dtype = 'bfloat16', not {config.compute_dtype!r}"
    if config.head_dim % 8 or config.head_dim > 128:
        return f"cuDNN needs a model.head_dim that is a multiple of 8 up to 128, not {config.head_dim}"
    if sequence > 1:
        return f"cuDNN needs whole rows on each device, not mesh.sequence = {sequence}"
    return _cudnn_obstacle()


def _compute_capability(device: Any) -> tuple[int, int]:
    """(9, 0) for Hopper; (0, 0) for what is not by NVIDIA."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found and device.platform == "gpu" else (0, 0)


def _cudnn_obstacle() -> str | None:
    """What is wrong with the cuDNN that JAX found."""
    try:
        from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

        version = check_cudnn_version()
    except (ImportError, RuntimeError) as error:
        return f"JAX finds no cuDNN ({error})"
    return None if version >= CUDNN_VERSION else f"cuDNN {version} is older than {CUDNN_VERSION}"
