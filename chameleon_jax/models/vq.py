"""The image tokenizer's network: a VQGAN (Esser et al. 2021) as in the released Chameleon.

Legend: B batch, h w height and width of a picture or feature map, g the grid of codes, c channels, z latent channels,
N codes, e code dimension. Always float32 at the highest matmul precision: a code is an argmin, and lower precision
picks other codes.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import ImageTokenizerConfig

_PRECISION = jax.lax.Precision.HIGHEST


def space_to_depth(x: Float[Array, "B h w c"], side: int) -> Float[Array, "B h2 w2 c2"]:
    """Folds squares of `side` x `side` pixels into channels."""
    B, h, w, c = x.shape
    x = x.reshape(B, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, h // side, w // side, side * side * c)


def depth_to_space(x: Float[Array, "B h w c"], side: int) -> Float[Array, "B h2 w2 c2"]:
    """The inverse of `space_to_depth`."""
    B, h, w, c = x.shape
    x = x.reshape(B, h, w, side, side, c // side**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, h * side, w * side, c // side**2)


def group_norm(
    x: Float[Array, "B h w c"], scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int
) -> Float[Array, "B h w c"]:
    """GroupNorm (Wu & He 2018), eps 1e-6. The variance is mean((x - mean)^2), as E[x^2] - E[x]^2 loses precision."""
    B, h, w, c = x.shape
    y = x.reshape(B, h * w, groups, c // groups)
    y = y - jnp.mean(y, axis=(1, 3), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 3), keepdims=True) + 1e-6)
    return y.reshape(B, h, w, c) * scale + bias


_CODES_AT_A_TIME = 1024
"""Distances that `nearest_code` holds for each position."""


def nearest_code(z: Float[Array, "... e"], codebook: Float[Array, "N e"]) -> Int[Array, "..."]:
    """Index of the code at the smallest Euclidean distance; ties go to the lowest index.

    In float32 or better, and for 1,024 codes at a time, so that the distances to all of them never exist at once. The
    loop is over codes and not over positions, which may be sharded over a mesh: each device keeps its own.
    """
    dtype = jnp.promote_types(z.dtype, jnp.float32)
    z, codebook = jax.lax.stop_gradient((z.astype(dtype), codebook.astype(dtype)))
    squared_norm = jnp.sum(jnp.square(z), axis=-1, keepdims=True)

    def nearest_of(part: Float[Array, "n e"]) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
        products = jnp.einsum("...e,ne->...n", z, part, precision=_PRECISION)
        distances = squared_norm + jnp.sum(jnp.square(part), axis=-1) - 2 * products
        return jnp.min(distances, axis=-1), jnp.argmin(distances, axis=-1)

    n = _CODES_AT_A_TIME
    if codebook.shape[0] <= n:
        return nearest_of(codebook)[1]
    # A last part is filled up with the last code, which loses every tie against itself.
    parts = jnp.pad(codebook, ((0, -codebook.shape[0] % n), (0, 0)), mode="edge").reshape(-1, n, codebook.shape[1])
    distances, codes = jax.lax.map(nearest_of, parts)
    part = jnp.argmin(distances, axis=0)
    return part * n + jnp.take_along_axis(codes, part[None], axis=0)[0]


def _conv(channels: int, size: int, name: str, stride: int = 1, padding: int | tuple = 0) -> nn.Conv:
    pad = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    return nn.Conv(channels, (size, size), (stride, stride), padding=pad, precision=_PRECISION, name=name)


class GroupNorm(nn.Module):
    groups: int

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return group_norm(x, scale, bias, self.groups)


class ResBlock(nn.Module):
    channels: int
    groups: int

    @nn.compact
    def __call__(self, x):
        h = nn.swish(GroupNorm(self.groups, name="norm1")(x))
        h = _conv(self.channels, 3, "conv1", padding=1)(h)
        h = nn.swish(GroupNorm(self.groups, name="norm2")(h))
        h = _conv(self.channels, 3, "conv2", padding=1)(h)
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, "nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the feature map."""

    groups: int

    @nn.compact
    def __call__(self, x):
        B, h, w, c = x.shape
        y = GroupNorm(self.groups, name="norm")(x)
        q, k, v = (_conv(c, 1, name)(y).reshape(B, h * w, c) for name in ("q", "k", "v"))
        scores = jnp.einsum("Bic,Bjc->Bij", q, k, precision=_PRECISION) * c**-0.5
        y = jnp.einsum("Bij,Bjc->Bic", jax.nn.softmax(scores, axis=-1), v, precision=_PRECISION)
        return x + _conv(c, 1, "proj_out")(y.reshape(B, h, w, c))


