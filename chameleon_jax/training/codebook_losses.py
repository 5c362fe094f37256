"""Losses that tie latents and codes of the image tokenizer together, as pure functions.

Losses are one number per picture, so that a mean can be taken over the parts of a batch, and without padding: it is the
sum of weights times losses, divided by the sum of weights.

Legend: B batch, n codes per picture, e code dimension, N codes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float


def commitment_loss(latents: Float[Array, "B n e"], codes: Float[Array, "B n e"]) -> Float[Array, "B"]:
    """mean |sg(codes) - latents|^2, which moves the latents towards their codes; sg stops the gradient."""
    return jnp.mean(jnp.square(jax.lax.stop_gradient(codes) - latents), axis=(1, 2))


def codebook_loss(latents: Float[Array, "B n e"], codes: Float[Array, "B n e"]) -> Float[Array, "B"]:
    """mean |codes - sg(latents)|^2, which moves the codes towards their latents."""
    return commitment_loss(codes, latents)


def quantizer_loss(
    latents: Float[Array, "B n e"], codes: Float[Array, "B n e"], beta: float, legacy: bool = False
) -> Float[Array, "B"]:
    """The loss of a learned codebook (van den Oord et al. 2017, equation 3).

    Args:
      latents: output of the encoder.
      codes: the code of each, from the codebook.
      beta: weight of the commitment loss, as in the paper.
      legacy: makes `beta` the weight of the codebook loss instead, as taming-transformers does by default.
    """
    commitment, codebook = commitment_loss(latents, codes), codebook_loss(latents, codes)
    return commitment + beta * codebook if legacy else codebook + beta * commitment


def code_entropies(
    latents: Float[Array, "B n e"], codebook: Float[Array, "N e"], temperature: float, chunk: int
) -> tuple[Float[Array, "B"], Float[Array, "B N"]]:
    """How undecided between codes the latents are, and which codes they use, with a softmax in place of an argmin.

    The probability of a code is softmax(-|latent - code|^2 / temperature). Probabilities are computed for `chunk`
    positions of each picture at a time, and again in the backward pass, so that all `[B, n, N]` are never in memory.

    Returns:
      The mean entropy of the positions of each picture in nats, and the mean probability of each code.

    Raises:
      ValueError: if `chunk` does not divide n.
    """
    B, n, e = latents.shape
    if n % chunk:
        raise ValueError(f"chunk = {chunk}: must divide the number of codes per picture, {n}")

    def softmax(x: Array) -> tuple[Array, Array]:
        # -|x - code|^2 without |x|^2, which is the same for all codes.
        products = jnp.einsum("Bce,Ne->BcN", x, codebook, precision=jax.lax.Precision.HIGHEST)
        logits = (2 * products - jnp.sum(jnp.square(codebook), axis=-1)) / temperature
        log_p = jax.nn.log_softmax(logits)
        p = jnp.exp(log_p)
        return -jnp.sum(p * log_p, axis=(1, 2)), jnp.sum(p, axis=1)

    def add(sums: tuple[Array, Array], x: Array):
        return jax.tree.map(jnp.add, sums, jax.checkpoint(softmax)(x)), None

    start = jnp.zeros((B,)), jnp.zeros((B, codebook.shape[0]))
    chunks = latents.astype(jnp.float32).reshape(B, n // chunk, chunk, e).swapaxes(0, 1)
    (entropy, p), _ = jax.lax.scan(add, start, chunks)
    return entropy / n, p / n


def entropy_loss(
    entropy: Float[Array, "B"], probabilities: Float[Array, "B N"], weights: Float[Array, "B"]
) -> Float[Array, ""]:
    """Mean entropy of single latents minus the entropy of their mean distribution, over a batch (Yu et al. 2023).

    It is low if each latent is near one code and all codes are used. It is not a mean over pictures, since the second
    entropy is of the whole batch; over a part of a batch it is that of the part.

    Args:
      entropy: of each picture, from `code_entropies`.
      probabilities: of each picture, likewise.
      weights: of each picture in the mean.
    """
    shares = weights / jnp.maximum(jnp.sum(weights), 1e-8)
    mean = jnp.sum(shares[:, None] * probabilities, axis=0)
    # The derivative of p log p is infinite at 0; a code with so small a share adds nothing.
    batch_entropy = -jnp.sum(mean * jnp.log(jnp.where(mean > 1e-30, mean, 1)))
    return jnp.sum(shares * entropy) - batch_entropy
