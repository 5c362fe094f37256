"""Perceptual and adversarial parts of the image tokenizer's training, and fine-tuning of the decoder."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_image_tokenizer_training import ONE, SMALLEST, batch, mesh_of, squares

from chameleon_jax.batch import Pictures
from chameleon_jax.config import (
    CheckpointConfig,
    ConfigError,
    DiscriminatorConfig,
    ImageTokenizerTrainConfig,
    MeshConfig,
    PerceptualConfig,
    PreprocessingConfig,
    from_dict,
    to_dict,
)
from chameleon_jax.models.discriminator import Discriminator
from chameleon_jax.models.perceptual import LPIPS
from chameleon_jax.models.vq import VQModel
from chameleon_jax.tokens.documents import save_image_tokenizer
from chameleon_jax.tokens.image import scale
from chameleon_jax.training.feeding import local_rows, place
from chameleon_jax.training.image_tokenizer import (
    ImageTokenizerTask,
    first_params,
    pictures_in_order,
    train_image_tokenizer,
)
from chameleon_jax.training.metrics import read_metrics
from chameleon_jax.training.state import TrainState, abstract_state, init_state
from chameleon_jax.training.step import make_train_step
from chameleon_jax.training.task import Part
from chameleon_jax.training.trainable import split
from chameleon_jax.weights.initial import initial_image_tokenizer

DISCRIMINATOR = DiscriminatorConfig(weight=0.8, channels=4, stages=1, lecam=0.1, r1=0.2, lecam_decay=0.5)
CONFIG = ImageTokenizerTrainConfig(
    model=SMALLEST, steps=100, batch_size=8, codebook="learned", entropy=0.01, mesh=MeshConfig(data=1),
    discriminator=DISCRIMINATOR, optimizer={"learning_rate": 5e-3, "warmup_steps": 5},
)  # fmt: skip
JUDGE = Discriminator(4, 1)


def start(config: ImageTokenizerTrainConfig, mesh: jax.sharding.Mesh, pictures=None, lpips=None):
    """A state before the first step, after which scores have averages."""
    task = ImageTokenizerTask(config)
    batches = pictures_in_order(squares() if pictures is None else pictures, config.batch_size, config.seed)
    params = first_params(task, batches, abstract_state(task, mesh).params, lpips=lpips)
    params["scores"] |= {"real": jnp.float32(0.1), "fake": jnp.float32(-0.05), "steps": jnp.int32(3)}
    return init_state(task, mesh, params)


@functools.cache
def _first_state():
    return jax.tree.map(np.array, start(CONFIG, mesh_of(ONE)))


def params_before():
    return jax.tree.map(jnp.asarray, _first_state().params)


def gradients(config: ImageTokenizerTrainConfig, params):
    task = ImageTokenizerTask(config)

    def loss(params):
        return task.loss(params, jax.tree.map(jnp.asarray, batch()), task.key(jnp.int32(0)), Part(0, 1, None))

    return jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))(params)


def test_the_gradients_are_those_of_the_weighted_sum_of_the_losses():
    """By plain differentiation of a sum whose adaptive weight is computed in full, with a backward pass each."""
    config, params = dataclasses.replace(CONFIG, entropy=0.0), params_before()
    model, pixels = VQModel(SMALLEST), jnp.asarray(scale(squares()))

    def pictures(params):
        z = model.apply({"params": params}, pixels, method="latents")
        codes = model.apply({"params": params}, pixels, method="encode").reshape(z.shape[:-1])
        q = params["codebook"][codes]
        output = model.apply({"params": params}, z + jax.lax.stop_gradient(q - z), method="decode_latents")
        both = jnp.mean((q - jax.lax.stop_gradient(z)) ** 2) + 0.25 * jnp.mean((z - jax.lax.stop_gradient(q)) ** 2)
        return output, both

    def reconstruction(params):
        return jnp.mean((pictures(params)[0] - pixels) ** 2)

    def adversarial(params):
        return -jnp.mean(JUDGE.apply({"params": before["discriminator"]}, pictures(params)[0]))

    before = params

    @jax.jit
    def by_hand(params):
        of_rest, of_adversarial = jax.grad(reconstruction)(params), jax.grad(adversarial)(params)
        last = lambda tree: jnp.linalg.norm(tree["decoder"]["conv_out"]["kernel"])  # noqa: E731
        weight = last(of_rest) / (last(of_adversarial) + 1e-4)
        of_codes = jax.grad(lambda params: pictures(params)[1])(params)
        return jax.tree.map(lambda a, b, c: a + 0.8 * weight * b + c, of_rest, of_adversarial, of_codes), weight

    expected, weight = by_hand(params["model"])
    (_, measures), found = gradients(config, params)
    assert float(measures.sums["adaptive_weight_sum"]) / 8 == pytest.approx(float(weight), rel=1e-4)
    assert float(weight) > 1e-3
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(found["model"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-6, err_msg=jax.tree_util.keystr(path))


def test_the_discriminator_descends_its_own_loss_alone():
    params, pixels = params_before(), jnp.asarray(scale(squares()))
    output = VQModel(SMALLEST).apply({"params": params["model"]}, pixels)

    def by_hand(judge):
        score = lambda x: JUDGE.apply({"params": judge}, x)  # noqa: E731
        real, fake = score(pixels), score(output)
        loss = (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))) / 2
        slope = jax.grad(lambda x: jnp.sum(score(x)))(pixels)
        loss += 0.2 * jnp.mean(jnp.sum(slope**2, axis=(1, 2, 3))) / 2
        return loss + 0.1 * jnp.mean(jax.nn.relu(real + 0.05) ** 2 + jax.nn.relu(0.1 - fake) ** 2)

    expected, (_, found) = jax.jit(jax.grad(by_hand))(params["discriminator"]), gradients(CONFIG, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found["discriminator"], expected)


def test_before_its_first_step_the_discriminator_changes_nothing():
    late = dataclasses.replace(CONFIG, discriminator=dataclasses.replace(DISCRIMINATOR, start_step=4))
    none = dataclasses.replace(CONFIG, discriminator=DiscriminatorConfig())
    params = params_before()
    (_, _), found = gradients(late, params)
    (_, _), expected = gradients(none, {"model": params["model"]})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["discriminator"]))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(compare, found["model"], expected["model"])


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        (MeshConfig(data=2, fsdp=4), {}),
        pytest.param(MeshConfig(data=8), {"codebook": "ibq"}, marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, fsdp=8), {"codebook": "sim_vq"}, marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, fsdp=4), {"codebook": "rotation"}, marks=pytest.mark.slow),
    ],
)
def test_a_step_against_a_discriminator_is_the_same_on_a_mesh(mesh, changes):
    config = dataclasses.replace(CONFIG, **changes)
    state = _first_state() if not changes else jax.tree.map(np.array, start(config, mesh_of(ONE)))
    assert_same_step(config, mesh, state, batch())


def assert_same_step(config: ImageTokenizerTrainConfig, mesh: MeshConfig, state: TrainState, pictures: Pictures):
    """A step on a mesh is that on one device. Returns the metrics of the latter."""
    task, results = ImageTokenizerTask(config), []
    for each in (ONE, mesh):
        devices = mesh_of(each)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, devices))
        placed = place(pictures, task.batch_shardings(devices), 8, local_rows(devices, 8))
        results.append(make_train_step(task, devices)(jax.device_put(state, shardings), placed))
    (expected, expected_metrics), (state, metrics) = results
    for name in ("total_loss", "gradient_norm", "adversarial_sum", "discriminator_sum", "adaptive_weight_sum"):
        assert float(metrics[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-3), name
    assert int(state.params["scores"]["steps"]) == 4
    # Adam divides by the size of the gradient, so that rounding shows where a gradient is near 0.
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=5e-4), state.params, expected.params
    )
    return expected_metrics


def test_each_network_has_the_learning_rate_of_its_own_optimizer():
    own = dataclasses.replace(DISCRIMINATOR, optimizer={"learning_rate": 1e-6, "warmup_steps": 0})
    task = ImageTokenizerTask(dataclasses.replace(CONFIG, discriminator=own))
    trained, _ = split(_first_state().params, task)
    assert trained.keys() == {"model", "discriminator"}
    optimizer = task.optimizer()
    updates, _ = optimizer.update(jax.tree.map(np.ones_like, trained), optimizer.init(trained), trained)
    # The first update of Adam has the size of the learning rate, here in the first of five steps of warm-up.
    np.testing.assert_allclose(updates["discriminator"]["conv_in"]["bias"], -1e-6, rtol=1e-3)
    np.testing.assert_allclose(updates["model"]["codebook"], -5e-3 / 5, rtol=1e-3)


PERCEPTUAL = dataclasses.replace(
    CONFIG, model=dataclasses.replace(SMALLEST, resolution=16),
    perceptual=PerceptualConfig(weight=0.5, vgg="vgg16.pth", heads="vgg.pth"),
)  # fmt: skip
"""The smallest pictures that LPIPS can compare."""


def test_the_perceptual_distance_is_a_part_of_the_loss():
    model = PERCEPTUAL.model
    config = dataclasses.replace(PERCEPTUAL, discriminator=DiscriminatorConfig(), entropy=0.0)
    task, mesh = ImageTokenizerTask(config), mesh_of(ONE)
    rng, shapes = np.random.default_rng(0), task.abstract_params()["perceptual"]
    lpips = jax.tree.map(lambda leaf: rng.uniform(0, 0.05, leaf.shape).astype(np.float32), shapes)
    pictures = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    batches = pictures_in_order(np.repeat(pictures, 4, axis=0), 8, 0)
    params = first_params(task, batches, abstract_state(task, mesh).params, lpips=lpips)
    two = Pictures(jnp.asarray(pictures), jnp.ones(2))
    loss, measures = jax.jit(lambda params: task.loss(params, two, None, Part(0, 1, None)))(params)
    pixels = jnp.asarray(scale(pictures))
    rebuilt = jax.jit(VQModel(model).apply)({"params": params["model"]}, pixels)
    expected = float(jnp.mean(jax.jit(LPIPS().apply)({"params": params["perceptual"]}, pixels, rebuilt)))
    means = task.means(jax.tree.map(float, measures.sums))
    assert means["perceptual"] == pytest.approx(expected, rel=1e-3)
    assert float(loss) == pytest.approx(means["reconstruction"] + 0.5 * expected + 1.25 * means["commitment"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=1, fsdp=8)], ids=["data", "fsdp"])
def test_a_step_with_the_perceptual_distance_is_the_same_on_a_mesh(mesh):
    """The adaptive weight of the discriminator depends on its gradient too."""
    task, rng = ImageTokenizerTask(PERCEPTUAL), np.random.default_rng(0)

    def weights(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        """As large as keeps features as large as pictures, layer after layer (He et al. 2015)."""
        if leaf.ndim < 4:
            return rng.uniform(0, 0.1, leaf.shape).astype(np.float32)
        return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape).astype(np.float32)

    lpips = jax.tree.map(weights, task.abstract_params()["perceptual"])
    pictures = np.kron(squares(), np.ones((1, 2, 2, 1), np.uint8))  # 16 pixels a side
    state = jax.tree.map(np.array, start(PERCEPTUAL, mesh_of(ONE), pictures, lpips))
    metrics = assert_same_step(PERCEPTUAL, mesh, state, Pictures(pictures, np.ones(8, np.float32)))
    assert float(metrics["perceptual_sum"]) > 0.1 * float(metrics["reconstruction_sum"])


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A trained tokenizer's folder, by a codebook of each way that is written as plain codes."""
    folder = tmp_path_factory.mktemp("learned")
    config = dataclasses.replace(
        CONFIG, codebook="sim_vq", steps=6, mesh=MeshConfig(), output=str(folder / "run"), log_every=3,
        checkpoint=CheckpointConfig(every=6),
    )  # fmt: skip
    tokenizer = train_image_tokenizer(config, pictures_in_order(squares(24), 8, 0))
    save_image_tokenizer(tokenizer, folder / "tokenizer")
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    assert lines[-1]["adversarial"] != 0
    assert 0 < lines[-1]["codes_used"] <= 1
    return folder / "tokenizer"


