"""The Transformer for generation: weights in the layout that decodes best, a KV cache of lanes, reading tokens into it.

A lane is one sequence with its own length: its token number p stands in slot p, at position p. Nothing is padded or
hidden, so lanes of different lengths share a call. All functions are pure; callers jit them and donate caches.

Legend: B lanes in a call, T tokens a lane, S slots of a lane, d model width, H query heads, K key/value heads,
G = H / K, D head dimension, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import ConfigError, DType, TransformerConfig
from chameleon_jax.models.attention import apply_rope, layer_norm, rms_norm
from chameleon_jax.models.decode_kernels import attend, multiply, rope, write
from chameleon_jax.models.lora import is_adapter

Quantization = Literal["int8"]
CacheDType = Literal["float32", "bfloat16", "int8"]


# ----------------------------------------------------------------------------------------------------------------------
# Weights
# ----------------------------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """A matrix stored with its inputs last, as a product with few rows reads it fastest."""

    values: Array  # [outputs, inputs]
    scale: Array | None  # float32 [outputs], by which int8 values are multiplied


class Norm(NamedTuple):
    """Scale and bias of the norm of queries or keys."""

    scale: Array  # [groups, D]
    bias: Array  # [groups, D]


class Layer(NamedTuple):
    attention_norm: Array  # [d]
    qkv: Matrix  # [K * (G + 2) * D, d]: of each key/value head its G queries, the key, the value
    q_norm: Norm | None
    k_norm: Norm | None
    o: Matrix  # [d, H * D]
    mlp_norm: Array  # [d]
    gate_up: Matrix  # [F * 2, d]: of each channel its gate, then what it gates
    down: Matrix  # [d, F]


class DecodeWeights(NamedTuple):
    """All parameters but the output layer, whose columns `head` takes."""

    embed: Array  # [V, d], in the dtype of computation
    layers: tuple[Layer, ...]
    norm: Array  # [d]


class Head(NamedTuple):
    """Some columns of the output layer."""

    matrix: Matrix  # [n, d]; on a mesh n may be a few more than there are columns


def _quantize(x: Array) -> tuple[Array, Array]:
    """int8 values and the float32 scale of each vector along the last axis, whose largest value becomes 127."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), jnp.finfo(jnp.float32).tiny) / 127
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def _matrix(values: Array, dtype: DType, quantization: Quantization | None) -> Matrix:
    return Matrix(values.astype(dtype), None) if quantization is None else Matrix(*_quantize(values))


def _named_sharding(x: Any) -> NamedSharding | None:
    """The sharding of an array on a mesh of several devices."""
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None


def _partition(x: Any) -> tuple:
    """The mesh axes of each axis of an array on a mesh."""
    return (*x.sharding.spec, *(None,) * (x.ndim - len(x.sharding.spec)))


def _axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part or ()


def _layer(
    layers: Any, index: Int[Array, ""], config: TransformerConfig, dtype: DType, quantization: Quantization | None
) -> Layer:
    layer = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), layers)
    attention, mlp = layer["attention"], layer["mlp"]
    d, K, D = config.d_model, config.num_kv_heads, config.head_dim
    matrix = functools.partial(_matrix, dtype=dtype, quantization=quantization)

    q = attention["q"].reshape(d, K, -1, D)
    k, v = (attention[name].reshape(d, K, 1, D) for name in "kv")
    return Layer(
        attention_norm=layer["attention_norm"]["scale"],
        qkv=matrix(jnp.concatenate([q, k, v], axis=2).reshape(d, -1).T),
        q_norm=Norm(**attention["q_norm"]) if config.qk_norm else None,
        k_norm=Norm(**attention["k_norm"]) if config.qk_norm else None,
        o=matrix(attention["o"].reshape(-1, d).T),
        mlp_norm=layer["mlp_norm"]["scale"],
        gate_up=matrix(jnp.stack([mlp["gate"], mlp["up"]], axis=-1).reshape(d, -1).T),
        down=matrix(mlp["down"].T),
    )


