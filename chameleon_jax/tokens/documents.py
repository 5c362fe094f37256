"""Documents to ids and back: text pieces, and for every picture begin of image, its codes, end of image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, from_dict, to_dict
from chameleon_jax.document import DocumentError
from chameleon_jax.files import (
    FORMAT_VERSION,
    FileError,
    check_version,
    load_arrays,
    read_json,
    save_arrays,
    write_json,
)
from chameleon_jax.models.vq import VQModel
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.text import TextTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT, Vocabulary

if TYPE_CHECKING:
    from chameleon_jax.document import Document


class DocumentTokenizer:
    """The text tokenizer, the image tokenizer and the vocabulary that joins them."""

    def __init__(self, text: TextTokenizer, image: ImageTokenizer, vocabulary: Vocabulary):
        self.text = text
        self.image = image
        self.vocabulary = vocabulary

    @classmethod
    def join(cls, text: TextTokenizer, image: ImageTokenizer) -> DocumentTokenizer:
        """With a fresh vocabulary in the released order."""
        return cls(text, image, Vocabulary.in_released_order(text.num_pieces, image.config.num_codes))

    @property
    def image_block(self) -> int:
        """Tokens of one picture: begin of image, the codes, end of image."""
        return self.image.config.codes_per_image + 2

    def encode(self, document: Document) -> np.ndarray:
        """Ids int32 `[n]` of a document, without begin and end of sequence. Each piece of text is encoded by itself.

        Raises:
          DocumentError: for a segment that is neither text nor a picture, or cannot be encoded.
        """
        return self.encode_many([document])[0]

    def encode_many(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """`encode` for several documents, with their pictures computed in batches."""
        vocabulary = self.vocabulary
        images = [segment for document in documents for segment in document if not isinstance(segment, str)]
        for image in images:
            if not hasattr(image, "convert"):
                raise DocumentError(f"a document holds text (str) and pictures (PIL.Image), not {type(image).__name__}")
        codes = iter(vocabulary.image_ids[self.image.tokenize(images)])
        encoded = []
        for document in documents:
            pieces = [np.zeros(0, np.int32)]
            for segment in document:
                if isinstance(segment, str):
                    try:
                        pieces.append(vocabulary.text_ids[self.text.encode(segment)])
                    except ValueError as error:
                        raise DocumentError(f"{segment[:40]!r}…: {error}") from None
                else:
                    pieces += [[vocabulary.begin_image], next(codes), [vocabulary.end_image]]
            encoded.append(np.concatenate(pieces).astype(np.int32))
        return encoded

    def decode(self, ids: Iterable[int]) -> Document:
        """The document that `ids` stand for; special tokens other than picture marks leave no trace.

        Raises:
          DocumentError: if a picture is cut short, too long, or interrupted.
        """
        vocabulary, codes_per_image = self.vocabulary, self.image.config.codes_per_image
        segments: list = []  # text as lists of pieces, pictures as arrays of codes
        codes: list[int] | None = None
        for place, token in enumerate(np.asarray(list(ids), np.int64)):
            kind = vocabulary.modality[token] if 0 <= token < vocabulary.size else None
            if kind is None:
                raise DocumentError(f"id {token} at place {place} is outside the vocabulary of {vocabulary.size}")
            if codes is not None and kind == IMAGE:
                codes.append(int(vocabulary.code_of_id[token]))
            elif codes is not None:
                if token != vocabulary.end_image or len(codes) != codes_per_image:
                    raise DocumentError(
                        f"the picture that ends at place {place} has {len(codes)} codes; it needs {codes_per_image} "
                        "and then the end-of-image token"
                    )
                segments.append(np.asarray(codes))
                codes = None
            elif token == vocabulary.begin_image:
                codes = []
            elif kind == TEXT:
                if not segments or not isinstance(segments[-1], list):
                    segments.append([])
                segments[-1].append(int(vocabulary.piece_of_id[token]))
            elif kind == IMAGE or token == vocabulary.end_image:
                raise DocumentError(f"image token at place {place} outside a picture")
        if codes is not None:
            raise DocumentError(f"the last picture is cut short after {len(codes)} of {codes_per_image} codes")
        pictures = [segment for segment in segments if isinstance(segment, np.ndarray)]
        images = iter(self.image.detokenize(np.stack(pictures)) if pictures else [])
        return [self.text.decode(segment) if isinstance(segment, list) else next(images) for segment in segments]

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer into an empty or new folder; use inside `files.new_folder`."""
        folder = Path(folder)
        save_image_tokenizer(self.image, folder / "image")
        (folder / "text.model").write_bytes(self.text.model)
        write_json(folder / "vocabulary.json", {"format_version": FORMAT_VERSION, **self.vocabulary.to_dict()})

    @classmethod
    def load(cls, folder: str | Path) -> DocumentTokenizer:
        folder = Path(folder)
        values = read_json(folder / "vocabulary.json")
        check_version(values, folder / "vocabulary.json")
        del values["format_version"]
        try:
            vocabulary = Vocabulary.from_dict(values)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{folder / 'vocabulary.json'}: incomplete or damaged: {error}") from None
        return cls(TextTokenizer.load(folder / "text.model"), load_image_tokenizer(folder / "image"), vocabulary)


def save_image_tokenizer(tokenizer: ImageTokenizer, folder: str | Path) -> None:
    """Writes config.json and params/ into a new folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_arrays(folder / "params", tokenizer.params)
    write_json(folder / "config.json", {"format_version": FORMAT_VERSION, "model": to_dict(tokenizer.config)})


def load_image_tokenizer(folder: str | Path) -> ImageTokenizer:
    header = read_json(Path(folder) / "config.json")
    check_version(header, Path(folder) / "config.json")
    config = from_dict(ImageTokenizerConfig, header.get("model"), f"{folder}/config.json: model")
    pixels = jnp.zeros((1, config.resolution, config.resolution, 3))
    abstract = jax.eval_shape(VQModel(config).init, jax.random.key(0), pixels)["params"]
    return ImageTokenizer(config, load_arrays(Path(folder) / "params", abstract))
