"""Fine-tuning changes what it says and nothing else, on any devices, and costs no more than it must."""

from __future__ import annotations

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import transformer_params

from chameleon_jax.config import ConfigError, LoRAConfig, MeshConfig
from chameleon_jax.models import attention_kernels
from chameleon_jax.models.lora import A, B, merge
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training.loop import train
from chameleon_jax.training.state import abstract_state, init_state
from chameleon_jax.training.step import accumulated_gradients
from chameleon_jax.training.trainable import join, split
from chameleon_jax.training.transformer import TransformerTask, flops_per_token

ONE = MeshConfig(data=1)
HEAD = {"trainable": "image_head"}
LORA = {"lora__rank": 3, "lora__alpha": 6.0}


def leaves(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


def finished_model(config):
    """Parameters of a model to begin with, whose logits differ by units."""
    return transformer_params(config.model)


def load(config, target):
    """They, as `weights.initial` would load them."""
    return jax.tree.map(
        lambda leaf, wanted: jax.device_put(leaf.astype(wanted.dtype), wanted.sharding), finished_model(config), target
    )


ADAPTERS: dict = {}
"""As they begin, by model and recipe: drawing them takes long to compile."""


def begin(config, mesh):
    """The state before the first step."""
    task = TransformerTask(config)
    target = abstract_state(task, mesh).params
    if not config.lora.rank:
        return init_state(task, mesh, load(config, target))
    if (config.model, config.lora) not in ADAPTERS:
        fresh = task.fresh_adapters(make_mesh(ONE, jax.devices()[:1]))
        ADAPTERS[config.model, config.lora] = jax.tree.map(np.array, fresh)
    trained, frozen = split(target, task)
    adapters = jax.tree.map(
        lambda values, leaf: jax.device_put(values, leaf.sharding), ADAPTERS[config.model, config.lora], trained
    )
    return init_state(task, mesh, join(adapters, load(config, frozen)))


def run(tiny, config, mesh_config: MeshConfig = ONE, steps: int = 3):
    """Parameters before and after some steps as `leaves`, the last state, and the loss of each step."""
    mesh = make_mesh(mesh_config, jax.devices()[:1] if mesh_config is ONE else None)
    state = begin(config, mesh)
    before, losses = leaves(state.params), []
    step = tiny.make_train_step(tiny.task(config), mesh)
    with jax.set_mesh(mesh):
        for number in range(steps):
            state, metrics = step(state, tiny.batch(number))
            losses.append(float(metrics["total_loss"]))
    return before, leaves(state.params), state, losses


@pytest.fixture(scope="module")
def on_one_device(tiny):
    """`run` of a recipe on one device, done once."""
    recipes = {"head": HEAD, "lora": LORA}
    return functools.cache(lambda name: run(tiny, tiny.config(**recipes[name])))


# ----------------------------------------------------------------------------------------------------------------------
# The image head
# ----------------------------------------------------------------------------------------------------------------------


def test_image_head_changes_the_columns_of_image_codes_and_not_a_bit_more(tiny, on_one_device):
    before, after, state, losses = on_one_device("head")
    assert tiny.config(**HEAD).optimizer.weight_decay > 0  # which must not reach the other columns either
    image = tiny.is_image_id
    for name in before:
        kept = slice(None) if name != "output" else (slice(None), ~image)
        np.testing.assert_array_equal(before[name][kept], after[name][kept], err_msg=name)
    assert (before["output"][:, image] != after["output"][:, image]).mean() > 0.99
    moments = [name for name, leaf in leaves(state.opt_state).items() if leaf.ndim]
    assert len(moments) == 2
    assert all(name.endswith("output") for name in moments)
    assert losses[0] > 0


def test_fresh_image_head_has_the_variance_of_the_recipe_and_keeps_the_rest(tiny):
    config = tiny.config(**HEAD, model__d_model=256)
    is_image_id = np.arange(1024) >= 500
    params = {"output": jnp.full((256, 1024), 7, jnp.bfloat16), "embed": jnp.ones((4, 4))}
    fresh = TransformerTask(config, is_image_id).with_fresh_image_head(params, jax.random.key(3))
    assert fresh["output"].dtype == jnp.bfloat16
    assert fresh["embed"] is params["embed"]
    columns = np.asarray(fresh["output"], np.float32)
    assert (columns[:, :500] == 7).all()
    assert columns[:, 500:].var() == pytest.approx(2 / 256, rel=0.02)  # of 134,144 numbers
    assert columns[:, 500:].mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.usefixtures("compiled_once")
def test_a_run_draws_the_fresh_head_itself_and_resumes_without_drawing_again(tiny, tmp_path):
    mesh = {"mesh__data": 1, "mesh__fsdp": 4, "mesh__tensor": 2}
    config = tiny.config(tmp_path, **HEAD, **mesh, fresh_image_head=True, log_every=8, checkpoint__every=8)
    before = leaves(finished_model(config))["output"]
    after = leaves(train(tiny.task(config), tiny.batches, initial_params=functools.partial(load, config)).params)
    np.testing.assert_array_equal(after["output"][:, ~tiny.is_image_id], before[:, ~tiny.is_image_id])
    fresh = after["output"][:, tiny.is_image_id]
    assert fresh.std() == pytest.approx(np.sqrt(2 / 16), rel=0.2)  # only 192 numbers
    assert not np.isclose(fresh, before[:, tiny.is_image_id]).any()

    def refuse(target):
        raise AssertionError("a checkpoint is there")

    again = train(tiny.task(config), tiny.batches, initial_params=refuse)
    np.testing.assert_array_equal(again.params["output"], after["output"])


# ----------------------------------------------------------------------------------------------------------------------
# Adapters
# ----------------------------------------------------------------------------------------------------------------------


def test_adapters_begin_as_nothing_and_alone_change(on_one_device):
    before, after, state, losses = on_one_device("lora")
    assert losses[0] == pytest.approx(on_one_device("head")[3][0], rel=1e-6)  # of the same model without adapters
    adapters = {name for name in before if name.endswith((A, B))}
    assert len(adapters) == 14
    for name in before:
        if name in adapters:
            assert (before[name] != after[name]).mean() > 0.99, name
            assert before[name].dtype == np.float32
        else:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert all(not before[name].any() for name in adapters if name.endswith(B))
    moments = [name for name, leaf in leaves(state.opt_state).items() if leaf.ndim]
    assert len(moments) == 2 * 14
    assert all(name.endswith((A, B)) for name in moments)


def with_random_adapters(params, seed: int = 0):
    rng = np.random.default_rng(seed)

    def leaf(path, leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype) if path[-1].key.endswith((A, B)) else leaf

    return jax.tree_util.tree_map_with_path(leaf, params)


@pytest.mark.parametrize(
    ("norm_order", "lora"),
    [("pre", {"rank": 3, "alpha": 6.0}), ("swin", {"rank": 2, "alpha": 5.0, "targets": ["k", "o", "down"]})],
)
def test_merged_parameters_are_a_plain_model_with_the_logits_of_the_adapted_one(tiny, norm_order, lora):
    config = tiny.config(model__norm_order=norm_order, model__qk_norm_groups=2,
                         **{f"lora__{name}": value for name, value in lora.items()})  # fmt: skip
    params = with_random_adapters(transformer_params(config.model, lora=config.lora))
    merged = merge(params, config.lora)
    plain, without = LoRAConfig(), split(params, TransformerTask(config))[1]
    assert jax.tree.structure(merged) == jax.tree.structure(without)

    # By hand: W + alpha / rank * A B, only where there is an adapter.
    scale, where = config.lora.alpha / config.lora.rank, leaves(params)
    matrices = {name.removesuffix(A) for name in where if name.endswith(A)}
    assert {name.split("/")[-1] for name in matrices} == set(config.lora.targets)
    for name, leaf in leaves(merged).items():
        expected = where[name]
        if name in matrices:
            a, b = where[name + A], where[name + B]
            assert config.lora.rank == a.shape[-1] == b.shape[1]
            product = np.einsum("lir,lro->lio", a.reshape(len(a), -1, a.shape[-1]), b.reshape(*b.shape[:2], -1))
            expected = expected + scale * product.reshape(expected.shape)
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-6, err_msg=name)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(lora, params):
        return Transformer(config.model, lora=lora).apply({"params": params}, jnp.asarray(tiny.batch(0).inputs))

    adapted = logits(config.lora, params)
    np.testing.assert_allclose(logits(plain, merged), adapted, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(plain, without) - adapted).max() > 0.1


