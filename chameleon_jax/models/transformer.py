"""The unified Transformer: text pieces and image codes in, logits over both out (paper section 2.3).

Legend: B batch, T length, S cache length, L layers, d model width, H query heads, K key/value heads, D head dimension,
F feed-forward width, V vocabulary. The modules own parameters and call the functions of `attention.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import DType, ExecutionConfig, LoRAConfig, TransformerConfig, require
from chameleon_jax.models.attention import apply_rope, attend, layer_norm, rms_norm, rope_sin_cos
from chameleon_jax.models.attention_kernels import saves_cudnn_residuals
from chameleon_jax.models.attention_mask import Mask
from chameleon_jax.models.dropout import Dropout
from chameleon_jax.models.lora import A as LORA_A
from chameleon_jax.models.lora import Adapter, add_adapter
from chameleon_jax.models.lora import B as LORA_B
from chameleon_jax.models.partitioning import mesh_axes, num_partitions


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far. A plain pytree: `apply` takes one and returns the next.

    All rows write the same slot at the same time; shorter rows are padded on the left with segment 0.
    """

    k: Array  # [L, B, S, K, D]
    v: Array  # [L, B, S, K, D]
    segment_ids: Array  # [B, S]; 0 marks slots that are empty or padding
    length: Array  # []; slots written

    @classmethod
    def empty(cls, config: TransformerConfig, batch: int, slots: int, dtype: DType) -> KVCache:
        """A cache for up to `slots` tokens a row, in the model's `compute_dtype`."""
        shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros(shape, dtype)
        return cls(zeros, zeros, jnp.zeros((batch, slots), jnp.int32), jnp.zeros((), jnp.int32))


def _param(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], init=None) -> Array:
    init = init or nn.initializers.normal(module.config.init_std)
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, module.execution.param_dtype)


def _recomputed(function: Callable) -> Callable:
    """`function`, recomputed in the backward pass from its arguments.

    For elementwise functions, which take less time than writing and reading their intermediate values.
    """
    return jax.checkpoint(function, prevent_cse=False)


def _adapter(
    module: nn.Module, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], axes: tuple[str | None, ...]
) -> Adapter | None:
    """The adapter of matrix `name` with logical `axes`, if it has one: the first factor random, the second zero."""
    lora = module.lora
    if not lora.rank or name not in lora.targets:
        return None

    def factor(suffix: str, shape: tuple[int, ...], axes: tuple[str | None, ...], init) -> Array:
        return module.param(name + suffix, nn.with_logical_partitioning(init, axes), shape, jnp.float32)

    width = math.prod(inputs)
    a = factor(LORA_A, (*inputs, lora.rank), (*axes[: len(inputs)], None), nn.initializers.normal(width**-0.5))
    b = factor(LORA_B, (lora.rank, *outputs), (None, *axes[len(inputs) :]), nn.initializers.zeros)
    return Adapter(a, b, lora.alpha / lora.rank)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019)."""

    config: TransformerConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        scale = _param(self, "scale", (x.shape[-1],), ("embed",), nn.initializers.ones)
        return _recomputed(functools.partial(rms_norm, eps=self.config.norm_eps))(x, scale)


class QKNorm(nn.Module):
    """LayerNorm over each head's channels; the heads of a group share one row of scale and bias."""

    config: TransformerConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T heads D"]) -> Float[Array, "B T heads D"]:
        groups = min(self.config.qk_norm_groups, x.shape[2])
        shape, axes = (groups, self.config.head_dim), (None, None)
        scale = _param(self, "scale", shape, axes, nn.initializers.ones)
        bias = _param(self, "bias", shape, axes, nn.initializers.zeros)
        repeats = x.shape[2] // groups
        scale, bias = (jnp.repeat(each, repeats, axis=0) for each in (scale, bias))
        return _recomputed(functools.partial(layer_norm, eps=1e-5))(x, scale, bias)


