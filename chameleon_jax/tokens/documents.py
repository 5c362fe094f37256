"""Documents to ids and back: text as pieces, and each picture as begin of image, its codes, end of image."""

from __future__ import annotations

import dataclasses
import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, PreprocessingConfig, from_dict, to_dict
from chameleon_jax.document import DocumentError, as_documents
from chameleon_jax.errors import DamagedFile, FileError
from chameleon_jax.models.vq import abstract_params
from chameleon_jax.runtime.arrays import load_arrays, save_arrays
from chameleon_jax.runtime.cloud import as_path, on_disk
from chameleon_jax.runtime.files import write_json
from chameleon_jax.runtime.folders import Kind, model_section, recover
from chameleon_jax.runtime.headers import FORMAT_VERSION, read_header, with_checksum
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.text import SentencePieceTokenizer, TextTokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT, Vocabulary, VocabularyError

if TYPE_CHECKING:
    from chameleon_jax.document import Document

IMAGE_TOKENIZER = Kind(
    "an image tokenizer",
    lambda folder: "num_codes" in model_section(folder / "config.json"),
    ("config.json", "params/*", "metrics.jsonl"),
)
TEXT_TOKENIZER = Kind("a SentencePiece model", lambda path: _is_sentencepiece(path))
TOKENIZER_FILES = (
    "vocabulary.json",
    SentencePieceTokenizer.file_name,
    JSONTokenizer.file_name,
    *(f"image/{pattern}" for pattern in IMAGE_TOKENIZER.contents),
)
"""The files that `DocumentTokenizer.save` writes."""


NOT_ASKED_FOR = "it was not asked for"


