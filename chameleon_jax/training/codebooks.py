"""Ways to round latents to codes in training, and to learn the codes, as pure functions.

The codes of each way are a plain table, in which the nearest code by Euclidean distance is taken, so that all of them
give models of the released form.

Legend: B batch, n codes per picture, e code dimension, N codes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float
from chameleon_jax.config import ImageTokenizerTrainConfig
from chameleon_jax.models.vq import nearest_code
from chameleon_jax.training.codebook_losses import commitment_loss, quantizer_loss

CHUNK = 64
"""Positions of each picture whose distances to all codes are in memory at once."""


class Quantized(NamedTuple):
    codes: Array
    """int `[B, n]`"""
    output: Array
    """What the decoder gets, `[B, n, e]`: the codes, with the gradient of the way for the latents."""
    error: Array
    """mean |code - latent|^2 of each picture, `[B]`, without gradient."""
    loss: Array
    """What the way adds to the loss of each picture, `[B]`."""


def straight_through(latents: Float[Array, "B n e"], codes: Float[Array, "B n e"]) -> Float[Array, "B n e"]:
    """`codes`, whose gradient goes to the latents as it is (van den Oord et al. 2017)."""
    return latents + jax.lax.stop_gradient(codes - latents)


def rotate(latents: Float[Array, "B n e"], codes: Float[Array, "B n e"]) -> Float[Array, "B n e"]:
    """`codes`, as each latent turned and scaled by a constant matrix, through which the gradient goes (Fifty et al.
    2024, section 4.2)."""
    latents, norm = latents.astype(jnp.float32), lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True)
    safe = lambda x: jnp.maximum(x, 1e-6)  # noqa: E731
    constant = jax.lax.stop_gradient((latents, codes))
    scale = norm(constant[1]) / safe(norm(constant[0]))
    a, b = (x / safe(norm(x)) for x in constant)
    middle = (a + b) / safe(norm(a + b))
    dot = lambda x, y: jnp.sum(x * y, axis=-1, keepdims=True)  # noqa: E731
    return scale * (latents - 2 * dot(middle, latents) * middle + 2 * dot(a, latents) * b)


def expected_codes(
    latents: Float[Array, "B n e"], codebook: Float[Array, "N e"], temperature: float
) -> Float[Array, "B n e"]:
    """Means of the codes with probabilities softmax(-|latent - code|^2 / temperature).

    Gradients go through the probabilities alone. These are computed for some positions at a time, and again in the
    backward pass, so that all `[B, n, N]` are never in memory.
    """
    values = jax.lax.stop_gradient(codebook)

    @jax.checkpoint
    def means(x: Array) -> Array:
        # -|x - code|^2 without |x|^2, which is the same for all codes.
        products = jnp.einsum("Bce,Ne->BcN", x, codebook, precision=jax.lax.Precision.HIGHEST)
        p = jax.nn.softmax((2 * products - jnp.sum(jnp.square(codebook), axis=-1)) / temperature)
        return jnp.einsum("BcN,Ne->Bce", p, values, precision=jax.lax.Precision.HIGHEST)

    B, n, e = latents.shape
    chunk = math.gcd(CHUNK, n)
    chunks = latents.reshape(B, n // chunk, chunk, e).swapaxes(0, 1)
    return jax.lax.map(means, chunks).swapaxes(0, 1).reshape(B, n, e)


def quantize(
    config: ImageTokenizerTrainConfig, latents: Float[Array, "B n e"], codebook: Float[Array, "N e"]
) -> Quantized:
    """Rounds latents to their nearest codes, in the way of `config.codebook`."""
    latents = latents.astype(jnp.float32)
    codes = nearest_code(*jax.lax.stop_gradient((latents, codebook)))
    nearest = jnp.take(codebook, codes, axis=0)
    error = jax.lax.stop_gradient(commitment_loss(latents, nearest))
    if config.has_averages:
        output = (rotate if config.codebook == "rotation" else straight_through)(
            latents, jax.lax.stop_gradient(nearest)
        )
        return Quantized(codes, output, error, config.commitment * commitment_loss(latents, nearest))
    if config.codebook == "ibq":
        # The gradient of one-hot indices goes to the probabilities, and so to all codes and to the latents.
        expected = expected_codes(latents, codebook, config.temperature)
        output = compared = nearest + expected - jax.lax.stop_gradient(expected)
    else:
        output, compared = straight_through(latents, nearest), nearest
    return Quantized(codes, output, error, quantizer_loss(latents, compared, config.commitment, config.legacy_beta))


def perplexity(counts: Float[Array, "N"]) -> Float[Array, ""]:
    """exp of the entropy of how often codes occur: N if all are used equally, 1 if only one is."""
    share = counts / jnp.sum(counts)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0)))


def codebook_decay(config: ImageTokenizerTrainConfig, step: Array) -> Array | float:
    """Decay of the moving averages: (1 + step) / (10 + step) until that is `config.codebook_decay`.

    At first latents move fast, and a code that nothing is near any more is found dead within some steps instead of some
    hundred. A codebook that was trained before keeps to its decay, as rare codes would seem dead.
    """
    if config.initial:
        return config.codebook_decay
    return jnp.minimum(config.codebook_decay, (1 + step) / (10 + step))


def update_codebook(
    config: ImageTokenizerTrainConfig,
    decay: Array | float,
    counts: Float[Array, "N"],
    sums: Float[Array, "N e"],
    used: Float[Array, "N"],
    used_sums: Float[Array, "N e"],
    restarts: Float[Array, "N e"],
) -> tuple[Float[Array, "N e"], Float[Array, "N"], Float[Array, "N e"], Array]:
    """One step of the moving averages; dead codes are restarted.

    A code is dead if its average use per batch is below `restart_below` times the mean use.

    Args:
      decay: of the moving averages.
      counts, sums: moving averages of the number of latents of each code, and of their sum.
      used, used_sums: the same of this batch.
      restarts: a latent for each code to restart at.

    Returns:
      codebook, counts, sums, and the number of restarted codes.
    """
    counts = decay * counts + (1 - decay) * used
    sums = decay * sums + (1 - decay) * used_sums
    fresh = jnp.sum(used) / counts.shape[0]  # the mean use, so that a restarted code is not declared dead again at once
    dead = counts < config.restart_below * fresh
    counts = jnp.where(dead, fresh, counts)
    sums = jnp.where(dead[:, None], restarts * fresh, sums)
    return sums / counts[:, None], counts, sums, jnp.sum(dead)
