"""The image tokenizer's network: a VQGAN (Esser et al. 2021) as in the released Chameleon.

Legend: B batch, h w height and width of a picture or feature map, g the grid of codes, c channels, z latent channels,
N codes, e code dimension. Float32 at the highest matmul precision unless `ImageTokenizerExecutionConfig` says otherwise
for training: a code is an argmin, and lower precision picks other codes.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import ImageTokenizerConfig, ImageTokenizerExecutionConfig

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


def _group_moments(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and 1 / standard deviation of each group, for each of its channels: [B, 1, 1, c]."""
    mean = _over_groups(jnp.mean(x, axis=(1, 2)), groups)
    # Not E[x^2] - E[x]^2, which loses precision.
    return mean, jax.lax.rsqrt(_over_groups(jnp.mean(jnp.square(x - mean), axis=(1, 2)), groups) + 1e-6)


def _over_groups(x: Float[Array, "B c"], groups: int) -> Float[Array, "B 1 1 c"]:
    """The mean of each group, for each of its channels."""
    B, c = x.shape
    means = jnp.mean(x.reshape(B, groups, c // groups), axis=-1)
    return jnp.repeat(means, c // groups, axis=1)[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "B h w c"], scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int, swish: bool = False
) -> Float[Array, "B h w c"]:
    """GroupNorm (Wu & He 2018), eps 1e-6, and swish if wanted, in float32 and rounded once to the type of `x`.

    Sums over the picture come first and over the channels of a group afterwards, and the gradient is written out, so
    that XLA keeps nothing of the size of `x` but `x` itself.
    """
    return _group_norm_forward(x, scale, bias, groups, swish)[0]


def _group_norm_forward(x, scale, bias, groups, swish):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, inverse_deviation = _group_moments(wide, groups)
    y = (wide - mean) * inverse_deviation * scale + bias
    y = nn.swish(y) if swish else y
    return y.astype(x.dtype), (x, scale, bias, mean, inverse_deviation)


def _group_norm_backward(groups, swish, saved, dy):
    x, scale, bias, mean, inverse_deviation = saved
    normalized = (x.astype(mean.dtype) - mean) * inverse_deviation
    dy = dy.astype(mean.dtype)
    if swish:
        y = normalized * scale + bias
        sigmoid = jax.nn.sigmoid(y)
        dy = dy * sigmoid * (1 + y * (1 - sigmoid))
    dbias, dscale = jnp.sum(dy, axis=(1, 2)), jnp.sum(dy * normalized, axis=(1, 2))  # [B, c]
    pixels = x.shape[1] * x.shape[2]
    of_mean, of_deviation = (_over_groups(sums * scale / pixels, groups) for sums in (dbias, dscale))
    dx = inverse_deviation * (dy * scale - of_mean - normalized * of_deviation)
    return dx.astype(x.dtype), jnp.sum(dscale, axis=0), jnp.sum(dbias, axis=0)


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


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


def upsample_conv(x: Float[Array, "B h w c"], kernel: Float[Array, "3 3 c d"], precision: Any) -> Array:
    """Repeats each pixel twice along both sides and convolves with a 3 x 3 kernel; [B, 2h, 2w, d].

    Three rows of the larger picture show two of the smaller one, so the kernel's rows that meet the same pixel are
    added up beforehand. That leaves four kernels of 2 x 2, one for each corner of a pixel: 16 products instead of 36.
    """
    B, h, w, _ = x.shape
    corners = jnp.asarray(
        [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype
    )  # [corner, row of 2, row of 3]
    kernels = jnp.einsum("air,bjs,rscd->ijcabd", corners, corners, kernel, precision=_PRECISION)
    kernels = kernels.reshape(*kernels.shape[:3], -1).astype(x.dtype)
    # Padded beforehand, as XLA's gradient of a convolution that pads to more pixels than it had is very slow on CPUs.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = jax.lax.conv_general_dilated(
        x, kernels, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    ).reshape(B, h + 1, w + 1, 2, 2, -1)
    y = jnp.stack([y[:, a : a + h, :, a] for a in (0, 1)], axis=2)  # [B, h, 2, w + 1, 2, d]
    y = jnp.stack([y[:, :, :, b : b + w, b] for b in (0, 1)], axis=4)  # [B, h, 2, w, 2, d]
    return y.reshape(B, 2 * h, 2 * w, -1)


QUERIES_AT_A_TIME = 1024


def attend(
    q: Float[Array, "B h w c"], k: Float[Array, "B h w c"], v: Float[Array, "B h w c"], precision: Any
) -> Float[Array, "B h w c"]:
    """Attention of a single head over all positions, for some rows of queries at a time, at most 1,024 positions."""
    B, h, w, c = q.shape
    k, v = k.reshape(B, h * w, c), v.reshape(B, h * w, c)
    wide = jnp.promote_types(q.dtype, jnp.float32)

    @jax.checkpoint
    def attend_from(q: Float[Array, "B i c"]) -> Float[Array, "B i c"]:
        scores = jnp.einsum("Bic,Bjc->Bij", q, k, precision=precision, preferred_element_type=wide) * c**-0.5
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("Bij,Bjc->Bic", weights, v, precision=precision)

    rows = max((n for n in range(1, h + 1) if h % n == 0 and n * w <= QUERIES_AT_A_TIME), default=1)
    if rows == h:
        return attend_from(q.reshape(B, h * w, c)).reshape(B, h, w, c)
    parts = jnp.moveaxis(q.reshape(B, h // rows, rows * w, c), 1, 0)
    return jnp.moveaxis(jax.lax.map(attend_from, parts), 0, 1).reshape(B, h, w, c)


def _convolve(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, but a map of one position meets the middle of a 3 x 3 kernel alone: one product
    instead of nine, eight of them with zeros."""
    if lhs.shape[1:3] == (1, 1) and rhs.shape[:2] == (3, 3) and tuple(window_strides) == (1, 1):
        return jnp.einsum("bhwc,cd->bhwd", lhs, rhs[1, 1], precision=options["precision"])
    return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def _conv(
    execution: ImageTokenizerExecutionConfig, channels: int, size: int, name: str, stride: int = 1,
    padding: int | tuple = 0,
) -> nn.Conv:  # fmt: skip
    pad = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    return nn.Conv(
        channels, (size, size), (stride, stride), padding=pad, precision=execution.precision,
        dtype=_compute_dtype(execution), conv_general_dilated=_convolve, name=name,
    )  # fmt: skip


def _compute_dtype(execution: ImageTokenizerExecutionConfig) -> Any:
    """None stands for the type of the parameters, so that float64 stays float64."""
    return None if execution.compute_dtype == "float32" else jnp.dtype(execution.compute_dtype)


class GroupNorm(nn.Module):
    groups: int
    swish: bool = False

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return group_norm(x, scale, bias, self.groups, self.swish)


class Upsample(nn.Module):
    execution: ImageTokenizerExecutionConfig

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return upsample_conv(x, kernel, self.execution.precision) + bias.astype(x.dtype)


_CONVOLUTION = "convolution"
"""What the first convolution of a residual block makes, for remat."""


class ResBlock(nn.Module):
    channels: int
    groups: int
    execution: ImageTokenizerExecutionConfig

    @nn.compact
    def __call__(self, x):
        h = GroupNorm(self.groups, swish=True, name="norm1")(x)
        h = _conv(self.execution, self.channels, 3, "conv1", padding=1)(h)
        h = checkpoint_name(h, _CONVOLUTION)
        h = GroupNorm(self.groups, swish=True, name="norm2")(h)
        h = _conv(self.execution, self.channels, 3, "conv2", padding=1)(h)
        if x.shape[-1] != self.channels:
            x = _conv(self.execution, self.channels, 1, "nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the feature map."""

    groups: int
    execution: ImageTokenizerExecutionConfig

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        y = GroupNorm(self.groups, name="norm")(x)
        q, k, v = (_conv(self.execution, c, 1, name)(y) for name in ("q", "k", "v"))
        return x + _conv(self.execution, c, 1, "proj_out")(attend(q, k, v, self.execution.precision))


def _block(kind: type[nn.Module], execution: ImageTokenizerExecutionConfig, *sizes: int, name: str) -> nn.Module:
    if execution.remat != "none":
        saved = () if execution.remat == "blocks" else (_CONVOLUTION,)
        kind = nn.remat(kind, policy=jax.checkpoint_policies.save_only_these_names(*saved))
    return kind(*sizes, execution, name=name)


def _level_block(
    x, config: ImageTokenizerConfig, execution: ImageTokenizerExecutionConfig, path: str, level: int, number: int
):  # fmt: skip
    """A residual block of the "down" or "up" path, followed by attention at the config's `attn_resolutions`."""
    channels = config.channels * config.channel_multipliers[level]
    x = _block(ResBlock, execution, channels, config.norm_groups, name=f"{path}_{level}_block_{number}")(x)
    if config.maps[level] in config.attn_resolutions:
        x = _block(AttnBlock, execution, config.norm_groups, name=f"{path}_{level}_attn_{number}")(x)
    return x


def _middle(x, config: ImageTokenizerConfig, execution: ImageTokenizerExecutionConfig):
    channels = config.channels * config.channel_multipliers[-1]
    x = _block(ResBlock, execution, channels, config.norm_groups, name="mid_block_1")(x)
    if config.attn_type == "vanilla":
        x = _block(AttnBlock, execution, config.norm_groups, name="mid_attn_1")(x)
    return _block(ResBlock, execution, channels, config.norm_groups, name="mid_block_2")(x)


class Encoder(nn.Module):
    config: ImageTokenizerConfig
    execution: ImageTokenizerExecutionConfig = ImageTokenizerExecutionConfig()

    @nn.compact
    def __call__(self, x: Float[Array, "B h w 3"]) -> Float[Array, "B g g z"]:
        config, execution = self.config, self.execution
        x = space_to_depth(x, config.space_to_depth)
        x = _conv(execution, config.channels, 3, "conv_in", padding=1)(x)
        for level, multiplier in enumerate(config.channel_multipliers):
            for block in range(config.num_res_blocks):
                x = _level_block(x, config, execution, "down", level, block)
            if level < len(config.channel_multipliers) - 1:
                channels, name = config.channels * multiplier, f"down_{level}_downsample"
                # Padded by one row at the bottom and one column at the right, as in the released network.
                x = _conv(execution, channels, 3, name, stride=2, padding=((0, 1), (0, 1)))(x)
        x = _middle(x, config, execution)
        x = GroupNorm(config.norm_groups, swish=True, name="norm_out")(x)
        return _conv(execution, config.latent_channels, 3, "conv_out", padding=1)(x)


class Decoder(nn.Module):
    config: ImageTokenizerConfig
    execution: ImageTokenizerExecutionConfig = ImageTokenizerExecutionConfig()

    @nn.compact
    def __call__(self, z: Float[Array, "B g g z"]) -> Float[Array, "B h w 3"]:
        config, execution = self.config, self.execution
        x = _conv(execution, config.channels * config.channel_multipliers[-1], 3, "conv_in", padding=1)(z)
        x = _middle(x, config, execution)
        for level in reversed(range(len(config.channel_multipliers))):
            for block in range(config.num_res_blocks + 1):
                x = _level_block(x, config, execution, "up", level, block)
            if level > 0:
                x = Upsample(execution, name=f"up_{level}_upsample")(x)
        x = GroupNorm(config.norm_groups, swish=True, name="norm_out")(x)
        x = _conv(execution, 3 * config.space_to_depth**2, 3, "conv_out", padding=1)(x)
        return depth_to_space(x, config.space_to_depth)


class VQModel(nn.Module):
    """Pictures in [-1, 1] to codes and back.

    `apply(variables, pixels, method="encode")` and so on. `codebook` is a parameter `[N, e]`, trained by moving
    averages (`training/image_tokenizer.py`). Latents, codes and pictures are in the type of the parameters, whatever
    `execution.compute_dtype` is.
    """

    config: ImageTokenizerConfig
    execution: ImageTokenizerExecutionConfig = ImageTokenizerExecutionConfig()

    def setup(self):
        config, execution = self.config, self.execution
        self.encoder = Encoder(config, execution)
        self.decoder = Decoder(config, execution)
        self.quant_conv = nn.Conv(config.code_dim, (1, 1), precision=execution.precision)  # never in bfloat16
        self.post_quant_conv = _conv(execution, config.latent_channels, 1, "post_quant_conv")
        bound = 1 / config.num_codes
        init = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)  # noqa: E731
        self.codebook = self.param("codebook", init, (config.num_codes, config.code_dim))

    def latents(self, pixels: Float[Array, "B h w 3"]) -> Float[Array, "B g g e"]:
        """The encoder's output before quantisation."""
        if not self.config.independent_patches:
            return self.quant_conv(self.encoder(pixels))
        B, g, side = pixels.shape[0], self.config.grid, self.config.downsampling
        patches = pixels.reshape(B, g, side, g, side, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, 3)
        return self.quant_conv(self.encoder(patches)).reshape(B, g, g, -1)

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
        return self.decoder(self.post_quant_conv(quantized)).astype(self.codebook.dtype)

    def __call__(self, pixels: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Encodes and decodes, so that `init` creates all parameters."""
        return self.decode(self.encode(pixels))


@functools.lru_cache(maxsize=64)
def abstract_params(config: ImageTokenizerConfig) -> dict[str, Any]:
    """The parameter tree that the modules declare, of `jax.ShapeDtypeStruct`s."""
    pixels = jax.ShapeDtypeStruct((1, config.resolution, config.resolution, 3), jnp.float32)
    return jax.eval_shape(VQModel(config).init, jax.random.key(0), pixels)["params"]
