"""The backends of `attention.attend`: plain XLA, blockwise XLA, splash on TPUs, cuDNN on NVIDIA's GPUs.

Legend: B batch, T query length, S key length, H query heads, K key/value heads, G = H / K, D head dimension,
M documents that cuDNN takes per row. Kernels know nothing of meshes, so each device runs its own on its part: rows over
the axes of "batch", heads over those of "heads", queries over those of "length", by flax's logical axis rules.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from chameleon_jax.array_types import Array, Bool, Float, Int
from chameleon_jax.config import ConfigError
from chameleon_jax.models.attention_mask import Mask
from chameleon_jax.models.partitioning import mesh_axes, num_partitions

BLOCK, GROUPS = 128, 4
"""Queries that blockwise attention takes at a time, and how many groups of blocks with keys of their own, at most."""
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


# ----------------------------------------------------------------------------------------------------------------------
# XLA: all scores at once
# ----------------------------------------------------------------------------------------------------------------------


def _heads_first(x: Float[Array, "B T H D"], heads: int) -> Float[Array, "B heads G T D"]:
    """Heads before length, and the G query heads of a key head side by side: plain batched matrix products."""
    B, T, _, D = x.shape
    return x.reshape(B, T, heads, -1, D).transpose(0, 2, 3, 1, 4)


def _heads_last(x: Float[Array, "B K G T D"]) -> Float[Array, "B T H D"]:
    B, _, _, T, D = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(B, T, -1, D)


def attend_xla(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    mask: Mask,
) -> Float[Array, "B T H D"]:
    """Attention as its formula says it; holds all scores. The softmax is float32."""
    B, T, H, D = q.shape
    S, K = k.shape[1:3]
    G = H // K
    q = _heads_first(q, K).reshape(B, K, G * T, D)
    scores = jnp.einsum("BKtD,BSKD->BKtS", q, k, preferred_element_type=jnp.float32) * D**-0.5
    scores = scores.reshape(B, K, G, T, S)
    scores = jnp.where(mask.to_array()[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, K, G * T, S)
    out = jnp.einsum("BKtS,BSKD->BKtD", weights, v)
    return checkpoint_name(_heads_last(out.reshape(B, K, G, T, D)), "attention")


# ----------------------------------------------------------------------------------------------------------------------
# Blockwise XLA: the scores of a block of queries at a time
# ----------------------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def attend_blockwise(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    mask: Mask,
) -> Float[Array, "B T H D"]:
    """Attention of whole rows (T = S) by XLA, in memory linear in the length.

    A loop takes one block of queries after the other (Rabe & Staats 2021). The backward pass recomputes the weights
    from the logarithm of each softmax's sum, and otherwise needs only q, k, v and the output (Dao et al. 2022).

    Each group of blocks reads the keys up to its own last query, so that little is computed for keys in the future. The
    groups are few: XLA may run them side by side, and then holds the scores of one block of each.
    """
    return _blockwise_forward(q, k, v, mask)[0]


def _groups(length: int) -> list[tuple[int, int, int]]:
    """First query, end, and size of the blocks of each group."""
    blocks = length // BLOCK
    count = min(GROUPS, blocks)
    bounds = [blocks * group // count * BLOCK for group in range(count + 1)] if count else [0]
    groups = [(start, end, BLOCK) for start, end in itertools.pairwise(bounds)]
    return [*groups, (bounds[-1], length, length - bounds[-1])] if bounds[-1] < length else groups


def _in_blocks(x: Array, group: tuple[int, int, int], axis: int) -> Array:
    """The group's part of `axis`, split into blocks along a new first axis."""
    start, end, size = group
    x = jax.lax.slice_in_dim(x, start, end, axis=axis)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)


def _join(groups: Sequence[Array]) -> Float[Array, "B K G T D"]:
    """Undoes `_in_blocks` for what the loop of each group returned, `[blocks, B, K, G, size, D]`."""
    whole = [jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], -1, x.shape[5]) for x in groups]
    return jnp.concatenate(whole, axis=3)


def _query_blocks(mask: Mask, group: tuple[int, int, int]) -> tuple[Array, Array]:
    return _in_blocks(mask.query_slots, group, 0), _in_blocks(mask.query_segments, group, 1)