class Attention(nn.Module):
    """q, k, v -> LayerNorm of q and k per head -> RoPE -> causal attention within segments -> output projection."""

    config: TransformerConfig
    execution: ExecutionConfig
    lora: LoRAConfig

    @nn.compact
    def __call__(self, x, sin_cos, mask, cache, slot):
        config, dtype = self.config, self.execution.compute_dtype
        d, H, K, D = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim

        def project(name: str, equation: str, x: Array, inputs: tuple, outputs: tuple, axes: tuple) -> Array:
            kernel = _param(self, name, (*inputs, *outputs), axes).astype(dtype)
            return add_adapter(jnp.einsum(equation, x, kernel), x, _adapter(self, name, inputs, outputs, axes))

        q = project("q", "BTd,dHD->BTHD", x, (d,), (H, D), ("embed", "heads", "head_dim"))
        k = project("k", "BTd,dKD->BTKD", x, (d,), (K, D), ("embed", "kv_heads", "head_dim"))
        v = project("v", "BTd,dKD->BTKD", x, (d,), (K, D), ("embed", "kv_heads", "head_dim"))
        if config.qk_norm:
            q = QKNorm(config, self.execution, name="q_norm")(q)
            k = QKNorm(config, self.execution, name="k_norm")(k)
        q = nn.with_logical_constraint(apply_rope(q, sin_cos), ("batch", "length", "heads", None))
        # Where devices share the length, each needs the keys and values of whole rows.
        k = nn.with_logical_constraint(apply_rope(k, sin_cos), ("batch", None, "kv_heads", None))
        v = nn.with_logical_constraint(v, ("batch", None, "kv_heads", None))
        q, k, v = (checkpoint_name(x, name) for x, name in ((q, "query"), (k, "key"), (v, "value")))
        if cache is not None:
            k = jax.lax.dynamic_update_slice(cache[0], k, (0, slot, 0, 0))
            v = jax.lax.dynamic_update_slice(cache[1], v, (0, slot, 0, 0))
            cache = (k, v)
        # The kernels take whole rows only. Parameters depend on none of them.
        backend = "xla" if cache is not None or self.is_initializing() else self.execution.attention
        out = attend(q, k, v, mask, backend)
        return project("o", "BTHD,HDd->BTd", out, (H, D), (d,), ("heads", "head_dim", "embed")), cache


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x) (Shazeer 2020)."""

    config: TransformerConfig
    execution: ExecutionConfig
    lora: LoRAConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        d, F, dtype = self.config.d_model, self.config.mlp_dim, self.execution.compute_dtype

        def matrix(name: str, inputs: int, outputs: int, axes: tuple[str, str]):
            kernel = _param(self, name, (inputs, outputs), axes).astype(dtype)
            adapter = _adapter(self, name, (inputs,), (outputs,), axes)
            return lambda x: add_adapter(x @ kernel, x, adapter)

        gate = matrix("gate", d, F, ("embed", "mlp"))
        up = matrix("up", d, F, ("embed", "mlp"))
        down = matrix("down", F, d, ("mlp", "embed"))

        # XLA on a CPU computes gradients of [B, T, d] products three times slower than of [B * T, d]. Elsewhere the
        # reshape is free, unless devices share the length.
        tokens = x if num_partitions(mesh_axes("length")[0]) > 1 else x.reshape(-1, d)
        hidden = checkpoint_name(gate(tokens), "gate"), checkpoint_name(up(tokens), "up")
        return down(_recomputed(lambda gate, up: jax.nn.silu(gate) * up)(*hidden)).reshape(x.shape)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each a residual branch.

    The norm stands before the branch ('pre', 7B) or after it ('swin', 34B), and dropout just before the addition.
    """

    config: TransformerConfig
    execution: ExecutionConfig
    lora: LoRAConfig
    dropout: float

    @nn.compact
    def __call__(self, x, cache, sin_cos, mask, slot):
        config = self.config
        attention_norm = RMSNorm(config, self.execution, name="attention_norm")
        mlp_norm = RMSNorm(config, self.execution, name="mlp_norm")
        attention = Attention(config, self.execution, self.lora, name="attention")
        mlp = MLP(config, self.execution, self.lora, name="mlp")
        dropout = Dropout(self.dropout, name="dropout")

        if config.norm_order == "pre":
            branch, cache = attention(attention_norm(x), sin_cos, mask, cache, slot)
            x = x + dropout(branch)
            x = x + dropout(mlp(mlp_norm(x)))
        else:
            branch, cache = attention(x, sin_cos, mask, cache, slot)
            x = x + dropout(attention_norm(branch))
            x = x + dropout(mlp_norm(mlp(x)))
        return nn.with_logical_constraint(x, ("batch", "length", None)), cache


SAVED = {
    "full": (),
    "save_attention": ("attention",),
    "save_projections": ("query", "key", "value", "attention"),
    "offload": ("query", "key", "value", "attention"),
}
"""What each remat policy saves of a layer for the backward pass, beside the layer's input."""


def remat_policy(name: str):
    """The policy of `jax.checkpoint` for a value of `ExecutionConfig.remat` other than 'none'."""
    policies = jax.checkpoint_policies
    if name == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(SAVED[name]),
            offload_src="device",
            offload_dst="pinned_host",
        )
    names = policies.save_only_these_names(*SAVED[name])
    return policies.save_from_both_policies(names, saves_cudnn_residuals) if SAVED[name] else names