@pytest.mark.slow
def test_frozen_parameters_in_bfloat16_have_adapters_in_float32(tiny):
    config = tiny.config(**LORA, execution__param_dtype="bfloat16", execution__compute_dtype="bfloat16")
    before, after, state, losses = run(tiny, config, steps=2)
    for name, leaf in after.items():
        if name.endswith((A, B)):
            assert leaf.dtype == np.float32
            assert (leaf != before[name]).any()
        else:
            assert leaf.dtype == jnp.bfloat16
            np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    assert all(leaf.dtype == np.float32 for leaf in leaves(state.opt_state).values() if leaf.ndim)
    assert np.isfinite(losses).all()
    merged = merge(state.params, config.lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    assert (leaves(merged)["layers/attention/q"] != before["layers/attention/q"]).any()


@pytest.mark.slow
def test_adapters_resume_bit_for_bit_and_without_the_model_they_began_with(tiny, tmp_path):
    def config(name: str):
        return tiny.config(tmp_path / name, **LORA, steps=4, dropout=0.1)

    whole = train(tiny.task(config("whole")), tiny.batches, initial_params=functools.partial(load, config("")))
    shutil.copytree(tmp_path / "whole/checkpoints/2", tmp_path / "cut/checkpoints/2")
    resumed = train(tiny.task(config("cut")), tiny.batches, initial_params=None)
    first, second = leaves(whole), leaves(resumed)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# ----------------------------------------------------------------------------------------------------------------------
# Both
# ----------------------------------------------------------------------------------------------------------------------

MEMORY = {
    "accumulation": 2, "loss_chunk": 4, "execution__attention": "blockwise", "execution__remat": "save_projections"
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "mesh", "ways"),
    [
        ("head", MeshConfig(data=1, fsdp=4, tensor=2), {}),
        ("head", ONE, MEMORY),
        ("lora", MeshConfig(data=2, fsdp=2, tensor=2), {}),
        pytest.param("lora", ONE, MEMORY, marks=pytest.mark.slow),
        pytest.param("lora", MeshConfig(data=1, fsdp=8), {}, marks=pytest.mark.slow),
    ],
    ids=["head, fsdp and tensor", "head, less memory", "lora, all axes", "lora, less memory", "lora, fsdp"],
)
def test_devices_and_ways_to_save_memory_change_no_number(tiny, on_one_device, monkeypatch, recipe, mesh, ways):
    monkeypatch.setattr(attention_kernels, "BLOCK", 4)
    _, expected, _, expected_losses = on_one_device(recipe)
    config = tiny.config(**{"head": HEAD, "lora": LORA}[recipe], **ways)
    _, after, _, losses = run(tiny, config, mesh)
    assert losses == pytest.approx(expected_losses, rel=2e-5)
    for name, leaf in after.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [HEAD, LORA], ids=["head", "lora"])