def _matrix_sharding(mesh: Mesh, outputs: Any, inputs: Any, quantization: Quantization | None) -> Matrix:
    values = NamedSharding(mesh, PartitionSpec(outputs, inputs))
    return Matrix(values, None if quantization is None else NamedSharding(mesh, PartitionSpec(outputs)))


def layer_shardings(layers: Any, config: TransformerConfig, quantization: Quantization | None) -> Layer | None:
    """Each matrix lies as its parameters do, that of queries as keys and values of their heads. None: one device."""
    attention, mlp = layers["attention"], layers["mlp"]
    sharding = _named_sharding(attention["q"])
    if sharding is None:
        return None
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    matrix = functools.partial(_matrix_sharding, sharding.mesh, quantization=quantization)
    norm = Norm(whole, whole) if config.qk_norm else None
    _, width, kv_heads, _ = _partition(attention["k"])
    _, heads, _, _ = _partition(attention["o"])
    _, _, channels = _partition(mlp["gate"])
    return Layer(
        whole, matrix(kv_heads, width), norm, norm, matrix(width, heads), whole, matrix(channels, width),
        matrix(width, channels),
    )  # fmt: skip


def decode_weights(
    params: Any, config: TransformerConfig, *, dtype: DType, quantization: Quantization | None = None
) -> DecodeWeights:
    """Parameters of the Transformer in the layout that decodes best.

    Args:
      params: of a plain Transformer, without adapters.
      dtype: of computation, and of the matrices unless they are quantized.
      quantization: 'int8' keeps the matrices as 8-bit integers with one scale per output channel.

    Parameters that are partitioned over a mesh stay so, in the same way.

    Raises:
      ConfigError: if `params` has adapters.
    """
    adapters = [name for part in ("attention", "mlp") for name in params["layers"][part] if is_adapter(name)]
    if adapters:
        raise ConfigError(f"decode_weights: params has adapters ({adapters[0]} …); merge them with models.lora.merge")
    layer = jax.jit(
        functools.partial(_layer, config=config, dtype=dtype, quantization=quantization),
        out_shardings=layer_shardings(params["layers"], config, quantization),
    )
    layers = tuple(layer(params["layers"], index) for index in range(config.num_layers))
    return DecodeWeights(params["embed"].astype(dtype), layers, params["norm"]["scale"])


def head(
    output: Float[Array, "d V"], ids: Int[Array, "n"], *, dtype: DType, quantization: Quantization | None = None
) -> Head:
    """The columns `ids` of the output layer. On a mesh that does not divide them evenly, columns of zeros follow."""
    padding = head_padding(output, len(ids))

    def columns(output: Array, ids: Array) -> Head:
        matrix = jnp.pad(jnp.take(output, ids, axis=1).T, ((0, padding), (0, 0)))
        return Head(_matrix(matrix, dtype, quantization))

    return jax.jit(columns, out_shardings=head_shardings(output, quantization))(output, ids)


def head_padding(output: Any, columns: int) -> int:
    """How many columns make so many of the output layer a multiple of the devices that its columns lie on."""
    sharding = _named_sharding(output)
    if sharding is None:
        return 0
    return -columns % math.prod(sharding.mesh.shape[axis] for axis in _axes(_partition(output)[1]))


def head_shardings(output: Any, quantization: Quantization | None) -> Head | None:
    """A head lies as the output layer does. None: one device."""
    sharding = _named_sharding(output)
    if sharding is None:
        return None
    width, vocab = _partition(output)
    return Head(_matrix_sharding(sharding.mesh, vocab, width, quantization))


# ----------------------------------------------------------------------------------------------------------------------
# Cache
# ----------------------------------------------------------------------------------------------------------------------