class _Keys(NamedTuple):
    """The keys and values that a group of blocks reads, heads first: those up to the group's last query."""

    k: Array  # [B, K, D, S], as a product with queries takes them
    rows_of_k: Array  # [B, K, S, D]
    v: Array  # [B, K, D, S]
    rows_of_v: Array  # [B, K, S, D]
    slots: Array  # [S]
    segments: Array  # [B, S]

    @classmethod
    def until(cls, end: int, k: Array, v: Array, mask: Mask) -> _Keys:
        rows, columns = (0, 2, 1, 3), (0, 2, 3, 1)
        arrays = [x[:, :end].transpose(axes) for x in (k, v) for axes in (columns, rows)]
        return cls(*arrays, mask.key_slots[:end], mask.key_segments[:, :end])

    def scores(self, q: Array, slots: Array, segments: Array) -> Array:
        """Scaled scores of a block of queries, float32 `[B, K, G, t, S]`; the smallest number where a key is masked."""
        scores = _product("BKGtD,BKDS->BKGtS", q, self.k) * q.shape[-1] ** -0.5
        mask = Mask(slots, self.slots, segments, self.segments).to_array()
        return jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _block_forward(keys: _Keys, q: Array, slots: Array, segments: Array) -> tuple[Array, Array]:
    """The output of a block of queries, and the logarithm of each softmax's sum."""
    scores = keys.scores(q, slots, segments)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _product("BKGtS,BKSD->BKGtD", weights.astype(q.dtype), keys.rows_of_v)
    return (out / total).astype(q.dtype), largest + jnp.log(total)


def _block_backward(
    keys: _Keys, q: Array, slots: Array, segments: Array, gradient: Array, shared: Array, log_sum: Array
) -> tuple[Array, Array, Array]:
    """Gradients of a block's queries, and what the block adds to those of its keys and values `[B, K, D, S]`."""
    weights = jnp.exp(keys.scores(q, slots, segments) - log_sum)
    of_weights = _product("BKGtD,BKDS->BKGtS", gradient, keys.v)
    of_scores = (weights * (of_weights - shared) * q.shape[-1] ** -0.5).astype(q.dtype)
    of_k = _product("BKGtD,BKGtS->BKDS", q, of_scores)
    of_v = _product("BKGtD,BKGtS->BKDS", gradient, weights.astype(q.dtype))
    return jnp.einsum("BKGtS,BKSD->BKGtD", of_scores, keys.rows_of_k), of_k, of_v


def _blockwise_forward(q, k, v, mask):
    T, S, heads = q.shape[1], k.shape[1], k.shape[2]
    if T != S:
        raise ValueError(f"{T} queries and {S} keys: blockwise attention is for whole rows")
    queries, groups = _heads_first(q, heads), []
    for group in _groups(T):
        # Without the checkpoint, JAX hoists the masks, through which no gradient flows, out of the loop and holds them
        # all.
        forward = jax.checkpoint(functools.partial(_block_forward, _Keys.until(group[1], k, v, mask)))
        blocks = _in_blocks(queries, group, 3), *_query_blocks(mask, group)
        groups.append(jax.lax.map(lambda block, forward=forward: forward(*block), blocks))
    out, log_sum = map(_join, zip(*groups, strict=True))
    out = checkpoint_name(_heads_last(out), "attention")
    return out, (q, k, v, mask, out, checkpoint_name(log_sum, "attention"))


def _blockwise_backward(residuals, gradient):
    q, k, v, mask, out, log_sum = residuals
    queries, out, gradient = (_heads_first(x, k.shape[2]) for x in (q, out, gradient))
    # A term common to the gradients of all scores of a query: the sum of weight times gradient over its keys.
    shared = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1, keepdims=True)
    of_q, of_k, of_v = [], *(jnp.zeros(x.transpose(0, 2, 3, 1).shape, jnp.float32) for x in (k, v))
    for group in _groups(q.shape[1]):
        end = group[1]
        backward = functools.partial(_block_backward, _Keys.until(end, k, v, mask))

        def add(total, block, backward=backward):
            of_q, *more = backward(*block)
            return jax.tree.map(jnp.add, total, tuple(more)), of_q

        blocks = [_in_blocks(x, group, 3) for x in (queries, gradient, shared, log_sum)]
        blocks[1:1] = _query_blocks(mask, group)
        total, of_group = jax.lax.scan(add, (of_k[..., :end], of_v[..., :end]), tuple(blocks))
        of_q.append(of_group)
        of_k, of_v = of_k.at[..., :end].set(total[0]), of_v.at[..., :end].set(total[1])
    of_k, of_v = (x.transpose(0, 3, 1, 2).astype(k.dtype) for x in (of_k, of_v))
    return _heads_last(_join(of_q)), of_k, of_v, None


