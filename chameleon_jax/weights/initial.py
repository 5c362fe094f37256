"""Initial parameters of a training run, taken from a finished model in any format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from chameleon_jax.config import ConfigError, TrainConfig, to_dict
from chameleon_jax.runtime.distributed import first_difference, is_first
from chameleon_jax.runtime.progress import bytes_bar, console
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.checkpoint import Checkpoint
from chameleon_jax.weights.sources import leaves_of, tree_of


def initial_params(
    checkpoint: Checkpoint, config: TrainConfig, vocabulary: Vocabulary
) -> Callable[[Any], dict[str, Any]]:
    """Returns a function that loads the parameters described by a tree of `jax.ShapeDtypeStruct` onto their devices.

    Args:
      checkpoint: the opened model.
      config: the config of the run.
      vocabulary: the vocabulary of the prepared data.

    Raises:
      ConfigError: if the model's architecture is not `config.model`, or its vocabulary is not that of the data.
    """
    # Nothing is initialised at random, and training may use another sequence length.
    may_differ = {name: getattr(config.model, name) for name in ("init_std", "context_length")}
    own_sizes = dataclasses.replace(checkpoint.config, **may_differ)
    if difference := first_difference(to_dict(own_sizes), to_dict(config.model)):
        name, found, wanted = difference
        raise ConfigError(f"model.{name} = {wanted!r}: {checkpoint.folder} has {found!r}; give the model's own sizes")
    own = checkpoint.vocabulary
    if own is None and is_first():
        console.print(f"{checkpoint.folder} does not describe its vocabulary; assuming that it is that of the data.")
    elif own is not None and not _same(own, vocabulary):
        raise ConfigError(
            f"data = {config.data!r}: its ids are not those of {checkpoint.folder}; prepare the data with "
            f"--tokenizer {checkpoint.folder}"
        )

    def load(target: Any) -> dict[str, Any]:
        with bytes_bar(f"load {checkpoint.folder.name}", checkpoint.weights.nbytes) as progress:
            return tree_of(checkpoint.weights.place(leaves_of(target), progress))

    return load


def _same(one: Vocabulary, other: Vocabulary) -> bool:
    return all(np.array_equal(value, other.to_dict().get(name)) for name, value in one.to_dict().items())
