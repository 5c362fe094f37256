"""Optimizers and learning-rate schedules of the paper's recipe (section 2.3), and Muon as an alternative."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
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
    # Warm-up is above 0 at step 0 and reaches the peak at `warmup_steps`.
    warmup = optax.linear_schedule(peak / max(config.warmup_steps, 1), peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [config.warmup_steps]) if config.warmup_steps else decay


def _name(path: tuple) -> str:
    return path[-1].key


def decay_mask(params: Any) -> Any:
    """True for weight matrices and embeddings, False for norm scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in ("scale", "bias"), params)


_MATRIX_AXES = {
    **dict.fromkeys(("q", "k", "v"), ((1,), (2, 3))),
    "o": ((1, 2), (3,)),
    **dict.fromkeys(("gate", "up", "down"), ((1,), (2,))),
}
"""Input and output axes of the matrices in the layers of the Transformer. Axis 0 is the layer axis."""
_KERNEL_AXES = ((0, 1, 2), (3,))
"""Of the convolutions of the image tokenizer: height, width and input channels are one axis of a matrix."""
_OUTER_CONVOLUTIONS = (("encoder", "conv_in"), ("decoder", "conv_out"))


def _matrix_axes(path: tuple, array: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Input and output axes of what Muon trains; None for what AdamW trains: embedding, output, the convolutions that
    read and write pixels, and norms, as Muon's authors recommend."""
    *modules, name = (key.key for key in path)
    if name == "kernel" and array.ndim == 4:
        return None if tuple(modules[-2:]) in _OUTER_CONVOLUTIONS else _KERNEL_AXES
    return _MATRIX_AXES.get(name)


def _optimizer_of_each(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, array: "muon" if _matrix_axes(path, array) else "adamw", params
    )


def _muon_dimensions(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, array: optax.contrib.MuonDimensionNumbers(*_matrix_axes(path, array)), params
    )


def keep_moments_in(optimizer: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """`optimizer` with its moments stored in `dtype` between updates; all computations are in float32.

    The structure of the state does not change, so its paths still end in those of the parameters.
    """

    def cast(state: Any, dtype: Any) -> Any:
        def leaf(path: tuple, value: Any) -> Any:
            # By name, as other floats, such as the coefficients in Muon's state, must not be rounded.
            is_moment = any(getattr(key, "name", None) in ("mu", "nu") for key in path)
            return value.astype(dtype) if is_moment else value

        return jax.tree_util.tree_map_with_path(leaf, state)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(optimizer.init(params), dtype), update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW, or Muon for what is inside the layers and AdamW for the rest."""
    schedule = make_schedule(config, steps)
    optimizer = optax.adamw(
        schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask
    )
    if config.name == "muon":
        muon = optax.contrib.muon(
            schedule,
            beta=config.muon_momentum,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_muon_dimensions,
            consistent_rms=0.2,  # the RMS of AdamW's updates, so that both can use one learning rate
        )
        optimizer = optax.partition({"muon": muon, "adamw": optimizer}, _optimizer_of_each)
    if config.moment_dtype != "float32":
        optimizer = keep_moments_in(optimizer, config.moment_dtype)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
