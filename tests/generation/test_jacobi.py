"""Several codes a step are, code for code, those of one code a step (generation/jacobi.py)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.generation.jacobi import accept, next_guesses
from chameleon_jax.generation.sampling import Sampling, draw

ROWS, LENGTH, CODES = 2_000, 8, 5
LOGITS = np.random.default_rng(0).normal(size=(CODES, CODES, CODES)).astype(np.float32) * 1.5
"""A model: the next code by the two before it, of which there are two of code 0 at first."""
KEYS = jax.random.split(jax.random.key(0), ROWS)


@jax.jit
def codes_of_window(before, guesses, places, top_p):
    """The codes `[ROWS, W]` at `places` and after, given the two `before` and guesses of all but the last."""
    W = guesses.shape[1] + 1
    known = jnp.concatenate([before, guesses], axis=1)
    logits = jnp.asarray(LOGITS)[known[:, :-1], known[:, 1:]].reshape(ROWS * W, CODES)
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(KEYS, places[:, None] + jnp.arange(W)).reshape(-1)
    ones = jnp.ones(ROWS * W)
    return draw(keys, logits, Sampling(ones, top_p * ones, 0 * ones, jnp.zeros(ROWS * W, jnp.int32)))[0].reshape(
        ROWS, W
    )


@functools.cache
def pictures(window: int, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[ROWS, LENGTH]`, and the steps that each row took."""
    written = np.zeros((ROWS, 2 + LENGTH + window), np.int32)
    places, steps, rows = np.zeros(ROWS, np.int32), np.zeros(ROWS, np.int32), np.arange(ROWS)[:, None]
    guesses = jnp.zeros((ROWS, window - 1), jnp.int32)
    while (places < LENGTH).any():
        before = jnp.asarray(written[rows, places[:, None] + np.arange(2)])
        codes = codes_of_window(before, guesses, jnp.asarray(places), top_p)
        count = accept(codes, guesses)
        guesses = next_guesses(codes, count)
        steps += places < LENGTH
        written[rows, 2 + places[:, None] + np.arange(window)] = codes  # what is not final is written again
        places = np.minimum(places + np.asarray(count), LENGTH)
    return written[:, 2 : 2 + LENGTH], steps


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("window", [3, LENGTH])
def test_windows_give_the_codes_of_one_at_a_time_in_fewer_steps(window, top_p):
    codes, steps = pictures(window, top_p)
    np.testing.assert_array_equal(codes, pictures(1, top_p)[0])
    assert steps.max() <= LENGTH
    assert steps.mean() < 0.9 * LENGTH


def test_codes_in_windows_follow_the_distribution():
    """Pearson's chi-square of the third and fourth codes together, whose probabilities are those of a sum by hand."""
    codes, _ = pictures(3, 1.0)
    transition = np.exp(LOGITS.astype(np.float64))
    transition /= transition.sum(axis=-1, keepdims=True)
    pairs = np.zeros((CODES, CODES))
    pairs[0, 0] = 1
    for _ in range(4):
        pairs = np.einsum("ab,abc->bc", pairs, transition)
    counts = np.histogramdd(codes[:, 2:4], bins=[np.arange(CODES + 1)] * 2)[0]
    freedom = CODES**2 - 1
    assert ((counts - ROWS * pairs) ** 2 / (ROWS * pairs)).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_what_is_accepted_and_guessed_next():
    tokens = jnp.asarray([[7, 8, 9, 6], [7, 8, 9, 6], [7, 8, 9, 6]])
    guesses = jnp.asarray([[7, 8, 9], [7, 5, 9], [5, 8, 9]])  # of what follows the first three
    count = accept(tokens, guesses)
    assert count.tolist() == [4, 2, 1]
    assert next_guesses(tokens, count).tolist() == [[6, 6, 6], [9, 6, 6], [8, 9, 6]]
