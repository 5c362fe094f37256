"""The state of a training run."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.config import TrainConfig
from chameleon_jax.models.transformer import Transformer, abstract_params
from chameleon_jax.sharding import optimizer_shardings, params_shardings, replicated
from chameleon_jax.training import average
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.trainable import join, split


class TrainState(NamedTuple):
    step: Array  # [] int32; number of updates so far
    params: Any
    opt_state: Any  # of the trained parameters; with `ema` also their average, see `average.Averaged`


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    return make_optimizer(config.optimizer, config.steps)


def _init_params(config: TrainConfig, key: Array) -> Any:
    model = Transformer(config.model, config.execution, config.lora)
    return nn.unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])


def _abstract_params(config: TrainConfig) -> Any:
    """Shapes, types and logical axes of the parameters."""
    return abstract_params(config.model, config.execution.param_dtype, config.lora)


def start(config: TrainConfig, params: Any) -> TrainState:
    """The state before the first step, with parameters `params`."""
    trained = split(params, config)[0]
    opt_state = _optimizer(config).init(trained)
    if config.ema:
        opt_state = average.Averaged(opt_state, average.init_average(trained))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def _init(config: TrainConfig, key: Array) -> TrainState:
    return start(config, _init_params(config, key))


def _abstract(config: TrainConfig) -> TrainState:
    """Shapes and types of the state."""
    return jax.eval_shape(functools.partial(start, config), nn.unbox(_abstract_params(config)))


def state_shardings(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """The sharding of each array of the state."""
    params = params_shardings(_abstract_params(config), mesh)
    return TrainState(replicated(mesh), params, optimizer_shardings(_abstract(config).opt_state, params, mesh))


def abstract_state(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to restore it directly onto the mesh."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        _abstract(config),
        state_shardings(config, mesh),
    )


def fresh_adapters(config: TrainConfig, mesh: jax.sharding.Mesh) -> Any:
    """The adapters before the first step, which do not change the model."""
    shardings, _ = split(state_shardings(config, mesh).params, config)
    init = jax.jit(lambda key: split(_init_params(config, key), config)[0], out_shardings=shardings)
    with jax.set_mesh(mesh):
        return init(jax.random.key(config.seed))


def init_state(config: TrainConfig, mesh: jax.sharding.Mesh, params: Any = None) -> TrainState:
    """A new state, with every array created on its devices; uses `params` if they are given."""
    shardings = state_shardings(config, mesh)
    with jax.set_mesh(mesh):
        if params is None:
            init = jax.jit(lambda key: _init(config, key), out_shardings=shardings)
            return init(jax.random.key(config.seed))
        # The parameters are not copied; only the optimizer's state is created.
        rest = jax.jit(lambda params: start(config, params)._replace(params=None),
                       out_shardings=shardings._replace(params=None))  # fmt: skip
        return rest(params)._replace(params=params)


def model_params(config: TrainConfig, state: TrainState) -> Any:
    """The parameters to evaluate, sample from and save: with `ema` their average, in the dtypes of the parameters."""
    if not config.ema:
        return state.params

    @jax.jit
    def averaged(state: TrainState) -> Any:
        trained, frozen = split(state.params, config)
        return join(jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), state.opt_state.average, trained), frozen)

    return averaged(state)
