"""Ways to learn a codebook: their gradients against torch and by hand, and that all of them learn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import ImageTokenizerConfig, ImageTokenizerTrainConfig
from chameleon_jax.training.codebooks import expected_codes, quantize, rotate

CONFIG = ImageTokenizerTrainConfig(
    model=ImageTokenizerConfig(resolution=16, channels=8, num_codes=6, code_dim=4, norm_groups=4),
    steps=100,
    batch_size=2,
    commitment=0.25,
)  # fmt: skip
rng = np.random.default_rng(0)
LATENTS, CODEBOOK = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
WANTED = rng.normal(size=(2, 3, 4)).astype(np.float32)
"""What a decoder wants of each code: the gradient of its loss."""


def gradients(method: str, **changes):
    """Of the loss of the way and of what the decoder wants, with respect to latents and codebook; and the output."""
    config = dataclasses.replace(CONFIG, codebook=method, **changes)

    def loss(latents, codebook):
        quantized = quantize(config, latents, codebook)
        return jnp.sum(quantized.output * WANTED) + jnp.sum(quantized.loss), quantized

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(LATENTS, CODEBOOK)


def by_torch(method: str, beta: float = 0.25, legacy: bool = False, temperature: float = 1.0):
    torch = pytest.importorskip("torch")
    z, table = (torch.tensor(values, requires_grad=True) for values in (LATENTS, CODEBOOK))
    codes = torch.cdist(z.reshape(-1, 4), table).argmin(-1)
    nearest = table[codes].reshape(z.shape)
    if method == "ibq":  # as in the authors' code, with Euclidean logits
        soft = torch.softmax(-torch.cdist(z.reshape(-1, 4), table).square() / temperature, -1)
        hard = torch.nn.functional.one_hot(codes, 6).float()
        nearest = ((hard + soft - soft.detach()) @ table).reshape(z.shape)
        output = nearest
    elif method == "rotation":  # the matrix of each latent, in full
        rows = []
        for each, code in zip(z.reshape(-1, 4), nearest.detach().reshape(-1, 4), strict=True):
            a, b = each.detach() / each.detach().norm(), code / code.norm()
            r = (a + b) / (a + b).norm()
            turn = torch.eye(4) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
            rows.append(code.norm() / each.detach().norm() * turn @ each)
        output = torch.stack(rows).reshape(z.shape)
    else:
        output = z + (nearest - z).detach()
    mean = lambda x: x.square().mean((1, 2)).sum()  # noqa: E731
    commitment, codebook = mean(nearest.detach() - z), mean(nearest - z.detach())
    if method in ("ema", "rotation"):
        loss = beta * commitment
    else:
        loss = commitment + beta * codebook if legacy else codebook + beta * commitment
    ((output * torch.tensor(WANTED)).sum() + loss).backward()
    grad = torch.zeros_like(table) if table.grad is None else table.grad
    return z.grad.numpy(), grad.numpy(), output.detach().numpy()


@pytest.mark.parametrize(
    ("method", "legacy"),
    [("ema", False), ("rotation", False), ("learned", False), ("learned", True), ("sim_vq", False), ("ibq", False)],
)
def test_gradients_are_those_of_torch(method, legacy):
    (of_latents, of_codebook), quantized = gradients(method, legacy_beta=legacy)
    if method in ("ema", "rotation"):
        assert not np.any(of_codebook)  # codes follow averages
    expected = by_torch(method, legacy=legacy)
    np.testing.assert_allclose(of_latents, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_codebook, expected[1] * (method not in ("ema", "rotation")), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(quantized.output, expected[2], rtol=1e-5, atol=1e-6)
    # All ways hand the codes themselves to the decoder.
    np.testing.assert_allclose(quantized.output, CODEBOOK[np.asarray(quantized.codes)], rtol=1e-5, atol=1e-6)


def test_index_backpropagation_reaches_codes_that_no_latent_is_near_to():
    (_, of_codebook), quantized = gradients("ibq", temperature=4.0)
    unused = sorted(set(range(6)) - set(np.asarray(quantized.codes).ravel().tolist()))
    assert unused
    assert np.abs(np.asarray(of_codebook)[unused]).max() > 1e-3


def test_latents_of_zero_have_finite_gradients():
    found = jax.grad(lambda z: jnp.sum(rotate(z, jnp.ones((1, 1, 4)))))(jnp.zeros((1, 1, 4)))
    assert np.isfinite(found).all()


def test_probabilities_of_all_codes_at_all_positions_are_never_in_memory():
    shapes = jax.ShapeDtypeStruct((2, 1024, 64), jnp.float32), jax.ShapeDtypeStruct((8192, 64), jnp.float32)
    gradient = jax.jit(jax.grad(lambda z, table: jnp.sum(expected_codes(z, table, 1.0)), argnums=(0, 1)))
    temporaries = gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 0.5 * 2 * 1024 * 8192 * 4
