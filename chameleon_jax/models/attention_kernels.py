"""Whole-row attention by name of its backend: plain XLA, blockwise XLA, splash on TPU, cuDNN on NVIDIA.

Legend as in `attention.py`: B batch, T query length, S key length, H query heads, K key/value heads, D head dimension;
M documents that cuDNN takes per row. Kernels know nothing of meshes, so each device runs its own on its part: rows over
the axes of "batch", heads over those of "heads", queries over those of "length", by flax's logical axis rules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from chameleon_jax.array_types import Array, Bool, Float, Int
from chameleon_jax.config import ConfigError
from chameleon_jax.models.attention import Visibility, attend, attend_blockwise, causal_mask

LANES = 128
"""Splash takes queries and keys in multiples of this."""
SPLASH_BLOCK, SPLASH_COMPUTE_BLOCK = 1024, 512
"""Queries and keys that splash holds in fast memory, and keys that it scores at a time; at most, to divide rows.
Larger blocks pass the 16 MiB that the compiler gives a kernel on TPU v5p unless it is told otherwise."""
SPLASH_FUSED_BLOCKS = 8
"""Up to so many blocks of keys, one kernel computes all gradients; it writes that of q once per block of keys. For
longer rows a kernel of its own computes it, so that memory stays linear in the length."""
CUDNN_SEGMENTS = 64
"""M. The row statistics that cuDNN keeps for the backward pass are [B * M, H, T] float32: as large as q at D = 128."""


def attend_rows(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    seen: Visibility,
    backend: str,
) -> Float[Array, "B T H D"]:
    """`attend` under `causal_mask(*seen)` for whole rows (slots 0 … T-1), computed by the backend of that name.

    What `jax.checkpoint` may keep of it for the backward pass is called "attention".

    Raises:
      ConfigError: if the length does not suit splash, or the rows of a device are more than cudnn can count.
    """
    if backend in ("splash", "blockwise"):  # these name what they keep themselves
        return {"splash": attend_splash, "blockwise": attend_blockwise}[backend](q, k, v, seen)
    out = {"xla": _attend_masked, "cudnn": attend_cudnn}[backend](q, k, v, seen)
    return checkpoint_name(out, "attention")


def _attend_masked(q, k, v, seen):
    return attend(q, k, v, causal_mask(*seen))


# ----------------------------------------------------------------------------------------------------------------------
# Each device on its own part
# ----------------------------------------------------------------------------------------------------------------------


def mesh_axes(*names: str | None) -> tuple[tuple[str, ...], ...]:
    """The axes of the current mesh that the logical rules give to each axis of an array."""
    mesh = jax.sharding.get_abstract_mesh()

    def present(axes):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        return tuple(axis for axis in axes if axis in mesh.axis_names)

    return tuple(map(present, nn.logical_to_mesh_axes(names)))


def _on_each_device(kernel: Callable, *specs: Any) -> Callable:
    """`kernel(q, k, v, query_segments, key_segments, *more)` per device; `specs` are those of `more`."""
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    q = PartitionSpec(*mesh_axes("batch", "length", "heads", None))
    kv = PartitionSpec(*mesh_axes("batch", None, "kv_heads", None))
    segments = PartitionSpec(*q[:2]), PartitionSpec(*kv[:2])
    return jax.shard_map(kernel, in_specs=(q, kv, kv, *segments, *specs), out_specs=q, check_vma=False)


# ----------------------------------------------------------------------------------------------------------------------
# Splash: flash attention for TPUs that skips blocks in the future
# ----------------------------------------------------------------------------------------------------------------------


def _block(length: int, limit: int) -> int:
    """The largest multiple of LANES up to `limit` that divides the length."""
    return max(size for size in range(LANES, min(length, limit) + 1, LANES) if length % size == 0)


def _splash_kernel(heads: int, length: int, shards: int, interpret: bool):
    """Splash over `heads` of rows whose queries are cut into `shards`; each part has the mask of its place."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys = _block(length // shards, SPLASH_BLOCK), _block(length, SPLASH_BLOCK)
    compute = _block(keys, SPLASH_COMPUTE_BLOCK)
    fused = length // keys <= SPLASH_FUSED_BLOCKS
    sizes = splash.BlockSizes(
        block_q=queries, block_kv=keys, block_kv_compute=compute,
        block_q_dkv=queries, block_kv_dkv=keys, block_kv_dkv_compute=compute,
        block_q_dq=None if fused else queries, block_kv_dq=None if fused else compute,
        use_fused_bwd_kernel=fused,
    )  # fmt: skip
    return splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )


