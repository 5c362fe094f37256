"""Draws follow the distribution that temperature and filters say (spec section 5.3)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_jax.generation.sampling import Sampling, draw, penalise_repetition

draw_jitted = jax.jit(draw)

PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])


def options(rows: int, temperature=1.0, top_p=1.0, min_p=0.0, top_k=0) -> Sampling:
    """Each option is a number for all rows or one a row."""
    floats = (np.broadcast_to(np.float32(value), rows) for value in (temperature, top_p, min_p))
    return Sampling(*map(jnp.asarray, floats), jnp.asarray(np.broadcast_to(np.int32(top_k), rows)))


def kept_by_hand(logits: np.ndarray, temperature: float, top_p: float, min_p: float, top_k: int) -> np.ndarray:
    """bool `[C]`: by sorting one row, in float64; equal logits in order of their columns."""
    order = np.lexsort([np.arange(len(logits)), -logits])
    order = order[: top_k or None]
    mass = np.exp((logits[order].astype(np.float64) - logits.max()) / np.float32(temperature))
    mass = mass[mass >= min_p * (1 - 1e-6)]  # the largest is 1
    if top_p < 1:
        ascending = np.cumsum(mass[::-1])[::-1] / mass.sum()
        mass = mass[: max(1, (ascending > 1 - top_p + 1e-6).sum())]
    kept = np.zeros(len(logits), bool)
    kept[order[: len(mass)]] = True
    return kept & (logits > -np.inf)


def race_by_hand(key, logits: np.ndarray, temperature: float, kept: np.ndarray) -> tuple[int, float]:
    """The kept column that arrives first, and how many times sooner than the next; times from JAX's random bits."""
    uniform = (np.asarray(jax.random.bits(key, logits.shape)).astype(np.float64) + 0.5) / 2**32
    arrival = np.log(-np.log1p(-uniform)) - logits / np.float32(temperature)
    first, second = np.sort(np.where(kept, arrival, np.inf))[:2]
    return int(np.argmin(np.where(kept, arrival, np.inf))), second - first


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ({"top_p": 0.95}, {0, 1, 3}),
        ({"top_p": 0.9}, {0, 1, 3}),
        ({"top_p": 0.8}, {1, 3}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.01}, {1}),
        ({"top_k": 3}, {0, 1, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"min_p": 0.1}, {0, 1, 2, 3}),
        ({"min_p": 0.3}, {0, 1, 3}),
        ({"min_p": 0.31}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.84}, {1, 3}),  # of .95 that are left, .8 are .842
        ({"top_k": 3, "top_p": 0.85}, {0, 1, 3}),
        ({"min_p": 0.3, "top_p": 0.84}, {1, 3}),
        ({"min_p": 0.3, "top_p": 0.85}, {0, 1, 3}),
        ({"top_k": 2, "min_p": 0.2, "top_p": 0.99}, {1, 3}),
    ],
)
def test_what_filters_keep(setting, kept):
    """Vector V13 and the like, on probabilities .15 .5 .05 .3, wherever the logits begin."""
    rows = 300
    logits = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)) + jnp.linspace(-20, 20, rows)[:, None]
    columns, _ = draw_jitted(jax.random.split(jax.random.key(0), rows), logits, options(rows, **setting))
    assert set(columns.tolist()) == kept


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ({"top_k": 3}, {1, 2, 4}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.5}, {1, 2, 4}),  # of six times one sixth three are half
        ({"top_p": 0.51}, {1, 2, 4, 5}),
        ({"top_p": 0.1}, {1}),
        ({"top_k": 4, "top_p": 0.5}, {1, 2}),
        ({"min_p": 1.0}, {1, 2, 4, 5, 6, 7}),
    ],
)
def test_of_equals_the_lowest_columns_are_kept(setting, kept):
    rows = 300
    logits = jnp.broadcast_to(jnp.asarray([-jnp.inf, 0.0, -0.0, -jnp.inf, 0, 0, 0, 0]), (rows, 8))
    columns, _ = draw_jitted(jax.random.split(jax.random.key(1), rows), logits, options(rows, **setting))
    assert set(columns.tolist()) == kept


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([2, 5, 1000]), columns=st.sampled_from([7, 150]))
def test_draws_are_those_of_a_race_among_the_kept(seed, levels, columns):
    """Rows of all options together, with ties and forbidden columns, against a sort in NumPy."""
    rng, rows = np.random.default_rng(seed), 64
    logits = (rng.integers(0, levels, (rows, columns)) * (8 / levels) - 4).astype(np.float32)
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[np.arange(rows), rng.integers(0, columns, rows)] = 0
    pick = lambda *values: rng.choice(values, rows)  # noqa: E731
    setting = pick(0.3, 1.0, 2.5), pick(0.05, 0.5, 0.9, 0.99, 1.0), pick(0, 0, 0.02, 0.3), pick(0, 0, 1, 3, 40)
    keys = jax.random.split(jax.random.key(seed), rows)
    drawn, _ = draw_jitted(keys, jnp.asarray(logits), options(rows, *setting))
    for row, values in enumerate(zip(*setting, strict=True)):
        kept = kept_by_hand(logits[row], *values)
        expected, margin = race_by_hand(keys[row], logits[row], values[0], kept)
        assert drawn[row] == expected or margin < 1e-4, (row, values)


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_p": 0.7},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 6},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 9, "min_p": 0.1, "top_p": 0.8},
    ],
)
def test_frequencies_follow_the_distribution(setting):
    """Pearson's chi-square against the probabilities that a sort in NumPy leaves."""
    draws, logits = 20_000, np.random.default_rng(7).normal(size=12).astype(np.float32)
    logits[3] = -np.inf
    values = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0} | setting
    expected = np.where(kept_by_hand(logits, **values), np.exp(logits / np.float64(values["temperature"])), 0)
    expected *= draws / expected.sum()
    keys = jax.random.split(jax.random.key(3), draws)
    columns, _ = draw_jitted(keys, jnp.broadcast_to(logits, (draws, 12)), options(draws, **values))
    counts, kept = np.bincount(columns, minlength=12), expected > 0
    assert counts[~kept].sum() == 0
    freedom = kept.sum() - 1
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_columns_of_a_large_vocabulary_are_drawn_evenly():
    """Where all are equal, the first, the last and neighbours are drawn as often as others."""
    rows, C = 64, 5_000
    keys = jax.random.split(jax.random.key(5), 64 * rows).reshape(64, rows)
    some = options(rows, top_p=np.where(np.arange(rows) % 2, 0.5, 1.0))
    columns = jax.jit(lambda keys: jax.lax.map(lambda k: draw(k, jnp.zeros((rows, C)), some)[0], keys))(keys)
    half, whole = np.asarray(columns)[:, 1::2].ravel(), np.asarray(columns)[:, ::2].ravel()
    assert half.max() < C // 2
    for drawn, size in ((half, C // 2), (whole, C)):
        counts = np.histogram(drawn, bins=32, range=(0, size))[0]
        mean = len(drawn) / 32
        assert ((counts - mean) ** 2 / mean).sum() < 31 + 4 * 62**0.5
        assert abs((drawn % 2).mean() - 0.5) < 4 * 0.5 / len(drawn) ** 0.5


@functools.cache
def mixed_rows(columns: int) -> tuple:
    """Eight rows of all kinds, and what is drawn from them together."""
    rng = np.random.default_rng(columns)
    logits = rng.normal(size=(8, columns)).astype(np.float32) * np.linspace(0.1, 4, 8, dtype=np.float32)[:, None]
    logits[:, ::5] = -np.inf
    setting = options(
        8,
        temperature=[0, 0.7, 1, 0.7, 1, 2, 0.7, 0],
        top_p=[0.9, 0.9, 1, 0.5, 1, 0.99, 0.9, 1],
        min_p=[0, 0, 0, 0, 0.1, 0, 0, 0],
        top_k=[0, 0, 0, 0, 0, 0, 20, 0],
    )
    keys = jax.random.split(jax.random.key(9), 8)
    return keys, jnp.asarray(logits), setting, draw_jitted(keys, jnp.asarray(logits), setting)


@pytest.mark.parametrize("columns", [1024, 57_003])
@pytest.mark.parametrize("rows", [[0], [2], [6], [3, 1, 4], list(range(8)) * 2])
def test_row_is_drawn_in_a_batch_as_it_is_alone(columns, rows):
    """Bit for bit, in whatever company."""
    keys, logits, setting, (together, logprobs) = mixed_rows(columns)
    rows = np.asarray(rows)
    drawn, logprob = draw_jitted(keys[rows], logits[rows], Sampling(*(values[rows] for values in setting)))
    np.testing.assert_array_equal(drawn, together[rows])
    np.testing.assert_array_equal(logprob, logprobs[rows])


def test_log_probabilities_are_those_of_the_logits_as_given():
    for columns in (1024, 57_003):
        _, logits, _, (drawn, logprobs) = mixed_rows(columns)
        exact = np.asarray(logits, np.float64)
        exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(logprobs, exact[np.arange(8), drawn], rtol=1e-5)


def test_greedy_takes_the_lowest_of_the_most_likely():
    logits = jnp.asarray([[0.0, 3.0, -jnp.inf, 3.0], [-jnp.inf, -jnp.inf, -50.0, -jnp.inf]])
    keys = jax.random.split(jax.random.key(0), 2)
    for setting in ({"temperature": 0}, {"temperature": 0, "top_p": 0.5, "top_k": 3}, {"temperature": [0, 1]}):
        assert draw_jitted(keys, logits, options(2, **setting))[0].tolist() == [1, 2]


@pytest.mark.parametrize("temperature", [1e-40, 1e-30, 1e-5, 1e30])
def test_extreme_temperatures(temperature):
    """Next to nothing is greedy, and nothing overflows."""
    logits = jnp.asarray([[1.0, 3.0, -jnp.inf, 2.9]] * 200)
    drawn, _ = draw_jitted(jax.random.split(jax.random.key(1), 200), logits, options(200, temperature, top_p=0.9))
    assert set(drawn.tolist()) == ({1} if temperature < 1 else {0, 1, 3})


def test_only_allowed_column_is_always_drawn():
    rows = jnp.full((200, 30), -jnp.inf).at[:, 11].set(-100.0)
    keys = jax.random.split(jax.random.key(1), 200)
    drawn, logprob = draw_jitted(keys, rows, options(200, 5.0, top_p=np.linspace(0.1, 1, 200)))
    assert set(drawn.tolist()) == {11}
    assert not np.any(logprob)


def test_rows_without_a_number_end_and_disturb_nobody():
    """What stands in rows that nobody waits for: nothing is allowed, or nothing is a number."""
    keys = jax.random.split(jax.random.key(2), 4)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 30)), jnp.float32)
    setting = options(4, top_p=0.3)
    alone = draw_jitted(keys, logits, setting)[0]
    broken = logits.at[0].set(-jnp.inf).at[1].set(jnp.nan).at[2, 5].set(jnp.nan)
    drawn, _ = draw_jitted(keys, broken, setting)
    assert drawn[3] == alone[3]
    assert all(0 <= column < 30 for column in drawn.tolist())


