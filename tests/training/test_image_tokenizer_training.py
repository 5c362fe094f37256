"""The codebook's upkeep against NumPy by hand, the straight-through gradient, meshes, and runs that are resumed."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.batch import Pictures
from chameleon_jax.config import (
    CheckpointConfig,
    ConfigError,
    ImageTokenizerConfig,
    ImageTokenizerTrainConfig,
    MeshConfig,
)
from chameleon_jax.models.flops import image_tokenizer_flops
from chameleon_jax.models.vq import VQModel, nearest_code
from chameleon_jax.sharding import make_mesh
from chameleon_jax.tokens.image import scale
from chameleon_jax.training.codebooks import codebook_decay, perplexity, update_codebook
from chameleon_jax.training.feeding import local_rows, place
from chameleon_jax.training.image_tokenizer import (
    ImageTokenizerTask,
    first_params,
    pictures_in_order,
    train_image_tokenizer,
    whole_batches,
)
from chameleon_jax.training.image_tokenizer_task import psnr
from chameleon_jax.training.loop import train
from chameleon_jax.training.metrics import read_metrics
from chameleon_jax.training.state import abstract_state, init_state
from chameleon_jax.training.step import make_evaluation_step, make_train_step
from chameleon_jax.training.task import Part

MODEL = ImageTokenizerConfig(
    resolution=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8, code_dim=4,
    num_codes=16, norm_groups=4,
)  # fmt: skip
CONFIG = ImageTokenizerTrainConfig(
    model=MODEL, steps=60, batch_size=8, optimizer={"learning_rate": 5e-3, "warmup_steps": 5},
    checkpoint=CheckpointConfig(every=2), log_every=1, mesh=MeshConfig(data=1),
)  # fmt: skip
SMALLEST = dataclasses.replace(
    MODEL, space_to_depth=2, channel_multipliers=(1,), attn_type="none", channels=4, norm_groups=1
)
ONE = MeshConfig(data=1)


@functools.partial(jax.jit, static_argnums=2)
def run_model(params, x, method: str):
    return VQModel(MODEL).apply({"params": params}, x, method=method)


def squares(count: int = 8) -> np.ndarray:
    """Smooth ramps in random directions and colours, uint8 `[count, 8, 8, 3]`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:8j, -1:1:8j]
    direction = rng.normal(size=(count, 2, 3))
    ramps = direction[:, 0, None, None] * y[..., None] + direction[:, 1, None, None] * x[..., None]
    return np.uint8(127.5 + 127 * np.tanh(ramps + rng.normal(0, 0.5, (count, 1, 1, 3))))


def batch(count: int = 8) -> Pictures:
    return Pictures(squares(count), np.ones(count, np.float32))


def mesh_of(config: MeshConfig) -> jax.sharding.Mesh:
    sizes = [config.data, config.fsdp, config.sequence, config.tensor]
    return make_mesh(config, jax.devices()[: int(np.prod(sizes))])


def start(config: ImageTokenizerTrainConfig, mesh: jax.sharding.Mesh, pictures: np.ndarray | None = None):
    """A state before the first step."""
    task = ImageTokenizerTask(config)
    batches = pictures_in_order(squares() if pictures is None else pictures, config.batch_size, config.seed)
    return init_state(task, mesh, first_params(task, batches, abstract_state(task, mesh).params))


@functools.cache
def _first_state():
    return jax.tree.map(np.array, start(CONFIG, mesh_of(ONE)))


def first_state():
    """A state before its first step, as copies that a step may take."""
    return jax.tree.map(jnp.asarray, _first_state())


@functools.cache
def step_of(config: ImageTokenizerTrainConfig = CONFIG):
    return make_train_step(ImageTokenizerTask(config), mesh_of(ONE))


# ----------------------------------------------------------------------------------------------------------------------
# Codebook
# ----------------------------------------------------------------------------------------------------------------------


def update_by_hand(config, counts, sums, latents, codes):
    """The moving averages of van den Oord et al. 2017 (appendix A.1), and which codes are dead afterwards."""
    decay, N, M = config.codebook_decay, len(counts), len(latents)
    counts, sums = counts.astype(np.float64).copy(), sums.astype(np.float64).copy()
    for code in range(N):
        assigned = latents[codes == code]
        counts[code] = decay * counts[code] + (1 - decay) * len(assigned)
        sums[code] = decay * sums[code] + (1 - decay) * assigned.sum(axis=0)
    return counts, sums, counts < config.restart_below * M / N