def attend_splash(
    q: Float[Array, "B T H D"], k: Float[Array, "B T K D"], v: Float[Array, "B T K D"], seen: Visibility
) -> Float[Array, "B T H D"]:
    """`attend_rows` by the Pallas kernel for TPUs; on a CPU it is interpreted, slowly.

    Padding is a segment of its own, so no query is without a key, which the kernel could not bear.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    mesh = jax.sharding.get_abstract_mesh()
    _, length_axes, heads_axes, _ = mesh_axes("batch", "length", "heads", None)
    heads = q.shape[2] // math.prod(mesh.shape[axis] for axis in heads_axes)
    shards = math.prod(mesh.shape[axis] for axis in length_axes)
    if q.shape[1] % (LANES * shards):
        raise ConfigError(
            f"model.attention = 'splash': rows of {q.shape[1]} on {shards} devices each must be cut into parts that "
            f"are multiples of {LANES}; use 'auto' or 'blockwise'"
        )

    def on_device(q, k, v, query_segments, key_segments, kernel):
        q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # the kernel does not scale
        return jax.vmap(kernel)(q, k, v, SegmentIds(query_segments, key_segments)).swapaxes(1, 2)

    def on_all(*arrays, interpret: bool):
        kernel = _splash_kernel(heads, q.shape[1], shards, interpret)
        if mesh.empty:
            return on_device(*arrays, kernel)
        place = jax.sharding.NamedSharding(mesh, PartitionSpec(None, length_axes))
        return _on_each_device(on_device, kernel.manual_sharding_spec(place))(*arrays, kernel)

    return jax.lax.platform_dependent(
        q, k, v, seen.query_segments, seen.key_segments,
        cpu=functools.partial(on_all, interpret=True),
        default=functools.partial(on_all, interpret=False),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# cuDNN: flash attention for NVIDIA's GPUs, told where the documents of a row begin
# ----------------------------------------------------------------------------------------------------------------------


def packed_layout(
    segments: Int[Array, "B T"], most: int
) -> tuple[Int[Array, "B most"], Int[Array, "B most_plus_1"], Bool[Array, ""]]:
    """Lengths and offsets of the documents of each row, as cuDNN wants them, and whether they say all there is.

    Padding is a document like the others. Free places hold -1: with `most` 3, the row [1, 1, 2, 0] has lengths
    [2, 1, 1] and offsets [0, 2, 3, -1]. They do not say all if a row has more than `most` documents, or one that goes
    on after another.
    """
    T = segments.shape[1]
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    offsets = jax.vmap(lambda row: jnp.nonzero(row, size=most + 1, fill_value=-1)[0])(begins).astype(jnp.int32)
    here, after = offsets[:, :-1], offsets[:, 1:]
    lengths = jnp.where(here < 0, -1, jnp.where(after < 0, T, after) - here)
    runs = jnp.sum(begins, axis=1)
    distinct = 1 + jnp.sum(jnp.diff(jnp.sort(segments, axis=1), axis=1) != 0, axis=1)
    return lengths, offsets, jnp.all((runs <= most) & (runs == distinct))


def cudnn_function() -> Callable:
    """JAX's own wrapper of cuDNN's attention. The public `jax.nn.dot_product_attention` has no documents in rows."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    return functools.partial(cudnn.dot_product_attention, mask_type=cudnn.MaskType.PADDING_CAUSAL)


def keeps_what_cudnn_computed(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: output and row statistics of the forward kernel, which JAX's wrapper does not name.
    Without them the backward pass would run it again."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


def attend_cudnn(
    q: Float[Array, "B T H D"], k: Float[Array, "B T K D"], v: Float[Array, "B T K D"], seen: Visibility
) -> Float[Array, "B T H D"]:
    """`attend_rows` by cuDNN, for bfloat16 on Hopper or newer and rows that lie whole on a device.

    Rows whose documents do not fit its layout (see `packed_layout`) are computed blockwise instead.
    """

    def packed(q, k, v, lengths, offsets):
        # The wrapper counts the offsets of keys with the heads of queries: they must be as many.
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        layout = dict(q_seqlen=lengths, kv_seqlen=lengths, q_offsets=offsets, kv_offsets=offsets)
        return cudnn_function()(q, k, v, **layout, scale=q.shape[-1] ** -0.5)

    def on_device(q, k, v, query_segments, key_segments):
        if q.size >= 2**31:
            raise ConfigError(
                f"model.attention = 'cudnn': {q.shape[0]} rows of {q.shape[1]} on a device are more than its 32-bit "
                "offsets can count; read the batch in more parts (accumulation) or use 'blockwise'"
            )
        slots = jnp.arange(q.shape[1])

        @jax.checkpoint  # or its residuals would be kept next to those of the kernel
        def blockwise(q, k, v, lengths, offsets):
            return attend_blockwise(q, k, v, Visibility(slots, slots, query_segments, key_segments))

        lengths, offsets, fits = packed_layout(key_segments, CUDNN_SEGMENTS)
        return jax.lax.cond(fits, packed, blockwise, q, k, v, lengths, offsets)

    return _on_each_device(on_device)(q, k, v, seen.query_segments, seen.key_segments)
