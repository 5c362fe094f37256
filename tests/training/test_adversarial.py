"""Adversarial losses, their weight and regularisers against NumPy by hand and torch's autograd."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.training.adversarial import (
    ScoreAverages,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    picture_scores,
    r1_penalty,
    update_averages,
)

REAL, FAKE = jnp.asarray([0.5, 2.0]), jnp.asarray([-2.0, 0.5])
WEIGHTS = jnp.asarray([1.0, 0.5, 0.0, 2.0])


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1.5, shape), jnp.float32)


def as_torch(array, requires_grad: bool = True):
    import torch

    return torch.from_numpy(np.array(array)).requires_grad_(requires_grad)


@pytest.mark.parametrize(("kind", "expected"), [("hinge", 0.5), ("vanilla", 0.425502), ("non_saturating", 0.425502)])
def test_discriminator_loss_is_that_of_the_specification(kind, expected):
    """Vector V17."""
    np.testing.assert_allclose(jnp.mean(discriminator_loss(REAL, FAKE, kind)), expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("hinge", 0.75), ("vanilla", 0.75), ("non_saturating", 1.300502)])
def test_generator_loss_is_that_of_the_specification(kind, expected):
    """Vector V17; the non-saturating loss is the mean of log(1 + exp(-FAKE))."""
    np.testing.assert_allclose(jnp.mean(generator_loss(FAKE, kind)), expected, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non_saturating"])
def test_losses_and_gradients_are_those_of_torch(kind):
    """A mean over pictures with weights, one of them 0."""
    torch = pytest.importorskip("torch")
    real, fake = random(4, 3, 5, seed=1), random(4, 3, 5, seed=2)

    def losses(real, fake):
        both = discriminator_loss(real, fake, kind), generator_loss(fake, kind)
        return tuple(jnp.sum(WEIGHTS * loss) / jnp.sum(WEIGHTS) for loss in both)

    x, y, weights = as_torch(real), as_torch(fake), as_torch(WEIGHTS, False)[:, None, None] / 3.5 / 15
    if kind == "hinge":
        of_discriminator = ((torch.relu(1 - x) + torch.relu(1 + y)) * weights).sum() / 2
    else:
        entropy = functools.partial(torch.nn.functional.binary_cross_entropy_with_logits, reduction="none")
        of_discriminator = ((entropy(x, torch.ones_like(x)) + entropy(y, torch.zeros_like(y))) * weights).sum() / 2
    adversarial = entropy(y, torch.ones_like(y)) if kind == "non_saturating" else -y
    of_generator = (adversarial * weights).sum()
    for number, expected in enumerate((of_discriminator, of_generator)):
        loss, grads = jax.value_and_grad(lambda *xs, number=number: losses(*xs)[number], argnums=(0, 1))(real, fake)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
        wanted = torch.autograd.grad(expected, (x, y), allow_unused=True)
        for grad, want in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(grad, 0 if want is None else want.numpy(), atol=1e-7)


# ----------------------------------------------------------------------------------------------------------------------
# The adaptive weight
# ----------------------------------------------------------------------------------------------------------------------


def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


@pytest.mark.torch
def test_adaptive_weight_is_that_of_torch():
    """`calculate_adaptive_weight` of taming-transformers, with the last convolution of a decoder."""
    torch = pytest.importorskip("torch")
    pictures, features = random(2, 3, 6, 6, seed=1), random(2, 4, 6, 6, seed=2)
    kernel, critic = random(3, 4, 3, 3, seed=3), random(1, 3, 3, 3, seed=4)
    reconstruction = jax.grad(lambda kernel: jnp.mean(jnp.abs(pictures - conv(features, kernel))))(kernel)
    adversarial = jax.grad(lambda kernel: -jnp.mean(conv(conv(features, kernel), critic)))(kernel)

    last = as_torch(kernel)
    output = torch.conv2d(as_torch(features), last, padding=1)
    nll = (as_torch(pictures) - output).abs().mean()
    g_loss = -torch.conv2d(output, as_torch(critic), padding=1).mean()
    nll_grads, g_grads = (torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (nll, g_loss))
    expected = torch.clamp(torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4), 0.0, 1e4)
    np.testing.assert_allclose(adaptive_weight(reconstruction, adversarial), expected.item(), rtol=1e-4)


def test_adaptive_weight_is_bounded_and_constant():
    grad = jnp.full((3, 3, 8, 3), 5.0)
    np.testing.assert_allclose(adaptive_weight(grad, 0 * grad), 1e4)
    np.testing.assert_allclose(adaptive_weight(0 * grad, 0 * grad), 0.0)
    np.testing.assert_array_equal(jax.grad(adaptive_weight, argnums=(0, 1))(grad, grad), np.zeros((2, *grad.shape)))


# ----------------------------------------------------------------------------------------------------------------------
# Regularisers of the discriminator
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_r1_is_that_of_torch():
    """Values, and gradients with respect to the discriminator, by torch's second derivatives."""
    torch = pytest.importorskip("torch")
    pictures, first, second = random(4, 6, 6, 3, seed=1), random(5, 3, 3, 3, seed=2), random(1, 5, 3, 3, seed=3)

    def scores(kernels, x):
        return conv(jnp.tanh(conv(x.transpose(0, 3, 1, 2), kernels[0])), kernels[1])

    def loss(kernels):
        penalty = r1_penalty(functools.partial(scores, kernels), pictures)
        return jnp.sum(WEIGHTS * penalty) / jnp.sum(WEIGHTS), penalty

    (_, penalty), grads = jax.value_and_grad(loss, has_aux=True)((first, second))

    x, *kernels = as_torch(pictures), as_torch(first), as_torch(second)
    hidden = torch.tanh(torch.conv2d(x.permute(0, 3, 1, 2), kernels[0], padding=1))
    output = torch.conv2d(hidden, kernels[1], padding=1)
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    expected = gradient.square().sum((1, 2, 3)) / 2
    np.testing.assert_allclose(penalty, expected.detach().numpy(), rtol=1e-4)
    wanted = torch.autograd.grad((expected * as_torch(WEIGHTS, False) / 3.5).sum(), kernels)
    for grad, want in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad, want.numpy(), rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_lecam_penalty_and_its_gradient_by_hand():
    real, fake, averages = (
        random(3, 4, seed=1),
        random(3, 4, seed=2),
        ScoreAverages(jnp.float32(0.7), jnp.float32(-0.4)),
    )
    penalty = lecam_penalty(real, fake, averages)
    above, below = np.maximum(real + 0.4, 0), np.maximum(0.7 - fake, 0)
    np.testing.assert_allclose(penalty, (above**2 + below**2).mean(1), rtol=1e-5)
    grads = jax.grad(lambda *scores: jnp.sum(lecam_penalty(*scores, averages)), argnums=(0, 1))(real, fake)
    np.testing.assert_allclose(grads[0], above / 2, rtol=1e-5)
    np.testing.assert_allclose(grads[1], -below / 2, rtol=1e-5)


def test_averages_of_scores_follow_whole_batches():
    """From sums over parts of a batch, with padding in the last."""
    averages = ScoreAverages(jnp.float32(0), jnp.float32(0))
    expected = np.zeros(2)
    for step in range(3):
        scores, weights = random(2, 4, 3, 3, seed=step), jnp.asarray([1.0, 1.0, 1.0, 0.0])
        expected = 0.9 * expected + 0.1 * np.asarray(scores)[:, :3].mean((1, 2, 3))
        parts = [(scores[:, part], weights[part]) for part in (slice(0, 2), slice(2, 4))]
        total = sum(jnp.sum(weights) for _, weights in parts)
        real, fake = (sum(jnp.sum(w * picture_scores(s[side])) for s, w in parts) / total for side in (0, 1))
        averages = update_averages(averages, real, fake, decay=0.9)
    np.testing.assert_allclose(averages, expected, rtol=1e-5)