def test_decoder_only_tuning_keeps_the_codes_of_every_picture(learned, tmp_path):
    config = dataclasses.replace(
        CONFIG, codebook="ema", initial=str(learned), trainable="decoder", entropy=0.0,
        discriminator=DiscriminatorConfig(), steps=6, mesh=MeshConfig(), output=str(tmp_path), log_every=6,
        checkpoint=CheckpointConfig(every=6),
    )  # fmt: skip
    before = initial_image_tokenizer(learned, config.model)
    before.preprocessing = PreprocessingConfig(fit="pad")
    after = train_image_tokenizer(config, pictures_in_order(squares(24), 8, 0), initial=before)
    assert after.preprocessing == before.preprocessing  # on which codes depend too
    for name in ("encoder", "quant_conv", "codebook"):
        jax.tree.map(np.testing.assert_array_equal, after.params[name], before.params[name])
    assert (
        np.abs(after.params["decoder"]["conv_out"]["kernel"] - before.params["decoder"]["conv_out"]["kernel"]).max() > 0
    )
    pixels = scale(squares(24))
    np.testing.assert_array_equal(after.encode_pixels(pixels), before.encode_pixels(pixels))


def test_a_tokenizer_of_other_sizes_is_no_start(learned):
    with pytest.raises(ConfigError, match=r"model.num_codes = 32: .*tokenizer has 16"):
        initial_image_tokenizer(learned, dataclasses.replace(SMALLEST, num_codes=32))