def readout(x: Float[Array, "B T d"], params: Any, config: TransformerConfig) -> Float[Array, "B T V"]:
    """Logits of the last layer's output, by the final norm and the output layer of `params`."""
    return unembed(rms_norm(x, params["norm"]["scale"], config.norm_eps), params["output"])


def unembed(x: Float[Array, "B T d"], output: Float[Array, "d V"]) -> Float[Array, "B T V"]:
    """float32 logits of normalised hidden states.

    They are rounded to the dtype of x first, as in Meta's code: samples and ties depend on it.
    """
    logits = jnp.einsum("BTd,dV->BTV", x, output.astype(x.dtype)).astype(jnp.float32)
    return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


def _scanned_block(config: TransformerConfig, execution: ExecutionConfig) -> type[nn.Module]:
    """`Block` scanned over the layers, with remat: its parameters and its cache have a leading axis of layers."""
    block = Block
    if execution.remat != "none":
        # Outside of a loop, XLA merges the recomputation with the first computation and keeps everything.
        prevent_cse = execution.remat_outside_loop(config.num_layers)
        block = nn.remat(Block, prevent_cse=prevent_cse, policy=remat_policy(execution.remat))
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.num_layers,
        unroll=execution.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


class Transformer(nn.Module):
    """Token ids to float32 logits over the whole vocabulary, nothing masked.

    `Transformer(config).apply({"params": params}, inputs, …)`; see `__call__`. Layers are scanned, so every parameter
    under `layers` has a leading axis of length L.

    Attributes:
      config: the architecture.
      execution: how it runs.
      lora: low-rank adapters; their parameters are beside those of the matrices.
    """

    config: TransformerConfig
    execution: ExecutionConfig = ExecutionConfig()
    lora: LoRAConfig = LoRAConfig()

    @nn.compact
    def __call__(
        self,
        inputs: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        *,
        dropout: float = 0.0,
        hidden: bool = False,
    ):
        """Reads `inputs` and predicts the token after each.

        Args:
          inputs: token ids.
          positions: place of each token in its own document, from 0. Default: 0 … T-1.
          segment_ids: which document of the row a token belongs to; attention never crosses. Default: one document.
          cache: keys and values of earlier tokens; those of `inputs` are written into its next T slots.
          dropout: dropped share of each branch; above 0 it needs `rngs={"dropout": key}`.
          hidden: return the last layer's output, from which `readout` computes logits.

        Returns:
          float32 logits `[B, T, V]` (or the last layer's output `[B, T, d]`), and the next cache if one was given.

        Raises:
          ConfigError: if `execution.attention` names a backend that does not suit the length of the rows.
        """
        config, execution = self.config, self.execution
        B, T = inputs.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        if segment_ids is None:
            segment_ids = jnp.ones((B, T), jnp.int32)

        if cache is None:
            slot, layer_caches = 0, None
            mask = Mask.of_rows(segment_ids)
        else:
            slot, layer_caches = cache.length, (cache.k, cache.v)
            all_segments = jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, (0, slot))
            slots = jnp.arange(all_segments.shape[1])
            mask = Mask(slot + jnp.arange(T), slots, segment_ids, all_segments)

        require(
            config.vocab_size is not None, "vocab_size", None, "only `chameleon train` can find it; give the number"
        )
        embed = _param(self, "embed", (config.vocab_size, config.d_model), ("vocab", "embed"))
        x = jnp.take(embed, inputs, axis=0).astype(execution.compute_dtype)
        x = nn.with_logical_constraint(x, ("batch", "length", None))

        sin_cos = rope_sin_cos(positions, config.head_dim, config.rope_theta)
        layers = _scanned_block(config, execution)(config, execution, self.lora, dropout, name="layers")
        x, layer_caches = layers(x, layer_caches, sin_cos, mask, slot)

        norm = RMSNorm(config, execution, name="norm")
        output = _param(self, "output", (config.d_model, config.vocab_size), ("embed", "vocab"))
        result = x if hidden else unembed(norm(x), output)
        return result if cache is None else (result, KVCache(*layer_caches, all_segments, slot + T))


@functools.lru_cache(maxsize=64)
def abstract_params(
    config: TransformerConfig, param_dtype: DType = "float32", lora: LoRAConfig | None = None
) -> dict[str, Any]:
    """The parameter tree that the modules declare: `jax.ShapeDtypeStruct`s in flax's boxes of logical axis names."""
    model = Transformer(config, ExecutionConfig(param_dtype=param_dtype), lora or LoRAConfig())
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]


def parameter_shapes(config: TransformerConfig, lora: LoRAConfig | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path, such as 'layers/attention/q'; the first axis of a layer's counts layers."""
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(abstract_params(config, lora=lora)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
