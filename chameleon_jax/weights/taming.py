"""Image tokenizers in the files of taming-transformers (Esser et al. 2021): a torch checkpoint and a YAML config.

The folder `tokenizer` of Meta's release, which Anole's has too, is in the same format: vqgan.ckpt and vqgan.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from chameleon_jax.config import ImageTokenizerConfig, read_yaml
from chameleon_jax.errors import FileError, printable
from chameleon_jax.runtime.files import write_text
from chameleon_jax.weights.checkpoint import ConversionError, require_kinds
from chameleon_jax.weights.layout import image_tokenizer_entries
from chameleon_jax.weights.sources import FileWeights, Progress, Weights, match
from chameleon_jax.weights.stored import StoredTensor
from chameleon_jax.weights.torch_files import read_torch_file
from chameleon_jax.weights.torch_writing import write_torch_file
from chameleon_jax.weights.vqgan import meta_config, read_vqgan_config, why_not_released

IMAGE_CONFIG_FILE, IMAGE_FILE = "vqgan.yaml", "vqgan.ckpt"

TRAINING = ("loss.", "colorize", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
"""Beginnings of the names of tensors that only training uses: discriminator, LPIPS and averages of the codebook."""

_OTHER_MODELS = {
    "GumbelVQ": "its codes are the largest of logits, not the nearest of a codebook",
    "AutoencoderKL": "it has no codebook",
    "Net2NetTransformer": "it is a Transformer over codes; give the files of its first stage",
}
"""Last parts of `model.target` of what is not a VQGAN, and why."""


def open_taming(checkpoint: Path, config: Path) -> tuple[ImageTokenizerConfig, FileWeights, list[str]]:
    """Opens an image tokenizer; also returns the names of tensors that it does not use.

    Raises:
      FileError: if a file or a tensor is missing or does not fit, or it is another kind of model.
    """
    sizes = _read_config(config)
    content = read_torch_file(checkpoint, skip_objects=True)
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping):
        raise FileError(f"{checkpoint}: expected a mapping with state_dict in it")
    tensors = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, StoredTensor)}
    if "quantize.proj.weight" in tensors:
        raise FileError(f"{checkpoint}: holds quantize.proj.weight, so it is a GumbelVQ: {_OTHER_MODELS['GumbelVQ']}")
    found, unused = match(image_tokenizer_entries(sizes), [tensors], checkpoint)
    return sizes, FileWeights(found), unused


def _read_config(path: Path) -> ImageTokenizerConfig:
    content = read_yaml(path)
    require_kinds(content, {"model": dict}, path)
    model = content.get("model") or {}
    require_kinds(model, {"params": dict}, f"{path}: model")
    target = str(model.get("target") or "")
    if why := _OTHER_MODELS.get(target.rsplit(".", 1)[-1]):
        raise FileError(f"{path}: model.target = {printable(target, 80)!r}: only VQModel can be read: {why}")
    params = dict(model.get("params") or {})
    ddconfig = params.pop("ddconfig", None) or {}
    require_kinds(ddconfig, {}, f"{path}: model.params.ddconfig")
    return read_vqgan_config({**params, **ddconfig}, f"{path}: model.params", {})


def config_beside(checkpoint: Path) -> Path:
    """The config of a checkpoint: of the same name, the only one in its folder, or in `configs` of its run.

    Raises:
      FileError: if there is none, or several.
    """
    own = checkpoint.with_suffix(".yaml")
    if own.is_file():
        return own
    for pattern in ("*.yaml", "../configs/*-project.yaml", "../configs/*.yaml"):
        found = sorted(checkpoint.parent.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found[:4])
            raise FileError(f"{checkpoint}: its config may be any of {names}; give it too, or name it {own.name}")
    raise FileError(f"{checkpoint}: there is no {own.name} beside it; fetch or give the config with its ddconfig too")


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in a folder or in a run of taming-transformers: `last.ckpt`, or the only one.

    Raises:
      FileError: if there are several.
    """
    for place in (folder, folder / "checkpoints", folder / "ckpts"):
        found = sorted(place.glob("*.ckpt"))
        if (place / "last.ckpt") in found:
            return place / "last.ckpt"
        if len(found) > 1:
            names = ", ".join(file.name for file in found[:4])
            raise FileError(f"{place}: holds {len(found)} checkpoints ({names}); give one of them")
        if found:
            return found[0]
    return None


def require_writable(config: ImageTokenizerConfig, weights: Weights, where: str | Path) -> None:
    """Raises `ConversionError` if Meta's code cannot represent an image tokenizer; `where` says whose it is."""
    if unreleased := why_not_released(config):
        raise ConversionError(
            f"{where}: an image tokenizer with {unreleased} cannot be written in Meta's format, which only has VQGANs "
            "of the released kind. Format 'chameleon' can hold every model"
        )
    if any(entry.leaf not in weights for entry in image_tokenizer_entries(config)):
        raise ConversionError(
            f"{where}: the weights lack the image decoder, which Meta's format needs; take the image tokenizer of "
            "Meta's release (for a model --image-tokenizer …/tokenizer), or write format 'huggingface' or 'chameleon'"
        )


def write_taming(folder: Path, config: ImageTokenizerConfig, weights: Weights, progress: Progress) -> None:
    """Writes vqgan.yaml and vqgan.ckpt as Meta's code reads them into an existing folder; see `require_writable`."""
    entries = {entry.key: entry for entry in image_tokenizer_entries(config)}
    content = {"model": {"params": meta_config(config)}}
    write_text(folder / IMAGE_CONFIG_FILE, yaml.safe_dump(content, sort_keys=False))
    specs = {key: (entry.stored, np.dtype(np.float32)) for key, entry in entries.items()}
    value = lambda key: weights.fetch(entries[key], np.dtype(np.float32))  # noqa: E731
    write_torch_file(folder / IMAGE_FILE, specs, value, progress, top="state_dict")
