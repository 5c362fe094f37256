"""The codebook's upkeep against NumPy by hand, the straight-through gradient, and a tokenizer that learns."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import ImageTokenizerConfig, ImageTokenizerTrainConfig
from chameleon_jax.models.vq import VQModel, nearest_code
from chameleon_jax.training.image_tokenizer import codebook_perplexity, init_state, psnr, train_step, update_codebook

MODEL = ImageTokenizerConfig(
    resolution=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8, code_dim=4,
    num_codes=16, norm_groups=4,
)  # fmt: skip
CONFIG = ImageTokenizerTrainConfig(model=MODEL, steps=60, batch_size=8, learning_rate=5e-3, warmup_steps=5)
UNCLIPPED = dataclasses.replace(CONFIG, commitment=0.7, clip_norm=1e9)


@functools.partial(jax.jit, static_argnums=2)
def run_model(variables, x, method: str):
    return VQModel(MODEL).apply(variables, x, method=method)


def pictures(count: int = 8) -> jax.Array:
    """Smooth ramps in random directions and colours."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:8j, -1:1:8j]
    direction = rng.normal(size=(count, 2, 3))
    ramps = direction[:, 0, None, None] * y[..., None] + direction[:, 1, None, None] * x[..., None]
    return jnp.asarray(np.tanh(ramps + rng.normal(0, 0.5, (count, 1, 1, 3))), jnp.float32)


@pytest.fixture
def fresh():
    """A state before its first step, as copies that a step may take."""
    return jax.tree.map(jnp.copy, first_state())


@functools.cache
def first_state():
    return init_state(CONFIG, pictures())


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


