"""The Inception network by which the Fréchet inception distance compares pictures (Heusel et al. 2017).

It is the network of 2015-12-05 from TensorFlow, as pytorch-fid has ported it: unlike Inception v3 elsewhere, average
pooling leaves out the border, and the last block has max-pooling. Layers have the names that they have in pytorch-fid's
file, and each batch normalisation is part of the convolution before it, as `weights.inception.read_inception` reads it.

Legend: B batch, h height and w width of a picture or feature map, c channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float

SIDE = 299
"""Pixels to which pictures are resized."""
FEATURES = 2048


class _Conv(nn.Module):
    """A convolution and a ReLU. Pixels are added at the borders as in torch; an int stands for both axes."""

    width: int
    size: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        size, padding = ((each, each) if isinstance(each, int) else each for each in (self.size, self.padding))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*size, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        x = jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), [(each, each) for each in padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        return nn.relu(x + bias)


def _average_pool(x):
    """Means over squares of 3 x 3, at the borders over what of them is in the picture."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _shrinking_pool(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class _BlockA(nn.Module):
    pooled: int

    @nn.compact
    def __call__(self, x):
        double = _Conv(96, 3, 1, name="branch3x3dbl_2")(_Conv(64, name="branch3x3dbl_1")(x))
        return jnp.concatenate([
            _Conv(64, name="branch1x1")(x),
            _Conv(64, 5, 2, name="branch5x5_2")(_Conv(48, name="branch5x5_1")(x)),
            _Conv(96, 3, 1, name="branch3x3dbl_3")(double),
            _Conv(self.pooled, name="branch_pool")(_average_pool(x)),
        ], axis=-1)  # fmt: skip


class _BlockB(nn.Module):
    @nn.compact
    def __call__(self, x):
        double = _Conv(96, 3, 1, name="branch3x3dbl_2")(_Conv(64, name="branch3x3dbl_1")(x))
        return jnp.concatenate([
            _Conv(384, 3, stride=2, name="branch3x3")(x),
            _Conv(96, 3, stride=2, name="branch3x3dbl_3")(double),
            _shrinking_pool(x),
        ], axis=-1)  # fmt: skip


class _BlockC(nn.Module):
    narrow: int

    @nn.compact
    def __call__(self, x):
        wide, high = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        single = _Conv(self.narrow, *wide, name="branch7x7_2")(_Conv(self.narrow, name="branch7x7_1")(x))
        double = _Conv(self.narrow, name="branch7x7dbl_1")(x)
        for number, shape in ((2, high), (3, wide), (4, high)):
            double = _Conv(self.narrow, *shape, name=f"branch7x7dbl_{number}")(double)
        return jnp.concatenate([
            _Conv(192, name="branch1x1")(x),
            _Conv(192, *high, name="branch7x7_3")(single),
            _Conv(192, *wide, name="branch7x7dbl_5")(double),
            _Conv(192, name="branch_pool")(_average_pool(x)),
        ], axis=-1)  # fmt: skip


class _BlockD(nn.Module):
    @nn.compact
    def __call__(self, x):
        double = _Conv(192, (1, 7), (0, 3), name="branch7x7x3_2")(_Conv(192, name="branch7x7x3_1")(x))
        double = _Conv(192, (7, 1), (3, 0), name="branch7x7x3_3")(double)
        return jnp.concatenate([
            _Conv(320, 3, stride=2, name="branch3x3_2")(_Conv(192, name="branch3x3_1")(x)),
            _Conv(192, 3, stride=2, name="branch7x7x3_4")(double),
            _shrinking_pool(x),
        ], axis=-1)  # fmt: skip


class _BlockE(nn.Module):
    is_last: bool = False

    @nn.compact
    def __call__(self, x):
        single = _Conv(384, name="branch3x3_1")(x)
        double = _Conv(384, 3, 1, name="branch3x3dbl_2")(_Conv(448, name="branch3x3dbl_1")(x))
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.is_last else _average_pool(x)
        return jnp.concatenate([
            _Conv(320, name="branch1x1")(x),
            _Conv(384, (1, 3), (0, 1), name="branch3x3_2a")(single),
            _Conv(384, (3, 1), (1, 0), name="branch3x3_2b")(single),
            _Conv(384, (1, 3), (0, 1), name="branch3x3dbl_3a")(double),
            _Conv(384, (3, 1), (1, 0), name="branch3x3dbl_3b")(double),
            _Conv(192, name="branch_pool")(pooled),
        ], axis=-1)  # fmt: skip


class Inception(nn.Module):
    """From pictures to the features whose mean and covariance are compared."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w 3"]) -> Float[Array, "B c"]:
        """Features `[B, 2048]` of pictures in [-1, 1], of `SIDE` pixels a side, or at least 75 elsewhere."""
        x = _Conv(32, 3, stride=2, name="Conv2d_1a_3x3")(x)
        x = _Conv(32, 3, name="Conv2d_2a_3x3")(x)
        x = _shrinking_pool(_Conv(64, 3, 1, name="Conv2d_2b_3x3")(x))
        x = _Conv(80, name="Conv2d_3b_1x1")(x)
        x = _shrinking_pool(_Conv(192, 3, name="Conv2d_4a_3x3")(x))
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = _BlockA(pooled, name=f"Mixed_5{letter}")(x)
        x = _BlockB(name="Mixed_6a")(x)
        for letter, narrow in zip("bcde", (128, 160, 160, 192), strict=True):
            x = _BlockC(narrow, name=f"Mixed_6{letter}")(x)
        x = _BlockD(name="Mixed_7a")(x)
        x = _BlockE(name="Mixed_7b")(x)
        x = _BlockE(is_last=True, name="Mixed_7c")(x)
        return jnp.mean(x, axis=(1, 2))


def resize(x: Float[Array, "B h w 3"], side: int = SIDE) -> Float[Array, "B h2 w2 3"]:
    """Bilinear and without antialiasing, as pytorch-fid resizes pictures of any size."""
    B = x.shape[0]
    return jax.image.resize(x, (B, side, side, 3), "bilinear", antialias=False)
