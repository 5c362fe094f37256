"""From logits to tokens: repetition penalty, temperature, nucleus, greedy. Legend: B batch, V vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Bool, Float, Int
from chameleon_jax.config import SamplingConfig


def penalise_repetition(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Makes the tokens that were `seen` less likely: positive logits are divided by `penalty`, negative multiplied.

    From Keskar et al. 2019 (CTRL), in the form of the released code, which applies it before the temperature.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_p_filter(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Keeps the smallest set of most likely tokens whose mass reaches `top_p` (Holtzman et al. 2020).

    As in the released code: in ascending order of probability, tokens whose cumulative mass is at most 1 - top_p are
    dropped; the most likely one always stays. Probabilities .5 .3 .15 .05 with top_p 0.8 keep two.
    """
    order = jnp.argsort(logits, axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
    drop_sorted = (mass <= 1 - top_p).at[..., -1].set(False)
    rows = jnp.arange(logits.shape[0])[:, None]
    drop = jnp.zeros_like(drop_sorted).at[rows, order].set(drop_sorted)
    return jnp.where(drop, -jnp.inf, logits)


def sample(keys: Array, logits: Float[Array, "B V"], config: SamplingConfig) -> Int[Array, "B"]:
    """One token a row, each from its own key; temperature 0 takes the most likely. Forbidden tokens are at -inf."""
    logits = logits.astype(jnp.float32)
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / config.temperature
    if config.top_p < 1:
        logits = top_p_filter(logits, config.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits)