@pytest.fixture
def averages():
    rng = np.random.default_rng(1)
    N, M, e = 6, 24, 3
    counts = np.asarray([4.0, 0.001, 3.0, 5.0, 0.01, 2.0], np.float32)
    sums = rng.normal(size=(N, e)).astype(np.float32)
    latents = rng.normal(size=(M, e)).astype(np.float32)
    codes = rng.choice([0, 2, 3, 5], M).astype(np.int32)  # nobody uses 1 and 4
    return counts, sums, latents, codes


def update(config, counts, sums, latents, codes):
    used = np.bincount(codes, minlength=len(counts)).astype(np.float32)
    used_sums = np.stack([latents[codes == code].sum(axis=0) for code in range(len(counts))])
    return update_codebook(
        config, config.codebook_decay, *map(jnp.asarray, (counts, sums, used, used_sums, latents[: len(counts)]))
    )


def test_codes_in_use_follow_the_moving_average_of_their_latents(averages):
    config = dataclasses.replace(CONFIG, codebook_decay=0.9)
    codebook, counts, sums, restarted = update(config, *averages)
    expected_counts, expected_sums, dead = update_by_hand(config, *averages)
    assert dead.tolist() == [False, True, False, False, True, False]
    assert int(restarted) == 2
    np.testing.assert_allclose(counts[~dead], expected_counts[~dead], rtol=1e-5)
    np.testing.assert_allclose(sums[~dead], expected_sums[~dead], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(codebook[~dead], (expected_sums / expected_counts[:, None])[~dead], rtol=1e-4, atol=1e-6)


def test_averages_of_a_new_codebook_are_short_at_first():
    decays = [float(codebook_decay(CONFIG, jnp.asarray(step))) for step in (0, 8, 80, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 0.5, 0.9, CONFIG.codebook_decay], rtol=1e-6)
    trained_before = dataclasses.replace(CONFIG, initial="tokenizer")
    assert codebook_decay(trained_before, jnp.asarray(0)) == CONFIG.codebook_decay


def test_dead_codes_move_onto_their_latents_of_the_batch_and_live_on(averages):
    codebook, counts, sums, _ = update(CONFIG, *averages)
    latents = averages[2]
    for code in (1, 4):
        np.testing.assert_allclose(codebook[code], latents[code], rtol=1e-6)
        assert float(counts[code]) == len(latents) / len(codebook)  # as if used like an average code
        np.testing.assert_allclose(sums[code], codebook[code] * counts[code], rtol=1e-5)


def test_nothing_is_restarted_while_all_codes_are_used(averages):
    counts, sums, latents, _ = averages
    codes = np.arange(len(latents), dtype=np.int32) % len(counts)
    full = np.full_like(counts, 4.0)
    codebook, *_, restarted = update(CONFIG, full, sums, latents, codes)
    assert int(restarted) == 0
    expected_counts, expected_sums, _ = update_by_hand(CONFIG, full, sums, latents, codes)
    np.testing.assert_allclose(codebook, expected_sums / expected_counts[:, None], rtol=1e-4, atol=1e-6)


def test_codes_are_restarted_at_latents_of_the_whole_batch_whatever_its_parts_are():
    """The statistics of the parts of a batch add up to those of the batch; other steps choose other latents."""
    task, pictures = ImageTokenizerTask(CONFIG), batch()
    params, loss = first_state().params, jax.jit(task.loss)

    def statistics(step: int, parts: int) -> dict[str, np.ndarray]:
        total: Counter = Counter()
        for number in range(parts):
            rows = Pictures(*(values[number::parts] for values in pictures))
            _, measures = loss(params, rows, task.key(jnp.int32(step)), Part(number, parts, 8.0))
            total.update(jax.tree.map(np.asarray, measures.statistics))
        return dict(total)

    whole = statistics(0, 1)
    latents = np.asarray(run_model(params["model"], scale(pictures.pixels), "latents")).reshape(-1, MODEL.code_dim)
    for restart in whole["restarts"]:
        assert np.abs(latents - restart).max(axis=1).min() < 1e-4
    assert whole["used"].sum() == len(latents)
    np.testing.assert_allclose(whole["sums"].sum(axis=0), latents.sum(axis=0), rtol=1e-3, atol=1e-3)
    for name, values in statistics(0, 4).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-4, atol=1e-5)
    assert not np.allclose(statistics(1, 1)["restarts"], whole["restarts"], atol=1e-3)


