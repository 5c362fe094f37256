"""Schedules, which parameters decay, which go to Muon, and AdamW's arithmetic."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chameleon_jax.config import OptimizerConfig
from chameleon_jax.training.optimizer import decay_mask, keep_moments_in, make_optimizer, make_schedule

STEPS, WARMUP, PEAK, FRACTION = 100, 10, 3e-3, 0.1


@pytest.fixture(scope="module")
def params():
    """The names of the canonical tree in small shapes, values of size 1."""
    L, d, H, K, D, F, V = 2, 6, 2, 1, 4, 8, 10
    shapes = {
        "embed": (V, d),
        "layers": {
            "attention": {
                "q": (L, d, H, D), "k": (L, d, K, D), "v": (L, d, K, D), "o": (L, H, D, d),
                "q_norm": {"scale": (L, 1, D), "bias": (L, 1, D)},
                "k_norm": {"scale": (L, 1, D), "bias": (L, 1, D)},
            },
            "mlp": {"gate": (L, d, F), "up": (L, d, F), "down": (L, F, d)},
            "attention_norm": {"scale": (L, d)},
            "mlp_norm": {"scale": (L, d)},
        },
        "norm": {"scale": (d,)},
        "output": (d, V),
    }  # fmt: skip
    return random_like(shapes, seed=0)


def random_like(shapes, seed: int):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes, is_leaf=is_shape)


def gradients(params, seed: int):
    return random_like(jax.tree.map(lambda leaf: leaf.shape, params), seed)


def by_name(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


LAYER_MATRICES = {f"layers/attention/{name}" for name in "qkvo"} | {
    f"layers/mlp/{name}" for name in ("gate", "up", "down")
}

# ----------------------------------------------------------------------------------------------------------------------
# Schedules
# ----------------------------------------------------------------------------------------------------------------------


def schedule(name: str, **changes):
    config = OptimizerConfig(learning_rate=PEAK, schedule=name, warmup_steps=WARMUP, final_fraction=FRACTION)
    return make_schedule(dataclasses.replace(config, **changes), STEPS)


@pytest.mark.parametrize("name", ["cosine", "exponential", "linear", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak(name):
    rates = [float(schedule(name)(step)) for step in range(WARMUP + 1)]
    np.testing.assert_allclose(rates[:WARMUP], PEAK * np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-5)
    assert rates[WARMUP] == pytest.approx(PEAK)


@pytest.mark.parametrize(
    ("name", "half_way"),
    [
        ("cosine", (1 + FRACTION) / 2),
        ("exponential", np.sqrt(FRACTION)),
        ("linear", (1 + FRACTION) / 2),
        ("constant", 1.0),
    ],
)
def test_decay_passes_its_middle_and_ends_at_the_final_fraction(name, half_way):
    rate = schedule(name)
    middle = WARMUP + (STEPS - WARMUP) // 2
    assert float(rate(middle)) == pytest.approx(PEAK * half_way, rel=1e-5)
    assert float(rate(STEPS)) == pytest.approx(PEAK * (1.0 if name == "constant" else FRACTION), rel=1e-5)


def test_cosine_and_linear_differ_between_their_ends():
    quarter = WARMUP + (STEPS - WARMUP) // 3
    share = (quarter - WARMUP) / (STEPS - WARMUP)
    cosine = FRACTION + (1 - FRACTION) * (1 + np.cos(np.pi * share)) / 2
    assert float(schedule("cosine")(quarter)) == pytest.approx(PEAK * cosine, rel=1e-5)
    assert float(schedule("linear")(quarter)) == pytest.approx(PEAK * (1 - (1 - FRACTION) * share), rel=1e-5)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert float(schedule("cosine", warmup_steps=0)(0)) == pytest.approx(PEAK)


def test_a_single_step_of_warm_up_is_the_peak():
    rate = schedule("linear", warmup_steps=1)
    assert float(rate(0)) == pytest.approx(PEAK)
    assert float(rate(STEPS)) == pytest.approx(PEAK * FRACTION)


# ----------------------------------------------------------------------------------------------------------------------
# AdamW and Muon
# ----------------------------------------------------------------------------------------------------------------------


def test_matrices_and_embeddings_decay_and_norms_do_not(params):
    decayed = {name for name, decays in by_name(decay_mask(params)).items() if decays}
    assert decayed == LAYER_MATRICES | {"embed", "output"}


def numpy_adamw(config: OptimizerConfig, params, all_gradients, rates):
    """AdamW with clipping by global norm (Loshchilov & Hutter 2019), float64."""
    params = {name: value.astype(np.float64) for name, value in by_name(params).items()}
    m = {name: np.zeros_like(value) for name, value in params.items()}
    v = {name: np.zeros_like(value) for name, value in params.items()}
    for t, (grads, rate) in enumerate(zip(all_gradients, rates, strict=True), 1):
        grads = {name: value.astype(np.float64) for name, value in by_name(grads).items()}
        norm = np.sqrt(sum(np.sum(value**2) for value in grads.values()))
        scale = min(1.0, config.clip_norm / norm)
        for name in params:
            g = grads[name] * scale
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            update = (m[name] / (1 - config.b1**t)) / (np.sqrt(v[name] / (1 - config.b2**t)) + config.eps)
            if name.split("/")[-1] not in ("scale", "bias"):
                update = update + config.weight_decay * params[name]
            params[name] = params[name] - rate * update
    return params


@pytest.mark.parametrize("clip_norm", [0.5, 1e6], ids=["clipped", "not clipped"])
def test_adamw_equals_numpy(params, clip_norm):
    config = OptimizerConfig(
        learning_rate=1e-2, schedule="linear", warmup_steps=2, final_fraction=0.1, weight_decay=0.3, clip_norm=clip_norm
    )
    optimizer = make_optimizer(config, 5)
    state, current = optimizer.init(params), params
    all_gradients = [gradients(params, seed) for seed in (1, 2, 3)]
    update = jax.jit(optimizer.update)
    for grads in all_gradients:
        updates, state = update(grads, state, current)
        current = optax.apply_updates(current, updates)
    expected = numpy_adamw(config, params, all_gradients, rates=[0.5e-2, 1e-2, 1e-2])
    for name, value in by_name(current).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def muon_update(params):
    """One update by Muon without decay at rate 1, and its optimizer's first state."""
    config = OptimizerConfig(
        name="muon", learning_rate=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0, eps=1e-12
    )
    optimizer = make_optimizer(config, 5)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(gradients(params, 1), state, params)
    return by_name(updates)


