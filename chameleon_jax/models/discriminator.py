"""The discriminator that the image tokenizer is trained against: a PatchGAN (Isola et al. 2017).

It scores overlapping patches of a picture rather than the whole. Sizes and initialisation are those of
taming-transformers (Esser et al. 2021).

Legend: B batch, h height and w width of a picture, p rows and q columns of patches, c channels.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float
from chameleon_jax.config import ConfigError


class BatchNorm(nn.Module):
    """BatchNorm (Ioffe & Szegedy 2015) with the statistics of the current batch only, as a discriminator trains with.

    There are no running averages, hence no state. On a mesh the statistics are those of the whole batch.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
        scale_init = lambda key, shape: 1 + 0.02 * jax.random.normal(key, shape)  # noqa: E731
        scale = self.param("scale", scale_init, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=(0, 1, 2))
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(0, 1, 2)) + 1e-5)
        return (x * scale + bias).astype(self.dtype)


class Discriminator(nn.Module):
    """Scores of patches: positive for what looks like a real picture.

    Attributes:
      channels: width of the first convolution. It doubles in each stage, up to eight times.
      stages: convolutions with stride 2. A patch is 16, 34, 70 or 142 pixels a side with 1, 2, 3 or 4 of them.
      norm: after all convolutions but the first and the last. With 'group' the scores of a picture depend on this
        picture alone, so that they are the same in a part of a batch, beside padding, and in the penalty on gradients.
        With 'batch', as in taming-transformers, they depend on all pictures of the call.
      dtype: of the convolutions. Parameters, statistics of the norms and scores are float32.
    """

    channels: int = 64
    stages: int = 3
    norm: Literal["group", "batch"] = "group"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w 3"]) -> Float[Array, "B p q"]:
        """Scores of pictures in [-1, 1].

        Raises:
          ConfigError: if the pictures are smaller than 3 * 2^stages, which leaves no patch.
        """
        if min(x.shape[1:3]) < 3 << self.stages:
            raise ConfigError(
                f"discriminator.stages = {self.stages} needs pictures of at least {3 << self.stages} pixels a side, "
                f"not {x.shape[1]} x {x.shape[2]}; use fewer stages"
            )
        x = nn.leaky_relu(self._conv(self.channels, stride=2, name="conv_in")(x), 0.2)
        for stage in range(1, self.stages + 1):
            channels = self.channels * min(2**stage, 8)
            x = self._conv(channels, 1 if stage == self.stages else 2, f"conv_{stage}", use_bias=False)(x)
            x = nn.leaky_relu(self._norm(channels, f"norm_{stage}")(x), 0.2)
        return self._conv(1, stride=1, name="conv_out")(x)[..., 0].astype(jnp.float32)

    def _conv(self, channels: int, stride: int, name: str, use_bias: bool = True) -> nn.Conv:
        init = nn.initializers.normal(0.02)
        return nn.Conv(
            channels, (4, 4), (stride, stride), 1, use_bias=use_bias, dtype=self.dtype, kernel_init=init, name=name
        )

    def _norm(self, channels: int, name: str) -> nn.Module:
        if self.norm == "batch":
            return BatchNorm(self.dtype, name=name)
        groups = math.gcd(32, channels)
        return nn.GroupNorm(groups, epsilon=1e-6, dtype=self.dtype, use_fast_variance=False, name=name)