def test_codes_in_use_follow_the_moving_average_of_their_latents(averages):
    config = dataclasses.replace(CONFIG, codebook_decay=0.9)
    codebook, counts, sums, restarted = update_codebook(config, jax.random.key(0), *map(jnp.asarray, averages))
    expected_counts, expected_sums, dead = update_by_hand(config, *averages)
    assert dead.tolist() == [False, True, False, False, True, False]
    assert int(restarted) == 2
    np.testing.assert_allclose(counts[~dead], expected_counts[~dead], rtol=1e-5)
    np.testing.assert_allclose(sums[~dead], expected_sums[~dead], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(codebook[~dead], (expected_sums / expected_counts[:, None])[~dead], rtol=1e-4, atol=1e-6)


def test_dead_codes_move_onto_latents_of_the_batch_and_live_on(averages):
    codebook, counts, sums, _ = update_codebook(CONFIG, jax.random.key(0), *map(jnp.asarray, averages))
    latents = averages[2]
    for code in (1, 4):
        distance = np.abs(latents - np.asarray(codebook[code])).max(axis=1)
        assert distance.min() < 1e-6
        assert float(counts[code]) == len(latents) / len(codebook)  # as if used like an average code
        np.testing.assert_allclose(sums[code], codebook[code] * counts[code], rtol=1e-5)
    other, *_ = update_codebook(CONFIG, jax.random.key(1), *map(jnp.asarray, averages))
    assert not np.array_equal(np.asarray(other)[[1, 4]], np.asarray(codebook)[[1, 4]])


def test_nothing_is_restarted_while_all_codes_are_used(averages):
    counts, sums, latents, _ = averages
    codes = np.arange(len(latents), dtype=np.int32) % len(counts)
    full = np.full_like(counts, 4.0)
    codebook, *_, restarted = update_codebook(
        CONFIG, jax.random.key(0), *map(jnp.asarray, (full, sums, latents, codes))
    )
    assert int(restarted) == 0
    expected_counts, expected_sums, _ = update_by_hand(CONFIG, full, sums, latents, codes)
    np.testing.assert_allclose(codebook, expected_sums / expected_counts[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_codebook_starts_near_latents_of_the_pictures():
    state = first_state()
    latents = run_model({"params": state.params}, pictures(), "latents").reshape(-1, MODEL.code_dim)
    distance = np.linalg.norm(np.asarray(state.params["codebook"])[:, None] - np.asarray(latents), axis=-1).min(axis=1)
    assert distance.max() < 0.5 * np.linalg.norm(np.std(latents, axis=0))
    np.testing.assert_array_equal(state.sums / state.counts[:, None], state.params["codebook"])
    assert len(np.unique(state.params["codebook"], axis=0)) == MODEL.num_codes  # no two alike


@pytest.mark.slow
def test_the_same_seed_starts_the_same_and_another_differently():
    again = init_state(CONFIG, pictures())
    jax.tree.map(np.testing.assert_array_equal, again, first_state())
    other = init_state(dataclasses.replace(CONFIG, seed=1), pictures())
    assert not np.array_equal(other.params["codebook"], again.params["codebook"])


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
    perplexity = codebook_perplexity(jnp.asarray(codes).reshape(2, 2), num_codes=8)
    assert float(perplexity) == pytest.approx(expected, rel=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def losses_by_hand(config, params, pixels):
    """Reconstruction and commitment from their formulas, through the model's own encode and decode."""
    variables = {"params": params}
    z = np.asarray(run_model(variables, pixels, "latents"), np.float64)
    codes = run_model(variables, pixels, "encode")
    q = np.asarray(params["codebook"], np.float64)[np.asarray(codes).reshape(z.shape[:-1])]
    error = np.asarray(pixels, np.float64) - np.asarray(run_model(variables, codes, "decode"), np.float64)
    reconstruction = np.mean(np.abs(error)) if config.reconstruction == "l1" else np.mean(error**2)
    return reconstruction, np.mean((z - q) ** 2)


@pytest.mark.parametrize("kind", ["l1", pytest.param("l2", marks=pytest.mark.slow)])
def test_losses_are_those_of_the_formulas(kind, fresh):
    config = dataclasses.replace(UNCLIPPED, reconstruction=kind)
    reconstruction, commitment = losses_by_hand(config, fresh.params, pictures())
    _, metrics = train_step(config, fresh, pictures())
    assert float(metrics["reconstruction"]) == pytest.approx(reconstruction, rel=1e-5)
    assert float(metrics["commitment"]) == pytest.approx(commitment, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(reconstruction + 0.7 * commitment, rel=1e-5)


@pytest.mark.slow
def test_the_gradient_goes_straight_through_the_rounding_to_the_encoder(fresh):
    """Adam's first moment after one step is (1 - b1) times the gradient; it is compared with one made by hand."""
    model, pixels = VQModel(MODEL), pictures()
    params = first_state().params

    def latents(params):
        return model.apply({"params": params}, pixels, method="latents")

    def decoded_error(q):
        return jnp.mean(jnp.square(pixels - model.apply({"params": params}, q, method="decode_latents")))

    z, pull_back = jax.jit(lambda params: jax.vjp(latents, params))(params)
    q = params["codebook"][nearest_code(z, params["codebook"])]
    # What the decoder wants of q is handed to z as it is; the commitment pulls z to q.
    (by_hand,) = pull_back(jax.jit(jax.grad(decoded_error))(q) + UNCLIPPED.commitment * 2 * (z - q) / z.size)

    next_state, _ = train_step(UNCLIPPED, fresh, pixels)
    moment = next(part.mu for part in jax.tree.leaves(next_state.opt_state, is_leaf=is_adam) if is_adam(part))
    for name in ("encoder", "quant_conv"):
        expected = jax.tree.leaves(by_hand[name])
        for got, want in zip(jax.tree.leaves(moment[name]), expected, strict=True):
            np.testing.assert_allclose(got, (1 - UNCLIPPED.b1) * want, rtol=1e-3, atol=1e-6)
    assert np.all(moment["codebook"] == 0)  # the codebook follows its averages, not the gradient
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(moment["decoder"]))


def is_adam(part) -> bool:
    return hasattr(part, "mu")


def learn(steps: int):
    state, history = jax.tree.map(jnp.copy, first_state()), []
    for _ in range(steps):
        state, metrics = train_step(CONFIG, state, pictures())
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@pytest.mark.slow
def test_training_lowers_the_loss_keeps_many_codes_and_repeats_exactly():
    state, history = learn(60)
    assert history[-1]["reconstruction"] < 0.5 * history[0]["reconstruction"]
    assert history[-1]["psnr_db"] > history[0]["psnr_db"] + 3
    assert history[-1]["perplexity"] > 0.4 * MODEL.num_codes
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    assert int(state.step) == 60

    again, history_again = learn(60)
    assert history_again == history
    jax.tree.map(np.testing.assert_array_equal, again, state)
