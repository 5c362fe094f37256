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


class TrainState(NamedTuple):
    step: Array  # [] int32; updates done
    params: Any
    opt_state: Any


def _init(config: TrainConfig, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = nn.unbox(Transformer(config.model).init(key, tokens)["params"])
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def state_shardings(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Where each array of the state lies on the mesh."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    tokens = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(lambda key: Transformer(config.model).init(key, tokens)["params"], jax.random.key(0))
    abstract = jax.eval_shape(lambda key: _init(config, optimizer, key), jax.random.key(0))
    params = params_shardings(boxed, mesh)
    return TrainState(replicated(mesh), params, optimizer_shardings(abstract.opt_state, params, mesh))


def abstract_state(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for restoring it straight onto the mesh."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    shapes = jax.eval_shape(lambda key: _init(config, optimizer, key), jax.random.key(0))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(config, mesh),
    )


def init_state(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """A fresh state, every array born on its own devices."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    init = jax.jit(lambda key: _init(config, optimizer, key), out_shardings=state_shardings(config, mesh))
    with jax.set_mesh(mesh):
        return init(jax.random.key(config.seed))