def _block(x, config: ImageTokenizerConfig, path: str, level: int, number: int):
    """A residual block of the "down" or "up" path, followed by attention at the config's `attn_resolutions`."""
    channels = config.channels * config.channel_multipliers[level]
    x = ResBlock(channels, config.norm_groups, name=f"{path}_{level}_block_{number}")(x)
    if config.maps[level] in config.attn_resolutions:
        x = AttnBlock(config.norm_groups, name=f"{path}_{level}_attn_{number}")(x)
    return x


def _middle(x, channels: int, config: ImageTokenizerConfig):
    x = ResBlock(channels, config.norm_groups, name="mid_block_1")(x)
    if config.attn_type == "vanilla":
        x = AttnBlock(config.norm_groups, name="mid_attn_1")(x)
    return ResBlock(channels, config.norm_groups, name="mid_block_2")(x)


class Encoder(nn.Module):
    config: ImageTokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w 3"]) -> Float[Array, "B g g z"]:
        config = self.config
        x = _conv(config.channels, 3, "conv_in", padding=1)(space_to_depth(x, config.space_to_depth))
        for level, multiplier in enumerate(config.channel_multipliers):
            channels = config.channels * multiplier
            for block in range(config.num_res_blocks):
                x = _block(x, config, "down", level, block)
            if level < len(config.channel_multipliers) - 1:
                # Padded by one row at the bottom and one column at the right, as in the released network.
                x = _conv(channels, 3, f"down_{level}_downsample", stride=2, padding=((0, 1), (0, 1)))(x)
        x = _middle(x, channels, config)
        x = nn.swish(GroupNorm(config.norm_groups, name="norm_out")(x))
        return _conv(config.latent_channels, 3, "conv_out", padding=1)(x)


class Decoder(nn.Module):
    config: ImageTokenizerConfig

    @nn.compact
    def __call__(self, z: Float[Array, "B g g z"]) -> Float[Array, "B h w 3"]:
        config = self.config
        channels = config.channels * config.channel_multipliers[-1]
        x = _conv(channels, 3, "conv_in", padding=1)(z)
        x = _middle(x, channels, config)
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            channels = config.channels * multiplier
            for block in range(config.num_res_blocks + 1):
                x = _block(x, config, "up", level, block)
            if level > 0:
                x = _conv(channels, 3, f"up_{level}_upsample", padding=1)(x.repeat(2, axis=1).repeat(2, axis=2))
        x = nn.swish(GroupNorm(config.norm_groups, name="norm_out")(x))
        x = _conv(3 * config.space_to_depth**2, 3, "conv_out", padding=1)(x)
        return depth_to_space(x, config.space_to_depth)


class VQModel(nn.Module):
    """Pictures in [-1, 1] to codes and back.

    `apply(variables, pixels, method="encode")` and so on. `codebook` is a parameter `[N, e]`, trained by moving
    averages (`training/image_tokenizer.py`).
    """

    config: ImageTokenizerConfig

    def setup(self):
        config = self.config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = _conv(config.code_dim, 1, "quant_conv")
        self.post_quant_conv = _conv(config.latent_channels, 1, "post_quant_conv")
        bound = 1 / config.num_codes
        init = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)  # noqa: E731
        self.codebook = self.param("codebook", init, (config.num_codes, config.code_dim))

    def latents(self, pixels: Float[Array, "B h w 3"]) -> Float[Array, "B g g e"]:
        """The encoder's output before quantisation."""
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: Float[Array, "B h w 3"]) -> Int[Array, "B n"]:
        """Codes of each picture in raster order, left to right and top to bottom."""
        codes = nearest_code(self.latents(pixels), self.codebook)
        return codes.reshape(codes.shape[0], -1)

    def decode(self, codes: Int[Array, "B n"]) -> Float[Array, "B h w 3"]:
        """Pictures from codes; values may lie slightly outside [-1, 1]."""
        return self.decode_latents(
            jnp.take(self.codebook, codes, axis=0).reshape(codes.shape[0], self.config.grid, self.config.grid, -1)
        )

    def decode_latents(self, quantized: Float[Array, "B g g e"]) -> Float[Array, "B h w 3"]:
        return self.decoder(self.post_quant_conv(quantized))

    def __call__(self, pixels: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Encodes and decodes, so that `init` creates all parameters."""
        return self.decode(self.encode(pixels))


@functools.lru_cache(maxsize=64)
def abstract_params(config: ImageTokenizerConfig) -> dict[str, Any]:
    """The parameter tree that the modules declare, of `jax.ShapeDtypeStruct`s."""
    pixels = jax.ShapeDtypeStruct((1, config.resolution, config.resolution, 3), jnp.float32)
    return jax.eval_shape(VQModel(config).init, jax.random.key(0), pixels)["params"]