class Cache(NamedTuple):
    """Keys and values of lanes: per layer an array, as a stacked one would be copied with every token."""

    k: tuple[tuple[Array, ...], ...]  # per layer [lanes, K, S, D]; if that is int8, also float32 scales [lanes, K, S]
    v: tuple[tuple[Array, ...], ...]  # like k

    @classmethod
    def empty(
        cls, config: TransformerConfig, lanes: int, slots: int, dtype: CacheDType, weights: DecodeWeights | None = None
    ) -> Cache:
        """Lanes of up to `slots` tokens each.

        Args:
          dtype: 'int8' has a scale per slot and head.
          weights: which will read into it; the cache is partitioned over devices by heads, as they are.
        """
        shape = (lanes, config.num_kv_heads, slots, config.head_dim)
        device = None if weights is None else cache_sharding(weights)

        def layer() -> tuple[Array, ...]:
            values = jnp.zeros(shape, dtype, device=device)
            return (values, jnp.zeros(shape[:3], jnp.float32, device=device)) if dtype == "int8" else (values,)

        k, v = (tuple(layer() for _ in range(config.num_layers)) for _ in "kv")
        return cls(k, v)

    @property
    def lanes(self) -> int:
        return self.k[0][0].shape[0]

    @property
    def slots(self) -> int:
        return self.k[0][0].shape[2]


def cache_sharding(weights: DecodeWeights) -> NamedSharding | None:
    """A cache is partitioned by heads, as the weights are. None: one device."""
    matrix = weights.layers[0].qkv.values
    sharding = _named_sharding(matrix)
    return sharding and NamedSharding(sharding.mesh, PartitionSpec(None, _partition(matrix)[0]))


def copy_lane(cache: Cache, source: Int[Array, ""], target: Int[Array, ""]) -> Cache:
    """The cache with lane `target` like lane `source`, as for prompts that begin alike."""

    def copied(x: Array) -> Array:
        lane = jax.lax.dynamic_index_in_dim(x, source, keepdims=True)
        return jax.lax.dynamic_update_index_in_dim(x, lane, target, 0)

    return jax.tree.map(copied, cache)


# ----------------------------------------------------------------------------------------------------------------------
# Reading tokens
# ----------------------------------------------------------------------------------------------------------------------


def _multiply(x: Array, matrix: Matrix) -> Array:
    """x `[..., inputs]` to `[..., outputs]`, rounded once to the dtype of x."""
    y = multiply(x, matrix.values)
    return (y if matrix.scale is None else y * matrix.scale).astype(x.dtype)


def readout(head: Head, hidden: Float[Array, "... d"]) -> Float[Array, "... n"]:
    """float32 logits of the head's columns; rounded to the dtype of `hidden` first, as by the Transformer."""
    return _multiply(hidden, head.matrix).astype(jnp.float32)


def _stored(x: Array, cache: tuple[Array, ...]) -> tuple[Array, ...]:
    """Keys or values `[B, T, K, D]` as the cache stores them, heads first."""
    x = jnp.swapaxes(x, 1, 2)
    return tuple(_quantize(x)) if len(cache) == 2 else (x.astype(cache[0].dtype),)


