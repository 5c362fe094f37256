"""Losses as pure functions: the Transformer's, counted per modality, and the image tokenizer's adversarial ones.

Cross-entropy and z-loss run over the whole vocabulary, nothing masked. Legend: B batch, T length, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float, Int


def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Cross-entropy in nats and (log Z)^2 of each prediction, in float32; Z is the softmax's partition function."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - target_logits, jnp.square(log_z)


def weighted_loss(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    is_image: Float[Array, "B T"],
    z_loss: float,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean cross-entropy over the weighted predictions plus `z_loss` times the mean of (log Z)^2 (section 2.3).

    Args:
      is_image: 1 where the target is an image code, 0 elsewhere.

    Returns:
      the loss to descend, and sums to be divided by their weights: `loss_sum`, `weight_sum`, the same for text and
      image targets, and the z-loss term.
    """
    cross_entropy, log_z_squared = token_losses(logits, targets)
    total = jnp.sum(weights)
    safe_total = jnp.maximum(total, 1e-8)
    z_term = z_loss * jnp.sum(log_z_squared * weights) / safe_total
    sums = {
        "loss_sum": jnp.sum(cross_entropy * weights),
        "weight_sum": total,
        "text_loss_sum": jnp.sum(cross_entropy * weights * (1 - is_image)),
        "text_weight_sum": jnp.sum(weights * (1 - is_image)),
        "image_loss_sum": jnp.sum(cross_entropy * weights * is_image),
        "image_weight_sum": jnp.sum(weights * is_image),
        "z_loss": z_term,
    }
    return sums["loss_sum"] / safe_total + z_term, sums


def discriminator_loss(
    real: Float[Array, "..."], fake: Float[Array, "..."], kind: Literal["hinge", "vanilla"]
) -> Float[Array, ""]:
    """What the discriminator of an adversarial image tokenizer descends, as in taming-transformers (Esser et al. 2021).

    Args:
      real: its scores of real pictures, any shape: one number a patch.
      fake: its scores of reconstructions.
      kind: 'hinge' (Lim & Ye 2017) or 'vanilla', the cross-entropy of Goodfellow et al. 2014 on logits.
    """
    penalty = {"hinge": lambda scores: jax.nn.relu(1 + scores), "vanilla": jax.nn.softplus}[kind]
    return (jnp.mean(penalty(-real)) + jnp.mean(penalty(fake))) / 2


def generator_loss(fake: Float[Array, "..."]) -> Float[Array, ""]:
    """What the image tokenizer descends to please either kind of discriminator, as in taming-transformers.

    Args:
      fake: the discriminator's scores of its reconstructions, any shape.
    """
    return -jnp.mean(fake)
