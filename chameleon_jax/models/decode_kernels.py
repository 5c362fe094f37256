"""What decoding does with most of its time: products of few rows, rotations, writes into the cache, attention to lanes.

Each is plain JAX. XLA:CPU gets forms of its own where they measured faster; other platforms get the formula as it is.

Legend: B lanes in a call, T tokens a lane, S slots of a lane, K key/value heads, G queries of each, D head dimension.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.models.attention import rope_sin_cos

FEW_ROWS, ROWS = 32, 8
"""Up to so many rows a CPU multiplies by a sum, so many at a time: what a row becomes does not depend on how many
others there are, as it would in sums of other sizes."""
OUTPUTS = 256
"""With more rows, so many outputs of an int8 matrix at a time, which as float32 stay in a CPU's caches."""
BLOCK = 256
"""Slots that a CPU attends to at a time, so that short lanes do not pay for empty slots."""
LEAST = jnp.finfo(jnp.float32).min


# ----------------------------------------------------------------------------------------------------------------------
# Products
# ----------------------------------------------------------------------------------------------------------------------


def multiply(x: Float[Array, "... inputs"], matrix: Array) -> Float[Array, "... outputs"]:
    """x times a matrix `[outputs, inputs]` of any dtype, summed in float32, which is the dtype of the result."""
    rows = x.size // x.shape[-1]
    forms = {}
    if rows <= FEW_ROWS and (rows > 1 or matrix.dtype != jnp.float32):
        forms["cpu"] = _multiply_and_sum
    elif matrix.dtype == jnp.int8:
        forms["cpu"] = _dot_by_outputs
    if rows == 1:
        forms["cuda"] = _dot_of_two_rows
    return jax.lax.platform_dependent(x, matrix, **forms, default=_dot) if forms else _dot(x, matrix)


def _dot(x: Array, matrix: Array) -> Array:
    contracted = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, matrix.astype(x.dtype), contracted, preferred_element_type=jnp.float32)


def _dot_of_two_rows(x: Array, matrix: Array) -> Array:
    """XLA reads a matrix a quarter faster on an H200 if it multiplies more than one row: a second one costs nothing."""
    rows = x.reshape(1, -1)
    return _dot(jnp.concatenate([rows, rows]), matrix)[:1].reshape(*x.shape[:-1], -1)


