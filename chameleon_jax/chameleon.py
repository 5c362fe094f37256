"""A whole model in one's hand: config, parameters, tokenizer; reading, writing and generating documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.config import GenerationConfig, TransformerConfig, from_dict, require, to_dict
from chameleon_jax.files import (
    FORMAT_VERSION,
    FileError,
    check_version,
    load_arrays,
    new_folder,
    read_json,
    save_arrays,
    write_json,
)
from chameleon_jax.generation.engine import generate_ids, make_prompts
from chameleon_jax.generation.modality import ModalityRules
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.tokens.documents import DocumentTokenizer

if TYPE_CHECKING:
    from chameleon_jax.document import Document


class Chameleon:
    """A Transformer with its tokenizer.

    Attributes:
      config: sizes of the Transformer.
      params: its parameter tree.
      tokenizer: text tokenizer, image tokenizer and vocabulary.
    """

    def __init__(self, config: TransformerConfig, params: Any, tokenizer: DocumentTokenizer):
        self.config = config
        self.params = params
        self.tokenizer = tokenizer

    def encode(self, document: Document) -> np.ndarray:
        """Ids int32 `[n]` of a document, without begin and end of sequence."""
        return self.tokenizer.encode(document)

    def decode(self, ids: np.ndarray) -> Document:
        """The document that `ids` stand for."""
        return self.tokenizer.decode(ids)

    def logits(self, ids: np.ndarray) -> jax.Array:
        """float32 `[batch, length, vocab]` for ids `[batch, length]`; nothing is masked."""
        return Transformer(self.config).apply({"params": self.params}, jnp.asarray(ids))

    def generate(self, document: Document, config: GenerationConfig | None = None) -> Document:
        """What the model writes after `document`: its continuation, without the prompt."""
        return self.generate_many([document], config)[0]

    def generate_many(self, documents: Sequence[Document], config: GenerationConfig | None = None) -> list[Document]:
        """`generate` for several documents at once. Row i is drawn with a seed made from `config.seed` and i.

        Raises:
          ConfigError: if a picture is asked for that does not fit `max_new_tokens`.
        """
        if not documents:
            return []
        config = config or GenerationConfig()
        vocabulary = self.tokenizer.vocabulary
        begin = [vocabulary.begin_image] if config.mode == "image" else []
        if config.mode == "image":
            require(
                config.max_new_tokens >= self.tokenizer.image_block - 1,
                "max_new_tokens",
                config.max_new_tokens,
                f"one picture needs {self.tokenizer.image_block - 1}",
            )
        prompts = [
            np.concatenate([[vocabulary.bos], ids, begin]).astype(np.int32)
            for ids in self.tokenizer.encode_many(documents)
        ]
        codes_per_image = self.tokenizer.image.config.codes_per_image
        tokens = generate_ids(
            self.config,
            dataclasses.replace(config, seed=0),  # the keys carry the seed; another one must not compile anew
            self.params,
            ModalityRules.build(vocabulary, codes_per_image, self.config.vocab_size),
            make_prompts(prompts, vocabulary, config),
            jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), jnp.arange(len(prompts))),
            eos=vocabulary.eos,
            pad=vocabulary.pad,
        )
        return [self.decode(np.concatenate([begin, row]).astype(np.int32)) for row in np.asarray(tokens)]

    def save(self, folder: str | Path) -> None:
        """Writes the model as a folder: config.json, params/, tokenizer/. It appears only when it is complete."""
        with new_folder(folder) as aside:
            save_arrays(aside / "params", self.params)
            self.tokenizer.save(aside / "tokenizer")
            write_json(aside / "config.json", {"format_version": FORMAT_VERSION, "model": to_dict(self.config)})


def load(folder: str | Path) -> Chameleon:
    """Opens a model that `Chameleon.save` wrote; the folder of a `chameleon train` run or of the demo will do too.

    Raises:
      FileError: if it is missing, incomplete, damaged or written by a newer version.
    """
    given = Path(folder)
    for folder in (given, given / "model", given / "run" / "model"):
        if (folder / "config.json").exists():
            break
    else:
        hint = "its training has not finished" if (given / "checkpoints").exists() else "expected config.json in it"
        raise FileError(f"{given}: is not a model folder ({hint})")
    header = read_json(folder / "config.json")
    check_version(header, folder / "config.json")
    config = from_dict(TransformerConfig, header.get("model"), f"{folder}/config.json: model")
    init = lambda key: nn.unbox(Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"])  # noqa: E731
    params = load_arrays(folder / "params", jax.eval_shape(init, jax.random.key(0)))
    tokenizer = DocumentTokenizer.load(folder / "tokenizer")
    if tokenizer.vocabulary.size > config.vocab_size:
        raise FileError(
            f"{folder}: its tokenizer has {tokenizer.vocabulary.size} ids but its Transformer only "
            f"{config.vocab_size}; two models are mixed in one folder"
        )
    return Chameleon(config, params, tokenizer)
