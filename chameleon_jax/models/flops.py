"""How much arithmetic a Transformer and an image tokenizer need: the figures behind TFLOP/s and MFU.

Counted are the multiplications and additions of matrix products, two for each pair of numbers: every weight matrix once
a token forward and twice backward (6 x weights in all; the embedding is a look-up and counts nothing), and the two
products of attention over the keys that a token may see, on average half the row (Chowdhery et al. 2022, appendix B,
with causal attention at half). What remat computes again does not count. Rows count as one document, although packed
rows of several need less.
"""

from __future__ import annotations

import math

from chameleon_jax.config import ImageTokenizerConfig, LoRAConfig, TransformerConfig
from chameleon_jax.models.lora import is_adapter
from chameleon_jax.models.perceptual import BLOCKS
from chameleon_jax.models.transformer import parameter_shapes


def matmul_parameters(config: TransformerConfig) -> int:
    """Weights that every token is multiplied with: all but the embedding and the norms."""
    shapes = parameter_shapes(config).items()
    return sum(math.prod(shape) for path, shape in shapes if path != "embed" and "norm" not in path)


def adapter_parameters(config: TransformerConfig, lora: LoRAConfig) -> int:
    """Numbers in the low-rank adapters of all layers; every token is multiplied with them too."""
    return sum(math.prod(shape) for path, shape in parameter_shapes(config, lora).items() if is_adapter(path))


def forward_flops_per_token(config: TransformerConfig, length: int) -> float:
    """FLOPs of reading one token of a row of `length`: 2 x weights + 2 x layers x length x heads x head_dim."""
    attention = 2 * config.num_layers * length * config.num_heads * config.head_dim
    return 2.0 * matmul_parameters(config) + attention


def train_flops_per_token(config: TransformerConfig, length: int) -> float:
    """FLOPs of learning from one token of a row of `length`, forward and backward: three times the forward pass."""
    return 3.0 * forward_flops_per_token(config, length)


def conv_flops(side: int, inputs: int, outputs: int, kernel: int = 3) -> float:
    """FLOPs of a convolution that makes `side` x `side` positions."""
    return 2.0 * side**2 * kernel**2 * inputs * outputs


def _same_conv_flops(side: int, inputs: int, outputs: int) -> float:
    """FLOPs of a 3 x 3 convolution of a map of `side` x `side` positions; see `_convolve` of models/vq.py."""
    return conv_flops(side, inputs, outputs, 1 if side == 1 else 3)


def image_tokenizer_flops(config: ImageTokenizerConfig) -> tuple[float, float]:
    """FLOPs of encoding and of decoding one picture: its convolutions, attention, and the distances to all codes."""
    conv, same = conv_flops, _same_conv_flops

    def block(side: int, inputs: int, outputs: int, attended: bool) -> float:
        shortcut = conv(side, inputs, outputs, 1) if inputs != outputs else 0.0
        attention = 4 * conv(side, outputs, outputs, 1) + 4.0 * side**4 * outputs
        return same(side, inputs, outputs) + same(side, outputs, outputs) + shortcut + attention * attended

    def middle(side: int, channels: int) -> float:
        attention = 4 * conv(side, channels, channels, 1) + 4.0 * side**4 * channels
        return 4 * same(side, channels, channels) + attention * (config.attn_type == "vanilla")

    widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
    levels = [
        (side, channels, side in config.attn_resolutions) for side, channels in zip(config.maps, widths, strict=True)
    ]
    pixels, grid, last = 3 * config.space_to_depth**2, config.grid, len(widths) - 1
    parts = grid if config.independent_patches else 1  # along each side, encoded one by one
    encode, width = same(config.maps[0] // parts, pixels, config.channels), config.channels
    for level, (side, channels, attended) in enumerate(levels):
        for _ in range(config.num_res_blocks):
            encode, width = encode + block(side // parts, width, channels, attended), channels
        encode += conv(side // parts // 2, channels, channels) if level < last else 0.0
    encode += middle(grid // parts, width) + same(grid // parts, width, config.latent_channels)
    encode *= parts**2
    encode += conv(grid, config.latent_channels, config.code_dim, 1)
    encode += 2.0 * grid**2 * config.code_dim * config.num_codes

    decode = conv(grid, config.code_dim, config.latent_channels, 1) + same(grid, config.latent_channels, width)
    decode += middle(grid, width)
    for level, (side, channels, attended) in reversed(list(enumerate(levels))):
        for _ in range(config.num_res_blocks + 1):
            decode, width = decode + block(side, width, channels, attended), channels
        decode += conv(side + 1, channels, 4 * channels, 2) if level > 0 else 0.0  # see upsample_conv
    return encode, decode + same(config.maps[0], width, pixels)


def lpips_flops(side: int) -> float:
    """FLOPs of the features that LPIPS takes of one picture."""
    flops, width = 0.0, 3
    for block, widths in enumerate(BLOCKS):
        for outputs in widths:
            flops, width = flops + conv_flops(side >> block, width, outputs), outputs
    return flops


def discriminator_flops(side: int, channels: int, stages: int) -> float:
    """FLOPs of scoring the patches of one picture."""
    side, width = side // 2, channels
    flops = conv_flops(side, 3, width, 4)
    for stage in range(1, stages + 1):
        side, outputs = side - 1 if stage == stages else side // 2, channels * min(2**stage, 8)
        flops, width = flops + conv_flops(side, width, outputs, 4), outputs
    return flops + conv_flops(side - 1, width, 1, 4)
