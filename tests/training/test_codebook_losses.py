"""Losses between latents and codes against NumPy by hand and torch's autograd, and the memory of the entropy loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.training.codebook_losses import code_entropies, entropy_loss, quantizer_loss

WEIGHTS = jnp.asarray([1.0, 0.5, 0.0])


def random(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


@pytest.mark.parametrize(("legacy", "to_latents", "to_codes"), [(True, 1, 0.25), (False, 0.25, 1)])
def test_conventions_of_beta_differ_in_the_gradients_only(legacy, to_latents, to_codes):
    """Specification, section 6.5."""
    latents, codes = random(3, 4, 5, seed=1), random(3, 4, 5, seed=2)
    loss = functools.partial(quantizer_loss, beta=0.25, legacy=legacy)
    difference = np.asarray(latents - codes)
    np.testing.assert_allclose(loss(latents, codes), 1.25 * (difference**2).mean((1, 2)), rtol=1e-5)
    grads = jax.grad(lambda *pair: jnp.sum(loss(*pair)), argnums=(0, 1))(latents, codes)
    np.testing.assert_allclose(grads[0], to_latents * 2 * difference / 20, rtol=1e-5)
    np.testing.assert_allclose(grads[1], -to_codes * 2 * difference / 20, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=(2, 3))
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def loss_and_gradients(latents, codebook, temperature: float, chunk: int):
    return entropy_loss(*code_entropies(latents, codebook, temperature, chunk), WEIGHTS[: len(latents)])


@pytest.mark.torch
@pytest.mark.parametrize("chunk", [2, 8])
def test_entropy_loss_and_gradients_are_those_of_torch(chunk):
    """`compute_entropy_loss` of LlamaGen, with weights and the exact logarithm instead of log(p + 1e-5)."""
    torch = pytest.importorskip("torch")
    latents, codebook = random(3, 8, 5, seed=1), random(16, 5, seed=2)
    loss, grads = loss_and_gradients(latents, codebook, 0.7, chunk)

    z, codes = (torch.from_numpy(np.array(x)).double().requires_grad_() for x in (latents, codebook))
    p = torch.softmax(-(torch.cdist(z, codes[None].expand(3, -1, -1)) ** 2) / 0.7, dim=-1)
    weights = torch.tensor([1.0, 0.5, 0.0]).double() / 1.5
    entropy = lambda p: torch.special.entr(p).sum(-1)  # noqa: E731
    expected = weights @ entropy(p).mean(1) - entropy(weights @ p.mean(1))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
    for grad, want in zip(grads, torch.autograd.grad(expected, (z, codes)), strict=True):
        np.testing.assert_allclose(grad, want.numpy(), rtol=1e-3, atol=1e-6)


def test_entropy_loss_ranges_from_all_codes_used_to_no_code_near():
    """Gradients are finite where probabilities are 0 in float32: the derivative of p log p is infinite there."""
    codebook = jnp.eye(8)
    for latents, expected in (
        (codebook[None], -np.log(8)),
        (jnp.zeros((1, 8, 8)), 0.0),
        (100 * codebook[:1] + 0 * codebook[None], 0.0),
    ):
        loss, grads = loss_and_gradients(latents, codebook, 0.01, 4)
        np.testing.assert_allclose(loss, expected, atol=1e-5)
        assert all(np.isfinite(grad).all() for grad in grads)


def test_probabilities_of_all_codes_at_all_positions_are_never_in_memory():
    """Two pictures of the released tokenizer: 1,024 positions with 8,192 codes of 256 channels."""
    latents, codebook = (
        jax.ShapeDtypeStruct((2, 1024, 256), jnp.float32),
        jax.ShapeDtypeStruct((8192, 256), jnp.float32),
    )
    memory = loss_and_gradients.lower(latents, codebook, 0.01, 32).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * 1024 * 8192 * 4 / 2
