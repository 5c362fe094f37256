"""Opens a model directory of any format, and writes one in any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chameleon_jax.config import DType
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.folders import Kind, new_folder
from chameleon_jax.runtime.progress import console
from chameleon_jax.weights.card import card, training_of, write_card
from chameleon_jax.weights.checklist import CHECKLIST, write_checklist
from chameleon_jax.weights.checkpoint import NOTE_FILE, Checkpoint, ConversionError, Format, check_parts, numpy_dtype
from chameleon_jax.weights.hub import Fetched, fetch, is_remote, repository_of, require_folder
from chameleon_jax.weights.huggingface import is_huggingface, open_huggingface
from chameleon_jax.weights.huggingface_writing import write_huggingface
from chameleon_jax.weights.image_tokenizer_files import find_image_tokenizer
from chameleon_jax.weights.layout import has_decoder, image_tokenizer_entries
from chameleon_jax.weights.meta import find_meta, open_meta, write_meta
from chameleon_jax.weights.native import MODEL, find_native, open_native, write_native

_EXPECTED = (
    "expected config.json and params/ (our own), config.json and safetensors (Hugging Face), or params.json and "
    "consolidated*.pth (Meta)"
)


def open_checkpoint(path: str | Path, image_tokenizer: str | Path | None = None) -> Checkpoint:
    """Opens a model directory of any supported format; no weights are read.

    Args:
      path: a directory, or hf://org/name on the Hugging Face Hub; see `hub`.
      image_tokenizer: another directory to take the image tokenizer from, such as `tokenizer` in Meta's release, as
        Hugging Face's lack the image decoder; or one of your own whose decoder was trained on.

    Raises:
      FileError: if there is no model, or it is damaged or incomplete.
    """
    checkpoint = _open_fetched(fetch(str(path))) if is_remote(path) else _open_folder(require_folder(path))
    checkpoint.training, checkpoint.base_model = training_of(checkpoint.folder), repository_of(path)
    if image_tokenizer is not None:
        checkpoint = _with_image_tokenizer(checkpoint, image_tokenizer)
    if warning := checkpoint.warn_of_image_tokenizer():
        checkpoint.warnings.append(warning)
    return check_parts(checkpoint)


def _open_folder(folder: Path) -> Checkpoint:
    native, meta = find_native(folder), find_meta(folder)
    found = [kind for kind, there in (("our own", native), ("Meta's", meta), ("Hugging Face's", is_huggingface(folder)))
             if there]  # fmt: skip
    if len(found) > 1:
        raise FileError(f"{folder}: holds files of {' and '.join(found)} format; two models are mixed in one folder")
    if native:
        return open_native(native)
    if meta:
        return open_meta(meta)
    if found:
        return open_huggingface(folder)
    hint = _EXPECTED
    if (folder / "checkpoints").exists():
        hint = "its training has not finished"
    elif any(folder.glob("model-*.safetensors")):
        hint = "there are safetensors, but no model.safetensors.index.json; download it too"
    raise FileError(f"{folder}: is not a model folder ({hint})")


def _open_fetched(fetched: Fetched) -> Checkpoint:
    """Opens a download in the format that was fetched: the shared cache may hold files of another format beside it."""
    if fetched.format == "image tokenizer":
        raise FileError(f"{fetched.folder}: holds only an image tokenizer, not a model")
    if fetched.format == "chameleon":
        return open_native(fetched.folder)
    return open_meta(fetched.folder) if fetched.format == "meta" else open_huggingface(fetched.folder, fetched.weights)


def _with_image_tokenizer(checkpoint: Checkpoint, name: str | Path) -> Checkpoint:
    fetched = fetch(str(name)) if is_remote(name) else None
    folder = fetched.folder if fetched else require_folder(name)
    if opened := find_image_tokenizer(folder, weights_file=fetched.weights if fetched else ""):
        config, weights, reason = opened.config, opened.weights, "it has no decoder"
    else:
        other = _open_fetched(fetched) if fetched else _open_folder(folder)
        config, weights = other.image_config, other.image_weights
        reason = other.missing.get("image") or other.missing.get("decoder")
    if config is None or weights is None or not has_decoder(config, weights):
        raise FileError(
            f"{folder}: holds no complete image tokenizer ({reason}); expected vqgan.yaml and vqgan.ckpt in it"
        )
    missing = {part: why for part, why in checkpoint.missing.items() if part not in ("image", "decoder")}
    return dataclasses.replace(checkpoint, image_config=config, image_weights=weights, missing=missing)


def write_checkpoint(
    checkpoint: Checkpoint,
    folder: str | Path,
    format: Format,
    dtype: DType | None = None,
    shards: int | None = None,
    progress: Callable[[int], None] = lambda size: None,
    replace: bool = False,
) -> None:
    """Writes a checkpoint in another format. The folder appears only once it is complete.

    Hugging Face's and Meta's formats are written one tensor at a time; our own needs the whole Transformer in memory.

    Args:
      checkpoint: the opened model.
      folder: the output folder; must not exist unless `replace`.
      format: 'chameleon', 'huggingface' or 'meta'.
      dtype: dtype of the Transformer's parameters, by default unchanged. The image tokenizer stays float32.
      shards: model-parallel size, for 'meta' only; by default `qk_norm_groups`.
      progress: called with the size in bytes of each tensor written.
      replace: replace `folder` if it holds a model and nothing else. Any other folder is never replaced.

    Raises:
      FileError: if `folder` exists already or cannot be written.
      ConversionError: if the format cannot represent the model.
    """
    folder = as_path(folder)
    if not replace and folder.exists():
        raise FileError(f"{folder}: is there already; choose another folder or remove it first")
    if shards is not None and (format != "meta" or shards < 1):
        raise ConversionError(f"shards = {shards}: only format 'meta' has shards, 1 or more")
    config = checkpoint.config
    numbers = numpy_dtype(dtype or checkpoint.dtype)
    if format != "chameleon" and checkpoint.preprocessing.fit == "pad":
        console.print(
            f"{folder}: this model pads pictures in prompts (fit: pad), which only {NOTE_FILE} records; other programs "
            "crop them"
        )
    with new_folder(folder, ANY_MODEL) as tmp:
        if format == "huggingface":
            write_huggingface(checkpoint, tmp, numbers, progress)
        elif format == "meta":
            write_meta(checkpoint, tmp, numbers, progress, shards or config.qk_norm_groups)
        else:
            params = checkpoint.load_params(None, dtype, progress)
            trained, template = checkpoint.image_head_trained, checkpoint.chat_template
            write_native(tmp, config, params, checkpoint.load_tokenizer(), trained, template)
        if format != "chameleon":  # our own format stores checksums of its arrays
            write_checklist(tmp)
        write_card(tmp, folder, card(checkpoint, format, str(numbers)))  # in no checklist, as people edit it


def _is_model(folder: Path) -> bool:
    return MODEL.is_one(folder) or is_huggingface(folder) or find_meta(folder) == folder


ANY_MODEL = Kind(
    "a model",
    _is_model,
    (
        *MODEL.contents,
        # What `write_huggingface` and `write_meta` write.
        "model*.safetensors", "model.safetensors.index.json", "image_decoder/model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json",
        "params.json", "consolidate_params.json", "consolidated*.pth", "tokenizer/text_tokenizer.json",
        "tokenizer/vqgan.yaml", "tokenizer/vqgan.ckpt", NOTE_FILE, CHECKLIST,
    ),
)  # fmt: skip


def bytes_to_write(checkpoint: Checkpoint, dtype: DType | None) -> int:
    """About how many bytes `write_checkpoint` reports in all."""
    size = checkpoint.weights.nbytes * numpy_dtype(dtype or checkpoint.dtype).itemsize
    size //= checkpoint.weights.dtype.itemsize
    if checkpoint.image_config is not None and checkpoint.image_weights is not None:
        entries = image_tokenizer_entries(checkpoint.image_config)
        size += sum(4 * int(np.prod(entry.stored)) for entry in entries if entry.leaf in checkpoint.image_weights)
    return size
