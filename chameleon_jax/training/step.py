"""One training step and one evaluation step of a task: pure functions, jitted with shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.sharding import constraints_on, replicated
from chameleon_jax.training.average import Averaged, update_average
from chameleon_jax.training.state import TrainState, state_shardings
from chameleon_jax.training.task import Batch, Measures, Part, Task
from chameleon_jax.training.trainable import join, split


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _in_parts(batch: Batch, parts: int) -> Batch:
    """The batch as `[parts, rows, …]`. Each part has rows of every device, so that no row is moved."""
    return jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0), batch)


def accumulated_gradients(task: Task, params: Any, batch: Batch, key: Array | None) -> tuple[Array, Measures, Any]:
    """Loss, measures and gradients of the trained parameters, accumulated over `accumulation` parts of a batch.

    Gradients of the parts are summed in float32.
    """
    trained, frozen = split(params, task)
    count = task.config.accumulation

    def loss_of(trained, batch, part):
        return task.loss(join(trained, frozen), batch, key, part)

    loss_and_gradients = jax.value_and_grad(loss_of, has_aux=True)
    if count == 1:
        (loss, measures), gradients = loss_and_gradients(trained, batch, Part(0, 1, None))
        return loss, measures, gradients

    total_weight = task.weight(batch)

    def of_part(number: Array, rows: Batch):
        (loss, measures), gradients = loss_and_gradients(trained, rows, Part(number, count, total_weight))
        return loss, measures, jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients)

    def add(total, numbered):
        loss, measures, gradients = of_part(*numbered)
        added = Measures(
            _add(total[1].sums, measures.sums),
            jax.tree.map(jnp.maximum, total[1].maxima, measures.maxima),
            {},
            _add(total[1].statistics, measures.statistics),
        )
        return (total[0] + loss, added, _add(total[2], gradients)), measures.rows

    numbered = (jnp.arange(count), _in_parts(batch, count))
    shapes = jax.eval_shape(of_part, *jax.tree.map(lambda each: each[0], numbered))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zeros = (zeros[0], zeros[1]._replace(rows={}), zeros[2])
    (loss, measures, gradients), rows = jax.lax.scan(add, zeros, numbered)
    rows = jax.tree.map(lambda parts: jnp.moveaxis(parts, 0, 1).reshape(-1), rows)  # in the order of the batch again
    return loss, measures._replace(rows=rows), gradients


def _unless(bad: Array, new: Any, old: Any) -> Any:
    """`new`, or if the step is bad, the arrays of `old` with the counters of `new`, as schedules depend on the step."""

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(bad, old, new) if jnp.issubdtype(new.dtype, jnp.floating) else new

    return jax.tree.map(choose, new, old)


def make_train_step(
    task: Task, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Returns the jitted train step: (state, batch) to (next state, metrics). The state is donated.

    What is random in it depends only on the seed and the step number, so a resumed run repeats an uninterrupted one. A
    step whose loss or gradient is not finite, or whose gradient norm is above `config.bad_steps.gradient_norm`, changes
    no parameter and has the metric `bad` = 1.
    """
    config, optimizer = task.config, task.optimizer()
    limit = config.bad_steps.gradient_norm or np.inf

    def step(state: TrainState, batch: Batch):
        key = task.key(state.step)
        with constraints_on(mesh):
            loss, measures, gradients = accumulated_gradients(task.on(mesh, batch), state.params, batch, key)
        gradients = task.mask(gradients)
        norm = optax.tree.norm(gradients)
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm) & (norm <= limit))
        trained, frozen = split(state.params, task)
        before = state.opt_state.optimizer if config.ema else state.opt_state
        updates, opt_state = optimizer.update(gradients, before, trained)
        trained = _unless(bad, optax.apply_updates(trained, task.mask(updates)), trained)
        opt_state = _unless(bad, opt_state, before)
        followed, figures = task.update_frozen(frozen, measures.statistics, state.step)
        frozen = _unless(bad, followed, frozen)
        if config.ema:
            mean = state.opt_state.average
            opt_state = Averaged(
                opt_state, _unless(bad, update_average(mean, trained, config.ema, state.step + 1), mean)
            )
        next_state = TrainState(state.step + 1, join(trained, frozen), opt_state)
        metrics = {
            **measures.sums,
            **measures.maxima,
            **measures.rows,
            **figures,
            "total_loss": loss,
            "gradient_norm": norm,
            "bad": bad,
        }
        return next_state, metrics

    shardings = state_shardings(task, mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, task.batch_shardings(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=task.compiler_options(mesh),
    )


def make_signals(task: Task, mesh: jax.sharding.Mesh) -> Callable[[Any], dict[str, Array]]:
    """Returns a jitted function of the parameters: their norm, and what the task wants to see of them."""

    def signals(params):
        return {"parameter_norm": optax.tree.norm(params), **task.signals(params)}

    return jax.jit(signals, in_shardings=(state_shardings(task, mesh).params,), out_shardings=replicated(mesh))


def make_evaluation_step(task: Task, mesh: jax.sharding.Mesh) -> Callable[[Any, Batch], dict[str, Array]]:
    """Returns a jitted function of parameters and a batch that returns the sums of `Task.loss`.

    Like training, it processes the batch in `config.accumulation` parts, so that it needs no more memory.
    """
    count = task.config.accumulation

    def evaluate(params, batch: Batch):
        here, total_weight = task.on(mesh, batch), task.weight(batch)

        def sums_of(numbered: tuple[Array, Batch]) -> dict[str, Array]:
            number, rows = numbered
            return here.loss(params, rows, None, Part(number, count, total_weight))[1].sums

        with constraints_on(mesh):
            sums = jax.lax.map(sums_of, (jnp.arange(count), _in_parts(batch, count)))
        return jax.tree.map(lambda each: jnp.sum(each, axis=0), sums)

    return jax.jit(
        evaluate,
        in_shardings=(state_shardings(task, mesh).params, task.batch_shardings(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=task.compiler_options(mesh),
    )
