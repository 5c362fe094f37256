"""In bfloat16 numbers are rounded where Meta's kernels round them: once, at the end of each float32 computation.

The references are NumPy float32 and one cast of ml_dtypes. Sums in another order may flip a rounding now and then, so a
thousandth of the elements may differ. Rounding in between, as Hugging Face transformers does, changes a fifth or more
(specification, section 1.5); each test shows that it would notice.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny_models import TRANSFORMER, transformer_params

from chameleon_jax.config import ExecutionConfig
from chameleon_jax.models.attention import apply_rope, layer_norm, rms_norm, rope_sin_cos
from chameleon_jax.models.transformer import Transformer

BFLOAT16 = ml_dtypes.bfloat16
B, T, HEADS, D = 2, 32, 8, 128  # 65,536 elements
EPS = np.float32(1e-5)


def random(*shape: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return (mean + np.random.default_rng(seed).standard_normal(shape)).astype(BFLOAT16)


X = random(B, T, HEADS, D, seed=0)
SCALE, BIAS = random(HEADS, D, seed=1, mean=1.0), random(HEADS, D, seed=2)
POSITIONS = np.tile(np.arange(T, dtype=np.int32), (B, 1))


def float32(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float32) for array in arrays]


def arrays(*values: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(value) for value in values]


def different(got: jax.Array, expected: np.ndarray) -> float:
    """Share of elements that are not the same bits."""
    assert got.dtype == expected.dtype == BFLOAT16
    return float(np.mean(np.asarray(got).view(np.uint16) != expected.view(np.uint16)))


def check(got: jax.Array, once: np.ndarray, often: np.ndarray) -> None:
    assert once.size >= 10_000
    assert different(got, once) < 0.001
    assert different(got, often) > 0.05


compiled_or_not = pytest.mark.parametrize("compile", [lambda function: function, jax.jit], ids=["eager", "jit"])


@compiled_or_not
def test_rms_norm_rounds_once(compile):
    x, scale = float32(X, SCALE[0])
    normal = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + EPS)
    once = (normal * scale).astype(BFLOAT16)
    often = normal.astype(BFLOAT16) * SCALE[0]
    check(compile(lambda x, scale: rms_norm(x, scale, 1e-5))(*arrays(X, SCALE[0])), once, often)


@compiled_or_not
def test_layer_norm_rounds_once(compile):
    x, scale, bias = float32(X, SCALE, BIAS)
    centred = x - np.mean(x, axis=-1, keepdims=True)
    normal = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + EPS)
    once = (normal * scale + bias).astype(BFLOAT16)
    often = normal.astype(BFLOAT16) * SCALE + BIAS
    check(compile(lambda x, scale, bias: layer_norm(x, scale, bias, 1e-5))(*arrays(X, SCALE, BIAS)), once, often)


@compiled_or_not
def test_rotation_rounds_once(compile):
    x = float32(X)[0]
    half = D // 2
    angles = POSITIONS[..., None, None].astype(np.float32) * np.float32(10000.0) ** (
        -np.arange(half, dtype=np.float32) / np.float32(half)
    )
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    once = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(BFLOAT16)
    first, second, cos, sin = (array.astype(BFLOAT16) for array in (first, second, cos, sin))
    often = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    check(
        compile(lambda x, positions: apply_rope(x, rope_sin_cos(positions, x.shape[-1], 10000.0)))(
            *arrays(X, POSITIONS)
        ),
        once,
        often,
    )


@pytest.mark.parametrize("norm_order", ["pre", "swin"])
def test_logits_of_a_bfloat16_model_are_bfloat16_numbers_kept_as_float32(norm_order):
    """Samples and ties depend on it. XLA may drop a rounding that is undone at once, so the compiled model is asked."""
    config = dataclasses.replace(TRANSFORMER, norm_order=norm_order)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), transformer_params(config))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (4, 40)), jnp.int32)

    def logits(dtype):
        model = Transformer(config, ExecutionConfig(compute_dtype=dtype))
        return np.asarray(jax.jit(model.apply)({"params": params}, ids))

    rounded, unrounded = logits("bfloat16"), logits("float32")
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, rounded.astype(BFLOAT16).astype(np.float32))
    assert np.mean(unrounded != unrounded.astype(BFLOAT16).astype(np.float32)) > 0.9
