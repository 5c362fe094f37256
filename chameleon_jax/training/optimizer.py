"""Optimizers and learning-rate schedules of the paper's recipe (section 2.3), and Muon as an alternative."""

from __future__ import annotations

from typing import Any

import jax
import optax

from chameleon_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then decay to `final_fraction` of it at `steps`."""
    peak, decay_steps = config.learning_rate, max(steps - config.warmup_steps, 1)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
    elif config.schedule == "exponential":
        decay = optax.exponential_decay(peak, decay_steps, config.final_fraction)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * config.final_fraction, decay_steps)
    else:
        decay = optax.constant_schedule(peak)
    # The first step already learns: warm-up reaches the peak at `warmup_steps`, and is not 0 at step 0.
    warmup = optax.linear_schedule(peak / max(config.warmup_steps, 1), peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [config.warmup_steps]) if config.warmup_steps else decay


def _name(path: tuple) -> str:
    return path[-1].key


def decay_mask(params: Any) -> Any:
    """True for weight matrices and embeddings, False for norm scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in ("scale", "bias"), params)


def _muon_dimensions(params: Any) -> Any:
    """Which axes of each parameter are a matrix's input and output; None for what AdamW takes.

    The first axis of layer weights counts layers. Embedding and output are left to AdamW, as Muon's authors advise.
    """
    axes = {
        **dict.fromkeys(("q", "k", "v"), ((1,), (2, 3))),
        "o": ((1, 2), (3,)),
        **dict.fromkeys(("gate", "up", "down"), ((1,), (2,))),
    }

    def dimensions(path, _):
        reduction, output = axes.get(_name(path), (None, None))
        return reduction and optax.contrib.MuonDimensionNumbers(reduction, output)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW, or Muon for the matrices inside the layers and AdamW for the rest."""
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        optimizer = optax.adamw(
            schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask
        )
    else:
        # consistent_rms gives Muon's updates the size of AdamW's, so that one learning rate serves both.
        optimizer = optax.contrib.muon(
            schedule,
            beta=config.muon_momentum,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=_muon_dimensions,
            consistent_rms=0.2,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
