"""An opened model directory: everything that is known about it, before any weight is read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from chameleon_jax.config import (
    ConfigError,
    DType,
    ImageTokenizerConfig,
    PreprocessingConfig,
    TransformerConfig,
    from_dict,
    to_dict,
)
from chameleon_jax.config.reading import shortened
from chameleon_jax.errors import ChameleonError, FileError
from chameleon_jax.models import transformer
from chameleon_jax.runtime.files import read_json, write_json
from chameleon_jax.runtime.headers import FORMAT_VERSION, check_version
from chameleon_jax.sharding import params_shardings
from chameleon_jax.tokens.chat import TEMPLATES, ChatTemplate
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.text import TextTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.layout import image_tokenizer_entries
from chameleon_jax.weights.sources import Weights, leaves_of, tree_of

Format = Literal["chameleon", "huggingface", "meta"]
NOTE_FILE = "chameleon_jax.json"
"""Written beside Hugging Face's or Meta's files; holds what those formats have no place for."""


UNREADABLE = "it cannot be read: "
"""Prefix of the reason in `Checkpoint.missing` if an image tokenizer exists but is damaged or of an unknown kind."""


class ConversionError(ChameleonError):
    """A model that cannot be represented in the requested format."""


@dataclasses.dataclass
class Checkpoint:
    """The contents of a model directory; arrays are read on demand.

    Attributes:
      folder: the directory.
      format: the format of its files.
      layout: the variant of that format, in words.
      config: architecture of the Transformer.
      weights: parameters of the Transformer.
      image_config: architecture of the image tokenizer, if known.
      image_weights: parameters of the image tokenizer, possibly without the decoder.
      vocabulary: None without a text tokenizer or a map from names to ids.
      text: the text tokenizer.
      missing: which parts are missing ('text', 'image', 'decoder', 'vocabulary'), and why.
      ignored: names of tensors that are not used.
      warnings: anything unusual, one sentence each.
      names: the map from names to ids, if it is known without a text tokenizer.
      image_head_trained: whether the output layer was trained on image codes; None if unknown.
      preprocessing: how pictures are resized to the tokenizer's resolution.
      chat_template: how the turns of conversations were joined in training; None if unknown.
      training: what is known of its training, as Markdown for the model card.
      base_model: the model on the Hugging Face Hub that it was made of, as org/name; '' if none is known.
    """

    folder: Path
    format: Format
    layout: str
    config: TransformerConfig
    weights: Weights
    image_config: ImageTokenizerConfig | None
    image_weights: Weights | None
    vocabulary: Vocabulary | None
    text: TextTokenizer | None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    ignored: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    names: Mapping[str, int] | None = None
    image_head_trained: bool | None = None
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    chat_template: ChatTemplate | None = None
    training: str = ""
    base_model: str = ""

    @property
    def dtype(self) -> DType:
        """bfloat16 if the files are in bfloat16, else float32."""
        return "bfloat16" if str(self.weights.dtype) == "bfloat16" else "float32"

    def load_params(self, mesh: Mesh | None, dtype: DType | None, progress: Callable[[int], None]) -> Any:
        """Loads the parameters onto `mesh` (or the first device) as `dtype`, by default the files' own."""
        abstract = abstract_params(self.config, dtype or self.dtype, mesh)
        return tree_of(self.weights.place(leaves_of(abstract), progress))

    def load_tokenizer(self, *, tolerant: bool = False) -> DocumentTokenizer:
        """Loads those parts of the tokenizer that exist.

        Args:
          tolerant: if the arrays of the image tokenizer are damaged, leave it out and say why in `missing`.
        """
        image = None
        if self.image_config is not None and self.image_weights is not None:
            with without_image_tokenizer(self.missing) if tolerant else contextlib.nullcontext():
                image = load_image_tokenizer(self.image_config, self.image_weights, self.preprocessing)
        codes = self.image_config.codes_per_image if self.image_config is not None else None
        return DocumentTokenizer(self.text, image, self.vocabulary, codes_per_image=codes, missing=self.missing)

    def warn_of_image_tokenizer(self) -> str | None:
        """One line if there is an image tokenizer that cannot be read."""
        reason = self.missing.get("image", "")
        return f"continues without its image tokenizer: {reason}" if reason.startswith(UNREADABLE) else None


def load_image_tokenizer(
    config: ImageTokenizerConfig, weights: Weights, preprocessing: PreprocessingConfig
) -> ImageTokenizer:
    """Loads an image tokenizer onto the first device; without a decoder if the weights have none."""
    leaves = {
        entry.leaf: jax.ShapeDtypeStruct(entry.piece, jnp.float32)
        for entry in image_tokenizer_entries(config)
        if entry.leaf in weights
    }
    return ImageTokenizer(config, tree_of(weights.place(leaves)), preprocessing)


def abstract_params(config: TransformerConfig, dtype: DType = "float32", mesh: Mesh | None = None) -> Any:
    """Shapes, dtypes and (with a mesh) shardings of the Transformer's parameters.

    Raises:
      ConversionError: if the mesh does not divide a parameter evenly.
    """
    boxed = transformer.abstract_params(config, dtype)
    abstract = nn.unbox(boxed)
    if mesh is None:
        return abstract

    def placed(path, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
            raise ConversionError(f"mesh {shape}: does not divide {name} of shape {leaf.shape} evenly") from None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, abstract, params_shardings(boxed, mesh))


