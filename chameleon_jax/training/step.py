"""One training step and one evaluation step: pure functions, jitted with shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.batch import Batch
from chameleon_jax.config import BenchTrainConfig, TrainConfig
from chameleon_jax.models.attention import backend_for
from chameleon_jax.models.transformer import Transformer, readout
from chameleon_jax.runtime.compiler_options import compiler_options
from chameleon_jax.sharding import batch_sharding, constraints_on, replicated
from chameleon_jax.training.average import Averaged, update_average
from chameleon_jax.training.losses import chunked_token_losses, token_losses, weighted_loss
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.state import TrainState, state_shardings
from chameleon_jax.training.trainable import join, only_image_columns, split


class Measures(NamedTuple):
    """Metrics of a step: `sums` and `maxima` are reduced over the parts of a batch; `rows` have one value per row."""

    sums: dict[str, Array]
    maxima: dict[str, Array]
    rows: dict[str, Array]


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def batch_loss(
    config: TrainConfig,
    is_image_id: np.ndarray,
    params: Any,
    batch: Batch,
    dropout_key: Array | None = None,
    total_weight: Array | None = None,
) -> tuple[Array, Measures]:
    """The loss of `params` on `batch`, with metrics. `config.dropout` applies if a key is given.

    Args:
      is_image_id: bool `[vocab_size]`, which ids are image codes.
      total_weight: sum of the loss weights of the whole batch, if `batch` is a part of it.
    """
    x = Transformer(config.model, config.execution, config.lora).apply(
        {"params": params},
        batch.inputs,
        batch.positions,
        batch.segment_ids,
        dropout=0.0 if dropout_key is None else config.dropout,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        hidden=True,
    )
    logits_of = lambda x: readout(x, params, config.model)  # noqa: E731
    if config.loss_chunk:
        losses = chunked_token_losses(x, logits_of, batch.targets, config.loss_chunk)
    else:
        losses = token_losses(logits_of(x), batch.targets)
    is_image = jnp.asarray(is_image_id, jnp.float32)[batch.targets]
    loss, sums = weighted_loss(losses, batch.loss_weights, is_image, config.z_loss, total_weight)
    # Early signs of divergence (section 2.3 of the paper), over all tokens except padding.
    real = (batch.segment_ids > 0).astype(jnp.float32)
    squares = jnp.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)), axis=-1)
    sums |= {"output_square_sum": jnp.sum(squares * real), "token_sum": jnp.sum(real)}
    rows = {
        "row_loss_sum": jnp.sum(jax.lax.stop_gradient(losses.cross_entropy) * batch.loss_weights, axis=1),
        "row_weight_sum": jnp.sum(batch.loss_weights, axis=1),
    }
    return loss, Measures(sums, {"max_logit": jnp.max(losses.max_logit * real)}, rows)


def _in_parts(config: TrainConfig, batch: Batch) -> Batch:
    """The batch as `[accumulation, rows, length]`. Each part has rows of every device, so that no row is moved."""
    parts = config.accumulation
    return jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0), batch)


def accumulated_gradients(
    config: TrainConfig, is_image_id: np.ndarray, params: Any, batch: Batch, dropout_key: Array | None
) -> tuple[Array, Measures, Any]:
    """Loss, metrics and gradients of the trained parameters, accumulated over `config.accumulation` parts of a batch.

    Gradients of the parts are summed in float32.
    """
    trained, frozen = split(params, config)

    def loss_of(trained, batch, *rest):
        return batch_loss(config, is_image_id, join(trained, frozen), batch, *rest)

    loss_and_gradients = jax.value_and_grad(loss_of, has_aux=True)
    if config.accumulation == 1:
        (loss, measures), gradients = loss_and_gradients(trained, batch, dropout_key)
        return loss, measures, gradients

    parts = _in_parts(config, batch)
    total_weight = jnp.sum(batch.loss_weights)

    def of_part(number: Array, part: Batch):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
        (loss, measures), gradients = loss_and_gradients(trained, part, key, total_weight)
        return loss, measures, jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients)

    def add(total, numbered):
        loss, measures, gradients = of_part(*numbered)
        sums = _add(total[1].sums, measures.sums)
        maxima = jax.tree.map(jnp.maximum, total[1].maxima, measures.maxima)
        return (total[0] + loss, Measures(sums, maxima, {}), _add(total[2], gradients)), measures.rows

    numbered = (jnp.arange(config.accumulation), parts)
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


def _resolved(config: TrainConfig, mesh: jax.sharding.Mesh, batch: Batch) -> TrainConfig:
    """`config` with the attention backend for these devices and this row length."""
    backend = backend_for(config.model, config.execution, mesh, batch.inputs.shape[1])
    return dataclasses.replace(config, execution=dataclasses.replace(config.execution, attention=backend))


def step_compiler_options(
    config: TrainConfig | BenchTrainConfig, mesh: jax.sharding.Mesh
) -> dict[str, bool | int | str]:
    """XLA options with which train and evaluation steps are compiled."""
    outside = config.execution.remat_outside_loop(config.model.num_layers)
    return compiler_options(mesh, config.compiler_options, remat_outside_loop=outside)


def make_train_step(
    config: TrainConfig, is_image_id: np.ndarray, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Returns the jitted train step: (state, batch) to (next state, metrics). The state is donated.

    Dropout depends only on the seed and the step number, so a resumed run repeats an uninterrupted one. A step whose
    loss or gradient is not finite, or whose gradient norm is above `config.bad_steps.gradient_norm`, changes no
    parameter and has the metric `bad` = 1.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    limit = config.bad_steps.gradient_norm or np.inf

    def step(state: TrainState, batch: Batch):
        key = None
        if config.dropout > 0:
            key = jax.random.fold_in(jax.random.key(config.seed, impl=config.dropout_bits), state.step)
        with constraints_on(mesh):
            loss, measures, gradients = accumulated_gradients(
                _resolved(config, mesh, batch), is_image_id, state.params, batch, key
            )
        gradients = only_image_columns(gradients, config, is_image_id)
        norm = optax.tree.norm(gradients)
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm) & (norm <= limit))
        trained, frozen = split(state.params, config)
        before = state.opt_state.optimizer if config.ema else state.opt_state
        updates, opt_state = optimizer.update(gradients, before, trained)
        updates = only_image_columns(updates, config, is_image_id)
        trained = _unless(bad, optax.apply_updates(trained, updates), trained)
        opt_state = _unless(bad, opt_state, before)
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
            "total_loss": loss,
            "gradient_norm": norm,
            "bad": bad,
        }
        return next_state, metrics

    shardings = state_shardings(config, mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=step_compiler_options(config, mesh),
    )


def make_signals(config: TrainConfig, mesh: jax.sharding.Mesh) -> Callable[[Any], dict[str, Array]]:
    """Returns a jitted function of the parameters: their norm, and per layer the RMS of the QK-norms' scales.

    The scales start at 1; growing scales indicate diverging attention (section 2.3 of the paper).
    """

    def signals(params):
        found = {"parameter_norm": optax.tree.norm(params)}
        attention = params["layers"]["attention"]
        for name in ("q_norm", "k_norm"):
            if name in attention:
                squares = jnp.square(attention[name]["scale"].astype(jnp.float32))
                found[f"{name}_scale"] = jnp.sqrt(jnp.mean(squares, axis=(1, 2)))  # [L]
        return found

    return jax.jit(signals, in_shardings=(state_shardings(config, mesh).params,), out_shardings=replicated(mesh))


def make_evaluation_step(
    config: TrainConfig, is_image_id: np.ndarray, mesh: jax.sharding.Mesh
) -> Callable[[Any, Batch], dict[str, Array]]:
    """Returns a jitted function of parameters and a Batch that returns the sums of `weighted_loss`.

    Like training, it processes the batch in `config.accumulation` parts, so that it needs no more memory.
    """

    def evaluate(params, batch: Batch):
        resolved, total_weight = _resolved(config, mesh, batch), jnp.sum(batch.loss_weights)

        def sums_of(part: Batch) -> dict[str, Array]:
            return batch_loss(resolved, is_image_id, params, part, total_weight=total_weight)[1].sums

        with constraints_on(mesh):
            sums = jax.lax.map(sums_of, _in_parts(config, batch))
        return jax.tree.map(lambda each: jnp.sum(each, axis=0), sums)

    return jax.jit(
        evaluate,
        in_shardings=(state_shardings(config, mesh).params, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=step_compiler_options(config, mesh),
    )
