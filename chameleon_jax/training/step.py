"""One training step and one evaluation step: pure functions, jitted with shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.batch import Batch
from chameleon_jax.compiler_options import train_step_options
from chameleon_jax.config import TrainConfig
from chameleon_jax.models.attention_choice import resolved
from chameleon_jax.models.transformer import Transformer, unembed
from chameleon_jax.sharding import batch_sharding, logical_rules, replicated
from chameleon_jax.training.losses import chunked_token_losses, token_losses, weighted_loss
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.state import TrainState, state_shardings


def batch_loss(
    config: TrainConfig,
    is_image_id: np.ndarray,
    params: Any,
    batch: Batch,
    dropout_key: Array | None = None,
    total_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The loss of `params` on `batch`, and its parts; dropout is on if a key is given.

    Args:
      is_image_id: bool `[vocab_size]`, which ids are image codes.
      total_weight: sum of the loss weights of the whole batch, if this is a part of it.
    """
    hidden = Transformer(config.model).apply(
        {"params": params},
        batch.inputs,
        batch.positions,
        batch.segment_ids,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        hidden=True,
    )
    logits_of = lambda x: unembed(x, params["output"])  # noqa: E731
    if config.loss_chunk:
        losses = chunked_token_losses(hidden, logits_of, batch.targets, config.loss_chunk)
    else:
        losses = token_losses(logits_of(hidden), batch.targets)
    is_image = jnp.asarray(is_image_id, jnp.float32)[batch.targets]
    return weighted_loss(*losses, batch.loss_weights, is_image, config.z_loss, total_weight)


def accumulated_gradients(
    config: TrainConfig, is_image_id: np.ndarray, params: Any, batch: Batch, dropout_key: Array | None
) -> tuple[Array, dict[str, Array], Any]:
    """Loss, its parts and float32 gradients of a batch that is read in `config.accumulation` parts."""
    loss_and_gradients = jax.value_and_grad(batch_loss, argnums=2, has_aux=True)
    if config.accumulation == 1:
        (loss, sums), gradients = loss_and_gradients(config, is_image_id, params, batch, dropout_key)
        return loss, sums, gradients

    # Every part takes rows from all devices: the first axis stays cut as it was.
    parts = jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, config.accumulation, *rows.shape[1:]), 1, 0), batch)
    total_weight = jnp.sum(batch.loss_weights)

    def of_part(number: Array, part: Batch):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
        (loss, sums), gradients = loss_and_gradients(config, is_image_id, params, part, key, total_weight)
        return loss, sums, jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients)

    def add(sums, numbered):
        return jax.tree.map(jnp.add, sums, of_part(*numbered)), None

    numbered = (jnp.arange(config.accumulation), parts)
    shapes = jax.eval_shape(of_part, *jax.tree.map(lambda each: each[0], numbered))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, numbered)[0]


def _resolved(config: TrainConfig, mesh: jax.sharding.Mesh, batch: Batch) -> TrainConfig:
    """`config` with the attention backend for these devices and the length of these rows."""
    return dataclasses.replace(config, model=resolved(config.model, mesh, batch.inputs.shape[1]))


def make_train_step(
    config: TrainConfig, is_image_id: np.ndarray, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Returns the jitted step; it gives back the next state (the old one is donated) and metrics.

    Dropout follows from the seed and the step number alone, so a resumed run repeats a run that never stopped.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)

    def step(state: TrainState, batch: Batch):
        key = None
        if config.model.dropout > 0:
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        with logical_rules():
            loss, sums, grads = accumulated_gradients(_resolved(config, mesh, batch), is_image_id, state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**sums, "total_loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    shardings = state_shardings(config, mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=train_step_options(mesh.devices.flat[0]),
    )


def make_evaluation_step(
    config: TrainConfig, is_image_id: np.ndarray, mesh: jax.sharding.Mesh
) -> Callable[[Any, Batch], dict[str, Array]]:
    """Returns a jitted function of parameters and a Batch that gives the sums of `weighted_loss`."""

    def evaluate(params, batch: Batch):
        with logical_rules():
            return batch_loss(_resolved(config, mesh, batch), is_image_id, params, batch)[1]

    return jax.jit(
        evaluate,
        in_shardings=(state_shardings(config, mesh).params, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