def test_the_codebook_starts_near_latents_of_the_pictures():
    params = first_state().params
    latents = run_model(params["model"], scale(squares()), "latents").reshape(-1, MODEL.code_dim)
    distance = np.linalg.norm(np.asarray(params["model"]["codebook"])[:, None] - np.asarray(latents), axis=-1).min(
        axis=1
    )
    assert distance.max() < 0.5 * np.linalg.norm(np.std(latents, axis=0))
    average = params["averages"]
    np.testing.assert_array_equal(average["sums"] / average["counts"][:, None], params["model"]["codebook"])
    assert len(np.unique(params["model"]["codebook"], axis=0)) == MODEL.num_codes  # no two alike


# ----------------------------------------------------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------------------------------------------------


def test_psnr_is_that_of_the_formula_for_values_between_minus_one_and_one():
    a, b = np.random.default_rng(2).uniform(-0.9, 0.9, (2, 3, 4, 4, 3)).astype(np.float32)
    expected = [10 * np.log10(2.0**2 / np.mean((x - y) ** 2)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)


def test_psnr_counts_values_outside_the_range_as_its_ends():
    white = jnp.ones((1, 2, 2, 3))
    np.testing.assert_allclose(psnr(white * 5, white - 0.2), 10 * np.log10(4 / 0.04), rtol=1e-5)
    assert float(psnr(white, white * 9)[0]) == pytest.approx(10 * np.log10(4e10), rel=1e-5)  # a perfect picture


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([3, 3, 3, 3], 1.0), ([0, 1, 2, 3], 4.0), ([0, 0, 1, 1], 2.0), ([0, 0, 0, 1], 4 / 3**0.75)],
)
def test_perplexity_is_the_number_of_codes_that_would_be_used_alike(codes, expected):
    found = perplexity(jnp.bincount(jnp.asarray(codes), length=8).astype(jnp.float32))
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        dataclasses.replace(
            MODEL, space_to_depth=2, channel_multipliers=(1, 3), attn_resolutions=(4,), num_res_blocks=2
        ),
        dataclasses.replace(MODEL, attn_type="none"),
        dataclasses.replace(MODEL, independent_patches=True),
        dataclasses.replace(MODEL, independent_patches=True, space_to_depth=4, channel_multipliers=(1,)),
    ],
)
def test_flops_are_those_that_xla_counts_in_convolutions_and_products(model):
    def count(method: str, x) -> float:
        variables = jax.eval_shape(VQModel(model).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        jaxpr = jax.make_jaxpr(lambda variables, x: VQModel(model).apply(variables, x, method=method))(variables, x)
        return sum(map(flops_of, jaxpr.eqns))

    def flops_of(equation) -> float:
        if "jaxpr" in equation.params:  # a part of its own, such as one that the backward pass recomputes
            return sum(map(flops_of, equation.params["jaxpr"].eqns))
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            return 2.0 * out.size * int(np.prod(kernel[:-1]))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            if [equation.invars[0].aval.shape[axis] for axis in contracted] == [3]:
                return 0.0  # sums of rows of a kernel: once for all pictures
            return 2.0 * out.size * int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted]))
        return 0.0

    expected = (
        count("encode", jnp.zeros((1, 8, 8, 3))),
        count("decode", jnp.zeros((1, model.codes_per_image), jnp.int32)),
    )
    assert image_tokenizer_flops(model) == expected


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def losses_by_hand(config, params, pixels):
    """Reconstruction and commitment from their formulas, through the model's own encode and decode."""
    z = np.asarray(run_model(params, pixels, "latents"), np.float64)
    codes = run_model(params, pixels, "encode")
    q = np.asarray(params["codebook"], np.float64)[np.asarray(codes).reshape(z.shape[:-1])]
    error = np.asarray(pixels, np.float64) - np.asarray(run_model(params, codes, "decode"), np.float64)
    reconstruction = np.mean(np.abs(error)) if config.reconstruction == "l1" else np.mean(error**2)
    return reconstruction, np.mean((z - q) ** 2)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_losses_are_those_of_the_formulas(kind):
    task = ImageTokenizerTask(dataclasses.replace(CONFIG, reconstruction=kind, commitment=0.7))
    params = first_state().params
    reconstruction, commitment = losses_by_hand(task.config, params["model"], scale(squares()))
    loss, measures = jax.jit(task.loss)(params, batch(), task.key(jnp.int32(0)), Part(0, 1, None))
    means = task.means(jax.tree.map(float, measures.sums))
    assert means["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert means["commitment"] == pytest.approx(commitment, rel=1e-4)
    assert means["loss"] == pytest.approx(reconstruction + 0.7 * commitment, rel=1e-5)
    assert float(loss) == pytest.approx(means["loss"], rel=1e-5)


def test_the_gradient_goes_straight_through_the_rounding_to_the_encoder():
    task, pixels = ImageTokenizerTask(dataclasses.replace(CONFIG, commitment=0.7)), jnp.asarray(scale(squares()))
    params = first_state().params
    model = VQModel(MODEL)

    def decoded_error(q):
        return jnp.mean(jnp.square(pixels - model.apply({"params": params["model"]}, q, method="decode_latents")))

    def by_hand(params):
        z, pull_back = jax.vjp(lambda params: model.apply({"params": params}, pixels, method="latents"), params)
        q = params["codebook"][nearest_code(z, params["codebook"])]
        # What the decoder wants of q is handed to z as it is; the commitment pulls z to q.
        return pull_back(jax.grad(decoded_error)(q) + 0.7 * 2 * (z - q) / z.size)[0]

    found = jax.jit(jax.grad(lambda params: task.loss(params, batch(), task.key(jnp.int32(0)), Part(0, 1, None))[0]))(
        params
    )
    expected = jax.jit(by_hand)(params["model"])
    for name in ("encoder", "quant_conv"):
        for got, want in zip(jax.tree.leaves(found["model"][name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)
    assert not np.any(found["model"]["codebook"])  # it follows its averages, not the gradient
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(found["model"]["decoder"]))


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [
        (MeshConfig(data=2, fsdp=4), 1),
        (MeshConfig(data=2), 4),
        pytest.param(MeshConfig(data=8), 1, marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, fsdp=8), 1, marks=pytest.mark.slow),
    ],
)
def test_a_step_on_any_mesh_and_in_any_parts_is_that_of_one_device(mesh, accumulation):
    """Restarts of codes included: this one restarts some in its first step."""
    restarting = dataclasses.replace(CONFIG, restart_below=0.4, codebook_decay=0.5)
    expected, expected_metrics = step_of(restarting)(first_state(), batch())
    assert float(expected_metrics["restarted_codes"]) > 2
    task, devices = ImageTokenizerTask(dataclasses.replace(restarting, accumulation=accumulation)), mesh_of(mesh)
    task.check_mesh(devices)
    state = jax.device_put(_first_state(), jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, devices)))
    placed = place(batch(), task.batch_shardings(devices), 8, local_rows(devices, 8))
    state, metrics = make_train_step(task, devices)(state, placed)
    for name in ("total_loss", "gradient_norm", "psnr_db_sum", "perplexity", "restarted_codes"):
        assert float(metrics[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-4), name
    np.testing.assert_allclose(metrics["row_loss_sum"], expected_metrics["row_loss_sum"], rtol=1e-4)
    # Adam divides by the size of the gradient, so that rounding shows where a gradient is near 0.
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=5e-4), state.params, expected.params
    )


