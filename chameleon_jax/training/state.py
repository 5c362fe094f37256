"""What a training run carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.config import TrainConfig
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.sharding import optimizer_shardings, params_shardings, replicated
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.trainable import split


class TrainState(NamedTuple):
    step: Array  # [] int32; updates done
    params: Any
    opt_state: Any  # of the parameters that are trained


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    return make_optimizer(config.optimizer, config.steps)


def _boxed_params(config: TrainConfig, key: Array) -> Any:
    return Transformer(config.model).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def start(config: TrainConfig, params: Any) -> TrainState:
    """The state before the first step, with these parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, _optimizer(config).init(split(params, config)[0]))


def _init(config: TrainConfig, key: Array) -> TrainState:
    return start(config, nn.unbox(_boxed_params(config, key)))


def state_shardings(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Where each array of the state lies on the mesh."""
    boxed = jax.eval_shape(lambda key: _boxed_params(config, key), jax.random.key(0))
    abstract = jax.eval_shape(lambda key: _init(config, key), jax.random.key(0))
    params = params_shardings(boxed, mesh)
    return TrainState(replicated(mesh), params, optimizer_shardings(abstract.opt_state, params, mesh))


def abstract_state(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for restoring it straight onto the mesh."""
    shapes = jax.eval_shape(lambda key: _init(config, key), jax.random.key(0))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(config, mesh),
    )


def fresh_adapters(config: TrainConfig, mesh: jax.sharding.Mesh) -> Any:
    """The adapters alone, as they are before the first step: they add nothing."""
    shardings, _ = split(state_shardings(config, mesh).params, config)
    init = jax.jit(lambda key: split(nn.unbox(_boxed_params(config, key)), config)[0], out_shardings=shardings)
    with jax.set_mesh(mesh):
        return init(jax.random.key(config.seed))


def init_state(config: TrainConfig, mesh: jax.sharding.Mesh, params: Any = None) -> TrainState:
    """A fresh state, every array born on its own devices; around `params` if they are given."""
    shardings = state_shardings(config, mesh)
    with jax.set_mesh(mesh):
        if params is None:
            init = jax.jit(lambda key: _init(config, key), out_shardings=shardings)
            return init(jax.random.key(config.seed))
        # The parameters stay the arrays that they are; only what belongs to the optimizer is made.
        rest = jax.jit(lambda params: start(config, params)._replace(params=None),
                       out_shardings=shardings._replace(params=None))  # fmt: skip
        return rest(params)._replace(params=params)
