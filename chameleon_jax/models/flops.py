"""How much arithmetic a Transformer needs: the figures behind TFLOP/s and MFU.

Counted are the multiplications and additions of matrix products, two for each pair of numbers: every weight matrix once
a token forward and twice backward (6 x weights in all; the embedding is a look-up and counts nothing), and the two
products of attention over the keys that a token may see, on average half the row (Chowdhery et al. 2022, appendix B,
with causal attention at half). What remat computes again does not count. Rows count as one document, although packed
rows of several need less.
"""

from __future__ import annotations

import math

from chameleon_jax.config import LoRAConfig, TransformerConfig
from chameleon_jax.models.lora import is_adapter
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