@pytest.mark.parametrize("independent_patches", [False, True])
def test_a_step_with_muon_on_a_mesh_is_that_of_one_device(independent_patches):
    muon = dataclasses.replace(CONFIG.optimizer, name="muon")
    model = dataclasses.replace(SMALLEST, channels=8, independent_patches=independent_patches)
    config = dataclasses.replace(CONFIG, model=model, optimizer=muon)
    states = []
    for mesh in (mesh_of(ONE), mesh_of(MeshConfig(data=2, fsdp=4))):
        task = ImageTokenizerTask(config)
        params = jax.tree.map(np.asarray, jax.jit(task.init_params)(jax.random.key(0)))
        state = init_state(task, mesh, jax.device_put(params, task.params_shardings(mesh)))
        placed = place(batch(), task.batch_shardings(mesh), 8, local_rows(mesh, 8))
        states.append(make_train_step(task, mesh)(state, placed)[0])
    momenta = [leaf for leaf in jax.tree.leaves(states[1].opt_state) if leaf.shape == (3, 3, 8, 8)]
    assert {leaf.addressable_shards[0].data.shape for leaf in momenta} == {(3, 3, 8, 2)}
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=5e-4),
        states[1].params, states[0].params,
    )  # fmt: skip


def test_parameters_are_sharded_over_fsdp():
    shardings = ImageTokenizerTask(CONFIG).params_shardings(mesh_of(MeshConfig(data=1, fsdp=4)))
    kernel, codebook = shardings["model"]["encoder"]["mid_block_1"]["conv1"]["kernel"], shardings["model"]["codebook"]
    assert kernel.spec[-1] == codebook.spec[-1] == "fsdp"