def _dot_by_outputs(x: Array, matrix: Array) -> Array:
    """A dot without a float32 copy of the whole matrix, which XLA:CPU would write and read again."""
    rows, outputs = x.reshape(-1, x.shape[-1]).astype(jnp.float32), matrix.shape[0]
    size = min(OUTPUTS, outputs)

    def multiply_part(index: Array, y: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(matrix, index * size, size)  # the last may begin inside the one before
        return jax.lax.dynamic_update_slice_in_dim(y, _dot(rows, part), index * size, axis=1)

    y = jax.lax.fori_loop(0, -(-outputs // size), multiply_part, jnp.zeros((len(rows), outputs)))
    return y.reshape(*x.shape[:-1], -1)


def _multiply_and_sum(x: Array, matrix: Array) -> Array:
    """A product as a sum, which XLA:CPU computes faster than a dot of few rows: that would pack a float32 matrix anew,
    and write a float32 copy of a narrow one.

    The barrier keeps XLA from converting the matrix once before a loop over steps, which then would read float32.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    if len(rows) == 1 and matrix.dtype == jnp.bfloat16:
        matrix, rows = jax.lax.optimization_barrier((matrix, rows))
        y = jnp.sum(matrix.astype(jnp.float32)[None] * rows[:, None], axis=-1)
        return y.reshape(*x.shape[:-1], -1)
    # Several rows become a product of XLA's library for CPUs; a single row would become a slow loop.
    padded = 2 if len(rows) == 1 else len(rows) if len(rows) <= ROWS else -(-len(rows) // ROWS) * ROWS
    parts = jnp.pad(rows, ((0, padded - len(rows)), (0, 0)))
    parts = [parts[first : first + ROWS] for first in range(0, padded, ROWS)]
    sums = []
    for part in parts:
        part_matrix, part = jax.lax.optimization_barrier((matrix, part))
        sums.append(jnp.sum(part_matrix.astype(jnp.float32)[:, None] * part[None], axis=-1))
    y = jnp.concatenate(sums, axis=1).T[: len(rows)]
    return y.reshape(*x.shape[:-1], -1)


# ----------------------------------------------------------------------------------------------------------------------
# Rotations
# ----------------------------------------------------------------------------------------------------------------------


def rope(slots: Int[Array, "B T"], head_dim: int, theta: float) -> tuple[Array, Array]:
    """`rope_sin_cos`, computed once a call.

    XLA:CPU fuses sines into each of their uses, where every head of every layer computes them anew. It does not fuse
    across a branch, though.
    """

    def once(slots: Array) -> tuple[Array, Array]:
        return jax.lax.cond(
            slots[0, 0] >= 0, compute, lambda slots: jax.tree.map(jnp.zeros_like, compute(slots)), slots
        )

    compute = functools.partial(rope_sin_cos, head_dim=head_dim, theta=theta)
    return jax.lax.platform_dependent(slots, cpu=once, default=compute)


# ----------------------------------------------------------------------------------------------------------------------
# Writes
# ----------------------------------------------------------------------------------------------------------------------


def write(
    cache: tuple[Array, ...], new: tuple[Array, ...], first_lane: Int[Array, ""], start: Int[Array, "B"]
) -> tuple[Array, ...]:
    """Arrays `[lanes, K, S, …]` with `new` `[B, K, T, …]` in lanes from `first_lane` on, each from its slot `start` on.

    What lies past the last slot is dropped.
    """
    new = tuple(x[:, :, : cache[0].shape[2]] for x in new)
    return jax.lax.platform_dependent(cache, new, first_lane, start, cpu=_write_in_turn, default=_scatter)


def _scatter(cache, new, first_lane, start):
    lanes = first_lane + jnp.arange(start.shape[0])[:, None]
    slots = start[:, None] + jnp.arange(new[0].shape[2])

    def written(x: Array, y: Array) -> Array:
        return x.at[lanes, :, slots].set(jnp.swapaxes(y, 1, 2), mode="drop")

    return jax.tree.map(written, cache, new)


def _write_in_turn(cache, new, first_lane, start):
    """One lane after the other. The loop's length is not a constant, or else XLA:CPU would take it apart and, for a
    single lane, copy the cache."""
    (B, _, T), S = new[0].shape[:3], cache[0].shape[2]
    first = jnp.minimum(start, S - T)
    kept = jnp.arange(T) < (start - first)[:, None]  # slots from `first` on that stay as they are

    def write_lane(lane: Array, cache: tuple[Array, ...]) -> tuple[Array, ...]:
        def written(x: Array, y: Array) -> Array:
            place = (first_lane + lane, 0, first[lane], *(0,) * (x.ndim - 3))
            old = jax.lax.dynamic_slice(x, place, (1, *y.shape[1:]))
            y = jnp.roll(jax.lax.dynamic_index_in_dim(y, lane), start[lane] - first[lane], axis=2)
            stays = kept[lane].reshape(1, 1, T, *(1,) * (x.ndim - 3))
            return jax.lax.dynamic_update_slice(x, jnp.where(stays, old, y), place)

        return jax.tree.map(written, cache, new)

    lanes = jnp.max(jnp.where(start < S, jnp.arange(B) + 1, 0))
    return jax.lax.fori_loop(0, lanes, write_lane, cache)


# ----------------------------------------------------------------------------------------------------------------------
# Attention
# ----------------------------------------------------------------------------------------------------------------------


def attend(
    q: Float[Array, "B T K G D"], k: tuple[Array, ...], v: tuple[Array, ...], first_lane: Int[Array, ""],
    slots: Int[Array, "B T"],
) -> Float[Array, "B T K G D"]:  # fmt: skip
    """softmax(q k^T / sqrt(D)) v of queries in `slots`, over slots of their lanes up to their own.

    Args:
      k: `[lanes, K, S, D]`; int8 with a scale `[lanes, K, S]`.
      v: like k.
      first_lane: the lane of the first query; the others follow.
    """
    B, T, K, G, D = q.shape
    q = q.transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, D)
    forms = {"cpu": _attend_to_blocks, "cuda": functools.partial(_attend_to_all, apart=True), "default": _attend_to_all}
    forms = {platform: functools.partial(form, G=G) for platform, form in forms.items()}
    out = jax.lax.platform_dependent(q, k, v, first_lane, slots, **forms)
    return out.reshape(B, K, G, T, D).transpose(0, 3, 1, 2, 4).astype(q.dtype)


def _lanes(x: tuple[Array, ...], B: int, first_lane: Array, slot: Array | int, size: int) -> tuple[Array, ...]:
    """Slots `slot` … `slot + size` of B lanes."""
    return tuple(
        jax.lax.dynamic_slice(y, (first_lane, 0, slot, *(0,) * (y.ndim - 3)), (B, y.shape[1], size, *y.shape[3:]))
        for y in x
    )


def _scores(q: Array, k: tuple[Array, ...], slots: Array, first: Array | int, G: int) -> Array:
    """float32 `[B, K, G * T, size]`."""
    values, *scale = k
    scores = jnp.einsum("BKtD,BKSD->BKtS", q, values.astype(q.dtype), preferred_element_type=jnp.float32)
    scores = scores * (scale[0][:, :, None] if scale else 1) * q.shape[-1] ** -0.5
    visible = first + jnp.arange(values.shape[2]) <= jnp.tile(slots, (1, G))[..., None]
    return jnp.where(visible[:, None], scores, LEAST)


def _mix(weights: Array, v: tuple[Array, ...], dtype) -> Array:
    """float32 `[B, K, G * T, D]`."""
    values, *scale = v
    weights = (weights * scale[0][:, :, None] if scale else weights).astype(dtype)
    return jnp.einsum("BKtS,BKSD->BKtD", weights, values.astype(dtype), preferred_element_type=jnp.float32)


def _attend_to_all(q, k, v, first_lane, slots, G, apart=False):
    """`apart` computes the softmax on its own, which with few lanes keeps a GPU busier than one kernel a head."""
    B, S = q.shape[0], k[0].shape[2]
    k, v = (x if x[0].shape[0] == B else _lanes(x, B, first_lane, 0, S) for x in (k, v))
    weights = jax.nn.softmax(_scores(q, k, slots, 0, G), axis=-1)
    if apart and len(v) == 1:
        weights = jax.lax.optimization_barrier(weights.astype(q.dtype))
    return _mix(weights, v, q.dtype)


def _attend_to_blocks(q, k, v, first_lane, slots, G):
    """One block of slots after the other, as far as any lane reaches, with a running softmax (Milakov & Gimelshein
    2018). Blocks past the end of a lane change nothing of its result, not even its rounding."""
    q, S = q.astype(jnp.float32), k[0].shape[2]
    size = min(BLOCK, S)
    if size == S:
        return _attend_to_all(q, k, v, first_lane, slots, G)

    def attend_to_block(index: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, total, largest = state
        first = jnp.minimum(index * size, S - size)  # the last block may begin inside the one before
        block_k, block_v = (_lanes(x, q.shape[0], first_lane, first, size) for x in (k, v))
        scores = _scores(q, block_k, slots, first, G)
        scores = jnp.where(first + jnp.arange(size) < index * size, LEAST, scores)
        largest_now = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        weights, keep = jnp.exp(scores - largest_now), jnp.exp(largest - largest_now)
        total = total * keep + jnp.sum(weights, axis=-1, keepdims=True)
        return out * keep + _mix(weights, block_v, q.dtype), total, largest_now

    blocks = jnp.minimum(jnp.max(slots) // size + 1, -(-S // size))
    column = (*q.shape[:-1], 1)
    state = jnp.zeros(q.shape), jnp.zeros(column), jnp.full(column, LEAST)
    out, total, _ = jax.lax.fori_loop(0, blocks, attend_to_block, state)
    return out / total
