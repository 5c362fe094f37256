"""Text tokenizers, and the kind that we train ourselves: SentencePiece BPE with byte fallback."""

from __future__ import annotations

import abc
import functools
import hashlib
import io
import random
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from chameleon_jax.config import TextTokenizerConfig
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.reading import read_bytes
from chameleon_jax.tokens.sentencepiece_checks import check_model, has_table

LARGEST_MODEL = 16 << 20
"""Most bytes of a SentencePiece model; one with 256,000 pieces has 5 MB."""

# SentencePiece represents spaces by this character, so the character itself is encoded as its UTF-8 bytes instead.
_SPACE_MARK = "\u2581"

LONGEST_LINE = 16384
"""Most characters of a line that is passed to the trainer; each takes at most four bytes."""


LONGEST_TEXT = 4 << 20
"""Most characters of a text to encode; the package `tokenizers` needs 250 bytes of memory for each."""


class TextTokenizer(abc.ABC):
    """Text to pieces and back. Pieces are numbered from 0; the Vocabulary gives them their ids."""

    file_name: ClassVar[str]
    """Name of its file in the folder of a DocumentTokenizer."""
    model: bytes
    """Contents of its file."""
    other_names: Mapping[str, int] = MappingProxyType({})
    """Names and ids of the tokens in its file that are not text."""

    @property
    @abc.abstractmethod
    def piece_names(self) -> list[str]:
        """Unique name of each piece."""

    @property
    @abc.abstractmethod
    def _bytes_of_piece(self) -> list[bytes]: ...

    @abc.abstractmethod
    def _encode(self, text: str) -> Sequence[int]: ...

    @property
    def num_pieces(self) -> int:
        return len(self._bytes_of_piece)

    def encode(self, text: str) -> np.ndarray:
        """Pieces of `text`, int32 `[n]`. Names of special tokens and image codes are encoded as plain text, so that no
        text can inject them.

        Raises:
          ValueError: if `text` has more than `LONGEST_TEXT` characters, contains lone surrogates, which UTF-8 cannot
            represent, or contains bytes for which the tokenizer has no piece.
        """
        _check_text(text)
        return np.asarray(self._encode(text), np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for each of several texts, on all cores where the tokenizer's own package can."""
        for text in texts:
            _check_text(text)
        return [np.asarray(pieces, np.int32) for pieces in self._encode_many(texts)]

    def _encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [self._encode(text) for text in texts]

    def decode_bytes(self, pieces: Iterable[int]) -> bytes:
        """The bytes of `pieces`, which may end within a character."""
        table = self._bytes_of_piece
        return b"".join(table[int(piece)] for piece in pieces)

    def decode(self, pieces: Iterable[int]) -> str:
        """Text of `pieces`; bytes that are not UTF-8, which a model may generate, become the replacement character."""
        return self.decode_bytes(pieces).decode("utf-8", errors="replace")

    def save(self, folder: str | Path) -> None:
        (Path(folder) / self.file_name).write_bytes(self.model)


def _check_text(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"a text of {len(text):,} characters; up to {LONGEST_TEXT:,} are encoded at a time; cut it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode text: lone surrogate at character {error.start}") from None


TEXTS_AT_A_TIME = 8
"""Texts whose new words are encoded together, which takes a third of the time."""
MOST_CHARACTERS = 1 << 21
"""Of the words that are remembered; each takes some 40 bytes."""


class _Words(dict[str, bytes]):
    """Words with their pieces, as the bytes of an int32 array."""

    characters = 0
    """Of all words together."""


def _pieces(words: list[str], known: _Words) -> np.ndarray | None:
    """Pieces of a text; None if one of its words is not known."""
    try:
        return np.frombuffer(b"".join(map(known.__getitem__, words)), np.int32).copy()
    except KeyError:
        return None


class SentencePieceTokenizer(TextTokenizer):
    """A SentencePiece model with byte fallback, as trained by `train_text_tokenizer`."""

    file_name = "text.model"

    def __init__(self, model: bytes):
        """Args:
        model: a serialized SentencePiece model.

        Raises:
          ValueError: if it is empty, damaged, larger than any text tokenizer needs, or has no byte fallback.
        """
        import sentencepiece

        if not model:
            raise ValueError("the SentencePiece model is empty")
        _verify_checksum(model)
        check_model(model)
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._byte_pieces = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if self._processor.unk_id() in self._byte_pieces:
            raise ValueError("the SentencePiece model has no byte fallback, so some text could not be represented")
        self._words = _Words()

    @classmethod
    def load(cls, path: str | Path) -> SentencePieceTokenizer:
        """Raises `FileError` if the file is missing or cannot be used."""
        if not Path(path).exists():
            raise FileError(f"{path}: no such text tokenizer; train one with `chameleon train-text-tokenizer`")
        model = read_bytes(path, LARGEST_MODEL)
        try:
            return cls(model)
        except (RuntimeError, ValueError) as error:
            raise FileError(f"{path}: not a usable SentencePiece model: {error}") from None

    @functools.cached_property
    def piece_names(self) -> list[str]:
        """SentencePiece's names, with plain spaces."""
        count = self._processor.get_piece_size()
        return [self._processor.id_to_piece(piece).replace(_SPACE_MARK, " ") for piece in range(count)]

    @functools.cached_property
    def scores(self) -> dict[str, float]:
        """Score of every learned piece; encoding merges the two neighbours whose piece scores highest."""
        processor = self._processor
        return {
            name: processor.get_score(piece)
            for piece, name in enumerate(self.piece_names)
            if not (processor.is_byte(piece) or processor.is_control(piece) or processor.is_unknown(piece))
        }

    @functools.cached_property
    def _bytes_of_piece(self) -> list[bytes]:
        pieces = []
        for piece, name in enumerate(self.piece_names):
            if self._processor.is_byte(piece):
                pieces.append(bytes([int(name[3:5], 16)]))
            else:
                pieces.append(name.encode() if name in self.scores else b"")
        return pieces

    @functools.cached_property
    def _word(self) -> re.Pattern | None:
        """Finds the words of a text, each with the spaces before it. None if words cannot be encoded one by one: if the
        model normalises text, or has a piece with a space behind something else."""
        spaced = f"{_SPACE_MARK * 2}a{_SPACE_MARK * 2}b{_SPACE_MARK}"
        changes = has_table(self.model) or self._processor.normalize(spaced.replace(_SPACE_MARK, " ")) != spaced
        if changes or any(re.search("[^ ] ", name) for name in self.scores):
            return None
        return re.compile(" *[^ ]+| +" if any("\n" in name for name in self.scores) else "\n| *[^ \n]+| +")

    def _encode(self, text: str) -> Sequence[int]:
        return self._encode_many([text])[0]

    def _encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
        if self._word is None:
            return [self._encode_whole(text) for text in texts]
        encoded: list[Sequence[int]] = []
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            encoded += self._encode_by_words(texts[start : start + TEXTS_AT_A_TIME])
        return encoded

    def _encode_by_words(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Five times as fast as SentencePiece, as most words have been there before."""
        if self._words.characters > MOST_CHARACTERS:
            self._words = _Words()
        known = self._words  # another thread may replace it
        words = [self._word.findall(text) for text in texts]
        pieces = [_pieces(each, known) for each in words]
        if unknown := [each for each, found in zip(words, pieces, strict=True) if found is None]:
            self._learn({word for word in set().union(*unknown) if word not in known}, known)
            pieces = [
                _pieces(each, known) if found is None else found for each, found in zip(words, pieces, strict=True)
            ]
        return pieces

    def _learn(self, new: set[str], known: _Words) -> None:
        marked = {word for word in new if _SPACE_MARK in word}
        plain = list(new - marked)
        pieces = self._processor.encode(plain, num_threads=1)  # `chameleon prepare` runs a process for each core
        pieces += map(self._encode_whole, marked)
        known.update((word, array("i", ids).tobytes()) for word, ids in zip([*plain, *marked], pieces, strict=True))
        known.characters += sum(map(len, new))

    def _encode_whole(self, text: str) -> list[int]:
        pieces: list[int] = []
        for index, part in enumerate(text.split(_SPACE_MARK)):
            if index > 0:
                pieces += [self._byte_pieces[byte] for byte in _SPACE_MARK.encode()]
            pieces += self._processor.encode(part)
        return pieces


def _sample(lines: Iterable[str], count: int, seed: int) -> list[str]:
    """All lines, or a random sample of `count` (algorithm R): SentencePiece's own sampling cannot be seeded."""
    rng, chosen = random.Random(seed), []
    for number, line in enumerate(lines):
        if number < count:
            chosen.append(line)
        elif (place := rng.randrange(number + 1)) < count:
            chosen[place] = line
    return chosen


def train_text_tokenizer(config: TextTokenizerConfig, texts: Iterable[str]) -> SentencePieceTokenizer:
    """Trains a byte-pair encoding on `texts`, as in section 2.1 of the paper.

    Digits are split, nothing is normalised, and characters outside the alphabet fall back to bytes.

    Raises:
      ValueError: if there is no text, or too little for `vocab_size`.
    """
    import sentencepiece

    # The trainer silently drops sentences over its length limit, so long lines are split first.
    lines = (
        line[start : start + LONGEST_LINE]
        for text in texts
        for line in text.splitlines()
        for start in range(0, len(line), LONGEST_LINE)
        if line.strip()
    )
    output = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample(lines, config.max_lines, config.seed)),
            model_writer=output,
            model_type="bpe",
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * LONGEST_LINE,
            input_sentence_size=config.max_lines,
            shuffle_input_sentence=True,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"vocab_size = {config.vocab_size}: SentencePiece could not learn it: {error}") from None
    return SentencePieceTokenizer(output.getvalue() + _checksum_field(output.getvalue()))


_CHECKSUM_TAG = b"\xc2\x0c\x20"
"""Tag and length of field 200 of the model, the first that SentencePiece reserves for extensions; 32 bytes follow."""


def _checksum_field(model: bytes) -> bytes:
    """The last field of a model file, which SentencePiece ignores: the SHA-256 of everything before it."""
    return _CHECKSUM_TAG + hashlib.sha256(model).digest()


def _verify_checksum(model: bytes) -> None:
    """Raises `ValueError` if the model has a checksum that does not match its content."""
    content, end = model[:-35], model[-35:]
    if end.startswith(_CHECKSUM_TAG) and end != _checksum_field(content):
        raise ValueError("damaged: it does not match its checksum")