@pytest.mark.parametrize(
    ("changes", "mesh", "said"),
    [
        ({"batch_size": 6}, MeshConfig(data=4), "batch_size = 6: must be a multiple of 4"),
        ({}, MeshConfig(data=1, tensor=2), "mesh.tensor = 2: must be 1"),
        ({}, MeshConfig(data=1, sequence=8), "mesh.sequence = 8: must be 1"),
    ],
)
def test_what_does_not_fit_the_mesh_is_refused(changes, mesh, said):
    with pytest.raises(ConfigError, match=said):
        ImageTokenizerTask(dataclasses.replace(CONFIG, **changes)).check_mesh(mesh_of(mesh))


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ConfigError, match=r"model.resolution = 8: the pictures are 4 x 4 x 3"):
        ImageTokenizerTask(CONFIG).check_batch(mesh_of(ONE), Pictures(squares()[:, :4, :4], np.ones(8, np.float32)))


def test_what_fills_up_the_last_batch_of_an_evaluation_does_not_count():
    task, mesh = ImageTokenizerTask(CONFIG), mesh_of(ONE)
    evaluate, params = make_evaluation_step(task, mesh), first_state().params
    totals: Counter = Counter()
    for each in whole_batches(squares(11), 8):
        totals.update(jax.tree.map(float, evaluate(params, each)))
    assert totals["weight_sum"] == 11
    rebuilt = run_model(params["model"], run_model(params["model"], scale(squares(11)), "encode"), "decode")
    expected = float(np.mean(psnr(rebuilt, jnp.asarray(scale(squares(11))))))
    assert task.means(totals)["psnr_db"] == pytest.approx(expected, rel=1e-4)


def test_every_epoch_reads_each_picture_once_in_another_order_wherever_it_begins():
    pictures = np.arange(10, dtype=np.uint8)[:, None, None, None]
    rows = np.arange(4)
    whole = [
        b.pixels.ravel().tolist() for _, b in zip(range(10), pictures_in_order(pictures, 4, 7)(0, rows), strict=False)
    ]
    seen = np.concatenate(whole).reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in seen.tolist())
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 4
    later = next(iter(pictures_in_order(pictures, 4, 7)(6, rows[1:3])))
    assert later.pixels.ravel().tolist() == whole[6][1:3]
    assert next(iter(pictures_in_order(pictures, 4, 8)(0, rows))).pixels.ravel().tolist() != whole[0]


@pytest.mark.slow
def test_training_lowers_the_loss_keeps_many_codes_and_a_resumed_run_repeats_it(tmp_path):
    pictures = squares(24)
    config = dataclasses.replace(
        CONFIG, model=SMALLEST, output=str(tmp_path / "whole"), steps=48, log_every=4, evaluate_every=16,
        mesh=MeshConfig(), checkpoint=CheckpointConfig(every=12),
    )  # fmt: skip
    batches, held_out = pictures_in_order(pictures, 8, 0), {"pictures": whole_batches(squares(30)[24:], 8)}
    whole = train_image_tokenizer(config, batches, held_out=held_out)
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert lines[-1]["reconstruction"] < 0.6 * lines[0]["reconstruction"]
    assert lines[-1]["psnr_db"] > lines[0]["psnr_db"] + 2
    assert lines[-1]["perplexity"] > 0.4 * MODEL.num_codes
    assert [line["step"] for line in lines if "held_out" in line] == [16, 32, 48]
    assert lines[-1]["held_out"]["pictures"]["psnr_db"] > 10
    assert lines[-1]["speed"]["pictures_per_second"] > 0

    class Killed(Exception):
        pass

    def interrupted(start: int, rows: np.ndarray):
        for number, each in enumerate(batches(start, rows), start):
            if number == 33:
                raise Killed
            yield each

    resumed = dataclasses.replace(config, output=str(tmp_path / "resumed"))
    task = ImageTokenizerTask(resumed)
    with pytest.raises(Killed):
        train(task, interrupted, initial_params=lambda target: first_params(task, batches, target))
    again = train_image_tokenizer(resumed, batches, held_out=held_out)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
