"""Structural similarity of pictures (Wang et al. 2004, "Image quality assessment: from error visibility to structural
similarity").

Legend: B batch, h height and w width of a picture, c channels.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array, Float

WINDOW = 11
"""Pixels of a side of the window in which pictures are compared."""
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def ssim(a: Float[Array, "B h w c"], b: Float[Array, "B h w c"]) -> Float[Array, "B"]:
    """Mean SSIM of each pair of pictures in [-1, 1], of at least `WINDOW` pixels a side.

    Each channel is compared on its own, in windows that lie in the picture as a whole, as scikit-image does with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2, channel_axis=-1`.
    """
    a, b = (a + 1) / 2, (b + 1) / 2
    mean_a, mean_b = _blur(a), _blur(b)
    # Deviations from a constant near the means: differences of large squares would lose digits.
    x, y = a - 0.5, b - 0.5
    shifted_a, shifted_b = mean_a - 0.5, mean_b - 0.5
    variance_a = _blur(x * x) - shifted_a * shifted_a
    variance_b = _blur(y * y) - shifted_b * shifted_b
    covariance = _blur(x * y) - shifted_a * shifted_b
    c1, c2 = _K1**2, _K2**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a * mean_a + mean_b * mean_b + c1) * (variance_a + variance_b + c2)
    return jnp.mean(similarity, axis=(1, 2, 3))


def _blur(x: Float[Array, "B h w c"]) -> Float[Array, "B h2 w2 c"]:
    """Gaussian means over the windows that lie in the picture."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float32).tolist()
    height, width = (side - WINDOW + 1 for side in x.shape[1:3])
    x = sum(weight * x[:, at : at + height] for at, weight in enumerate(weights))
    return sum(weight * x[:, :, at : at + width] for at, weight in enumerate(weights))
