"""Checks of a SentencePiece model before the package `sentencepiece` opens it.

The file is a protocol buffer (`sentencepiece_model.proto`): pieces in field 1, the normaliser in field 3. It is a table
from characters to texts, and one character may become a text of megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator

MOST_PIECES = 1 << 20
LONGEST_PIECE = 1024
"""Bytes of one piece, score and type included."""
LARGEST_TABLE = 1 << 20
"""Bytes of the normaliser's table; that of NFKC has 240,000."""
LONGEST_REPLACEMENT = 64
"""Bytes that one character may become; under NFKC, 33."""

_PIECE, _NORMALIZER, _TABLE = 1, 3, 2


def check_model(model: bytes) -> None:
    """Raises ValueError if a serialized model is damaged, or holds more than any tokenizer of text needs."""
    pieces = 0
    for field, content in _fields(model):
        if field == _PIECE:
            pieces += 1
            if pieces > MOST_PIECES or len(content) > LONGEST_PIECE:
                raise ValueError(f"more than {MOST_PIECES:,} pieces, or one of more than {LONGEST_PIECE} bytes")
        elif field == _NORMALIZER:
            for inner, table in _fields(content):
                if inner == _TABLE:
                    _check_table(table)


def _check_table(table: bytes) -> None:
    """A length, a trie of that many bytes, and the texts, each ended by a null byte."""
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    if len(table) > LARGEST_TABLE or max(map(len, texts.split(b"\0"))) > LONGEST_REPLACEMENT:
        raise ValueError("its normaliser replaces characters by texts longer than any that text needs")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protocol buffer; numbers have no content."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = 0
        for shift in range(0, 70, 7):
            if place >= len(message):
                raise ValueError("cut short")
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("damaged: a number of more than 64 bits")

    while place < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            varint()
            yield key >> 3, b""
            continue
        if kind not in (1, 2, 5):
            raise ValueError("damaged, or no SentencePiece model")
        size = varint() if kind == 2 else 8 if kind == 1 else 4
        if size > len(message) - place:
            raise ValueError("cut short")
        yield key >> 3, message[place : place + size]
        place += size
