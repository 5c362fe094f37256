"""Attention as plain functions: normalisation, rotary positions, softmax attention and the choice of its backend.

Legend: B batch, T query length, S key length, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import ConfigError, ExecutionConfig, TransformerConfig
from chameleon_jax.models.attention_kernels import LANES, attend_blockwise, attend_cudnn, attend_splash, attend_xla
from chameleon_jax.models.attention_mask import Mask
from chameleon_jax.models.partitioning import mesh_axes, num_partitions

KERNELS = ("splash", "cudnn")
"""Backends that are kernels of their own, for the hardware they are written for."""
SHORT = 1024
"""Without a kernel, rows up to this length keep all their scores; longer ones are computed blockwise."""
CUDNN_VERSION = 90600
"""The first release of cuDNN that takes several documents per row."""


def rms_norm(x: Float[Array, "... d"], scale: Float[Array, "d"], eps: float) -> Float[Array, "... d"]:
    """x / sqrt(mean(x^2) + eps) * scale, in float32 with one rounding to the dtype of x (Zhang & Sennrich 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, "#heads D"], bias: Float[Array, "#heads D"], eps: float
) -> Float[Array, "... D"]:
    """LayerNorm over the last axis with population variance, in float32 with one rounding to the dtype of x."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rope_sin_cos(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Sine and cosine, float32, of the angles by which `apply_rope` rotates each pair of channels.

    The angle of pair i at position p is p * theta^(-2i/head_dim).
    """
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.sin(angles), jnp.cos(angles)


def apply_rope(
    x: Float[Array, "B T heads D"], sin_cos: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
) -> Float[Array, "B T heads D"]:
    """Rotary position embedding (RoFormer, Su et al. 2021), half-split: channel i rotates with channel i + D/2.

    Computed in float32, rounded once to the dtype of x.
    """
    sin, cos = sin_cos
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    mask: Mask,
    backend: str = "auto",
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D)) v under `mask`, in the dtype of q; query head h reads key/value head h // (H / K).

    `jax.checkpoint` knows by the name "attention" what a backend can keep for its backward pass.

    Args:
      backend: 'xla', which takes any mask; for whole rows (T = S, slots 0 … T-1) also 'blockwise', 'splash', 'cudnn',
        or 'auto', which is what `choose_backend` finds for the devices of the current mesh or for the only device.
        Kernels need to be told how several devices share the rows: 'auto' leaves them alone without a mesh and flax's
        logical axis rules.

    Raises:
      ConfigError: if the length does not suit splash, or cuDNN cannot count the rows of a device.
    """
    if backend == "auto" and _is_partitioned_by_xla():
        backend = plain_backend(q.shape[1])
    elif backend == "auto":
        sequence = num_partitions(mesh_axes("length")[0])
        backend = choose_backend(backend, _current_device(), q.shape[1], q.shape[3], q.dtype.name, sequence)
    functions = {"xla": attend_xla, "blockwise": attend_blockwise, "splash": attend_splash, "cudnn": attend_cudnn}
    return functions[backend](q, k, v, mask)


# ----------------------------------------------------------------------------------------------------------------------
# Which backend
# ----------------------------------------------------------------------------------------------------------------------


def plain_backend(length: int) -> str:
    """The backend for whole rows of this length that runs anywhere."""
    return "xla" if length <= SHORT else "blockwise"


def choose_backend(backend: str, device: Any, length: int, head_dim: int, dtype: str, sequence: int = 1) -> str:
    """The backend for whole rows: `backend` itself, or what 'auto' stands for.

    'auto' is the kernel for the device if it can run there, or else `plain_backend`.

    Args:
      device: a `jax.Device` that computes, or one of a topology that is only compiled for.
      length: tokens of a row.
      dtype: of queries, keys and values.
      sequence: over how many devices a row is partitioned.

    Raises:
      ConfigError: if `backend` cannot run there.
    """
    plain = plain_backend(length)
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform) if backend == "auto" else backend
    if kernel not in KERNELS:
        return kernel or plain
    obstacles = {
        "splash": _splash_obstacle(device, length, sequence),
        "cudnn": _cudnn_obstacle(device, head_dim, dtype, sequence),
    }
    if obstacles[kernel] is None:
        return kernel
    if backend == "auto":
        return plain
    raise ConfigError(f"execution.attention = {backend!r}: {obstacles[kernel]}; use 'auto' or {plain!r}")


def backend_for(config: TransformerConfig, execution: ExecutionConfig, where: Mesh | jax.Device, length: int) -> str:
    """`choose_backend` for a model on a mesh, whose axis "sequence" partitions rows, or on a device."""
    device, sequence = where, 1
    if isinstance(where, Mesh):
        device, sequence = where.devices.flat[0], where.shape.get("sequence", 1)
    return choose_backend(execution.attention, device, length, config.head_dim, execution.compute_dtype, sequence)


def _is_partitioned_by_xla() -> bool:
    """Whether several devices may share the computation in a way that only XLA knows. It cannot partition kernels."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() > 1
    return mesh.size > 1 and not any(mesh_axes("batch", "length", "heads"))


def _current_device() -> Any:
    """A device of the kind that the computation being traced will run on, as far as JAX knows."""
    default = jax.config.jax_default_device
    device = jax.devices(default)[0] if isinstance(default, str) else default or jax.devices()[0]
    of_mesh = jax.sharding.get_abstract_mesh().abstract_device
    return device if of_mesh is None or of_mesh.platform == device.platform else of_mesh


def _splash_obstacle(device: Any, length: int, sequence: int) -> str | None:
    """Why splash cannot run there; None if it can."""
    if device.platform not in ("tpu", "cpu"):  # a CPU interprets it
        return f"splash is for TPUs, this is {device.device_kind}"
    if length % (LANES * sequence):
        return f"rows of {length} on {sequence} devices each must be cut into parts that are multiples of {LANES}"
    return None


def _cudnn_obstacle(device: Any, head_dim: int, dtype: str, sequence: int) -> str | None:
    """Why cuDNN cannot run there; None if it can."""
    if _compute_capability(device) < (9, 0):
        return f"packed rows need an NVIDIA GPU of the Hopper generation or newer, this is {device.device_kind}"
    if dtype != "bfloat16":
        return f"cuDNN needs execution.compute_dtype = 'bfloat16', not {dtype!r}"
    if head_dim % 8 or head_dim > 128:
        return f"cuDNN needs a model.head_dim that is a multiple of 8 up to 128, not {head_dim}"
    if sequence > 1:
        return f"cuDNN needs whole rows on each device, not mesh.sequence = {sequence}"
    return _cudnn_version_obstacle()


def _compute_capability(device: Any) -> tuple[int, int]:
    """(9, 0) for Hopper; (0, 0) for what is not NVIDIA's."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found and device.platform == "gpu" else (0, 0)


def _cudnn_version_obstacle() -> str | None:
    """What is wrong with the cuDNN that JAX found; None if nothing is."""
    try:
        from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

        version = check_cudnn_version()
    except (ImportError, RuntimeError) as error:
        return f"JAX finds no cuDNN ({error})"
    return None if version >= CUDNN_VERSION else f"cuDNN {version} is older than {CUDNN_VERSION}"
