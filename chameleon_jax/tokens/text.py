"""The text tokenizer: SentencePiece BPE with byte fallback. Any text comes back byte for byte."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from chameleon_jax.config import TextTokenizerConfig
from chameleon_jax.files import FileError

# SentencePiece writes spaces as this character, so the character itself has to go around it, as its UTF-8 bytes.
_SPACE_MARK = "\u2581"

LONGEST_LINE = 16384
"""Characters of a line that the trainer is given at a time; each takes at most four bytes."""


class TextTokenizer:
    """Text to pieces and back. Pieces are numbered from 0; the Vocabulary gives them their ids."""

    def __init__(self, model: bytes):
        """Args:
        model: a serialized SentencePiece model, as `train_text_tokenizer` returns it.
        """
        import sentencepiece

        if not model:
            raise ValueError("the SentencePiece model is empty")
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._byte_pieces = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if self._processor.unk_id() in self._byte_pieces:
            raise ValueError("the SentencePiece model has no byte fallback, so some text could not be represented")

    @property
    def num_pieces(self) -> int:
        return self._processor.get_piece_size()

    @functools.cached_property
    def _bytes_of_piece(self) -> list[bytes]:
        pieces = []
        for index in range(self.num_pieces):
            name = self._processor.id_to_piece(index)
            if self._processor.is_byte(index):
                pieces.append(bytes([int(name[3:5], 16)]))
            elif self._processor.is_control(index) or self._processor.is_unknown(index):
                pieces.append(b"")
            else:
                pieces.append(name.replace(_SPACE_MARK, " ").encode())
        return pieces

    def encode(self, text: str) -> np.ndarray:
        """Pieces of `text`, int32 `[n]`. Names of special tokens typed as text stay text.

        Raises:
          ValueError: if `text` has lone surrogates, which no UTF-8 text has.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"not valid Unicode text: lone surrogate at character {error.start}") from None
        pieces: list[int] = []
        for index, part in enumerate(text.split(_SPACE_MARK)):
            if index > 0:
                pieces += [self._byte_pieces[byte] for byte in _SPACE_MARK.encode()]
            pieces += self._processor.encode(part)
        return np.asarray(pieces, np.int32)

    def decode_bytes(self, pieces: Iterable[int]) -> bytes:
        """The bytes that `pieces` stand for; they may end inside a character."""
        table = self._bytes_of_piece
        return b"".join(table[int(piece)] for piece in pieces)

    def decode(self, pieces: Iterable[int]) -> str:
        """Text of `pieces`; bytes that are not UTF-8 (a model may write such) become the replacement character."""
        return self.decode_bytes(pieces).decode("utf-8", errors="replace")

    @classmethod
    def load(cls, path: str | Path) -> TextTokenizer:
        try:
            return cls(Path(path).read_bytes())
        except FileNotFoundError:
            raise FileError(
                f"{path}: no such text tokenizer; train one with `chameleon train-text-tokenizer`"
            ) from None
        except (OSError, RuntimeError, ValueError) as error:
            raise FileError(f"{path}: not a usable SentencePiece model: {error}") from None


def train_text_tokenizer(config: TextTokenizerConfig, texts: Iterable[str]) -> TextTokenizer:
    """Learns a byte-pair encoding from `texts`.

    Digits are split, nothing is normalised, and what the alphabet lacks falls back to bytes (spec of the paper's
    tokenizer: section 2.1).

    Raises:
      ValueError: if there is no text, or too little for the vocabulary asked for.
    """
    import sentencepiece

    # The trainer drops sentences over its length limit without a word, so long lines are cut first.
    lines = (
        line[start : start + LONGEST_LINE]
        for text in texts
        for line in text.splitlines()
        for start in range(0, len(line), LONGEST_LINE)
        if line.strip()
    )
    output = io.BytesIO()
    sentencepiece.set_random_generator_seed(config.seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
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
    return TextTokenizer(output.getvalue())
