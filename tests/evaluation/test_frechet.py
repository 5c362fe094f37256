"""The Fréchet distance against SciPy's square root of a matrix, and its moments against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from chameleon_jax.errors import ConfigError
from chameleon_jax.evaluation.frechet import Moments, frechet_distance


def features(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 12)) @ rng.standard_normal((12, 12)) + shift).astype(np.float32)


def moments(values: np.ndarray, parts: int = 3) -> Moments:
    found = Moments(values.shape[1])
    for part in np.array_split(values, parts):
        found.add(part)
    return found


def expected(a: np.ndarray, b: np.ndarray) -> float:
    a_covariance, b_covariance = np.cov(a.T.astype(np.float64)), np.cov(b.T.astype(np.float64))
    root = sqrtm(a_covariance @ b_covariance).real
    difference = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    return difference @ difference + np.trace(a_covariance + b_covariance - 2 * root)


def test_moments_are_those_of_all_features_at_once():
    values = features(100, 0, shift=50)
    found = moments(values, parts=7)
    np.testing.assert_allclose(found.mean, values.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(values.T.astype(np.float64)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [200, 40, 5])
def test_distance_is_that_of_the_formula(count):
    """With 5 sets of 12 features the covariances are singular."""
    a, b = features(count, 1), features(count, 2, shift=0.5)
    np.testing.assert_allclose(frechet_distance(moments(a), moments(b)), expected(a, b), rtol=1e-5)


def test_distance_of_the_same_features_is_zero():
    assert frechet_distance(moments(features(30, 1)), moments(features(30, 1))) == pytest.approx(0, abs=1e-8)


def test_one_picture_has_no_covariance():
    with pytest.raises(ConfigError, match="needs at least 2 pictures"):
        frechet_distance(moments(features(1, 1), parts=1), moments(features(1, 1), parts=1))
