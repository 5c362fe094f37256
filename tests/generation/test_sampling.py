"""Draws follow the distribution that temperature and nucleus say (spec section 5.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import SamplingConfig
from chameleon_jax.generation.sampling import penalise_repetition, sample, top_p_filter

PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])


def nucleus_by_hand(logits: np.ndarray, top_p: float) -> np.ndarray:
    """The probabilities of one row after the filter: grow the set from the most likely until it holds `top_p`."""
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    kept = np.zeros_like(probabilities)
    for token in np.argsort(-probabilities):
        kept[token] = probabilities[token]
        if kept.sum() >= top_p:
            break
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.95, {0, 1, 3}), (0.9, {0, 1, 3}), (0.8, {1, 3}), (0.5, {1}), (0.01, {1})]
)
def test_nucleus_keeps_the_most_likely(top_p, kept):
    """Vector V13: of .5 .3 .15 .05, top-p .9 keeps three, .8 two, .5 one."""
    logits = jnp.log(jnp.asarray(PROBABILITIES))[None]
    filtered = np.asarray(top_p_filter(logits, top_p))[0]
    assert set(np.flatnonzero(np.isfinite(filtered)).tolist()) == kept
    for token in kept:
        assert filtered[token] == logits[0, token]


def test_nucleus_of_random_rows_agrees_with_growing_the_set():
    logits = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32) * 2
    logits[:, 7] = -np.inf
    for top_p in (0.1, 0.37, 0.66, 0.93):
        filtered = np.asarray(top_p_filter(jnp.asarray(logits), top_p))
        expected = np.stack([nucleus_by_hand(row.astype(np.float64), top_p) > 0 for row in logits])
        np.testing.assert_array_equal(np.isfinite(filtered), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_draws_follow_the_distribution(temperature, top_p):
    draws = 20_000
    logits = np.array([1.0, -np.inf, 0.2, 2.0, -1.0, 0.9], np.float32)
    expected = nucleus_by_hand(logits.astype(np.float64) / temperature, top_p)
    keys = jax.random.split(jax.random.key(3), draws)
    rows = jnp.broadcast_to(jnp.asarray(logits), (draws, len(logits)))
    tokens = np.asarray(sample(keys, rows, SamplingConfig(temperature=temperature, top_p=top_p)))
    shares = np.bincount(tokens, minlength=len(logits)) / draws
    np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / draws**0.5)
    assert shares[expected == 0].sum() == 0


def test_greedy_takes_the_most_likely_allowed_token():
    logits = jnp.asarray([[0.0, 3.0, -jnp.inf, 2.0], [-jnp.inf, -jnp.inf, -50.0, -jnp.inf]])
    keys = jax.random.split(jax.random.key(0), 2)
    for top_p in (1.0, 0.5):
        assert sample(keys, logits, SamplingConfig(temperature=0.0, top_p=top_p)).tolist() == [1, 2]


def test_only_allowed_token_is_always_drawn():
    rows = jnp.full((200, 30), -jnp.inf).at[:, 11].set(-100.0)
    keys = jax.random.split(jax.random.key(1), 200)
    for top_p in (1.0, 0.3):
        assert set(sample(keys, rows, SamplingConfig(temperature=5.0, top_p=top_p)).tolist()) == {11}


def test_row_is_drawn_from_its_own_key():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(6, 50)), jnp.float32)
    keys = jax.random.split(jax.random.key(4), 6)
    config = SamplingConfig(temperature=1.0, top_p=0.9)
    together = sample(keys, logits, config)
    alone = [int(sample(keys[row : row + 1], logits[row : row + 1], config)[0]) for row in range(6)]
    assert together.tolist() == alone


def test_repetition_penalty_of_the_released_code():
    """Vector V12, and a row of its own in which other tokens were seen."""
    logits = jnp.asarray([[2.0, -2.0, 0.5, 0.0]] * 2)
    seen = jnp.asarray([[True, True, False, False], [False, False, True, True]])
    penalised = penalise_repetition(logits, seen, 1.2)
    np.testing.assert_allclose(penalised, [[1.6667, -2.4, 0.5, 0.0], [2.0, -2.0, 0.5 / 1.2, 0.0]], atol=5e-5)


def test_forbidden_tokens_stay_forbidden_under_a_penalty():
    penalised = penalise_repetition(jnp.full((1, 3), -jnp.inf), jnp.ones((1, 3), bool), 1.2)
    assert np.all(np.asarray(penalised) == -np.inf)
