"""A whole model in one's hand: config, parameters, tokenizer; reading, writing and generating documents."""

from __future__ import annotations

import dataclasses
import functools
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from chameleon_jax import summary
from chameleon_jax.config import (
    ConfigError,
    DType,
    EngineConfig,
    ExecutionConfig,
    PreprocessingConfig,
    TransformerConfig,
)
from chameleon_jax.document import DocumentError
from chameleon_jax.generating import CannotDraw, Generating
from chameleon_jax.generation.engines import Engines
from chameleon_jax.models.attention import backend_for, plain_backend
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.runtime.progress import bytes_bar
from chameleon_jax.tokens.chat import ChatTemplate
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.adapters import add_adapters
from chameleon_jax.weights.checkpoint import Checkpoint, Format
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint
from chameleon_jax.weights.sources import MemoryWeights, leaves_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document


__all__ = ["CannotDraw", "Chameleon", "load"]

LOGITS_BYTES = 4 << 30
"""Most bytes of logits that `Chameleon.logits` computes at a time: 16,384 ids of the released vocabulary."""


class Chameleon(Generating):
    """A Transformer with its tokenizer.

    Attributes:
      config: architecture of the Transformer.
      params: its parameter tree; may be replaced. Raises `ConfigError` after `drop_params`.
      execution: how it runs; may be replaced at any time.
      tokenizer: text tokenizer, image tokenizer and vocabulary, with what there is of them.
      missing: what of 'text', 'image', 'decoder' and 'vocabulary' the model came without, and why.
      image_head_trained: whether the output layer learned to write pictures; None if nothing says so. Set it to True
        to have pictures drawn all the same.
      chat_template: how turns of a conversation are joined, 'meta' or 'lumina'; None if nothing says so.
      engine_config: how it generates; may be replaced at any time.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Any,
        tokenizer: DocumentTokenizer | None = None,
        *,
        execution: ExecutionConfig = ExecutionConfig(),  # noqa: B008  frozen
        missing: Mapping[str, str] | None = None,
        image_head_trained: bool | None = None,
        chat_template: ChatTemplate | None = None,
    ):
        if config.context_length is None:  # as in a config of training, which leaves it to the data
            config = dataclasses.replace(config, context_length=TransformerConfig.context_length)
        self.config = config
        self._params = params
        self.execution = execution
        self.tokenizer = tokenizer or DocumentTokenizer(None, None, None, missing=missing)
        self.missing = dict(missing or {})
        self.image_head_trained = image_head_trained
        self.chat_template = chat_template
        self._warned_of_length = False
        self.engine_config = EngineConfig()
        self._engines = Engines()
        self._compared: tuple[weakref.ref, bool] | None = None  # an output layer and whether its columns are alike

    @property
    def params(self) -> Any:
        if self._params is None:
            raise ConfigError("the parameters were dropped: load the model anew")
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params = params

    def __repr__(self) -> str:
        return summary.as_text(self)

    def _repr_html_(self) -> str:
        return summary.as_html(self)

    @property
    def vocabulary(self) -> Vocabulary:
        """Which ids are text, image codes and special tokens. Raises `DocumentError` without a tokenizer."""
        return self.tokenizer.need("vocabulary")

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The VQGAN: `encode_pixels`, `decode_codes`. Raises `DocumentError` if the model came without."""
        return self.tokenizer.need("image")

    def encode(self, document: Document) -> np.ndarray:
        """Ids int32 `[n]` of a document, without begin and end of sequence. A lone text or picture is a document too.

        Raises:
          DocumentError: for what is no document, if a segment cannot be encoded, or the tokenizer it needs is missing.
        """
        return self.tokenizer.encode(document)

    def decode(self, ids: np.ndarray) -> Document:
        """The document that `ids` stand for.

        Raises:
          DocumentError: for ids outside the vocabulary, and pictures that are not whole.
        """
        return self.tokenizer.decode(ids)

    def tokenize_images(self, images: Sequence[Image]) -> np.ndarray:
        """Codes int32 `[len(images), codes_per_image]` of pictures of any size and mode; not ids of the vocabulary."""
        return self.image_tokenizer.tokenize(images)

    def detokenize_images(self, codes: np.ndarray) -> list[Image]:
        """The pictures that codes `[n, codes_per_image]` stand for.

        Raises:
          DocumentError: for a code outside the codebook, or another number of codes.
          NoImageDecoder: if the weights came without the image decoder.
        """
        return self.image_tokenizer.detokenize(codes)

    def logits(self, ids: np.ndarray) -> jax.Array:
        """float32 `[batch, length, vocab]` for ids `[batch, length]` that begin with the begin of sequence, as the
        model was trained; nothing is masked. Warns once of rows longer than those that the model was trained on.

        Raises:
          DocumentError: for ids outside the vocabulary, and so many that their logits take more than `LOGITS_BYTES`.
          ConfigError: if `execution.attention` names a kernel that cannot read such rows where the parameters are.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise DocumentError(
                f"ids of type {ids.dtype} and shape {ids.shape}: expected whole numbers [batch, length]"
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < self.config.vocab_size:
            raise DocumentError(f"ids from {ids.min()} to {ids.max()}: must be from 0 to {self.config.vocab_size - 1}")
        if 4 * ids.size * self.config.vocab_size > LOGITS_BYTES:
            raise DocumentError(
                f"logits of {ids.size:,} ids and {self.config.vocab_size:,} columns take more than {LOGITS_BYTES:,} "
                "bytes; give fewer or shorter rows at a time"
            )
        if ids.shape[1] > self.config.context_length and not self._warned_of_length:
            self._warned_of_length = True
            warnings.warn(
                f"rows of {ids.shape[1]:,} ids: the model was trained on rows of up to {self.config.context_length:,}, "
                "and nothing is known of its logits beyond",
                stacklevel=2,
            )
        execution, embed = self.execution, self.params["embed"]
        devices = list(embed.devices()) if isinstance(embed, jax.Array) else jax.devices()[:1]
        if len(devices) == 1:
            backend = backend_for(self.config, execution, devices[0], ids.shape[1])
            execution = dataclasses.replace(execution, attention=backend)
        elif execution.attention == "auto":  # XLA partitions the computation by itself, but cannot partition kernels
            execution = dataclasses.replace(execution, attention=plain_backend(ids.shape[1]))
        return _logits(self.config, execution, self.params, jnp.asarray(ids, jnp.int32))

    @property
    def why_no_pictures(self) -> str | None:
        """Why this model cannot draw and what to do about it; None if it can."""
        if self.tokenizer.image is None:
            return f"it has no image tokenizer ({self.tokenizer.missing['image']})"
        if not self.tokenizer.image.can_decode:
            return (
                "it has no image decoder, as Hugging Face's releases. Give the folder `tokenizer` of Meta's release: "
                "chameleon_jax.load(path, image_tokenizer=folder). The released weights also never learned to draw: "
                "Anole and Lumina-mGPT are public fine-tunings that did"
            )
        if self.image_head_trained is False or (self.image_head_trained is None and self._image_columns_are_alike()):
            return (
                "its output layer was never trained on pictures, which were taken out of the released weights. "
                "Fine-tune the image rows of `output`, or use weights where that was done, such as Anole. To see the "
                "noise it draws as it is: model.image_head_trained = True"
            )
        return None

    def _image_columns_are_alike(self) -> bool:
        """Whether the output layer cannot tell one image code from another, as where its columns were set to zero.
        Looked at once for each output layer that `params` holds."""
        if self._params is None:
            return self._compared is not None and self._compared[1]
        output = self.params["output"]
        if self._compared is None or self._compared[0]() is not output:
            self._compared = weakref.ref(output), _are_alike(output, self.vocabulary.image_ids)
        return self._compared[1]

    def save(
        self,
        folder: str | Path,
        format: Format = "chameleon",
        *,
        dtype: DType | None = None,
        shards: int | None = None,
    ) -> None:
        """Writes the model as a folder, which appears only when it is complete. An older model there is
        replaced, a folder with anything else in it never.

        Args:
          format: 'chameleon' (ours, what `load` opens fastest), 'huggingface' (for transformers) or 'meta'.
          dtype: type of the Transformer's parameters; by default as they are.
          shards: number of files of Meta's format; by default one for each row of QK-norm.

        Raises:
          ConversionError: if the format cannot hold the model.
          FileError: if the folder holds something else than a model, or cannot be written.
        """
        image = self.tokenizer.image
        checkpoint = Checkpoint(
            folder=Path(folder),
            format="chameleon",
            layout="in memory",
            config=self.config,
            weights=MemoryWeights(leaves_of(self.params)),
            image_config=image.config if image else None,
            image_weights=MemoryWeights(leaves_of(image.params)) if image else None,
            preprocessing=image.preprocessing if image else PreprocessingConfig(),
            vocabulary=self.tokenizer.vocabulary,
            text=self.tokenizer.text,
            missing=self.missing,
            image_head_trained=self.image_head_trained,
            chat_template=self.chat_template,
        )
        write_checkpoint(checkpoint, folder, format, dtype, shards, replace=True)


def _are_alike(output: jax.Array, ids: np.ndarray) -> bool:
    columns = output[:, ids]
    return bool((columns == columns[:, :1]).all())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(config: TransformerConfig, execution: ExecutionConfig, params: Any, ids: jax.Array) -> jax.Array:
    return Transformer(config, execution).apply({"params": params}, ids)


def load(
    path: str | Path,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
    *,
    image_tokenizer: str | Path | None = None,
    preprocessing: PreprocessingConfig | None = None,
    adapters: str | Path | None = None,
) -> Chameleon:
    """Opens a model: one of ours, of Hugging Face's or of Meta's format, which is found out.

    Args:
      path: its folder; also the folder of a `chameleon train` run or of the demo, the root of Meta's download if it
        holds one model, or one on the Hugging Face Hub: 'hf://facebook/chameleon-7b', with @revision or /folder
        behind it if needed.
      mesh: devices to lay the parameters out on, as `make_mesh` gives them; each is read only onto its own devices. By
        default everything goes to the first device.
      dtype: 'float32' or 'bfloat16', for parameters and computation; by default the type of the files. The image
        tokenizer is always float32.
      image_tokenizer: folder to take the image tokenizer from, such as `tokenizer` of Meta's release; also hf://….
      preprocessing: how pictures are brought to size; by default as the model remembers from its training (`fit` is
        'pad' if its prompts were prepared so), or else as Meta's code does.
      adapters: folder of low-rank adapters in PEFT's layout, such as `adapters` of a run with `lora.rank`, to be
        added to the matrices.

    An image tokenizer that cannot be read is left out with a warning; `missing["image"]` says why.

    Raises:
      FileError: if there is no model, or it is incomplete, damaged or written by a newer version.
    """
    checkpoint = open_checkpoint(path, image_tokenizer)
    for warning in checkpoint.warnings:
        warnings.warn(f"{checkpoint.folder}: {warning}", stacklevel=2)
    if preprocessing is not None:
        checkpoint.preprocessing = preprocessing
    dtype = dtype or checkpoint.dtype
    with bytes_bar(f"load {checkpoint.folder.name}", checkpoint.weights.nbytes) as progress:
        params = checkpoint.load_params(mesh, dtype, progress)
    if adapters is not None:
        params = add_adapters(params, checkpoint.config, adapters)
    tokenizer = checkpoint.load_tokenizer(tolerant=True)
    warning = checkpoint.warn_of_image_tokenizer()
    if warning and warning not in checkpoint.warnings:
        warnings.warn(f"{checkpoint.folder}: {warning}", stacklevel=2)
    return Chameleon(
        checkpoint.config,
        params,
        tokenizer,
        execution=ExecutionConfig(param_dtype=dtype, compute_dtype=dtype),
        missing=checkpoint.missing,
        image_head_trained=checkpoint.image_head_trained,
        chat_template=checkpoint.chat_template,
    )
