"""One step learns, and gives the same numbers however the devices are arranged."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from chameleon_jax.batch import Batch
from chameleon_jax.compilation.collectives import read_collectives
from chameleon_jax.config import ConfigError, MeshConfig
from chameleon_jax.models import attention_kernels
from chameleon_jax.models.dropout import Dropout
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.sharding import batch_sharding, constraints_on, make_mesh
from chameleon_jax.training.state import abstract_state, init_state
from chameleon_jax.training.step import make_evaluation_step, make_signals, make_train_step
from chameleon_jax.training.task import Part
from chameleon_jax.training.transformer import TransformerTask

ONE = MeshConfig(data=1)
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "data 4, tensor 2": MeshConfig(data=4, tensor=2),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "sequence 4, fsdp 2": MeshConfig(data=1, fsdp=2, sequence=4),
    "data 2, sequence 2, tensor 2": MeshConfig(data=2, sequence=2, tensor=2),
}
RECIPES = {
    "pre, adamw": {"steps": 40, "model__norm_order": "pre", "optimizer__name": "adamw"},
    "swin, muon": {"steps": 40, "model__norm_order": "swin", "optimizer__name": "muon", "model__qk_norm_groups": 2},
}


WAYS = {
    "accumulation": {"accumulation": 2},
    "chunked loss": {"loss_chunk": 4},
    "blockwise attention": {"execution__attention": "blockwise"},
    "remat full": {"execution__remat": "full"},
    "remat save_attention": {"execution__remat": "save_attention"},
    "remat save_projections": {"execution__remat": "save_projections"},
    "remat offload": {"execution__remat": "offload"},
    "all of them": {
        "accumulation": 2, "loss_chunk": 4, "execution__attention": "blockwise", "execution__remat": "save_attention"
    },
}  # fmt: skip
"""Ways to compute the same step with less memory."""

MEASURED = {"optimizer__clip_norm": 1e-3, "z_loss": 0.1, "model__qk_norm_groups": 2}
"""A recipe whose metrics are compared with others."""


def mesh_of(config: MeshConfig) -> jax.sharding.Mesh:
    return make_mesh(config, jax.devices()[:1] if config is ONE else None)


def run(tiny, config, mesh_config, init_state=init_state):
    """State after three steps on different batches, and the metrics of each."""
    mesh = mesh_of(mesh_config)
    state = init_state(tiny.task(config), mesh)
    step = tiny.make_train_step(tiny.task(config), mesh)
    history = []
    with jax.set_mesh(mesh):
        for number in range(3):
            state, metrics = step(state, tiny.batch(number))
            history.append(jax.tree.map(np.asarray, metrics))
    return state, history


@pytest.fixture(scope="module")
def on_one_device(tiny):
    """`run` of a recipe on one device, done once."""
    return functools.cache(lambda recipe: run(tiny, tiny.config(**RECIPES[recipe]), ONE))


@pytest.fixture(scope="module")
def on_a_mesh(tiny):
    """`run` of a recipe on many devices, done once. There the first state is drawn anew."""
    return functools.cache(lambda recipe, mesh: run(tiny, tiny.config(**RECIPES[recipe]), MESHES[mesh]))


@pytest.mark.parametrize(
    ("recipe", "mesh"),
    [
        *(("pre, adamw", mesh) for mesh in ("data 2, fsdp 2, tensor 2", "sequence 4, fsdp 2")),
        *(pytest.param("pre, adamw", mesh, marks=pytest.mark.slow) for mesh in list(MESHES)[:3] + list(MESHES)[5:]),
        *(pytest.param("swin, muon", mesh, marks=pytest.mark.slow) for mesh in list(MESHES)[:4]),
    ],
)
def test_every_mesh_gives_the_losses_and_parameters_of_one_device(on_one_device, on_a_mesh, recipe, mesh):
    expected_state, expected_history = on_one_device(recipe)
    state, history = on_a_mesh(recipe, mesh)
    for metrics, expected in zip(history, expected_history, strict=True):
        assert metrics.keys() == expected.keys()
        for name in metrics:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
    assert int(state.step) == 3
    # Sums in another order differ in the last bits of a float32; three updates of size 1e-2 carry that on.
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: compare(np.asarray(a), np.asarray(b)), state.params, expected_state.params)


@pytest.mark.parametrize(
    ("way", "mesh"),
    [
        *((way, "one device") for way in ("remat save_projections", "remat offload", "all of them")),
        ("all of them", "sequence 4, fsdp 2"),
        pytest.param("all of them", "data 2, fsdp 2, tensor 2", marks=pytest.mark.slow),
        # Also in "all of them" (and full in models/test_transformer.py); alone they say which one is wrong.
        *(
            pytest.param(way, "one device", marks=pytest.mark.slow)
            for way in ("accumulation", "chunked loss", "blockwise attention", "remat full", "remat save_attention")
        ),
    ],
)
def test_every_way_to_save_memory_gives_the_same_step(tiny, on_one_device, monkeypatch, way, mesh):
    monkeypatch.setattr(attention_kernels, "BLOCK", 4)
    expected_state, expected_history = on_one_device("pre, adamw")
    config = tiny.config(**RECIPES["pre, adamw"], **WAYS[way])
    state, history = run(tiny, config, MESHES.get(mesh, ONE), tiny.init_state)
    for metrics, expected in zip(history, expected_history, strict=True):
        assert metrics.keys() == expected.keys()
        for name in metrics:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: compare(np.asarray(a), np.asarray(b)), state.params, expected_state.params)


def test_the_losses_of_rows_are_those_of_each_row_alone(tiny, on_one_device):
    config, batch = tiny.config(**RECIPES["pre, adamw"]), jax.tree.map(jnp.asarray, tiny.batch(0))
    params = tiny.init_state(tiny.task(config), mesh_of(ONE)).params
    apply = jax.jit(Transformer(config.model).apply)
    logits = apply({"params": params}, batch.inputs, batch.positions, batch.segment_ids)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets) * batch.loss_weights
    metrics = on_one_device("pre, adamw")[1][0]
    np.testing.assert_allclose(metrics["row_loss_sum"], np.sum(losses, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(metrics["row_weight_sum"], np.sum(batch.loss_weights, axis=1))


def test_parameters_and_moments_are_cut_as_the_rules_say(on_a_mesh):
    state, _ = on_a_mesh("pre, adamw", "data 2, fsdp 2, tensor 2")
    # Width 16 is halved over fsdp; 4 heads, 2 key/value heads, 24 hidden channels and 32 ids over tensor.
    expected = {
        "embed": (16, 8),
        "layers": {
            "attention": {
                "q": (2, 8, 2, 4), "k": (2, 8, 1, 4), "v": (2, 8, 1, 4), "o": (2, 2, 4, 8),
                "q_norm": {"scale": (2, 1, 4), "bias": (2, 1, 4)},
                "k_norm": {"scale": (2, 1, 4), "bias": (2, 1, 4)},
            },
            "mlp": {"gate": (2, 8, 12), "up": (2, 8, 12), "down": (2, 12, 8)},
            "attention_norm": {"scale": (2, 8)},
            "mlp_norm": {"scale": (2, 8)},
        },
        "norm": {"scale": (8,)},
        "output": (8, 16),
    }  # fmt: skip
    piece = lambda leaf: leaf.addressable_shards[0].data.shape  # noqa: E731
    assert jax.tree.map(piece, state.params) == expected
    adam = next(part for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(part))
    assert jax.tree.map(piece, adam.mu) == jax.tree.map(piece, adam.nu) == expected


def is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def test_muon_moments_are_cut_like_their_parameters(tiny):
    config = tiny.config(optimizer__name="muon")
    state = abstract_state(tiny.task(config), mesh_of(MESHES["data 2, fsdp 2, tensor 2"]))
    pieces = {leaf.shape: leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state.opt_state)}
    assert pieces[(2, 16, 4, 4)] == (2, 8, 2, 4)  # q: Muon's momentum
    assert pieces[(2, 24, 16)] == (2, 12, 8)  # down
    assert pieces[(32, 16)] == (16, 8)  # embed: AdamW's moments


@pytest.mark.parametrize("recipe", ["pre, adamw", pytest.param("swin, muon", marks=pytest.mark.slow)])
def test_the_loss_falls_on_a_batch_seen_again_and_again(tiny, recipe):
    config, mesh = tiny.config(**RECIPES[recipe]), mesh_of(ONE)
    state, step = tiny.init_state(tiny.task(config), mesh), tiny.make_train_step(tiny.task(config), mesh)
    losses = []
    for _ in range(40):
        state, metrics = step(state, tiny.batch(0))
        losses.append(float(metrics["total_loss"]))
    assert losses[0] == pytest.approx(np.log(config.model.vocab_size), abs=0.1)  # knows nothing at first
    assert losses[-1] < 0.5 * losses[0]


def test_metrics_report_the_gradient_before_clipping_and_the_loss_that_was_descended(tiny):
    config, mesh = tiny.config(**MEASURED), mesh_of(ONE)
    state = tiny.init_state(tiny.task(config), mesh)
    loss = functools.partial(tiny.task(config).loss, key=None, part=Part(0, 1, None))
    (value, measures), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params, tiny.batch(0))
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(grads)))
    _, metrics = tiny.make_train_step(tiny.task(config), mesh)(state, tiny.batch(0))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics["total_loss"]) == pytest.approx(float(value), rel=1e-6)
    mean = float(measures.sums["loss_sum"]) / float(measures.sums["weight_sum"])
    assert float(value) == pytest.approx(mean + float(measures.sums["z_loss"]), rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_predictions_of_image_codes_count_as_much_as_the_config_says(tiny, accumulation):
    def first_step(**changes):
        task, mesh = tiny.task(tiny.config(z_loss=0.0, accumulation=accumulation, **changes)), mesh_of(ONE)
        return make_train_step(task, mesh)(tiny.init_state(task, mesh), tiny.batch(0))[1]

    plain, weighted = first_step(), first_step(image_loss_weight=0.25)
    text, image = (np.array([plain[f"{name}_loss_sum"], plain[f"{name}_weight_sum"]]) for name in ("text", "image"))
    loss, weight = text + 0.25 * image
    assert float(weighted["weight_sum"]) == weight != float(plain["weight_sum"])
    assert float(weighted["total_loss"]) == pytest.approx(loss / weight, rel=1e-6)
    for name in ("text", "image"):
        means = [float(step[f"{name}_loss_sum"] / step[f"{name}_weight_sum"]) for step in (plain, weighted)]
        assert means[0] == pytest.approx(means[1], rel=1e-6)
    with pytest.raises(ConfigError, match=r"image_loss_weight = 0\.0: must be above 0"):
        tiny.config(image_loss_weight=0.0)
    with pytest.raises(ConfigError, match=r"image_loss_weight = 0\.5: needs to know which ids are image codes"):
        TransformerTask(tiny.config(image_loss_weight=0.5)).weight(tiny.batch(0))


def test_signals_of_stability_are_what_they_are_called(tiny):
    config, mesh, batch = tiny.config(**MEASURED), mesh_of(ONE), jax.tree.map(jnp.asarray, tiny.batch(0))
    state = tiny.init_state(tiny.task(config), mesh)
    params = jax.tree.map(np.array, state.params)
    params["layers"]["attention"]["q_norm"]["scale"] *= np.asarray([[[2.0]], [[3.0]]], np.float32)
    placed = jax.tree.map(lambda values, leaf: jax.device_put(values, leaf.sharding), params, state.params)
    state = state._replace(params=placed)

    signals = jax.tree.map(np.asarray, make_signals(tiny.task(config), mesh)(state.params))
    np.testing.assert_allclose(signals["q_norm_scale"], [2, 3], rtol=1e-6)
    np.testing.assert_allclose(signals["k_norm_scale"], [1, 1], rtol=1e-6)
    squares = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(params))
    assert signals["parameter_norm"] == pytest.approx(np.sqrt(squares), rel=1e-5)

    @jax.jit
    def read(*arguments):
        model = Transformer(config.model)
        return model.apply(*arguments), model.apply(*arguments, hidden=True)

    real = np.asarray(batch.segment_ids) > 0
    read = read({"params": state.params}, batch.inputs, batch.positions, batch.segment_ids)
    logits, last = (np.asarray(each, np.float64)[real] for each in read)
    _, metrics = tiny.make_train_step(tiny.task(config), mesh)(state, batch)
    assert float(metrics["max_logit"]) == pytest.approx(np.max(np.abs(logits)), rel=1e-5)
    rms = np.sqrt(float(metrics["output_square_sum"]) / float(metrics["token_sum"]))
    assert rms == pytest.approx(np.sqrt(np.mean(np.square(last))), rel=1e-5)
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    mean = float(metrics["log_z_sum"]) / float(metrics["weight_sum"])
    assert mean == pytest.approx(np.average(log_z, weights=np.asarray(batch.loss_weights)[real]), rel=1e-5)


def test_dropout_of_threefry_is_that_of_flax_so_that_older_runs_go_on(tiny):
    x, key = jnp.ones((8, 12, 16)), jax.random.key(3)
    ours, flaxs = Dropout(0.3), nn.Dropout(0.3, deterministic=False)
    expected = flaxs.apply({}, x, rngs={"dropout": key})
    np.testing.assert_array_equal(ours.apply({}, x, rngs={"dropout": key}), expected)


def test_each_device_makes_the_bits_of_its_own_rows(tiny):
    mesh = mesh_of(MESHES["data 2, sequence 2, tensor 2"])

    def drop(x):
        with constraints_on(mesh):
            return Dropout(0.5).apply({}, x, rngs={"dropout": jax.random.key(3, impl="rbg")})

    spread = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))
    compiled = jax.jit(drop, in_shardings=spread, out_shardings=spread).lower(jnp.ones((8, 12, 16))).compile()
    assert "all-gather" not in compiled.as_text()
    assert "u32[8,12,16]" not in compiled.as_text()
    dropped = np.asarray(compiled(jnp.ones((8, 12, 16))))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert abs(dropped.mean() - 1) < 0.1
    parts = [dropped[rows, places] for rows in (slice(4), slice(4, 8)) for places in (slice(6), slice(6, 12))]
    assert len({part.tobytes() for part in parts}) == 4
    np.testing.assert_array_equal(np.asarray(compiled(jnp.ones((8, 12, 16)))), dropped)


@pytest.mark.parametrize("bits", ["threefry2x32", pytest.param("rbg", marks=pytest.mark.slow)])
def test_dropout_follows_from_the_seed_and_the_step_alone(tiny, on_one_device, bits):
    config, mesh = tiny.config(dropout=0.3, dropout_bits=bits), mesh_of(ONE)
    step = tiny.make_train_step(tiny.task(config), mesh)

    def loss_of_first_step(state) -> float:
        return float(step(state, tiny.batch(0))[1]["loss_sum"])

    first = loss_of_first_step(tiny.init_state(tiny.task(config), mesh))
    assert loss_of_first_step(tiny.init_state(tiny.task(config), mesh)) == first
    later = tiny.init_state(tiny.task(config), mesh)
    assert loss_of_first_step(later._replace(step=later.step + 1)) != first
    assert on_one_device("pre, adamw")[1][0]["loss_sum"] != first  # the same without dropout


def test_noise_replaces_a_share_of_the_learnt_image_codes_of_each_document(tiny):
    task = tiny.task(tiny.config(image_code_noise=0.6))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(tiny.is_image_id), (4, 4001)).astype(np.int32)
    documents = np.repeat([[1, 2]], 2000, axis=1).repeat(4, axis=0)
    weights = rng.integers(0, 2, (4, 4000)).astype(np.float32)  # of the targets, a token later than the inputs
    batch = Batch(ids[:, :-1], ids[:, 1:], weights, np.zeros_like(documents), documents)
    noisy = np.asarray(task._with_noise(jax.tree.map(jnp.asarray, batch), task.key(jnp.int32(3))))
    learnt = tiny.is_image_id[batch.inputs] & (np.pad(weights[:, :-1], ((0, 0), (1, 0))) > 0)
    np.testing.assert_array_equal(noisy[~learnt], batch.inputs[~learnt])
    assert set(noisy[learnt].tolist()) == set(np.flatnonzero(tiny.is_image_id).tolist())
    codes = tiny.is_image_id.sum()
    changed = (noisy != batch.inputs) * codes / (codes - 1)
    shares = [changed[row][learnt[row] & (documents[row] == number)].mean() for row in range(4) for number in (1, 2)]
    assert 0 < min(shares) < max(shares) < 0.65
    assert max(shares) - min(shares) > 0.2, "each document has a share of its own"
    assert max(abs(np.diff(np.reshape(shares, (4, 2))))) > 0.05


def test_noise_is_for_training_alone_and_the_same_on_every_mesh(tiny):
    config = tiny.config(image_code_noise=0.6)
    losses = {}
    for name in ("data 8", "sequence 4, fsdp 2"):
        mesh = mesh_of(MESHES[name])
        state = tiny.init_state(tiny.task(config), mesh)
        losses[name] = float(tiny.make_train_step(tiny.task(config), mesh)(state, tiny.batch(0))[1]["loss_sum"])
    assert losses["data 8"] == pytest.approx(losses["sequence 4, fsdp 2"], rel=1e-5)
    mesh = mesh_of(ONE)
    evaluated = [
        float(
            tiny.make_evaluation_step(tiny.task(each), mesh)(
                tiny.init_state(tiny.task(each), mesh).params, tiny.batch(0)
            )["loss_sum"]
        )
        for each in (config, tiny.config())
    ]
    assert evaluated[0] == evaluated[1] != losses["data 8"]
    with pytest.raises(ConfigError, match=r"image_code_noise = 1\.5: must be from 0 to 1"):
        tiny.config(image_code_noise=1.5)
    with pytest.raises(ConfigError, match="image_code_noise = 0\\.6: needs to know which ids are image codes"):
        TransformerTask(config).loss({}, tiny.batch(0), jax.random.key(0), Part(0, 1, 1.0))


def test_noise_takes_ten_arrays_of_the_size_of_a_batch_at_most_and_no_communication(tiny):
    task, mesh = tiny.task(tiny.config(image_code_noise=0.6)), mesh_of(MESHES["data 8"])
    rows = jax.ShapeDtypeStruct((64, 4096), jnp.int32, sharding=batch_sharding(mesh))
    weights = jax.ShapeDtypeStruct(rows.shape, jnp.float32, sharding=rows.sharding)
    noise = lambda batch, step: task._with_noise(batch, task.key(step))  # noqa: E731
    with jax.set_mesh(mesh):
        compiled = jax.jit(noise).lower(Batch(rows, rows, weights, rows, rows), jnp.int32(0)).compile()
    assert not read_collectives(compiled.as_text(), mesh.size).collectives
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * 4 * 64 * 4096 / mesh.size


@pytest.mark.parametrize("mesh", ["data 8", "data 2, fsdp 2, tensor 2"])
def test_tied_embeddings_are_trained_as_one_matrix(tiny, mesh):
    """Its gradient is the sum of both; Adam's updates do not depend on the factor that the mean leaves out."""
    task, mesh = tiny.task(tiny.config(tie_embeddings=True)), mesh_of(MESHES[mesh])
    state = init_state(task, mesh)
    first = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state.params)
    np.testing.assert_array_equal(first["embed"], first["output"].T)

    def tied_loss(embed):
        params = {**first, "embed": embed, "output": embed.T}
        return task.loss(params, jax.tree.map(jnp.asarray, tiny.batch(0)), None, Part(0, 1, None))[0]

    step = make_train_step(task, mesh)
    for number in range(3):
        state, metrics = step(state, tiny.batch(number))
        if not number:
            adam = next(part for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(part))
            clipped = max(float(metrics["gradient_norm"]), 1.0)
            moment = np.asarray(adam.mu["embed"]) / (1 - task.config.optimizer.b1) * clipped
            np.testing.assert_allclose(2 * moment, jax.grad(tied_loss)(first["embed"]), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(state.params["embed"], state.params["output"].T)
        assert np.abs(state.params["embed"] - first["embed"]).max() > 1e-3


def test_tied_embeddings_need_no_communication_of_their_own(tiny):
    task, mesh = tiny.task(tiny.config(tie_embeddings=True)), mesh_of(MESHES["data 2, fsdp 2, tensor 2"])
    params = abstract_state(task, mesh).params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    compiled = jax.jit(task.mask, out_shardings=shardings).lower(params).compile()
    assert not read_collectives(compiled.as_text(), mesh.size).collectives


@pytest.mark.parametrize(
    "changes", [{"initial": "somewhere"}, {"trainable": "image_head"}, {"fresh_image_head": True}, {"lora__rank": 2}]
)
def test_what_cannot_be_tied_is_refused(tiny, changes):
    with pytest.raises(ConfigError, match="tie_embeddings = True: must be false with initial"):
        tiny.config(tie_embeddings=True, **changes)


def test_parameters_of_ones_own_are_not_tied(tiny):
    task, mesh = tiny.task(tiny.config(tie_embeddings=True)), mesh_of(ONE)
    with pytest.raises(ConfigError, match="tie_embeddings = True: must be false with parameters to start from"):
        task.first_params(mesh, abstract_state(task, mesh).params, lambda target: target)


@pytest.mark.slow
def test_layers_of_one_turn_are_computed_again_like_those_of_a_loop(tiny):
    mesh = mesh_of(ONE)

    def temporaries(remat: str, unroll: int) -> int:
        changes = {"unroll": unroll, "remat": remat, "attention": "xla"}
        config = tiny.config(model__num_layers=3, **{f"execution__{name}": value for name, value in changes.items()})
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(x), 128), x.dtype), tiny.batch(0))
        step = make_train_step(tiny.task(config), mesh).lower(abstract_state(tiny.task(config), mesh), batch)
        return step.compile().memory_analysis().temp_size_in_bytes

    loop = temporaries("full", 1)
    assert temporaries("full", 2) < 1.1 * loop  # one turn, and a layer that is left over
    # Without barriers, three layers in one turn took 2.9 times as much.
    assert temporaries("save_attention", 3) < 1.2 * loop
    assert temporaries("save_projections", 3) < 1.4 * loop


