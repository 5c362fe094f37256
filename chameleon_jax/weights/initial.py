"""Initial parameters of a training run, taken from a finished model or image tokenizer in any format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import ConfigError, ImageTokenizerConfig, TrainConfig, to_dict
from chameleon_jax.models import vq
from chameleon_jax.runtime.distributed import first_difference, is_first
from chameleon_jax.runtime.progress import bytes_bar, console
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.checkpoint import Checkpoint
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer
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


def initial_image_tokenizer(path: str | Path, config: ImageTokenizerConfig) -> ImageTokenizer:
    """Reads the image tokenizer that a training run starts from.

    Args:
      path: an image tokenizer of any format; see `read_image_tokenizer`.
      config: the architecture to train. It may have another resolution than the tokenizer, if attention follows the
        same blocks.

    Raises:
      FileError: if the tokenizer cannot be read.
      ConfigError: if its architecture is not `config`, or it has no decoder.
    """
    tokenizer = read_image_tokenizer(path)
    of_maps = ("resolution", "attn_resolutions")
    found, wanted = (
        {key: value for key, value in to_dict(sizes).items() if key not in of_maps}
        for sizes in (tokenizer.config, config)
    )
    if difference := first_difference(found, wanted):
        name, theirs, ours = difference
        raise ConfigError(f"model.{name} = {ours!r}: {path} has {theirs!r}; give the tokenizer's own sizes")
    if _names(tokenizer.config) != _names(config):
        raise ConfigError(
            f"model.attn_resolutions = {list(config.attn_resolutions)}: attention would follow other blocks than in "
            f"{path}, which has {list(tokenizer.config.attn_resolutions)} at resolution {tokenizer.config.resolution}"
        )
    if not tokenizer.can_decode:
        raise ConfigError(
            f"{path}: has no image decoder, which training needs; take the image tokenizer of Meta's release"
        )
    return tokenizer


def _names(config: ImageTokenizerConfig) -> set[str]:
    return set(leaves_of(vq.abstract_params(config)))


def _same(one: Vocabulary, other: Vocabulary) -> bool:
    return all(np.array_equal(value, other.to_dict().get(name)) for name, value in one.to_dict().items())
