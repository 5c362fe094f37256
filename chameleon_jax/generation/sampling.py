"""From logits to tokens: repetition penalty, temperature, top-k, min-p, top-p, greedy, each row with its own options.

A draw is a race (Gumbel-max in another form): every column waits an exponentially distributed time, divided by its
probability, and the first to arrive is drawn. The times come from the row's key alone, so that the same key draws
nearly always the same column from slightly different logits, which Jacobi decoding builds on.

Nothing is sorted. What top-k, min-p and top-p keep are the first columns in the order from most to least likely, so
if the winner of a race is not kept, neither is anything after it in that order; the race is then run again among those
before it, with the same times. This ends at the winner of the race among the kept columns, in one or two rounds mostly.

A row is drawn in a batch, bit for bit, as it is alone: probabilities are summed as whole numbers, whose sums do not
depend on the order in which a device adds them up. Legend: R rows, C columns of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from chameleon_jax.array_types import Array, Bool, Float, Int


class Sampling(NamedTuple):
    """How each row is sampled."""

    temperature: Float[Array, "R"]  # divides the logits; 0: the most likely column, whatever else is set
    top_p: Float[Array, "R"]  # 1: off
    min_p: Float[Array, "R"]  # 0: off
    top_k: Int[Array, "R"]  # 0: off


SLACK = 2.0**-20
"""Probabilities that differ by less than this, relative to each other, count as equal where one is compared with top-p
or min-p, so that rounding does not decide what .5 of the mass is."""


def draw(keys: Array, logits: Float[Array, "R C"], sampling: Sampling) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
    """Draws one column a row.

    In this order: the logits are divided by the temperature; top-k keeps the k most likely columns; min-p those with at
    least min_p times the largest probability; top-p goes through what is left in ascending order of probability and
    drops columns whose cumulative mass, of what is left, is at most 1 - top_p (Holtzman et al. 2020, as in the released
    code: .5 .3 .15 .05 with top-p .8 keep two). The most likely column always stays. Of columns with equal logits the
    lower comes first: where the limit of top-k or top-p falls among equals, the lowest of them are kept.

    Args:
      keys: one random key a row (threefry, JAX's default). A row depends on its own key, logits and options alone.
      logits: forbidden columns are at -inf.

    Returns:
      The column int32 `[R]`, and its log-probability float32 `[R]` under `logits` as given, before temperature and
      filters.
    """
    # XLA makes poor loops of one row over an odd number of columns.
    padding = -logits.shape[-1] % 128
    logits = jnp.pad(logits.astype(jnp.float32), ((0, 0), (0, padding)), constant_values=-jnp.inf)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)  # rows that nobody waits for may hold anything
    greedy = sampling.temperature < jnp.finfo(jnp.float32).tiny
    column = lax.cond(
        jnp.all(greedy), lambda: _first_largest(logits), lambda: _race(keys, logits, largest, sampling, greedy)
    )
    masses, unit = _whole_numbers(jnp.exp(logits - largest))
    total = jnp.sum(masses, axis=-1).astype(jnp.float32) * unit[:, 0]
    return column, _at(logits, column) - largest[:, 0] - jnp.log(total)


def _race(keys: Array, logits: Array, largest: Array, sampling: Sampling, greedy: Array) -> Array:
    """int32 `[R]`: the columns drawn; the most likely ones in `greedy` rows."""
    C = logits.shape[-1]
    columns = jnp.arange(C, dtype=jnp.int32)
    weights = jnp.exp((logits - largest) / jnp.where(greedy, 1, sampling.temperature)[:, None])  # the largest is 1
    masses, _ = _whole_numbers(weights)
    times = jnp.where(greedy[:, None], 1, _waiting_times(keys, C))  # so that the most likely wins the first round
    speed = jnp.where(logits == -jnp.inf, 0, weights / times)

    may_win = weights >= (sampling.min_p * (1 - SLACK))[:, None]
    left = jnp.sum(jnp.where(may_win, masses, 0), axis=-1)
    top_k = jnp.where((sampling.top_k <= 0) | (sampling.top_k > C), C, sampling.top_k)
    left = lax.cond(
        jnp.any(~greedy & (top_k < C)),
        lambda: jnp.minimum(left, _mass_of_largest(logits, masses, top_k)),
        lambda: left,
    )
    nucleus = jnp.where(sampling.top_p < 1, sampling.top_p * (1 - SLACK), jnp.inf) * left.astype(jnp.float32)

    def before(column: Array, value: Array) -> Array:
        """bool `[R, C]`: what is more likely than a row's `column`, whose logit is `value`."""
        column, value = column[:, None], value[:, None]
        return (logits > value) | ((logits == value) & (columns < column))

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        drawn, value, done = state
        running = jnp.where(before(drawn, value), speed, 0)
        winner = _first_largest(running)
        ahead = before(winner, _at(logits, winner))
        count = jnp.sum(ahead, axis=-1, dtype=jnp.int32)
        mass = jnp.sum(jnp.where(ahead, masses, 0), axis=-1).astype(jnp.float32)
        kept = ~greedy & (count < top_k) & _at(may_win, winner) & (mass < nucleus)
        drawn = jnp.where(done, drawn, winner)
        # The last condition is false only where logits are not numbers.
        done |= kept | (count == 0) | ~(_at(running, winner) > 0)
        return drawn, _at(logits, drawn), done

    start = (jnp.full(len(logits), C), jnp.full(len(logits), -jnp.inf), jnp.zeros(len(logits), bool))
    return lax.while_loop(lambda state: ~jnp.all(state[2]), again, start)[0]


def _at(values: Array, column: Array) -> Array:
    """`[R]`: each row's value in its column."""
    return jnp.take_along_axis(values, column[:, None], axis=-1, mode="clip")[:, 0]


def _first_largest(values: Float[Array, "R C"]) -> Int[Array, "R"]:
    """The lowest column with the largest value; argmax in two reductions, which is faster on CPUs."""
    C = values.shape[-1]
    largest = jnp.max(values, axis=-1, keepdims=True)
    columns = jnp.where(values == largest, jnp.arange(C, dtype=jnp.int32), C - 1)
    return jnp.min(columns, axis=-1)


def _whole_numbers(weights: Float[Array, "R C"]) -> tuple[Array, Array]:
    """Weights from 0 to 1, the largest 1, in units so small that each row's sum just fits into 32 bits.

    Returns:
      uint32 `[R, C]`, and the units, powers of two, float32 `[R, 1]`.
    """
    C = weights.shape[-1]
    bits = 32 - C.bit_length()
    whole = lambda x: x.astype(jnp.int32).astype(jnp.uint32)  # noqa: E731  (CPUs do not convert to unsigned)
    coarse = jnp.sum(whole(weights * 2.0**bits), axis=-1, keepdims=True)  # at most one less a column than the weights
    scale = 31 + bits - (32 - lax.clz(coarse + jnp.uint32(C)).astype(jnp.int32))
    return whole(jnp.round(weights * _power_of_two(scale))), _power_of_two(-scale)


def _power_of_two(exponent: Int[Array, "R 1"]) -> Float[Array, "R 1"]:
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _mass_of_largest(logits: Float[Array, "R C"], masses: Array, k: Int[Array, "R"]) -> Array:
    """uint32 `[R]`: the mass of the `k` most likely columns, found by halving the range of float32 32 times."""
    bits = lax.bitcast_convert_type(jnp.where(logits == 0, 0, logits), jnp.int32)  # -0 is 0
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # int32 in the order of the logits

    def halve(step: Array, smallest: Array) -> Array:
        higher = smallest + (jnp.uint32(1) << (31 - step).astype(jnp.uint32)).astype(jnp.int32)
        enough = jnp.sum(order >= higher[:, None], axis=-1, dtype=jnp.int32) >= k
        return jnp.where(enough, higher, smallest)

    smallest = lax.fori_loop(0, 32, halve, jnp.full(len(k), -(2**31), jnp.int32))[:, None]
    above, equal = order > smallest, order == smallest
    mass_of_one = jnp.max(jnp.where(equal, masses, 0), axis=-1)
    room = k - jnp.sum(above, axis=-1, dtype=jnp.int32)
    return jnp.sum(jnp.where(above, masses, 0), axis=-1) + room.astype(jnp.uint32) * mass_of_one


def _waiting_times(keys: Array, C: int) -> Float[Array, "R C"]:
    """Exponentially distributed numbers, a row from each key, with all their digits near 0, where races are decided."""
    uniform = ((_bits(keys, C) >> 1).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-31
    return -jnp.log1p(-jnp.minimum(uniform, 1 - 2.0**-24))


def _bits(keys: Array, C: int) -> Array:
    """uint32 `[R, C]`: what `jax.random.bits(key, [C])` gives for each key, three times as fast on CPUs.

    Threefry-2x32 with 20 rounds (Salmon et al. 2011), written out, so that XLA makes one loop over the columns of it.
    """
    first, second = (word[:, None] for word in jax.random.key_data(keys).T)
    schedule = (first, second, first ^ second ^ np.uint32(0x1BD11BDA))
    x0, x1 = first, jnp.arange(C, dtype=jnp.uint32) + second
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation)))
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0 ^ x1


def penalise_repetition(
    logits: Float[Array, "R C"], seen: Bool[Array, "R C"], penalty: Float[Array, "R"]
) -> Float[Array, "R C"]:
    """Makes the tokens that were `seen` less likely: positive logits are divided by `penalty`, negative multiplied.

    From Keskar et al. 2019 (CTRL), in the form of the released code, which applies it before the temperature. A penalty
    of 1 leaves a row as it is.
    """
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