def check_parts(checkpoint: Checkpoint) -> Checkpoint:
    """Checks that Transformer, vocabulary and image tokenizer belong together.

    Raises:
      FileError: naming the parts that do not.
    """
    vocabulary, image = checkpoint.vocabulary, checkpoint.image_config
    if vocabulary is None:
        return checkpoint
    if vocabulary.size > checkpoint.config.vocab_size:
        raise FileError(
            f"{checkpoint.folder}: its tokenizer has {vocabulary.size} ids but its Transformer only "
            f"{checkpoint.config.vocab_size}; two models are mixed in one folder"
        )
    if image is not None and checkpoint.image_weights is not None and len(vocabulary.image_ids) != image.num_codes:
        raise FileError(
            f"{checkpoint.folder}: its vocabulary names {len(vocabulary.image_ids)} image codes, its image tokenizer "
            f"has {image.num_codes}; two models are mixed in one folder"
        )
    return checkpoint


@contextlib.contextmanager
def without_image_tokenizer(missing: dict[str, str]) -> Iterator[None]:
    """Records errors of the image tokenizer in `missing` instead of raising: the Transformer is usable without it."""
    try:
        yield
    except (FileError, ConfigError) as error:
        missing.pop("decoder", None)
        missing["image"] = f"{UNREADABLE}{error}"


def check_layers(config: TransformerConfig, tensors: int, folder: Path) -> None:
    """Raises `FileError` if a config has more layers than the files have tensors, before listing those layers."""
    if config.num_layers > tensors:
        raise FileError(
            f"{folder}: its config has {config.num_layers} layers, but its files hold only {tensors} tensors; is the "
            "download complete?"
        )


def check_template(name: Any, path: Path) -> ChatTemplate | None:
    """Returns the chat template that a file names, if any; raises `FileError` if it is unknown."""
    if name is not None and name not in TEMPLATES:
        raise FileError(f"{path}: chat_template = {shortened(name)}: must be one of {', '.join(TEMPLATES)}")
    return name


def read_note(folder: Path) -> dict[str, Any]:
    """Reads what an earlier conversion of ours recorded in `NOTE_FILE`.

    Returns:
      Keyword arguments `image_head_trained`, `preprocessing` and `chat_template` for a `Checkpoint`, and the
      `context_length` of its config if it was recorded; nothing if there is no such file.
    """
    path = folder / NOTE_FILE
    if not path.exists():
        return {}
    note = read_json(path)
    check_version(note, path)
    trained = note.get("image_head_trained")
    if trained not in (True, False, None):
        raise FileError(f"{path}: image_head_trained = {trained!r}: must be true or false")
    preprocessing = from_dict(PreprocessingConfig, note.get("preprocessing", {}), f"{path}: preprocessing")
    require_kinds(note, {"context_length": int}, path)
    length = {"context_length": note["context_length"]} if note.get("context_length") else {}
    template = check_template(note.get("chat_template"), path)
    return {"image_head_trained": trained, "preprocessing": preprocessing, "chat_template": template, **length}


def preprocessing_note(preprocessing: PreprocessingConfig) -> dict[str, Any]:
    """What `NOTE_FILE` says of the preprocessing; nothing if it is the default."""
    return {} if preprocessing == PreprocessingConfig() else {"preprocessing": to_dict(preprocessing)}


def write_note(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes what `read_note` reads, unless all of it is at its default."""
    note = preprocessing_note(checkpoint.preprocessing)
    if checkpoint.image_head_trained is not None:
        note["image_head_trained"] = checkpoint.image_head_trained
    if checkpoint.chat_template is not None:
        note["chat_template"] = checkpoint.chat_template
    if checkpoint.config.context_length != TransformerConfig.context_length:
        note["context_length"] = checkpoint.config.context_length
    if note:
        write_json(folder / NOTE_FILE, {"format_version": FORMAT_VERSION, **note})


_KINDS = {
    int: ("a whole number below 2^31", lambda value: type(value) is int and abs(value) < 2**31),
    float: ("a number", lambda value: type(value) in (int, float) and abs(value) < 1e30),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    dict: ("a mapping", lambda value: isinstance(value, dict)),
    list: (
        "a list of whole numbers",
        lambda value: isinstance(value, list) and all(type(item) is int and abs(item) < 2**31 for item in value),
    ),
}


def require_kinds(values: Any, kinds: Mapping[str, type], where: str | Path) -> None:
    """Raises `FileError` unless each value of a file has its type, is null, or is absent.

    The bounds on numbers only keep arithmetic safe; whether a size makes sense for a model is up to its config.
    """
    if not isinstance(values, dict):
        raise FileError(f"{where}: must be a mapping, not {_excerpt(values)!r}")
    for key, kind in kinds.items():
        words, fits = _KINDS[kind]
        if values.get(key) is not None and not fits(values[key]):
            raise FileError(f"{where}: {key} = {_excerpt(values[key])!r}: must be {words}")


def _excerpt(value: Any) -> str:
    return value[:40] if isinstance(value, str) else shortened(value, 40)[:40]


def numpy_dtype(dtype: DType) -> np.dtype:
    return np.dtype(jnp.dtype(dtype))
