"""Checks a SentencePiece model before the package `sentencepiece` opens it.

The file is a protocol buffer (`sentencepiece_model.proto`) with pieces in field 1 and the normaliser in field 3, a
table that may replace a single character by megabytes of text.
"""

from __future__ import annotations

from collections.abc import Iterator

MOST_PIECES = 1 << 20
LONGEST_PIECE = 1024
"""Most bytes of a piece, with its score and type."""
LARGEST_TABLE = 1 << 20
"""Most bytes of the normaliser's table; that of NFKC has 240,000."""
LONGEST_REPLACEMENT = 64
"""Most bytes that a character may be replaced by; with NFKC, 33."""

_PIECE, _NORMALIZER, _TABLE = 1, 3, 2


def check_model(model: bytes) -> None:
    """Raises `ValueError` if a serialized model is damaged, or larger than any text tokenizer needs."""
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


def has_table(model: bytes) -> bool:
    """Whether the normaliser of a checked model replaces characters."""
    normalizers = [content for field, content in _fields(model) if field == _NORMALIZER]
    return any(field == _TABLE and table for content in normalizers for field, table in _fields(content))


def _check_table(table: bytes) -> None:
    """The table is a length, a trie of that many bytes, and the replacements, each terminated by a null byte."""
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    if len(table) > LARGEST_TABLE or max(map(len, texts.split(b"\0"))) > LONGEST_REPLACEMENT:
        raise ValueError("its normaliser replaces characters by longer texts than any tokenizer needs")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protocol buffer; the content of numbers is skipped."""
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
            raise ValueError("damaged, or not a SentencePiece model")
        size = varint() if kind == 2 else 8 if kind == 1 else 4
        if size > len(message) - place:
            raise ValueError("cut short")
        yield key >> 3, message[place : place + size]
        place += size
