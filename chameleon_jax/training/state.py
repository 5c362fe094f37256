"""The state of a training run."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chameleon_jax.array_types import Array
from chameleon_jax.sharding import optimizer_shardings, replicated
from chameleon_jax.training import average
from chameleon_jax.training.task import Task
from chameleon_jax.training.trainable import join, split


class TrainState(NamedTuple):
    step: Array  # [] int32; number of updates so far
    params: Any
    opt_state: Any  # of the trained parameters; with `ema` also their average, see `average.Averaged`


def start(task: Task, params: Any) -> TrainState:
    """The state before the first step, with parameters `params`."""
    trained = split(params, task)[0]
    opt_state = task.optimizer().init(trained)
    if task.config.ema:
        opt_state = average.Averaged(opt_state, average.init_average(trained))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def _abstract(task: Task) -> TrainState:
    """Shapes and types of the state."""
    return jax.eval_shape(lambda params: start(task, params), task.abstract_params())


def state_shardings(task: Task, mesh: jax.sharding.Mesh) -> TrainState:
    """The sharding of each array of the state."""
    params = task.params_shardings(mesh)
    return TrainState(replicated(mesh), params, optimizer_shardings(_abstract(task).opt_state, params, mesh))


def abstract_state(task: Task, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to restore it directly onto the mesh."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        _abstract(task),
        state_shardings(task, mesh),
    )


def init_state(task: Task, mesh: jax.sharding.Mesh, params: Any = None) -> TrainState:
    """A new state, with every array created on its devices; uses `params` if they are given."""
    shardings = state_shardings(task, mesh)
    with jax.set_mesh(mesh):
        if params is None:
            init = jax.jit(lambda key: start(task, task.init_params(key)), out_shardings=shardings)
            return init(jax.random.key(task.config.seed))
        # The parameters are not copied; only the optimizer's state is created.
        rest = jax.jit(lambda params: start(task, params)._replace(params=None),
                       out_shardings=shardings._replace(params=None))  # fmt: skip
        return rest(params)._replace(params=params)


def model_params(task: Task, state: TrainState) -> Any:
    """The parameters to evaluate, sample from and save: with `ema` their average, in the dtypes of the parameters."""
    if not task.config.ema:
        return state.params

    @jax.jit
    def averaged(state: TrainState) -> Any:
        trained, frozen = split(state.params, task)
        return join(jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), state.opt_state.average, trained), frozen)

    return averaged(state)