def test_muon_trains_what_may_change_too(tiny, recipe):
    config = tiny.config(**recipe, optimizer__name="muon")
    before, after, _, losses = run(tiny, config, steps=2)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == ({"output"} if recipe is HEAD else {name for name in before if name.endswith((A, B))})
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({**LORA, **HEAD}, r"trainable = 'image_head': must be 'all' with lora\.rank"),
        ({**LORA, "fresh_image_head": True}, r"fresh_image_head = True: must be false with lora\.rank"),
        ({"lora__rank": -1}, r"lora\.rank = -1: must be from 0 to 65536"),
        ({"lora__targets": ["q", "embed"]}, r"lora\.targets\.1 = 'embed': must be one of 'q', 'k'"),
        ({"lora__targets": ["q", "q"]}, r"lora\.targets = .*: must name each matrix once"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny, change, message):
    with pytest.raises(ConfigError, match=message):
        tiny.config(**change)


# ----------------------------------------------------------------------------------------------------------------------
# Cost
# ----------------------------------------------------------------------------------------------------------------------


def matmul_flops(jaxpr) -> int:
    """FLOPs of all matrix products of a program, loops counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in contracted]))
        inner = [matmul_flops(getattr(value, "jaxpr", value)) for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(getattr(value, "jaxpr", value), "eqns"))
            if hasattr(getattr(value, "jaxpr", value), "eqns")]  # fmt: skip
        if equation.primitive.name == "cond":  # one of its branches runs; here they are the same for two platforms
            total += max(inner)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


@pytest.mark.parametrize(
    "recipe",
    [{}, HEAD, LORA, {**LORA, "lora__targets": ["q", "down"]}],
    ids=["all", "head", "lora", "lora of two matrices"],
)
def test_a_step_computes_the_gradients_that_it_needs_and_no_others(tiny, recipe):
    """The program has exactly the products that `flops_per_token` counts: none for gradients of frozen matrices."""
    config = tiny.config(**recipe)
    batch = tiny.batch(0)
    params = abstract_state(tiny.task(config), make_mesh(ONE, jax.devices()[:1])).params
    program = jax.make_jaxpr(functools.partial(accumulated_gradients, tiny.task(config)))(params, batch, None)
    rows, length = batch.inputs.shape
    counted = matmul_flops(program.jaxpr) / (rows * length)
    # 'xla' attention computes the scores of all pairs, of which the formula counts the half that a token may see.
    model = config.model
    hidden_half = 2 * model.num_layers * length * model.num_heads * model.head_dim
    assert counted == flops_per_token(config, length) + hidden_half * (1 if recipe is HEAD else 3)


def test_flops_of_the_7b_by_hand(tiny):
    """Sizes of configs/models/chameleon_7b.yaml, rows of 4,096 tokens."""
    sizes = {
        "vocab_size": 65536, "d_model": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32, "head_dim": 128,
        "mlp_dim": 11008,
    }  # fmt: skip
    sizes = {f"model__{name}": value for name, value in sizes.items()}
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 4096 * 65536
    attention = 2 * 32 * 4096 * 4096  # two products, two operations a pair of numbers, half of the keys
    assert flops_per_token(tiny.config(**sizes), 4096) == 6 * weights + 3 * attention
    head = flops_per_token(tiny.config(**sizes, **HEAD), 4096)
    assert head == 2 * weights + attention + 2 * 4096 * 65536
    lora = flops_per_token(tiny.config(**sizes, lora__rank=16), 4096)
    adapters = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert adapters == 39_976_960
    assert lora == 4 * weights + 3 * attention + 6 * adapters