@pytest.mark.slow
def test_evaluation_takes_the_memory_of_a_part_of_a_batch(tiny):
    mesh = mesh_of(ONE)

    def temporaries(accumulation: int) -> tuple[int, int]:
        """Bytes beside arguments and results, of the train step and of the evaluation step."""
        config = tiny.config(accumulation=accumulation)
        state = abstract_state(tiny.task(config), mesh)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(x), 128), x.dtype), tiny.batch(0))
        steps = (
            make_train_step(tiny.task(config), mesh).lower(state, batch),
            make_evaluation_step(tiny.task(config), mesh).lower(state.params, batch),
        )
        return tuple(step.compile().memory_analysis().temp_size_in_bytes for step in steps)

    training, evaluation = temporaries(1)
    training_in_parts, evaluation_in_parts = temporaries(8)
    assert evaluation < training
    assert evaluation_in_parts < training_in_parts
    assert evaluation_in_parts < evaluation / 4


def test_evaluation_in_parts_gives_the_same_sums(tiny):
    mesh, batch = mesh_of(MESHES["data 2, fsdp 2, tensor 2"]), tiny.batch(0)
    params = tiny.init_state(tiny.task(tiny.config()), mesh).params
    whole, parts = (
        make_evaluation_step(tiny.task(tiny.config(accumulation=count)), mesh)(params, batch) for count in (1, 2)
    )
    assert jax.tree.map(float, parts) == pytest.approx(jax.tree.map(float, whole), rel=1e-6)


