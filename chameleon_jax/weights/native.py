"""Our own format: config.json, an Orbax folder of parameters, and the tokenizer's folder."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.config import (
    ImageTokenizerConfig,
    LoRAConfig,
    PreprocessingConfig,
    TransformerConfig,
    from_dict,
    to_dict,
)
from chameleon_jax.errors import FileError
from chameleon_jax.models.lora import merge
from chameleon_jax.runtime.arrays import check_arrays, load_arrays, save_arrays
from chameleon_jax.runtime.checksums import is_small
from chameleon_jax.runtime.cloud import as_path, copy_folder
from chameleon_jax.runtime.distributed import is_first
from chameleon_jax.runtime.files import read_json, write_json
from chameleon_jax.runtime.folders import Kind, model_section, new_shared_folder
from chameleon_jax.runtime.headers import FORMAT_VERSION, read_header, with_checksum
from chameleon_jax.tokens.chat import ChatTemplate
from chameleon_jax.tokens.documents import (
    NOT_ASKED_FOR,
    TOKENIZER_FILES,
    DocumentTokenizer,
    abstract_image_params,
    read_image_config,
)
from chameleon_jax.weights.card import CARD, card, write_card
from chameleon_jax.weights.checkpoint import Checkpoint, abstract_params, check_template, without_image_tokenizer
from chameleon_jax.weights.layout import Entry, has_decoder
from chameleon_jax.weights.sources import MemoryWeights, Progress, Weights, leaves_of, tree_of

MODEL = Kind(
    "a model",
    lambda folder: "num_layers" in model_section(folder / "config.json"),
    ("config.json", CARD, "params/*", *(f"tokenizer/{pattern}" for pattern in TOKENIZER_FILES)),
)


class OrbaxWeights:
    """Parameters in one of our Orbax folders.

    `fetch`, used when converting to another format, reads the whole folder into memory once.
    """

    def __init__(self, path: Path, abstract: Any, checksums: Mapping[str, str] | None):
        stored = leaves_of(check_arrays(path, abstract))
        self._path, self._abstract, self._checksums = path, leaves_of(abstract), checksums
        self.dtypes = collections.Counter(str(np.dtype(leaf.dtype)) for leaf in stored.values())
        self.dtype = np.dtype(jnp.result_type(*(leaf.dtype for leaf in stored.values())))
        self.nbytes = sum(int(np.prod(leaf.shape)) * self.dtype.itemsize for leaf in self._abstract.values())

    def __contains__(self, leaf: str) -> bool:
        return leaf in self._abstract

    def place(
        self, abstract: Mapping[str, jax.ShapeDtypeStruct], progress: Progress = lambda size: None
    ) -> dict[str, jax.Array]:
        leaves = leaves_of(load_arrays(self._path, tree_of(abstract), self._checksums))
        for name, leaf in leaves.items():
            if not _all_finite(leaf):
                raise FileError(f"{self._path}: {name} holds infinite values or NaN; the training diverged")
            progress(leaf.size * self.dtype.itemsize)
        return leaves

    @functools.cached_property
    def _in_memory(self) -> MemoryWeights:
        stored = {name: jax.ShapeDtypeStruct(leaf.shape, self.dtype) for name, leaf in self._abstract.items()}
        return MemoryWeights(self.place(stored))

    def fetch(self, entry: Entry, dtype: np.dtype) -> np.ndarray:
        return self._in_memory.fetch(entry, dtype)


def _all_finite(leaf: jax.Array) -> bool:
    return bool(np.isfinite(np.asarray(leaf)).all() if is_small(leaf) else _all_finite_on_device(leaf))


@jax.jit
def _all_finite_on_device(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def find_native(folder: Path) -> Path | None:
    """The model folder: `folder` itself, or the model inside the folder of a run or of the demo."""
    for place in (folder, folder / "model", folder / "run" / "model"):
        if (place / "params").exists() or "format_version" in _header(place):
            return place
    return None


def _header(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    header = read_json(path) if path.is_file() else {}
    return header if isinstance(header, dict) else {}


def open_native(folder: Path) -> Checkpoint:
    """Opens a model that `write_native` wrote: reads config and tokenizer, and checks the arrays against the config.

    Raises:
      FileError: if anything is missing or damaged, or was written by a newer version.
    """
    path = folder / "config.json"
    header = read_header(path)
    config = from_dict(TransformerConfig, header.get("model"), f"{path}: model")
    for name in ("vocab_size", "context_length"):
        if getattr(config, name) is None:
            raise FileError(f"{path}: model.{name} = null: must be a whole number")
    tokenizer = folder / "tokenizer"
    parts = DocumentTokenizer.load(tokenizer, with_image=False) if tokenizer.exists() else None
    missing = dict(parts.missing) if parts else {name: f"there is no {tokenizer}" for name in ("text", "vocabulary")}
    image_config, image_weights, preprocessing = None, None, PreprocessingConfig()
    if (tokenizer / "image").exists():
        missing.pop("image", None)
        with without_image_tokenizer(missing):
            image_config, image_weights, preprocessing = open_native_image_tokenizer(tokenizer / "image")
            if header.get("prompt_fit") is not None:
                fit = {"fit": header["prompt_fit"]}
                preprocessing = from_dict(PreprocessingConfig, to_dict(preprocessing) | fit, f"{path}: prompt_fit")
            if not has_decoder(image_config, image_weights):
                missing["decoder"] = f"{tokenizer / 'image'} was written without the image decoder"
    elif missing.get("image") == NOT_ASKED_FOR:
        missing["image"] = f"there is no {tokenizer / 'image'}"
    return Checkpoint(
        folder=folder,
        format="chameleon",
        layout=f"our own, version {header['format_version']}",
        config=config,
        weights=OrbaxWeights(folder / "params", abstract_params(config), header.get("checksums")),
        image_config=image_config,
        image_weights=image_weights,
        vocabulary=parts.vocabulary if parts else None,
        text=parts.text if parts else None,
        missing=missing,
        image_head_trained=header.get("image_head_trained"),
        preprocessing=preprocessing,
        chat_template=check_template(header.get("chat_template"), path),
    )


class OpenedImageTokenizer(NamedTuple):
    """An image tokenizer whose weights are read on demand."""

    config: ImageTokenizerConfig
    weights: Weights
    preprocessing: PreprocessingConfig


def open_native_image_tokenizer(folder: Path) -> OpenedImageTokenizer:
    """Opens an image tokenizer that `tokens.documents.save_image_tokenizer` wrote.

    Raises:
      FileError, ConfigError: if anything is missing or damaged.
    """
    config, preprocessing, with_decoder, checksums = read_image_config(folder)
    abstract = abstract_image_params(config, with_decoder)
    return OpenedImageTokenizer(config, OrbaxWeights(folder / "params", abstract, checksums), preprocessing)


def write_trained(
    folder: Path,
    config: TransformerConfig,
    lora: LoRAConfig,
    params: Any,
    tokenizer: Path,
    image_head_trained: bool | None,
    prompt_fit: Literal["crop", "pad"] | None = None,
    chat_template: ChatTemplate | None = None,
    *,
    training: str = "",
    base_model: str = "",
) -> None:
    """Writes the model of a training run. All processes must call it; each writes the arrays of its own devices.

    Args:
      params: the parameters; adapters of config `lora` are merged into them.
      tokenizer: folder of the tokenizer that the run's data was prepared with.
      prompt_fit: how the data's pictures in prompts were made square, if not in the tokenizer's own way.
      chat_template: how the turns of the data's conversations were joined.
      training: what its card says of the training, as Markdown.
      base_model: org/name of the model on the Hugging Face Hub that training started from, if it is one.
    """
    if lora.rank:
        params = jax.jit(functools.partial(merge, config=lora))(params)
    with new_shared_folder(folder, MODEL) as tmp:
        checksums = save_arrays(tmp / "params", params)
        if is_first():
            copy_folder(tokenizer, tmp / "tokenizer")
            write_json(
                tmp / "config.json", _header_of(config, image_head_trained, checksums, prompt_fit, chat_template)
            )
            checkpoint = _described(folder, config, params, tokenizer)
            checkpoint = dataclasses.replace(
                checkpoint, image_head_trained=image_head_trained, chat_template=chat_template, training=training,
                base_model=base_model,
            )  # fmt: skip
            write_card(tmp, as_path(folder), card(checkpoint, "chameleon", checkpoint.dtype))


def _described(folder: Path, config: TransformerConfig, params: Any, tokenizer: Path) -> Checkpoint:
    """What a card says of a model in training; the arrays of its image tokenizer are not read."""
    parts = DocumentTokenizer.load(tokenizer, with_image=False)
    image, missing = None, {}
    if (tokenizer / "image").exists():
        image, _, with_decoder, _ = read_image_config(tokenizer / "image")
        missing = {} if with_decoder else {"decoder": ""}
    return Checkpoint(
        folder, "chameleon", "", config, MemoryWeights(leaves_of(params)), image, None, parts.vocabulary, parts.text,
        missing,
    )  # fmt: skip


def write_native(
    folder: Path,
    config: TransformerConfig,
    params: Any,
    tokenizer: DocumentTokenizer,
    image_head_trained: bool | None,
    chat_template: ChatTemplate | None = None,
) -> None:
    """Writes a model into an empty folder; use inside `runtime.folders.new_folder`."""
    checksums = save_arrays(folder / "params", params)
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "config.json", _header_of(config, image_head_trained, checksums, None, chat_template))


def _header_of(
    config: TransformerConfig,
    image_head_trained: bool | None,
    checksums: dict[str, str],
    prompt_fit: str | None,
    chat_template: ChatTemplate | None,
) -> dict[str, Any]:
    header = {"format_version": FORMAT_VERSION, "model": to_dict(config)}
    if image_head_trained is not None:
        header["image_head_trained"] = image_head_trained
    if prompt_fit is not None:
        header["prompt_fit"] = prompt_fit
    if chat_template is not None:
        header["chat_template"] = chat_template
    return with_checksum(header | {"checksums": checksums})