attend_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


# ----------------------------------------------------------------------------------------------------------------------
# Each device on its own part
# ----------------------------------------------------------------------------------------------------------------------


def _on_each_device(kernel: Callable, *specs: Any) -> Callable:
    """Maps `kernel(q, k, v, query_segments, key_segments, *more)` over the devices; `specs` are those of `more`."""
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
    """Splash for `heads` of rows whose queries are partitioned into `shards`, each with its own part of the mask."""
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
    q: Float[Array, "B T H D"], k: Float[Array, "B T K D"], v: Float[Array, "B T K D"], mask: Mask
) -> Float[Array, "B T H D"]:
    """Attention of whole rows by the Pallas kernel for TPUs; on a CPU it is interpreted, slowly.

    The kernel needs a key for every query; padding attends to itself.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    mesh = jax.sharding.get_abstract_mesh()
    _, length_axes, heads_axes, _ = mesh_axes("batch", "length", "heads", None)
    heads, shards = q.shape[2] // num_partitions(heads_axes), num_partitions(length_axes)
    if q.shape[1] % (LANES * shards):
        raise ConfigError(
            f"execution.attention = 'splash': rows of {q.shape[1]} on {shards} devices each must be cut into parts "
            f"that are multiples of {LANES}; use 'auto' or 'blockwise'"
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
        q, k, v, mask.query_segments, mask.key_segments,
        cpu=functools.partial(on_all, interpret=True),
        default=functools.partial(on_all, interpret=False),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# cuDNN: flash attention for NVIDIA's GPUs, given the offsets of each row's documents
# ----------------------------------------------------------------------------------------------------------------------


def packed_layout(
    segments: Int[Array, "B T"], most: int
) -> tuple[Int[Array, "B most"], Int[Array, "B most_plus_1"], Bool[Array, ""]]:
    """Lengths and offsets of each row's documents in cuDNN's layout, and whether the layout can describe all rows.

    Padding counts as a document. Unused entries are -1: with `most` 3, the row [1, 1, 2, 0] has lengths [2, 1, 1] and
    offsets [0, 2, 3, -1]. The layout cannot describe a row of more than `most` documents, nor one in which a document
    continues after another.
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
    """JAX's internal wrapper of cuDNN's attention. `jax.nn.dot_product_attention` does not take packed documents."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    return functools.partial(cudnn.dot_product_attention, mask_type=cudnn.MaskType.PADDING_CAUSAL)


def saves_cudnn_residuals(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint` that saves output and row statistics of the forward kernel, which JAX's wrapper does
    not name. Without them the backward pass would run the kernel again."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


def attend_cudnn(
    q: Float[Array, "B T H D"], k: Float[Array, "B T K D"], v: Float[Array, "B T K D"], mask: Mask
) -> Float[Array, "B T H D"]:
    """Attention of whole rows by cuDNN, for bfloat16 on Hopper or newer and rows that are not partitioned.

    A batch that cuDNN's layout cannot describe (see `packed_layout`) is computed blockwise instead.
    """

    def packed(q, k, v, lengths, offsets):
        # The wrapper computes the offsets of keys from the number of query heads, so there must be as many of both.
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        layout = dict(q_seqlen=lengths, kv_seqlen=lengths, q_offsets=offsets, kv_offsets=offsets)
        return cudnn_function()(q, k, v, **layout, scale=q.shape[-1] ** -0.5)

    def on_device(q, k, v, query_segments, key_segments):
        if q.size >= 2**31:
            raise ConfigError(
                f"execution.attention = 'cudnn': {q.shape[0]} rows of {q.shape[1]} on a device are more than its "
                "32-bit offsets can count; read the batch in more parts (accumulation) or use 'blockwise'"
            )
        slots = jnp.arange(q.shape[1])

        @jax.checkpoint  # else its residuals are kept beside those of the kernel
        def blockwise(q, k, v, lengths, offsets):
            return attend_blockwise(q, k, v, Mask(slots, slots, query_segments, key_segments))

        lengths, offsets, fits = packed_layout(key_segments, CUDNN_SEGMENTS)
        return jax.lax.cond(fits, packed, blockwise, q, k, v, lengths, offsets)

    return _on_each_device(on_device)(q, k, v, mask.query_segments, mask.key_segments)
