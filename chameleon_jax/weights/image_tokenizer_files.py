"""Finds and opens an image tokenizer alone, in the files of any format."""

from __future__ import annotations

from pathlib import Path

from chameleon_jax.config import ImageTokenizerConfig, PreprocessingConfig
from chameleon_jax.runtime.cloud import on_disk
from chameleon_jax.tokens.documents import IMAGE_TOKENIZER
from chameleon_jax.weights.checkpoint import read_note
from chameleon_jax.weights.huggingface import is_huggingface, is_huggingface_vq, open_huggingface_vq
from chameleon_jax.weights.meta import find_meta
from chameleon_jax.weights.native import OpenedImageTokenizer, find_native, open_native_image_tokenizer
from chameleon_jax.weights.sources import Weights, refuse_unknown
from chameleon_jax.weights.taming import (
    IMAGE_CONFIG_FILE,
    IMAGE_FILE,
    TRAINING,
    config_beside,
    find_checkpoint,
    open_taming,
)


def find_image_tokenizer(
    place: Path, config: str | Path | None = None, weights_file: str = ""
) -> OpenedImageTokenizer | None:
    """Opens the image tokenizer alone in a file or folder; no weights are read.

    Args:
      place: a checkpoint of taming-transformers, or a folder on this machine.
      config: the YAML file that goes with a checkpoint.
      weights_file: for transformers' format, name of the weights file; by default the only one there.

    Returns:
      None if there is no image tokenizer, or it is part of a whole model.

    Raises:
      FileError, ConfigError: if it is damaged, incomplete or of an unsupported kind.
    """
    if place.is_file():
        return _open_taming(place, config) if place.suffix in (".ckpt", ".pt", ".pth") else None
    for folder in (place, place / "model"):  # the latter of a training run
        if IMAGE_TOKENIZER.is_one(folder):
            return open_native_image_tokenizer(folder)
    if is_huggingface_vq(place):
        return _checked(place, *open_huggingface_vq(place, weights_file))
    if find_meta(place) or find_native(place) or is_huggingface(place):
        return None
    if (place / IMAGE_FILE).is_file():
        return _open_taming(place / IMAGE_FILE, place / IMAGE_CONFIG_FILE)
    checkpoint = find_checkpoint(place)
    return checkpoint and _open_taming(checkpoint)


def _open_taming(checkpoint: Path, config: str | Path | None = None) -> OpenedImageTokenizer:
    config = Path(on_disk(config)) if config else config_beside(checkpoint)
    sizes, weights, unused = open_taming(checkpoint, config)
    return _checked(checkpoint, sizes, weights, [key for key in unused if not key.startswith(TRAINING)])


def _checked(place: Path, config: ImageTokenizerConfig, weights: Weights, unused: list[str]) -> OpenedImageTokenizer:
    refuse_unknown(unused, place)
    note = read_note(place if place.is_dir() else place.parent)
    return OpenedImageTokenizer(config, weights, note.get("preprocessing", PreprocessingConfig()))
