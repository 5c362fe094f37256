"""The average of the parameters is what it says, is cut as they are, and is what is evaluated."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from chameleon_jax.config import MeshConfig
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training.state import abstract_state, model_params, state_shardings


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"lora__rank": 2, "execution__param_dtype": "bfloat16"}, marks=pytest.mark.slow)],
    ids=["all", "lora"],
)
def test_the_average_follows_the_parameters(tiny, changes):
    config = tiny.config(ema=0.3, bad_steps__action="skip", **changes)
    mesh = make_mesh(MeshConfig())
    state = tiny.init_state(tiny.task(config), mesh)
    step = tiny.make_train_step(tiny.task(config), mesh)
    mean = jax.tree.map(lambda leaf: np.array(leaf, np.float64), state.params)
    for number in range(5):
        batch = tiny.batch(number)
        bad = number == 3
        state, _ = step(state, batch._replace(loss_weights=batch.loss_weights * np.float32(np.nan if bad else 1)))
        n = number + 1
        decay = min(0.3, n / (n + 10))
        if not bad:
            mean = jax.tree.map(lambda a, b: decay * a + (1 - decay) * np.array(b, np.float64), mean, state.params)  # noqa: B023
    found = model_params(tiny.task(config), state)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, state.params)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if changes else {"rtol": 1e-5, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.array(a, np.float64), b, **tolerance), found, mean)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in
               zip(jax.tree.leaves(found), jax.tree.leaves(state.params), strict=True))  # fmt: skip
    if changes:  # only adapters have an average
        names = {path[-1].key for path, _ in jax.tree.leaves_with_path(state.opt_state.average)}
        assert all("_lora_" in name for name in names)


def test_the_average_is_cut_over_devices_as_the_parameters_are(tiny):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = state_shardings(tiny.task(tiny.config(ema=0.999)), mesh)
    assert shardings.opt_state.average == shardings.params


def test_a_run_without_an_average_has_the_state_that_it_always_had(tiny):
    mesh = make_mesh(MeshConfig())
    with_average, without = (
        jax.tree.structure(state_shardings(tiny.task(tiny.config(ema=decay)), mesh)) for decay in (0.9, 0.0)
    )
    assert with_average != without
    task = tiny.task(tiny.config())
    assert model_params(task, state := abstract_state(task, mesh)) is state.params
