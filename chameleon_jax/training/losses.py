"""Losses of the Transformer as pure functions, per modality.

Cross-entropy and z-loss are over the whole vocabulary, without a mask. Legend: B batch, T length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float, Int


class TokenLosses(NamedTuple):
    """Per-token losses and statistics of the logits, float32 `[B, T]`."""

    cross_entropy: Array  # nats
    log_z: Array  # logarithm of the softmax's partition function
    max_logit: Array  # the largest |logit|


def token_losses(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> TokenLosses:
    """Cross-entropy, log Z and largest |logit| of each prediction."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # Not max(|logits|): logsumexp computes the maximum anyway.
    constant = jax.lax.stop_gradient(logits)
    max_logit = jnp.maximum(jnp.max(constant, axis=-1), -jnp.min(constant, axis=-1))
    return TokenLosses(log_z - target_logits, log_z, max_logit)


def chunked_token_losses(
    x: Float[Array, "B T d"],
    readout: Callable[[Array], Array],
    targets: Int[Array, "B T"],
    chunk: int,
) -> TokenLosses:
    """`token_losses(readout(x), targets)`, computed for `chunk` positions of each row at a time.

    The backward pass recomputes the logits of each chunk, so that those of all positions are never in memory at once.

    Raises:
      ValueError: if `chunk` does not divide T.
    """
    B, T, _ = x.shape
    if T % chunk:
        raise ValueError(f"loss_chunk = {chunk}: must divide the length of the rows, {T}")

    # A chunk is every (T / chunk)-th position, so that it is spread over all devices if rows are sharded along their
    # length.
    def split(values: Array) -> Array:
        return jnp.moveaxis(values.reshape(B, chunk, T // chunk, *values.shape[2:]), 2, 0)

    def join(values: Array) -> Array:
        return jnp.moveaxis(values, 0, 2).reshape(B, T)

    losses = jax.checkpoint(lambda each: token_losses(readout(each[0]), each[1]))
    return TokenLosses(*map(join, jax.lax.map(losses, (split(x), split(targets)))))


def weighted_loss(
    losses: TokenLosses,
    weights: Float[Array, "B T"],
    is_image: Float[Array, "B T"],
    z_loss: float,
    total: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean cross-entropy over the weighted predictions plus `z_loss` times the mean of (log Z)^2 (section 2.3).

    Args:
      losses: the result of `token_losses`.
      is_image: 1 where the target is an image code, 0 elsewhere.
      z_loss: coefficient of the z-loss.
      total: sum of weights to divide by, for a part of a batch. Default: the sum of `weights`.

    Returns:
      The loss to minimise, and sums to be divided by their weights: `loss_sum` and `weight_sum`, the same for text and
      image targets, the sum of log Z, and the z-loss term.
    """
    own_total = jnp.sum(weights)
    total = own_total if total is None else total
    safe_total = jnp.maximum(total, 1e-8)
    z_term = z_loss * jnp.sum(jnp.square(losses.log_z) * weights) / safe_total
    cross_entropy = losses.cross_entropy
    sums = {
        "loss_sum": jnp.sum(cross_entropy * weights),
        "weight_sum": own_total,
        "text_loss_sum": jnp.sum(cross_entropy * weights * (1 - is_image)),
        "text_weight_sum": jnp.sum(weights * (1 - is_image)),
        "image_loss_sum": jnp.sum(cross_entropy * weights * is_image),
        "image_weight_sum": jnp.sum(weights * is_image),
        "log_z_sum": jnp.sum(losses.log_z * weights),
        "z_loss": z_term,
    }
    return sums["loss_sum"] / safe_total + z_term, sums


def per_modality(sums: Mapping[str, Any]) -> dict[str, float]:
    """Mean losses in nats per token from the sums of `weighted_loss`. Absent modalities are omitted."""
    metrics = {}
    for name, key in (("loss", ""), ("text_loss", "text_"), ("image_loss", "image_")):
        weight = float(sums[f"{key}weight_sum"])
        if weight > 0:
            metrics[name] = float(sums[f"{key}loss_sum"]) / weight
    return metrics
