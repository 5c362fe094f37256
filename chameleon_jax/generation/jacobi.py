"""Jacobi decoding of pictures: several codes a step, and exactly the picture that one code a step would give.

The noise with which a code is drawn belongs to its place (`rows.token_keys`), so the code is a function of what stands
before it. Guess the next W - 1 codes, compute all W at once from the guesses, and keep those whose prefix was guessed
right; what was computed for the others is the next guess. This is predictive sampling (Wiggers & Hoogeboom 2020), with
the shared noise that makes speculative Jacobi decoding agree sooner (MC-SJD, 2025). Legend: R rows, W window.
"""

from __future__ import annotations

import jax.numpy as jnp

from chameleon_jax.array_types import Array, Int


def accept(tokens: Int[Array, "R W"], guesses: Int[Array, "R guesses"]) -> Int[Array, "R"]:
    """How many of `tokens`, computed from `guesses`, are final: the first, and those behind right guesses."""
    right = jnp.cumprod(tokens[:, :-1] == guesses, axis=1)
    return 1 + jnp.sum(right, axis=1)


def next_guesses(tokens: Int[Array, "R W"], accepted: Int[Array, "R"]) -> Int[Array, "R guesses"]:
    """What may follow the last accepted token: what was computed there, then repetitions of the last of it."""
    W = tokens.shape[1]
    places = jnp.minimum(accepted[:, None] + jnp.arange(W - 1), W - 1)
    return jnp.take_along_axis(tokens, places, axis=1)