def test_muon_takes_the_convolutions_between_those_that_read_and_write_pixels():
    kernels = {
        "encoder": {"conv_in": {"kernel": (3, 3, 3, 4)}, "conv_out": {"kernel": (3, 3, 4, 6), "bias": (6,)}},
        "decoder": {"conv_in": {"kernel": (3, 3, 6, 4)}, "conv_out": {"kernel": (3, 3, 4, 3)}},
        "codebook": (16, 4),
    }  # fmt: skip
    params = random_like(kernels, seed=0)
    config = OptimizerConfig(name="muon", learning_rate=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(dataclasses.replace(config, eps=1e-12), 5)
    updates, _ = jax.jit(optimizer.update)(gradients(params, 1), optimizer.init(params), params)
    # Adam's first update has one size in every element.
    varied = {name for name, value in by_name(updates).items() if np.ptp(np.abs(value)) > 0.01 * np.max(np.abs(value))}
    assert varied == {"encoder/conv_out/kernel", "decoder/conv_in/kernel"}
    flat = by_name(updates)["encoder/conv_out/kernel"].reshape(36, 6)
    values = np.linalg.svd(flat, compute_uv=False)  # near each other: height, width and input channels are one axis
    assert values.min() > 0.6 * values.max()


def test_muon_takes_exactly_the_matrices_of_the_layers(muon_update):
    """Adam's first update has one size in every element; Muon's has one size in every singular value."""
    by_adam = {name for name, value in muon_update.items() if np.ptp(np.abs(value)) < 0.01 * np.max(np.abs(value))}
    assert by_adam == set(muon_update) - LAYER_MATRICES


@pytest.mark.parametrize("weight_decay", [0.0, 0.3], ids=["no decay", "decay"])
def test_what_muon_does_not_take_stays_with_the_same_adamw(params, weight_decay):
    updates = {}
    for name in ("muon", "adamw"):
        config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=0, weight_decay=weight_decay, eps=0.1)
        optimizer = make_optimizer(config, 5)
        updates[name] = by_name(jax.jit(optimizer.update)(gradients(params, 1), optimizer.init(params), params)[0])
    for name in set(updates["adamw"]) - LAYER_MATRICES:
        np.testing.assert_allclose(updates["muon"][name], updates["adamw"][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_muon_orthogonalises_each_layers_matrix_from_inputs_to_outputs(muon_update):
    inputs = {"q": 6, "k": 6, "v": 6, "o": 8, "gate": 6, "up": 6, "down": 8}
    for name in LAYER_MATRICES:
        for layer in muon_update[name]:
            matrix = layer.reshape(inputs[name.split("/")[-1]], -1)
            values = np.linalg.svd(matrix, compute_uv=False)
            # Newton-Schulz with Muon's coefficients brings singular values near 1, within about a third.
            assert values.max() / values.min() < 2, name
            # consistent_rms: the size of an AdamW update, 0.2 root mean square.
            rms_if_orthogonal = 0.2 * np.sqrt(max(matrix.shape)) * np.sqrt(min(matrix.shape) / matrix.size)
            assert np.sqrt(np.mean(matrix**2)) == pytest.approx(rms_if_orthogonal, rel=0.35), name


def test_muon_decays_the_matrices_it_takes(params):
    grads = jax.tree.map(jnp.zeros_like, params)
    config = OptimizerConfig(name="muon", learning_rate=0.5, schedule="constant", warmup_steps=0, weight_decay=0.1)
    optimizer = make_optimizer(config, 5)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    updates, values = by_name(updates), by_name(params)
    for name in LAYER_MATRICES:
        np.testing.assert_allclose(updates[name], -0.5 * 0.1 * values[name], rtol=1e-5, atol=1e-7)
    for name in set(updates) - LAYER_MATRICES - {"embed", "output"}:
        np.testing.assert_array_equal(updates[name], 0)


# ----------------------------------------------------------------------------------------------------------------------
# Moments in bfloat16
# ----------------------------------------------------------------------------------------------------------------------


def moments(state) -> dict[str, jax.Array]:
    """The leaves of an optimizer state that belong to a moment, by path."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {path: leaf for path, leaf in leaves.items() if ".mu" in path or ".nu" in path}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_alone_are_kept_in_bfloat16(params, name):
    kept = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(OptimizerConfig(name=name, moment_dtype=dtype), 5000)
        kept[dtype] = optimizer.init(params)
        updates, after = jax.jit(optimizer.update)(gradients(params, 1), kept[dtype], params)
        assert {leaf.dtype for leaf in moments(after).values()} == {jnp.dtype(dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    assert jax.tree.structure(kept["float32"]) == jax.tree.structure(kept["bfloat16"])
    assert len(moments(kept["bfloat16"])) == (2 * 16 if name == "adamw" else 2 * 16 - len(LAYER_MATRICES))
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept["bfloat16"]):
        assert leaf.dtype == jnp.bfloat16 or jax.tree_util.keystr(path) not in moments(kept["bfloat16"])


def test_a_step_on_bfloat16_moments_is_float32_arithmetic_on_rounded_moments(params):
    config = OptimizerConfig(
        learning_rate=1e-2, schedule="constant", warmup_steps=0, clip_norm=1e6, moment_dtype="bfloat16"
    )
    optimizer = make_optimizer(config, 5)
    first, second = gradients(params, 1), gradients(params, 2)
    update = jax.jit(optimizer.update)
    _, state = update(first, optimizer.init(params), params)
    updates, state = update(second, state, params)
    updates, values = by_name(updates), by_name(params)
    first, second = by_name(first), by_name(second)
    kept = {path: np.asarray(leaf, np.float32) for path, leaf in moments(state).items()}
    for name, g in second.items():
        m = ((1 - config.b1) * first[name]).astype(jnp.bfloat16).astype(np.float64)
        v = ((1 - config.b2) * first[name] ** 2).astype(jnp.bfloat16).astype(np.float64)
        m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g**2
        step = (m / (1 - config.b1**2)) / (np.sqrt(v / (1 - config.b2**2)) + config.eps)
        decay = 0 if name.split("/")[-1] in ("scale", "bias") else config.weight_decay
        np.testing.assert_allclose(
            updates[name], -config.learning_rate * (step + decay * values[name]), rtol=2e-5, atol=1e-8
        )
        ending = "".join(f"['{part}']" for part in name.split("/"))
        stored = next(leaf for path, leaf in kept.items() if path.endswith(".mu" + ending))
        np.testing.assert_allclose(stored, m, rtol=2**-8)


def test_float32_moments_change_nothing(params):
    plain = make_optimizer(OptimizerConfig(), 5000)
    wrapped = keep_moments_in(plain, "float32")
    results = [jax.jit(each.update)(gradients(params, 1), each.init(params), params) for each in (plain, wrapped)]
    jax.tree.map(np.testing.assert_array_equal, *results)
