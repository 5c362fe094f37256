"""LPIPS, a distance between pictures as people see them (Zhang et al. 2018): VGG16 features with learned weights.

Legend: B batch, h height and w width of a picture or feature map, c channels.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array, Float
from chameleon_jax.config import ConfigError

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of the convolutions of VGG16 (Simonyan & Zisserman 2014). Features are compared after each block."""
_SMALLEST = 1 << (len(BLOCKS) - 1)  # pixels a side that leave one feature

# Of the pictures in ImageNet, scaled from [0, 1] to [-1, 1].
_MEAN = np.float32([-0.030, -0.088, -0.188])
_STD = np.float32([0.458, 0.448, 0.450])


class _Block(nn.Module):
    widths: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for number, width in enumerate(self.widths, start=1):
            x = nn.Conv(
                width, (3, 3), padding=1, dtype=self.dtype, precision=jax.lax.Precision.HIGHEST, name=f"conv_{number}"
            )(x)
            x = nn.relu(x)
        return x


class LPIPS(nn.Module):
    """The distance, without the dropout of its own training. Parameters come from `weights.lpips.read_lpips`.

    Attributes:
      dtype: of the convolutions. Features are compared in float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, target: Float[Array, "B h w 3"], output: Float[Array, "B h w 3"]) -> Float[Array, "B"]:
        """Distance of each pair of pictures in [-1, 1].

        The two are not computed as one batch, so that the features of a constant target are not kept for the backward
        pass.

        Raises:
          ConfigError: if the pictures are smaller than 16 pixels a side.
        """
        if min(target.shape[1:3]) < _SMALLEST:
            raise ConfigError(
                f"LPIPS needs pictures of at least {_SMALLEST} pixels a side, not {target.shape[1]} x "
                f"{target.shape[2]}; do without it"
            )
        a, b = (((x - _MEAN) / _STD).astype(self.dtype) for x in (target, output))
        distance = jnp.zeros(target.shape[:1])
        for number, widths in enumerate(BLOCKS, start=1):
            if number > 1:
                a, b = _max_pool(a), _max_pool(b)
            block = _Block(widths, self.dtype, name=f"block_{number}")
            a, b = block(a), block(b)
            weights = self.param(f"weights_{number}", nn.initializers.ones, (widths[-1],))
            distance += _feature_distance(a, b, weights)
        return distance


def _max_pool(x: Float[Array, "B h w c"]) -> Float[Array, "B h2 w2 c"]:
    """Max-pooling of squares of 2 x 2; the gradient of `nn.max_pool` doubles the memory of the whole on CPUs."""
    B, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(B, h // 2, 2, w // 2, 2, c)
    return jnp.maximum(jnp.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]), jnp.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))


def _feature_distance(
    a: Float[Array, "B h w c"], b: Float[Array, "B h w c"], weights: Float[Array, "c"]
) -> Float[Array, "B"]:
    """Mean over positions of the weighted squared difference of the features at unit length."""
    difference = jnp.square(_unit(a) - _unit(b))
    return jnp.mean(jnp.sum(difference * weights, axis=-1), axis=(1, 2))


def _unit(x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Where all features are zero, so is the gradient; that of the square root is infinite.
    return x / (jnp.sqrt(jnp.where(squares > 0, squares, 1)) + 1e-10)
