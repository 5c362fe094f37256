"""How much arithmetic a Transformer asks for: the figures behind TFLOP/s and MFU.

Counted are the multiplications and additions of matrix products, two for each pair of numbers: every weight matrix once
a token forward and twice backward (6 x weights in all; the embedding is a look-up and counts nothing), and the two
products of attention over the keys that a token may see, on average half the row (Chowdhery et al. 2022, appendix B,
with causal attention at half). What a remat policy computes again does not count: it is no progress. Rows count as one
document, although packed rows of several need less.
"""

from __future__ import annotations

from chameleon_jax.config import TransformerConfig


def matmul_parameters(config: TransformerConfig) -> int:
    """Weights that every token is multiplied with: all but the embedding and the norms."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads  # q and o, k and v
    layer = config.d_model * (heads * config.head_dim + 3 * config.mlp_dim)
    return config.num_layers * layer + config.d_model * config.vocab_size


def adapter_parameters(config: TransformerConfig) -> int:
    """Numbers in the low-rank adapters of all layers; every token is multiplied with them too."""
    d, heads, kv_heads = config.d_model, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inputs_and_outputs = {
        "q": d + heads, "k": d + kv_heads, "v": d + kv_heads, "o": heads + d,
        "gate": d + config.mlp_dim, "up": d + config.mlp_dim, "down": config.mlp_dim + d,
    }  # fmt: skip
    return config.num_layers * config.lora.rank * sum(inputs_and_outputs[name] for name in config.lora.targets)


def forward_flops_per_token(config: TransformerConfig, length: int) -> float:
    """FLOPs of reading one token of a row of `length`: 2 x weights + 2 x layers x length x heads x head_dim."""
    attention = 2 * config.num_layers * length * config.num_heads * config.head_dim
    return 2.0 * matmul_parameters(config) + attention


def train_flops_per_token(config: TransformerConfig, length: int) -> float:
    """FLOPs of learning from one token of a row of `length`, forward and backward: three times the forward pass."""
    return 3.0 * forward_flops_per_token(config, length)