def test_similar_logits_mostly_give_the_same_draw():
    """The random numbers of a key do not depend on what is kept: what Jacobi decoding builds on."""
    rng, rows = np.random.default_rng(1), 2000
    keys = jax.random.split(jax.random.key(6), rows)
    logits = rng.normal(size=(rows, 50)).astype(np.float32) * 2
    nearby = logits + 0.05 * rng.normal(size=logits.shape).astype(np.float32)
    drawn, again = (draw_jitted(keys, jnp.asarray(x), options(rows, top_p=0.9))[0] for x in (logits, nearby))
    assert np.mean(drawn == again) > 0.93


def test_repetition_penalty_of_the_released_code():
    """Vector V12, and a row of its own in which other tokens were seen."""
    logits = jnp.asarray([[2.0, -2.0, 0.5, 0.0]] * 2)
    seen = jnp.asarray([[True, True, False, False], [False, False, True, True]])
    penalised = penalise_repetition(logits, seen, jnp.asarray([1.2, 1.2]))
    np.testing.assert_allclose(penalised, [[1.6667, -2.4, 0.5, 0.0], [2.0, -2.0, 0.5 / 1.2, 0.0]], atol=5e-5)
    each = penalise_repetition(logits, seen, jnp.asarray([1.2, 1.0]))
    np.testing.assert_array_equal(each, [penalised[0], logits[1]])


def test_forbidden_tokens_stay_forbidden_under_a_penalty():
    penalised = penalise_repetition(jnp.full((1, 3), -jnp.inf), jnp.ones((1, 3), bool), jnp.asarray([1.2]))
    assert np.all(np.asarray(penalised) == -np.inf)
