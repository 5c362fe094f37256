"""Attention as plain functions: normalisation, rotary positions, masks, softmax.

Legend: B batch, T query length, S key length, H query heads, K key/value heads, G = H / K, D head dimension.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from chameleon_jax.array_types import Array, Bool, Float, Int

BLOCK, GROUPS = 128, 4
"""Queries that blockwise attention takes at a time, and at most so many groups of blocks with keys of their own."""


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


def rotations(
    positions: Int[Array, "B T"], channels: int, theta: float
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosine and sine, float32, of the angles by which `rotate` turns a head of `channels` channels, once for all.

    The angle of pair i at position p is p * theta^(-2i/channels).
    """
    half = channels // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T heads D"], turns: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
) -> Float[Array, "B T heads D"]:
    """Rotary position embedding (RoFormer, Su et al. 2021), half-split: channel i turns together with i + D/2.

    Computed in float32, rounded once to the dtype of x.
    """
    cos, sin = turns
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def causal_mask(
    query_slots: Int[Array, "T"],
    key_slots: Int[Array, "S"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
) -> Bool[Array, "B T S"]:
    """A query sees keys at its own slot or earlier, and only inside its own segment.

    Slots are places in the row (or in the KV cache). With segments [1, 1, 2, 0] (two documents, one pad) the rows of
    the mask are 1000, 1100, 0010, 0001: padding sees itself, so that no softmax is empty.
    """
    causal = key_slots[None, :] <= query_slots[:, None]
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return causal[None] & same


class Visibility(NamedTuple):
    """What `causal_mask` is made of: places of queries and keys in the row or cache, and their segments."""

    query_slots: Array  # [T]
    key_slots: Array  # [S]
    query_segments: Array  # [B, T]
    key_segments: Array  # [B, S]


@jax.custom_vjp
def attend_blockwise(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    seen: Visibility,
) -> Float[Array, "B T H D"]:
    """`attend` under `causal_mask(*seen)`, for queries of a whole row (T = S), in memory linear in the length.

    Blocks of queries are taken one after the other in a loop (Rabe & Staats 2021). The backward pass computes their
    weights again from the logarithm of each softmax's sum, and needs besides only q, k, v and the output (Dao et al.
    2022); for `jax.checkpoint` the last two are called "attention".

    A group of blocks meets the keys up to its own last one, so little is computed for keys that lie in the future. The
    groups are few: XLA may run them side by side, and then holds the scores of a block of each.
    """
    return _blockwise_forward(q, k, v, seen)[0]


def _groups(length: int) -> list[tuple[int, int, int]]:
    """First query, end, and size of the blocks of each group."""
    blocks = length // BLOCK
    count = min(GROUPS, blocks)
    bounds = [blocks * group // count * BLOCK for group in range(count + 1)] if count else [0]
    groups = [(start, end, BLOCK) for start, end in itertools.pairwise(bounds)]
    return [*groups, (bounds[-1], length, length - bounds[-1])] if bounds[-1] < length else groups


def _heads_first(x: Float[Array, "B T H D"], heads: int) -> Float[Array, "B heads G T D"]:
    """Heads before length, and the G query heads of a key head side by side: plain batched matrix products."""
    B, T, _, D = x.shape
    return x.reshape(B, T, heads, -1, D).transpose(0, 2, 3, 1, 4)


def _heads_last(x: Float[Array, "B K G T D"]) -> Float[Array, "B T H D"]:
    B, _, _, T, D = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(B, T, -1, D)


def _in_blocks(x: Array, group: tuple[int, int, int], axis: int) -> Array:
    """The group's part of `axis`, cut into blocks that lie along a new first axis."""
    start, end, size = group
    x = jax.lax.slice_in_dim(x, start, end, axis=axis)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)


def _joined(groups: Sequence[Array]) -> Float[Array, "B K G T D"]:
    """The other way: what each group's loop gave, `[blocks, B, K, G, size, D]`."""
    whole = [jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], -1, x.shape[5]) for x in groups]
    return jnp.concatenate(whole, axis=3)


def _query_places(seen: Visibility, group: tuple[int, int, int]) -> tuple[Array, Array]:
    return _in_blocks(seen.query_slots, group, 0), _in_blocks(seen.query_segments, group, 1)