class DocumentTokenizer:
    """A text tokenizer and an image tokenizer joined by one vocabulary.

    Attributes:
      text, image, vocabulary: the parts; None if a released model lacks one.
      missing: why "text", "image" or "vocabulary" is None, for error messages.
    """

    def __init__(
        self,
        text: TextTokenizer | None,
        image: ImageTokenizer | None,
        vocabulary: Vocabulary | None,
        *,
        codes_per_image: int | None = None,
        missing: Mapping[str, str] | None = None,
    ):
        """Args:
        text, image: the tokenizers, or None.
        vocabulary: ids of their pieces and codes, or None.
        codes_per_image: number of codes per picture, if there is no image tokenizer.
        missing: why a part is None, such as {"text": "no text_tokenizer.json in …"}.

        Raises:
          VocabularyError: if the vocabulary belongs to other tokenizers.
        """
        self.text = text
        self.image = image
        self.vocabulary = vocabulary
        self.missing = {
            part: (missing or {}).get(part, "none was given")
            for part, value in (("text", text), ("image", image), ("vocabulary", vocabulary))
            if value is None
        }
        self._codes_per_image = image.config.codes_per_image if image else codes_per_image
        if text and vocabulary and text.num_pieces != len(vocabulary.text_ids):
            raise VocabularyError(
                f"the vocabulary has {len(vocabulary.text_ids)} text pieces but the text tokenizer {text.num_pieces}"
            )
        if image and vocabulary and image.config.num_codes != len(vocabulary.image_ids):
            raise VocabularyError(
                f"the vocabulary has {len(vocabulary.image_ids)} image codes but the image tokenizer "
                f"{image.config.num_codes}"
            )

    @classmethod
    def join(cls, text: TextTokenizer, image: ImageTokenizer | None) -> DocumentTokenizer:
        """Joins two tokenizers with a new vocabulary in the order of the released models. Documents without pictures
        need no image tokenizer; the vocabulary then has one image code, which is never used."""
        num_codes = image.config.num_codes if image else 1
        return cls(text, image, Vocabulary.in_released_order(text.num_pieces, num_codes))

    def need(self, part: Literal["text", "image", "vocabulary"]) -> Any:
        """The part with this name.

        Raises:
          DocumentError: if it is missing.
        """
        value = getattr(self, part)
        if value is None:
            name = {"vocabulary": "tokenizer"}.get(part, f"{part} tokenizer")
            raise DocumentError(f"this model has no {name}: {self.missing[part]}")
        return value

    @property
    def codes_per_image(self) -> int:
        """Number of codes per picture.

        Raises:
          DocumentError: if there is no image tokenizer and the number was not given.
        """
        return self._codes_per_image or self.need("image").config.codes_per_image

    @property
    def image_block(self) -> int:
        """Number of tokens per picture: begin of image, the codes, end of image."""
        return self.codes_per_image + 2

    def encode(self, document: Document) -> np.ndarray:
        """Ids int32 `[n]` of a document, without begin and end of sequence. Each text segment is encoded separately.

        Args:
          document: texts and pictures in a list, tuple or iterator, or a single text or picture.

        Raises:
          DocumentError: if it is not a document, or a segment is neither text nor a picture, cannot be encoded, or
            needs a tokenizer that is missing.
        """
        return self.encode_many([document])[0]

    def encode_many(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """`encode` for several documents, with their pictures encoded in batches."""
        vocabulary = self.need("vocabulary")
        documents = as_documents(documents)
        segments = [segment for document in documents for segment in document]
        images = [segment for segment in segments if not isinstance(segment, str)]
        codes = iter(vocabulary.image_ids[self.need("image").tokenize(images)] if images else [])
        texts = iter(self._encode_texts([segment for segment in segments if isinstance(segment, str)]))
        encoded = []
        for document in documents:
            pieces = [np.zeros(0, np.int32)]
            for segment in document:
                if isinstance(segment, str):
                    pieces.append(vocabulary.text_ids[next(texts)])
                else:
                    pieces += [[vocabulary.begin_image], next(codes), [vocabulary.end_image]]
            encoded.append(np.concatenate(pieces).astype(np.int32))
        return encoded

    def _encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        tokenizer = self.need("text")
        try:
            return tokenizer.encode_many(texts)
        except ValueError:
            pass
        pieces = []
        for text in texts:  # to find the one that fails
            try:
                pieces.append(tokenizer.encode(text))
            except ValueError as error:
                raise DocumentError(f"{text[:40]!r}…: {error}") from None
        return pieces

    def encode_prompt(self, document: Document, form: Literal["completion", "chat"] = "completion") -> np.ndarray:
        """Ids int32 `[n]` of a prompt: begin of sequence, the document, and for a chat end of turn."""
        vocabulary = self.need("vocabulary")
        end = [vocabulary.end_of_turn] if form == "chat" else []
        return np.concatenate([[vocabulary.bos], self.encode(document), end]).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> Document:
        """Decodes ids to a document. Special tokens other than begin and end of image are dropped.

        Raises:
          DocumentError: if a picture is incomplete, too long or interrupted, or a tokenizer is missing.
        """
        vocabulary = self.need("vocabulary")
        segments: list = []  # lists of text pieces, and arrays of image codes
        codes: list[int] | None = None
        for place, token in enumerate(_whole_numbers(ids)):
            kind = vocabulary.modality[token] if 0 <= token < vocabulary.size else None
            if kind is None:
                raise DocumentError(f"id {token} at place {place} is outside the vocabulary of {vocabulary.size}")
            if codes is not None and kind == IMAGE:
                codes.append(int(vocabulary.code_of_id[token]))
            elif codes is not None:
                if token != vocabulary.end_image or len(codes) != self.codes_per_image:
                    raise DocumentError(
                        f"the picture that ends at place {place} has {len(codes)} codes; it needs "
                        f"{self.codes_per_image} and then the end-of-image token"
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
            raise DocumentError(f"the last picture is cut short after {len(codes)} of {self.codes_per_image} codes")
        pictures = [segment for segment in segments if isinstance(segment, np.ndarray)]
        images = iter(self.need("image").detokenize(np.stack(pictures)) if pictures else [])
        return [
            self.need("text").decode(segment) if isinstance(segment, list) else next(images) for segment in segments
        ]

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer into an empty or new folder; use inside `runtime.folders.new_folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.image:
            save_image_tokenizer(self.image, folder / "image")
        if self.text:
            self.text.save(folder)
        header = {"format_version": FORMAT_VERSION, **(self.vocabulary.to_dict() if self.vocabulary else {})}
        if self.text:
            header["text_sha256"] = hashlib.sha256(self.text.model).hexdigest()
        if self.missing:
            header |= {"missing": self.missing, "codes_per_image": self._codes_per_image}
        write_json(folder / "vocabulary.json", with_checksum(header))

    @classmethod
    def load(cls, folder: str | Path, *, with_image: bool = True) -> DocumentTokenizer:
        """Reads what `save` wrote.

        Args:
          folder: the folder.
          with_image: whether to load the image tokenizer; otherwise `image` is None.

        Raises:
          FileError: if it is damaged, or a part that was written is missing.
        """
        folder = Path(folder)
        values = read_header(folder / "vocabulary.json")
        del values["format_version"]
        missing, codes_per_image = values.pop("missing", {}), values.pop("codes_per_image", None)
        text_hash = values.pop("text_sha256", None)
        known = isinstance(missing, dict) and all(isinstance(why, str) for why in missing.values())
        if not known or not isinstance(codes_per_image, int | None):
            raise FileError(f"{folder / 'vocabulary.json'}: incomplete or damaged: missing or codes_per_image")
        text = image = None
        if "text" not in missing:
            kind = JSONTokenizer if (folder / JSONTokenizer.file_name).exists() else SentencePieceTokenizer
            text = kind.load(folder / kind.file_name)
            if text_hash not in (None, hashlib.sha256(text.model).hexdigest()):
                raise DamagedFile(
                    f"{folder / kind.file_name}: damaged: it does not match the hash in vocabulary.json; restore a copy"
                )
        if not with_image:
            missing = {"image": NOT_ASKED_FOR, **missing}
        elif "image" not in missing:
            image = load_image_tokenizer(folder / "image")
        try:
            vocabulary = None if "vocabulary" in missing else Vocabulary.from_dict(values)
            if vocabulary and isinstance(text, JSONTokenizer) and text.num_pieces < len(vocabulary.text_ids):
                # Older versions treated names that the file marks as special as text unless they began with `<`.
                is_text = ~np.isin(vocabulary.text_ids, list(text.other_names.values()))
                vocabulary = dataclasses.replace(vocabulary, text_ids=vocabulary.text_ids[is_text])
            return cls(text, image, vocabulary, codes_per_image=codes_per_image, missing=missing)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{folder / 'vocabulary.json'}: incomplete or damaged: {error}") from None


def _is_sentencepiece(path: Path) -> bool:
    try:
        SentencePieceTokenizer.load(path)
    except FileError:
        return False
    return True


def _whole_numbers(ids: Iterable[int]) -> list[int]:
    try:
        return [operator.index(token) for token in ids]
    except TypeError:
        raise DocumentError("ids must be whole numbers in one row, such as int32 [n]") from None


def load_text_tokenizer(path: str | Path) -> TextTokenizer:
    """Reads a text tokenizer: JSON if the name ends in .json, else a SentencePiece model.

    Raises:
      FileError: if the file is missing or cannot be used.
    """
    path = on_disk(path)
    return (JSONTokenizer if Path(path).suffix == ".json" else SentencePieceTokenizer).load(path)


def save_image_tokenizer(tokenizer: ImageTokenizer, folder: str | Path) -> None:
    """Writes config.json and params/ into a new folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checksums = save_arrays(folder / "params", tokenizer.params)
    header = {"format_version": FORMAT_VERSION, "model": to_dict(tokenizer.config)}
    if not tokenizer.can_decode:
        header["decoder"] = False
    header |= {"preprocessing": to_dict(tokenizer.preprocessing), "checksums": checksums}
    write_json(folder / "config.json", with_checksum(header))


class SavedImageTokenizer(NamedTuple):
    """The contents of config.json of a saved image tokenizer."""

    config: ImageTokenizerConfig
    preprocessing: PreprocessingConfig
    has_decoder: bool
    checksums: dict[str, str] | None  # of its parameters; None in older folders


def read_image_config(folder: str | Path) -> SavedImageTokenizer:
    """Reads the config of a saved image tokenizer, its preprocessing, and whether it has a decoder.

    Raises:
      FileError, ConfigError: if config.json is missing or damaged.
    """
    path = Path(folder) / "config.json"
    header = read_header(path)
    config = from_dict(ImageTokenizerConfig, header.get("model"), f"{path}: model")
    preprocessing = from_dict(PreprocessingConfig, header.get("preprocessing", {}), f"{path}: preprocessing")
    return SavedImageTokenizer(config, preprocessing, bool(header.get("decoder", True)), header.get("checksums"))


def abstract_image_params(config: ImageTokenizerConfig, with_decoder: bool = True) -> Any:
    """Shapes of the image tokenizer's parameters."""
    return {name: part for name, part in abstract_params(config).items() if with_decoder or name != "decoder"}


def load_image_tokenizer(folder: str | Path) -> ImageTokenizer:
    """Reads what `save_image_tokenizer` wrote, or the tokenizer that is in the folder of its training run."""
    of_run = (as_path(folder) / "checkpoints").is_dir()
    folder = as_path(folder) / "model" if of_run else folder
    recover(folder)
    if of_run and not folder.is_dir():
        raise FileError(f"{folder.parent}: its training has not ended; run `chameleon train-image-tokenizer` again")
    folder = on_disk(folder)
    saved = read_image_config(folder)
    abstract = abstract_image_params(saved.config, saved.has_decoder)
    params = load_arrays(Path(folder) / "params", abstract, saved.checksums)
    return ImageTokenizer(saved.config, params, saved.preprocessing)
