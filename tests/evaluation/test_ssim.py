"""SSIM against the same formula over SciPy's Gaussian filter in float64, which is what scikit-image computes."""

from __future__ import annotations

import jax
import numpy as np
from scipy.ndimage import gaussian_filter

from chameleon_jax.evaluation.ssim import ssim


def expected(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures in [0, 1], as `skimage.metrics.structural_similarity` has it."""

    def of_channel(x: np.ndarray, y: np.ndarray) -> float:
        blur = lambda values: gaussian_filter(values, 1.5, truncate=3.5)  # noqa: E731 - 5 pixels to each side
        x_mean, y_mean = blur(x), blur(y)
        x_variance, y_variance = blur(x * x) - x_mean**2, blur(y * y) - y_mean**2
        covariance = blur(x * y) - x_mean * y_mean
        similarity = (2 * x_mean * y_mean + 0.01**2) * (2 * covariance + 0.03**2)
        similarity /= (x_mean**2 + y_mean**2 + 0.01**2) * (x_variance + y_variance + 0.03**2)
        return similarity[5:-5, 5:-5].mean()

    return np.mean([of_channel(a[..., channel], b[..., channel]) for channel in range(3)])


def test_similarity_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.random((4, 24, 31, 3)), (0, 2, 2, 0)).astype(np.float32)
    amount = np.float32([0, 0.01, 0.1, 1]).reshape(4, 1, 1, 1)
    noisy = np.clip(smooth + amount * rng.standard_normal(smooth.shape), 0, 1).astype(np.float32)
    found = jax.jit(ssim)(2 * smooth - 1, 2 * noisy - 1)
    wanted = [expected(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(smooth, noisy, strict=True)]
    assert wanted[0] == 1
    assert wanted[1] > 0.9 > 0.5 > wanted[3]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_pictures_of_one_colour():
    grey, black = np.zeros((1, 11, 11, 3), np.float32), -np.ones((1, 11, 11, 3), np.float32)
    np.testing.assert_allclose(ssim(grey, grey), 1, atol=1e-6)
    np.testing.assert_allclose(ssim(grey, black), 0.01**2 / (0.5**2 + 0.01**2), atol=1e-6)