def _qkv(layer: Layer, config: TransformerConfig, x: Array, sin_cos: Any) -> tuple[Array, Array, Array]:
    """Queries `[B, T, K, G, D]`, keys and values `[B, T, K, D]`, normalised and rotated."""
    B, T, _ = x.shape
    H, K, D = config.num_heads, config.num_kv_heads, config.head_dim
    qkv = _multiply(x, layer.qkv).reshape(B, T, K, -1, D)
    q, k, v = qkv[..., :-2, :].reshape(B, T, H, D), qkv[..., -2, :], qkv[..., -1, :]
    if config.qk_norm:
        q, k = (
            layer_norm(y, *(jnp.repeat(each, y.shape[2] // each.shape[0], axis=0) for each in norm), eps=1e-5)
            for y, norm in ((q, layer.q_norm), (k, layer.k_norm))
        )
    return apply_rope(q, sin_cos).reshape(B, T, K, -1, D), apply_rope(k, sin_cos), v


def _mlp(layer: Layer, x: Array) -> Array:
    gate_up = _multiply(x, layer.gate_up).reshape(*x.shape[:-1], -1, 2)
    return _multiply(jax.nn.silu(gate_up[..., 0]) * gate_up[..., 1], layer.down)


def _run_layer(layer: Layer, config: TransformerConfig, x: Array, sin_cos: Any, attend: Any) -> Array:
    """`attend` takes q, k and v of x and returns what the queries attend to."""
    norm = functools.partial(rms_norm, eps=config.norm_eps)

    def attention(x: Array) -> Array:
        out = attend(*_qkv(layer, config, x, sin_cos))
        return _multiply(out.reshape(*x.shape[:2], -1), layer.o)

    if config.norm_order == "pre":
        x = x + attention(norm(x, layer.attention_norm))
        return x + _mlp(layer, norm(x, layer.mlp_norm))
    x = x + norm(attention(x), layer.attention_norm)
    return x + norm(_mlp(layer, x), layer.mlp_norm)


def extend(
    weights: DecodeWeights,
    config: TransformerConfig,
    ids: Int[Array, "B T"],
    start: Int[Array, "B"],
    caches: Sequence[Cache],
) -> tuple[Float[Array, "B T d"], tuple[Cache, ...]]:
    """Reads T tokens into every lane of `caches`, whose lanes follow one another along B.

    Token t of a lane is written into slot `start + t`, and sees slots 0 … start + t. Those past the last slot are
    dropped.

    Returns:
      the hidden states after the final norm, for `readout`, and the next caches.
    """
    ends = itertools.accumulate(cache.lanes for cache in caches)
    parts = [_Part(cache, jnp.int32(0), slice(end - cache.lanes, end)) for cache, end in zip(caches, ends, strict=True)]
    return _extend(weights, config, ids, start, parts)


def extend_lane(
    weights: DecodeWeights,
    config: TransformerConfig,
    ids: Int[Array, "T"],
    start: Int[Array, ""],
    lane: Int[Array, ""],
    cache: Cache,
) -> Cache:
    """Reads T tokens into one lane, from slot `start` on: a chunk of a prompt. Nothing is computed but the cache."""
    _, (cache,) = _extend(weights, config, ids[None], start[None], [_Part(cache, lane, slice(0, 1))])
    return cache


class _Part(NamedTuple):
    """A cache, the first of its lanes that are read into, and which rows of the call those lanes are."""

    cache: Cache
    first_lane: Array
    rows: slice


def _extend(
    weights: DecodeWeights, config: TransformerConfig, ids: Array, start: Array, parts: Sequence[_Part]
) -> tuple[Array, tuple[Cache, ...]]:
    slots = start[:, None] + jnp.arange(ids.shape[1])
    sin_cos = rope(slots, config.head_dim, config.rope_theta)
    # The barrier keeps XLA:CPU from making a float32 copy of the table before a loop over steps.
    embed, ids = jax.lax.optimization_barrier((weights.embed, ids))
    x = jnp.take(embed, ids, axis=0)
    next_k, next_v = ([[] for _ in parts] for _ in "kv")
    for number, layer in enumerate(weights.layers):

        def attention(q: Array, k: Array, v: Array, number: int = number) -> Array:
            outs = []
            for (cache, first_lane, rows), ks, vs in zip(parts, next_k, next_v, strict=True):
                old = cache.k[number] + cache.v[number]
                new = _stored(k[rows], cache.k[number]) + _stored(v[rows], cache.v[number])
                written = write(old, new, first_lane, start[rows])
                ks.append(written[: len(old) // 2])
                vs.append(written[len(old) // 2 :])
                outs.append(attend(q[rows], ks[-1], vs[-1], first_lane, slots[rows]))
            return jnp.concatenate(outs)

        x = _run_layer(layer, config, x, sin_cos, attention)
    caches = tuple(Cache(tuple(ks), tuple(vs)) for ks, vs in zip(next_k, next_v, strict=True))
    return rms_norm(x, weights.norm, config.norm_eps), caches
