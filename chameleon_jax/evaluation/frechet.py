"""The Fréchet distance between two sets of features (Heusel et al. 2017), of which only the moments are kept."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from chameleon_jax.errors import ConfigError


class Moments:
    """Mean and covariance of features that are added a few at a time, in float64."""

    def __init__(self, features: int):
        self.count = 0
        self._sum = np.zeros(features)
        self._products = np.zeros((features, features))

    def add(self, features: np.ndarray) -> None:
        """Adds features `[n, features]`."""
        features = features.astype(np.float64)
        self.count += len(features)
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    @property
    def mean(self) -> np.ndarray:
        return self._sum / self.count

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased estimate, as `numpy.cov` computes it."""
        return (self._products - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean a - mean b|² + trace(A + B - 2 (A B)^½) of two normal distributions with covariances A and B.

    With A = L Lᵀ, the eigenvalues of A B other than 0 are those of Lᵀ B L, which is symmetric. A may be singular, as it
    is for fewer pictures than features.

    Raises:
      ConfigError: for fewer than two pictures.
    """
    if min(a.count, b.count) < 2:
        raise ConfigError("the Fréchet inception distance needs at least 2 pictures, and better 10,000; there is 1")
    factor = _cholesky(a.covariance)
    products = np.linalg.eigvalsh(factor.T @ b.covariance @ factor)
    between = np.sum(np.sqrt(np.maximum(products, 0)))
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * between
    return max(float(distance), 0.0)


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """L `[n, rank]` with L Lᵀ = a positive semidefinite matrix: Cholesky's decomposition with pivots, which takes a
    fifth of the time of eigenvectors."""
    upper, pivots, rank, _ = lapack.dpstrf(matrix)
    factor = np.empty((len(matrix), rank))
    factor[pivots - 1] = np.triu(upper)[:rank].T
    return factor
