"""Which parameters are trained: all, only the adapters, or only the image columns of the output layer."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.config import TrainConfig
from chameleon_jax.models.lora import is_adapter

Params = dict[str, Any]


def is_trained(path: tuple[str, ...], config: TrainConfig) -> bool:
    """Whether the leaf at `path` is trained."""
    if config.lora.rank:
        return is_adapter(path[-1])
    return config.trainable == "all" or path == ("output",)


def split(params: Params, config: TrainConfig) -> tuple[Params, Params]:
    """Splits the parameters into trained and frozen ones; each tree lacks the leaves of the other.

    Only the former have gradients and optimizer state.
    """

    def part(tree: Params, wanted: bool, path: tuple[str, ...] = ()) -> Params:
        found = {}
        for name, child in tree.items():
            if isinstance(child, dict):
                child = part(child, wanted, (*path, name))
                if child:
                    found[name] = child
            elif is_trained((*path, name), config) == wanted:
                found[name] = child
        return found

    return part(params, True), part(params, False)


def join(trained: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    joined = dict(frozen)
    for name, child in trained.items():
        joined[name] = join(child, frozen.get(name, {})) if isinstance(child, dict) else child
    return joined


def only_image_columns(tree: Params, config: TrainConfig, is_image_id: np.ndarray) -> Params:
    """Sets gradients or updates to 0 outside the image columns of the output layer, with `trainable: image_head`."""
    if config.trainable != "image_head":
        return tree
    return {**tree, "output": jnp.where(jnp.asarray(is_image_id), tree["output"], 0)}


def with_fresh_image_head(params: Params, config: TrainConfig, is_image_id: np.ndarray, key: Array) -> Params:
    """`params` with the image columns of the output layer redrawn from a normal distribution of variance 2 / d_model.

    In the released weights these columns are of no use. Anole, which taught the model to draw again, starts from the
    same distribution.
    """
    output = params["output"]
    # Drawn in float32: in bfloat16 the mean is not exactly 0 and large values are missing.
    fresh = jax.random.normal(key, output.shape) * math.sqrt(2 / config.model.d_model)
    return {**params, "output": jnp.where(jnp.asarray(is_image_id), fresh.astype(output.dtype), output)}
