"""Losses of an image tokenizer that is trained against a discriminator, as pure functions.

Losses are one number per picture, so that a mean can be taken over the parts of a batch, and without padding: it is the
sum of weights times losses, divided by the sum of weights. Scores have any number of patches per picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float

Adversarial = Literal["hinge", "vanilla", "non_saturating"]
"""'hinge' (Lim & Ye 2017); 'vanilla', whose discriminator minimises the cross-entropy of real and fake, as in
taming-transformers (Esser et al. 2021); 'non_saturating', the same with the generator's loss of Goodfellow et al. 2014.
"""


def picture_scores(scores: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """The mean over the patches of each picture."""
    return jnp.mean(scores, axis=range(1, scores.ndim))


def discriminator_loss(
    real: Float[Array, "B ..."], fake: Float[Array, "B ..."], kind: Adversarial
) -> Float[Array, "B"]:
    """The loss of the discriminator.

    Args:
      real: its scores of pictures.
      fake: its scores of their reconstructions.
    """
    penalty = (lambda scores: jax.nn.relu(1 + scores)) if kind == "hinge" else jax.nn.softplus
    return picture_scores(penalty(-real) + penalty(fake)) / 2


def generator_loss(fake: Float[Array, "B ..."], kind: Adversarial) -> Float[Array, "B"]:
    """The adversarial loss of the image tokenizer.

    Args:
      fake: the discriminator's scores of its reconstructions.
    """
    return picture_scores(jax.nn.softplus(-fake) if kind == "non_saturating" else -fake)


def adaptive_weight(
    reconstruction_grad: Float[Array, "..."], adversarial_grad: Float[Array, "..."]
) -> Float[Array, ""]:
    """Weight of the adversarial loss that makes its gradient as large as that of the other losses.

    |reconstruction_grad| / (|adversarial_grad| + 1e-4), at most 10,000 (Esser et al. 2021, equation 7). It is constant
    for differentiation.

    Args:
      reconstruction_grad: gradient of the reconstruction and perceptual losses with respect to the kernel of the
        decoder's last convolution.
      adversarial_grad: that of the adversarial loss.
    """
    norm = lambda grad: jnp.sqrt(jnp.sum(jnp.square(grad.astype(jnp.float32))))  # noqa: E731
    ratio = norm(reconstruction_grad) / (norm(adversarial_grad) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))


def r1_penalty(scores: Callable[[Array], Array], pictures: Float[Array, "B h w c"]) -> Float[Array, "B"]:
    """Half the squared norm of the gradient of each picture's scores with respect to its pixels (R1, Mescheder et al.
    2018). The score of a picture is the sum over its patches.

    Args:
      scores: the discriminator, from pictures to scores. The score of a picture must depend on this picture alone,
        which rules out BatchNorm.
      pictures: real ones.
    """
    gradient = jax.grad(lambda x: jnp.sum(scores(x)))(pictures)
    return jnp.sum(jnp.square(gradient), axis=(1, 2, 3)) / 2


class ScoreAverages(NamedTuple):
    """Moving averages of the discriminator's scores of real pictures and of reconstructions; both start at zero."""

    real: Array  # []
    fake: Array  # []


def update_averages(
    averages: ScoreAverages, real: Float[Array, ""], fake: Float[Array, ""], decay: float
) -> ScoreAverages:
    """Moving averages after one more batch, of which `real` and `fake` are the mean `picture_scores`."""
    update = lambda average, new: decay * average + (1 - decay) * jax.lax.stop_gradient(new)  # noqa: E731
    return ScoreAverages(update(averages.real, real), update(averages.fake, fake))


def lecam_penalty(
    real: Float[Array, "B ..."], fake: Float[Array, "B ..."], averages: ScoreAverages
) -> Float[Array, "B"]:
    """Keeps scores of real pictures near the average of reconstructions, and vice versa (Tseng et al. 2021).

    Like the authors' code, it only penalises real scores above and fake scores below these averages.

    Args:
      real: the discriminator's scores of pictures.
      fake: its scores of their reconstructions.
      averages: those before this batch.
    """
    above, below = jax.nn.relu(real - averages.fake), jax.nn.relu(averages.real - fake)
    return picture_scores(jnp.square(above) + jnp.square(below))