class _Keys(NamedTuple):
    """The keys and values that a group of blocks meets, heads first: those up to the group's last query."""

    k: Array  # [B, K, D, S], as a product with queries takes them
    rows_of_k: Array  # [B, K, S, D]
    v: Array  # [B, K, D, S]
    rows_of_v: Array  # [B, K, S, D]
    slots: Array  # [S]
    segments: Array  # [B, S]

    @classmethod
    def until(cls, end: int, k: Array, v: Array, seen: Visibility) -> _Keys:
        rows, columns = (0, 2, 1, 3), (0, 2, 3, 1)
        arrays = [x[:, :end].transpose(axes) for x in (k, v) for axes in (columns, rows)]
        return cls(*arrays, seen.key_slots[:end], seen.key_segments[:, :end])

    def scores(self, q: Array, slots: Array, segments: Array) -> Array:
        """Scaled scores of a block of queries, float32 `[B, K, G, t, S]`; the least number where a key is not seen."""
        scores = _product("BKGtD,BKDS->BKGtS", q, self.k) * q.shape[-1] ** -0.5
        mask = causal_mask(slots, self.slots, segments, self.segments)
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


def _blockwise_forward(q, k, v, seen):
    T, S, heads = q.shape[1], k.shape[1], k.shape[2]
    if T != S:
        raise ValueError(f"{T} queries and {S} keys: blockwise attention is for whole rows")
    queries, groups = _heads_first(q, heads), []
    for group in _groups(T):
        # Without the checkpoint, JAX would take the masks, which no gradient passes, out of the loop and hold them all.
        forward = jax.checkpoint(functools.partial(_block_forward, _Keys.until(group[1], k, v, seen)))
        blocks = _in_blocks(queries, group, 3), *_query_places(seen, group)
        groups.append(jax.lax.map(lambda block, forward=forward: forward(*block), blocks))
    out, log_sum = map(_joined, zip(*groups, strict=True))
    out = checkpoint_name(_heads_last(out), "attention")
    return out, (q, k, v, seen, out, checkpoint_name(log_sum, "attention"))


def _blockwise_backward(residuals, gradient):
    q, k, v, seen, out, log_sum = residuals
    queries, out, gradient = (_heads_first(x, k.shape[2]) for x in (q, out, gradient))
    # What the gradients of a softmax's inputs share: the sum of weight times gradient over its keys.
    shared = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1, keepdims=True)
    of_q, of_k, of_v = [], *(jnp.zeros(x.transpose(0, 2, 3, 1).shape, jnp.float32) for x in (k, v))
    for group in _groups(q.shape[1]):
        end = group[1]
        backward = functools.partial(_block_backward, _Keys.until(end, k, v, seen))

        def add(total, block, backward=backward):
            of_q, *more = backward(*block)
            return jax.tree.map(jnp.add, total, tuple(more)), of_q

        blocks = [_in_blocks(x, group, 3) for x in (queries, gradient, shared, log_sum)]
        blocks[1:1] = _query_places(seen, group)
        total, of_group = jax.lax.scan(add, (of_k[..., :end], of_v[..., :end]), tuple(blocks))
        of_q.append(of_group)
        of_k, of_v = of_k.at[..., :end].set(total[0]), of_v.at[..., :end].set(total[1])
    of_k, of_v = (x.transpose(0, 3, 1, 2).astype(k.dtype) for x in (of_k, of_v))
    return _heads_last(_joined(of_q)), of_k, of_v, None


attend_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D)) v; query head h reads key/value head h // (H / K). The softmax is float32."""
    B, T, H, D = q.shape
    S, K = k.shape[1:3]
    G = H // K
    q = _heads_first(q, K).reshape(B, K, G * T, D)
    scores = jnp.einsum("BKtD,BSKD->BKtS", q, k, preferred_element_type=jnp.float32) * D**-0.5
    scores = scores.reshape(B, K, G, T, S)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, K, G * T, S)
    out = jnp.einsum("BKtS,BSKD->BKtD", weights, v)
    return _heads_last(out.reshape(B, K, G, T, D))