@pytest.mark.parametrize("make", [make_train_step, make_evaluation_step])
def test_a_step_is_the_same_program_whatever_mesh_is_set_around_it(tiny, make):
    """Without constraints on activations, XLA is free to gather them."""
    config, mesh = tiny.config(), mesh_of(MESHES["data 2, fsdp 2, tensor 2"])
    state = abstract_state(tiny.task(config), mesh)
    arguments = (state if make is make_train_step else state.params, tiny.batch(0))
    bare = make(tiny.task(config), mesh).lower(*arguments).as_text()
    assert bare.count("sharding_constraint") >= 6
    for around in (mesh, mesh_of(MESHES["data 8"])):
        with jax.set_mesh(around):
            assert make(tiny.task(config), mesh).lower(*arguments).as_text() == bare


def test_evaluation_drops_nothing_and_counts_like_training(tiny, on_one_device):
    mesh = mesh_of(ONE)
    config = tiny.config(dropout=0.3)
    params = tiny.init_state(tiny.task(config), mesh).params
    sums = make_evaluation_step(tiny.task(config), mesh)(params, tiny.batch(0))
    expected = on_one_device("pre, adamw")[1][0]
    for name, value in sums.items():
        assert float(value) == pytest.approx(expected[name], rel=1e-5, abs=1e-7)
