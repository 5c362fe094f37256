"""The Transformer against the specification's numbers, and the promises of its docstrings."""

from __future__ import annotations

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import ExecutionConfig, LoRAConfig, TransformerConfig
from chameleon_jax.models import transformer
from chameleon_jax.models.attention import rope_sin_cos
from chameleon_jax.models.attention_mask import Mask
from chameleon_jax.models.transformer import Block, Transformer

TINY = TransformerConfig(
    vocab_size=24, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, qk_norm_groups=2
)
SWIN = dataclasses.replace(TINY, norm_order="swin")
AUTO = ExecutionConfig()


def random_params(config: TransformerConfig, seed: int = 0):
    """Parameters in which nothing is 0 or 1 by default, so that each one matters."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(float(path[-1].key == "scale"), 0.3, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def abstract_params(config: TransformerConfig, **how):
    return nn.unbox(transformer.abstract_params(config, **how))


def count(params) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def tokens(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, TINY.vocab_size, shape), jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 3))
def logits_of(config: TransformerConfig, params, inputs, execution: ExecutionConfig = AUTO):
    return Transformer(config, execution).apply({"params": params}, inputs)


# ----------------------------------------------------------------------------------------------------------------------
# The numbers of the specification (vector V19)
# ----------------------------------------------------------------------------------------------------------------------


def closed_form(shape: tuple[int, ...], s: float) -> np.ndarray:
    return 0.3 * np.sin(0.7 * np.arange(np.prod(shape)) + s).reshape(shape)


def to_half_split(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows (or entries) of each head from the order of interleaved RoPE to that of half-split RoPE."""
    per_head = x.reshape(heads, x.shape[0] // heads, *x.shape[1:])
    return np.concatenate([per_head[:, 0::2], per_head[:, 1::2]], axis=1)


def tiny_in_the_original_layout(mp: int, K: int):
    """V19's weights as Meta's files hold them, one set per rank, joined and turned into our tree."""
    d, H, F, V, D = 8, 2, 12, 12, 4
    h, kv, f = H // mp, K // mp, F // mp
    ranks = range(mp)

    def cat(axis: int, shape: tuple[int, ...], s: float) -> np.ndarray:
        return np.concatenate([closed_form(shape, s + rank) for rank in ranks], axis)

    def norm(s: float, bias_s: float) -> dict[str, np.ndarray]:
        scale = np.concatenate([to_half_split(1 + closed_form((D,), s + rank), 1) for rank in ranks])
        bias = np.concatenate([to_half_split(closed_form((D,), bias_s + rank), 1) for rank in ranks])
        return {"scale": scale, "bias": bias}

    def layer(i: int):
        b = 100 * (i + 1)
        return {
            "attention_norm": {"scale": 1 + closed_form((d,), 10 * i + 1)},
            "mlp_norm": {"scale": 1 + closed_form((d,), 10 * i + 2)},
            "attention": {
                "q": to_half_split(cat(0, (D * h, d), b + 1), H).transpose(2, 0, 1),
                "k": to_half_split(cat(0, (D * kv, d), b + 2), K).transpose(2, 0, 1),
                "v": cat(0, (D * kv, d), b + 3).reshape(K, D, d).transpose(2, 0, 1),
                "o": cat(1, (d, D * h), b + 4).T.reshape(H, D, d),
                "q_norm": norm(b + 5, b + 7),
                "k_norm": norm(b + 6, b + 8),
            },
            "mlp": {
                "gate": cat(0, (f, d), b + 11).T,
                "up": cat(0, (f, d), b + 12).T,
                "down": cat(1, (d, f), b + 13).T,
            },
        }

    params = {
        "embed": cat(1, (V, d // mp), 3),
        "layers": jax.tree.map(lambda *layers: np.stack(layers), layer(0), layer(1)),
        "norm": {"scale": 1 + closed_form((d,), 99)},
        "output": cat(0, (V // mp, d), 5).T,
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


V19 = {
    "one rank, pre-norm": (
        1, 1, "pre",
        [1.00472, 0.757081, 0.169613, -0.493989, -0.935855, -0.957646,
         -0.54958, 0.105175, 0.71272, 1.000348, 0.838951, 0.300976],
        [3, 2, 3, 0],
    ),
    "one rank, swin": (
        1, 1, "swin",
        [0.471176, -0.389214, -1.074898, -1.278095, -0.907595, -0.129705,
         0.706406, 1.225433, 1.194403, 0.627243, -0.221467, -0.970767],
        [6, 4, 4, 7],
    ),
    "two ranks, swin": (
        2, 2, "swin",
        [-0.074848, 0.018546, 0.103615, 0.142175, 0.116916, 0.039178,
         -0.142541, -0.108924, -0.026414, 0.067952, 0.131817, 0.136513],
        [5, 3, 4, 3],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", V19)
def test_logits_of_the_tiny_model_are_those_of_the_specification(case):
    mp, K, order, last, best = V19[case]
    config = TransformerConfig(
        vocab_size=12, d_model=8, num_layers=2, num_heads=2, num_kv_heads=K, head_dim=4, mlp_dim=12,
        qk_norm_groups=mp, norm_order=order,
    )  # fmt: skip
    logits = logits_of(config, tiny_in_the_original_layout(mp, K), jnp.asarray([[0, 5, 9, 3]]))[0]
    # The table has six decimals of float64; float32 adds a few 1e-7.
    np.testing.assert_allclose(logits[-1], last, rtol=0, atol=2e-6)
    assert np.argmax(logits, axis=-1).tolist() == best


# ----------------------------------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------------------------------


def test_the_7b_config_has_the_released_number_of_parameters():
    assert count(abstract_params(TransformerConfig())) == 7_013_158_912


def test_the_34b_config_has_the_released_number_of_parameters():
    config = TransformerConfig(
        d_model=8192, num_layers=48, num_heads=64, num_kv_heads=8, mlp_dim=22016, qk_norm_groups=4, norm_order="swin"
    )
    # The known number counts a file that repeats each shard's row of scale and bias for each of its heads. We keep
    # the four rows, so what the repeats add is added here.
    rows_in_file = config.num_heads + config.num_kv_heads
    rows_here = 2 * config.qk_norm_groups
    repeats = config.num_layers * (rows_in_file - rows_here) * 2 * config.head_dim
    assert count(abstract_params(config)) + repeats == 34_294_308_864


def test_names_and_shapes_of_the_parameters_are_the_canonical_ones():
    L, d, H, K, D, F, V, groups = 2, 16, 4, 2, 4, 24, 24, 2
    rows = {"scale": (L, groups, D), "bias": (L, groups, D)}
    expected = {
        "embed": (V, d),
        "layers": {
            "attention": {
                "q": (L, d, H, D), "k": (L, d, K, D), "v": (L, d, K, D), "o": (L, H, D, d),
                "q_norm": rows, "k_norm": rows,
            },
            "mlp": {"gate": (L, d, F), "up": (L, d, F), "down": (L, F, d)},
            "attention_norm": {"scale": (L, d)},
            "mlp_norm": {"scale": (L, d)},
        },
        "norm": {"scale": (d,)},
        "output": (d, V),
    }  # fmt: skip
    for config in (TINY, SWIN):
        assert jax.tree.map(lambda leaf: leaf.shape, abstract_params(config)) == expected
    without = jax.tree.map(lambda leaf: leaf.shape, abstract_params(dataclasses.replace(TINY, qk_norm=False)))
    assert set(without["layers"]["attention"]) == {"q", "k", "v", "o"}


def test_layers_start_with_different_random_weights():
    params = nn.unbox(jax.jit(Transformer(TINY).init)(jax.random.key(0), tokens(1, 2)))["params"]
    gate = params["layers"]["mlp"]["gate"]
    assert not np.array_equal(gate[0], gate[1])
    np.testing.assert_allclose(np.std(gate), TINY.init_std, rtol=0.1)


# ----------------------------------------------------------------------------------------------------------------------
# Dropout, recomputation, precision
# ----------------------------------------------------------------------------------------------------------------------


def first_layer(config: TransformerConfig):
    return jax.tree.map(lambda leaf: leaf[0], random_params(config)["layers"])


@functools.partial(jax.jit, static_argnums=0)
def run_block(config: TransformerConfig, params, x, dropout_key=None):
    """With dropout of a half if there is a key."""
    T = x.shape[1]
    mask = Mask.of_rows(jnp.ones((1, T), jnp.int32))
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    block = Block(config, AUTO, LoRAConfig(), dropout=0.0 if dropout_key is None else 0.5)
    sin_cos = rope_sin_cos(jnp.arange(T)[None], config.head_dim, config.rope_theta)
    return block.apply({"params": params}, x, None, sin_cos, mask, 0, rngs=rngs)[0]


@pytest.mark.parametrize("order", ["pre", "swin"])
@pytest.mark.parametrize("silenced", ["attention", "mlp"])
def test_dropout_acts_on_the_branch_just_before_it_is_added(order, silenced):
    config = dataclasses.replace(TINY, norm_order=order)
    params = first_layer(config)
    out = "o" if silenced == "attention" else "down"
    params[silenced] = {**params[silenced], out: jnp.zeros_like(params[silenced][out])}
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 6, 16)), jnp.float32)
    branch = np.asarray(run_block(config, params, x) - x)
    dropped = np.asarray(run_block(config, params, x, jax.random.key(0)) - x)
    kept = dropped != 0
    # Were the norm of 'swin' or a product after the dropout, the kept values would not be exactly doubled.
    np.testing.assert_allclose(dropped[kept], 2 * branch[kept], rtol=1e-4, atol=1e-5)
    assert 0.3 < kept.mean() < 0.7


def test_every_layer_and_branch_drops_other_elements():
    # With an eps this large the norms only divide by 1000; undone here, the logits are the residual stream itself.
    config = dataclasses.replace(TINY, vocab_size=16, norm_eps=1e6)
    params, inputs = random_params(config), tokens(1, 8) % 16
    for name in ("attention_norm", "mlp_norm"):
        params["layers"][name]["scale"] *= 1e3
    params |= {"norm": {"scale": jnp.full(16, 1e3)}, "output": jnp.eye(16)}

    @jax.jit
    def dropped(params):
        """Where the residual stream ends as it began."""
        rngs = {"dropout": jax.random.key(0)}
        end = Transformer(config).apply({"params": params}, inputs, dropout=0.5, rngs=rngs)
        return jnp.abs(end - params["embed"][inputs]) < 1e-4

    def only(branch: str, out: str, layer: int):
        """The parameters with every other branch silenced."""
        silent = jax.tree.map(jnp.zeros_like, params["layers"])
        layers = {**params["layers"], "attention": {**params["layers"]["attention"], "o": silent["attention"]["o"]}}
        layers["mlp"] = {**params["layers"]["mlp"], "down": silent["mlp"]["down"]}
        layers[branch][out] = silent[branch][out].at[layer].set(params["layers"][branch][out][layer])
        return {**params, "layers": layers}

    masks = [dropped(only(*branch, layer)) for branch in (("attention", "o"), ("mlp", "down")) for layer in (0, 1)]
    for index, mask in enumerate(masks):
        assert 0.3 < np.mean(mask) < 0.7
        assert all(not np.array_equal(mask, other) for other in masks[:index])


@pytest.mark.parametrize("change", [{"remat": "full"}, {"unroll": 2}, {"unroll": 100}])
def test_recomputing_or_unrolling_layers_changes_neither_values_nor_gradients(change):
    params, inputs = random_params(TINY), tokens(2, 6)

    def loss(params, execution):
        return jnp.mean(jnp.square(logits_of(TINY, params, inputs, execution)))

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, grads = value_and_grad(params, AUTO)
    value_again, grads_again = value_and_grad(params, ExecutionConfig(**change))
    np.testing.assert_allclose(value_again, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6), grads, grads_again)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("unroll", [1, 2])
def test_a_turn_of_the_loop_holds_as_many_layers_as_unroll_says(unroll):
    execution = ExecutionConfig(unroll=unroll)
    program = jax.make_jaxpr(lambda params: logits_of(TINY, params, tokens(1, 8), execution))(random_params(TINY))
    assert re.findall(r"\bunroll=(\d+)", str(program)) == [str(unroll)]


def test_bfloat16_logits_are_float32_near_the_float32_model():
    params, inputs = random_params(TINY), tokens(2, 6)
    exact = logits_of(TINY, params, inputs)
    rounded = logits_of(TINY, params, inputs, ExecutionConfig(compute_dtype="bfloat16"))
    assert exact.dtype == rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 2e-2


def test_parameters_are_stored_in_param_dtype():
    leaves = jax.tree.leaves(abstract_params(TINY, param_dtype="bfloat16"))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