def test_an_initial_model_that_is_not_given_is_named(learned):
    task = ImageTokenizerTask(dataclasses.replace(CONFIG, initial=str(learned)))
    with pytest.raises(ConfigError, match="initial: its parameters are missing"):
        first_params(task, pictures_in_order(squares(), 8, 0), abstract_state(task, mesh_of(ONE)).params)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainable": "decoder"}, "trainable = 'decoder': goes with `initial`"),
        ({"perceptual": {"weight": 1.0}}, "perceptual.vgg = '': must be a file"),
        ({"discriminator": {"weight": 1.0, "r1": 1.0, "norm": "batch"}}, "discriminator.r1 = 1.0: must be 0 with norm"),
        ({"temperature": 0.0}, "temperature = 0.0: must be positive"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        from_dict(ImageTokenizerTrainConfig, {**to_dict(CONFIG), **changes})


def test_the_command_reads_lpips_before_it_prepares_pictures(tmp_path, capsys):
    from chameleon_jax.config import find_configs
    from chameleon_jax.console.cli import main

    arguments = ["--output", str(tmp_path / "out"), "--tokenizer.perceptual.weight", "1"]
    for name in ("vgg", "heads"):
        arguments += [f"--tokenizer.perceptual.{name}", str(tmp_path / f"{name}.pth")]
    assert main(["train-image-tokenizer", str(find_configs() / "demo" / "image_tokenizer.yaml"), *arguments]) == 1
    assert f"{tmp_path}/vgg.pth" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
