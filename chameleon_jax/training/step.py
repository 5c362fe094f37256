"""One training step and one evaluation step: pure functions, jitted with shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.batch import Batch
from chameleon_jax.config import TrainConfig
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.sharding import batch_sharding, logical_rules, replicated
from chameleon_jax.training.losses import weighted_loss
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.state import TrainState, state_shardings


def batch_loss(
    config: TrainConfig, is_image_id: np.ndarray, params: Any, batch: Batch, dropout_key: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """The loss of `params` on `batch`, and its parts; dropout is on if a key is given.

    Args:
      is_image_id: bool `[vocab_size]`, which ids are image codes.
    """
    logits = Transformer(config.model).apply(
        {"params": params},
        batch.inputs,
        batch.positions,
        batch.segment_ids,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    is_image = jnp.asarray(is_image_id, jnp.float32)[batch.targets]
    return weighted_loss(logits, batch.targets, batch.loss_weights, is_image, config.z_loss)


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
            (loss, sums), grads = jax.value_and_grad(
                lambda params: batch_loss(config, is_image_id, params, batch, key), has_aux=True
            )(state.params)
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
    )


def make_evaluation_step(
    config: TrainConfig, is_image_id: np.ndarray, mesh: jax.sharding.Mesh
) -> Callable[[Any, Batch], dict[str, Array]]:
    """Returns a jitted function of parameters and a Batch that gives the sums of `weighted_loss`."""

    def evaluate(params, batch: Batch):
        with logical_rules():
            return batch_loss(config, is_image_id, params, batch)[1]

    return jax.jit(
        evaluate,
        in_shardings=(state_shardings(config, mesh).params, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
