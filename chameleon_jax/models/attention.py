"""Attention as plain functions: normalisation, rotary positions, masks, softmax.

Legend: B batch, T query length, S key length, H query heads, K key/value heads, G = H / K, D head dimension.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

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


def rotate(x: Float[Array, "B T heads D"], positions: Int[Array, "B T"], theta: float) -> Float[Array, "B T heads D"]:
    """Rotary position embedding (RoFormer, Su et al. 2021), half-split: channel i turns together with i + D/2.

    The angle of pair i at position p is p * theta^(-2i/D). Computed in float32, rounded once to the dtype of x.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, D/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
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


def attend_blockwise(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    seen: Visibility,
) -> Float[Array, "B T H D"]:
    """`attend` under `causal_mask(*seen)`, for queries of a whole row (T = S), in memory linear in the length.

    Blocks of queries are taken one after the other in a loop, and their scores are computed again in the backward pass
    (Rabe & Staats 2021). A group of blocks meets the keys up to its own last one, so little is computed for keys that
    lie in the future. The groups are few: XLA may run them side by side, and then holds the scores of a block of each.
    """
    T, S = q.shape[1], k.shape[1]
    if T != S:
        raise ValueError(f"{T} queries and {S} keys: blockwise attention is for whole rows")

    def of_group(start: int, end: int, size: int) -> Array:
        keys = k[:, :end], v[:, :end], seen.key_slots[:end], seen.key_segments[:, :end]

        def in_blocks(x, axis):
            x = jax.lax.slice_in_dim(x, start, end, axis=axis)
            return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)

        @jax.checkpoint
        def of_block(block, keys):
            (q, query_slots, query_segments), (k, v, key_slots, key_segments) = block, keys
            return attend(q, k, v, causal_mask(query_slots, key_slots, query_segments, key_segments))

        blocks = in_blocks(q, 1), in_blocks(seen.query_slots, 0), in_blocks(seen.query_segments, 1)
        out = jax.lax.map(lambda block: of_block(block, keys), blocks)  # [blocks, B, size, H, D]
        return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], end - start, *q.shape[2:])

    blocks = T // BLOCK
    groups = min(GROUPS, blocks)
    bounds = [blocks * group // groups * BLOCK for group in range(groups + 1)] if groups else [0]
    out = [of_group(start, end, BLOCK) for start, end in itertools.pairwise(bounds)]
    if bounds[-1] < T:
        out.append(of_group(bounds[-1], T, T - bounds[-1]))
    return jnp.concatenate(out, axis=1)


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
    # Heads before length, and the G query heads of a key head side by side: plain batched matrix products.
    q = q.reshape(B, T, K, G, D).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, D)
    scores = jnp.einsum("BKtD,BSKD->BKtS", q, k, preferred_element_type=jnp.float32) * D**-0.5
    scores = scores.reshape(B, K, G, T, S)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, K, G * T, S)
    out = jnp.einsum("BKtS,BSKD->BKtD", weights, v)
    return out.reshape(B, K, G, T, D).transpose(0, 3, 1, 2, 4).reshape(B, T, H, D)
