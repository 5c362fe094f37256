"""An image tokenizer alone, in any format: ours, that of taming-transformers and Meta, or that of transformers."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.cloud import as_path, is_cloud, on_disk
from chameleon_jax.runtime.files import write_json
from chameleon_jax.runtime.folders import new_folder, recover
from chameleon_jax.runtime.headers import FORMAT_VERSION
from chameleon_jax.tokens.documents import save_image_tokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.weights.checklist import write_checklist
from chameleon_jax.weights.checkpoint import (
    NOTE_FILE,
    ConversionError,
    Format,
    load_image_tokenizer,
    preprocessing_note,
)
from chameleon_jax.weights.formats import open_checkpoint
from chameleon_jax.weights.hub import Fetched, fetch, is_remote
from chameleon_jax.weights.huggingface import is_huggingface
from chameleon_jax.weights.huggingface_writing import write_huggingface_vq
from chameleon_jax.weights.image_tokenizer_files import find_image_tokenizer
from chameleon_jax.weights.meta import find_meta
from chameleon_jax.weights.native import OpenedImageTokenizer, find_native
from chameleon_jax.weights.sources import MemoryWeights, Progress, leaves_of
from chameleon_jax.weights.taming import IMAGE_FILE, require_writable, write_taming

_EXPECTED = (
    "expected config.json and params/ (our own), vqgan.ckpt and vqgan.yaml (Meta's, Anole's), a .ckpt of "
    "taming-transformers with its .yaml, config.json and model.safetensors of transformers' ChameleonVQVAE, or a whole "
    "model"
)


def read_image_tokenizer(path: str | Path, config: str | Path | None = None) -> ImageTokenizer:
    """Reads an image tokenizer of any format, alone or in a whole model.

    Args:
      path: our folder or the run that trained it; the folder `tokenizer` of Meta's release or of Anole; a checkpoint of
        taming-transformers or its run; a folder of transformers' ChameleonVQVAE; a model of any format; in a bucket, or
        hf://org/name.
      config: YAML file that goes with a checkpoint file of taming-transformers. Default: the one beside it.

    Returns:
      The tokenizer, on the first device; without a decoder if the files have none (see `ImageTokenizer.can_decode`).

    Raises:
      FileError, ConfigError: if there is none, or it is damaged, incomplete or of an unsupported kind.
    """
    place, fetched = _local(path)
    if not place.exists():
        raise FileError(f"{path}: holds no image tokenizer (there is no such file or folder)")
    if config is not None and not place.is_file():
        raise FileError(
            f"{place}: is a folder; {config} can only be given with a checkpoint file of taming-transformers"
        )
    found = find_image_tokenizer(place, config, fetched.weights if fetched else "")
    if found is None and (place / "tokenizer" / IMAGE_FILE).is_file():
        found = find_image_tokenizer(place / "tokenizer")
    if found is not None:
        return load_image_tokenizer(*found)
    if not (find_native(place) or find_meta(place) or is_huggingface(place)):
        hint = "its training has not ended" if (place / "checkpoints").is_dir() else _EXPECTED
        raise FileError(f"{place}: holds no image tokenizer ({hint})")
    checkpoint = open_checkpoint(path if fetched else place)
    if checkpoint.image_config is None or checkpoint.image_weights is None:
        raise FileError(f"{place}: holds no image tokenizer ({checkpoint.missing.get('image')})")
    return load_image_tokenizer(checkpoint.image_config, checkpoint.image_weights, checkpoint.preprocessing)


def open_image_tokenizer(path: str | Path) -> OpenedImageTokenizer | None:
    """Opens the image tokenizer alone at `path`, of any format; None if there is none, or a whole model.

    Raises:
      FileError, ConfigError: if there is one that cannot be read.
    """
    place, fetched = _local(path)
    return find_image_tokenizer(place, weights_file=fetched.weights if fetched else "") if place.exists() else None


def _local(path: str | Path) -> tuple[Path, Fetched | None]:
    """The file or folder on this machine, and how it was fetched from the Hub, if it was."""
    if is_remote(path):
        fetched = fetch(str(path))
        return fetched.folder, fetched
    place = as_path(path)
    if is_cloud(path) and (place / "model").is_dir():  # a run: its checkpoints are not needed
        place = place / "model"
    for folder in (place, place / "model") if place.is_dir() else (place,):
        recover(folder)
    return Path(on_disk(place)), None


def write_image_tokenizer(
    tokenizer: ImageTokenizer,
    folder: str | Path,
    format: Format = "chameleon",
    progress: Progress = lambda size: None,
) -> None:
    """Writes an image tokenizer alone. The folder appears only once it is complete.

    Args:
      tokenizer: the image tokenizer.
      folder: the output folder; must not exist.
      format: 'chameleon': our own. 'meta': vqgan.ckpt and vqgan.yaml. 'huggingface': transformers' ChameleonVQVAE, with
        the decoder, which it does not have, in a subfolder.
      progress: called with the size in bytes of each tensor written.

    Raises:
      FileError: if `folder` exists already or cannot be written.
      ConversionError: if the format cannot represent the tokenizer.
    """
    folder = as_path(folder)
    if folder.exists():
        raise FileError(f"{folder}: is there already; choose another folder or remove it first")
    weights = MemoryWeights(leaves_of(jax.tree.map(np.asarray, tokenizer.params)))
    with new_folder(folder) as tmp:
        if format == "chameleon":
            save_image_tokenizer(tokenizer, tmp)
            progress(weights.nbytes)
            return
        if format == "meta":
            require_writable(tokenizer.config, weights, folder)
            write_taming(tmp, tokenizer.config, weights, progress)
        elif format == "huggingface":
            write_huggingface_vq(tmp, tokenizer.config, weights, progress)
        else:
            raise ConversionError(f"format = {format!r}: must be 'chameleon', 'huggingface' or 'meta'")
        if note := preprocessing_note(tokenizer.preprocessing):
            write_json(tmp / NOTE_FILE, {"format_version": FORMAT_VERSION, **note})
        write_checklist(tmp)
