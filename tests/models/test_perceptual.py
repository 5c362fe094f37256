"""LPIPS, read from files as published, gives the numbers of the lpips package (`tests/data/make_lpips_fixture.py`)."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import ConfigError
from chameleon_jax.models.perceptual import LPIPS
from chameleon_jax.weights.lpips import read_lpips
from chameleon_jax.weights.torch_writing import write_torch_file

DATA = Path(__file__).parent.parent / "data"

spec = importlib.util.spec_from_file_location("make_lpips_fixture", DATA / "make_lpips_fixture.py")
fixture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixture)


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("lpips") / name for name in ("vgg16.pth", "vgg.pth")]
    vgg, heads = fixture.random_weights()
    vgg["classifier.6.bias"] = np.zeros(1000, np.float32)
    for path, tensors in zip(paths, (vgg, heads), strict=True):
        write_torch_file(path, {key: (x.shape, x.dtype) for key, x in tensors.items()}, tensors.__getitem__)
    return read_lpips(*paths)


@pytest.fixture(scope="module")
def answers():
    with np.load(DATA / "lpips.npz") as file:
        return dict(file)


def scaled(pictures: np.ndarray) -> jax.Array:
    return jnp.asarray(pictures / 127.5 - 1, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def distances_and_gradient(model: LPIPS, params, target, output):
    def total(output):
        distances = model.apply({"params": params}, target, output)
        return jnp.sum(distances), distances

    gradient, distances = jax.grad(total, has_aux=True)(output)
    return distances, gradient


def test_distances_and_gradient_are_those_of_the_lpips_package(params, answers):
    distances, gradient = distances_and_gradient(LPIPS(), params, scaled(answers["target"]), scaled(answers["output"]))
    np.testing.assert_allclose(distances, answers["distances"], rtol=1e-5)
    np.testing.assert_allclose(gradient, answers["gradient"], rtol=0, atol=1e-4 * np.abs(answers["gradient"]).max())


def test_the_gradient_is_finite_where_all_features_are_zero(params, answers):
    nothing = jax.tree.map(np.zeros_like, params)
    distances, gradient = distances_and_gradient(LPIPS(), nothing, scaled(answers["target"]), scaled(answers["output"]))
    np.testing.assert_array_equal(distances, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_distances_in_bfloat16_are_close(params, answers):
    distances = jax.jit(LPIPS(dtype=jnp.bfloat16).apply)(
        {"params": params}, scaled(answers["target"]), scaled(answers["output"])
    )
    assert distances.dtype == jnp.float32
    assert 0 < np.max(np.abs(distances / answers["distances"] - 1)) < 0.02


def test_pictures_without_a_feature_are_rejected():
    with pytest.raises(ConfigError, match="at least 16 pixels a side, not 8 x 32"):
        jax.eval_shape(LPIPS().init, jax.random.key(0), *[jnp.zeros((1, 8, 32, 3))] * 2)
