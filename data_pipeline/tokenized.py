"""Tokenized documents as bytes: what units write and packing reads.

A document is stored whole, however long, so that rows of any length can be packed from it without tokenizing again.
"""

from __future__ import annotations

import itertools
import struct
from typing import NamedTuple

import numpy as np

_HEADER = struct.Struct("<8IQ")
"""Bytes of id, tokens, runs, turns, pictures, bytes of text, bytes of signature, number, digest."""


class TokenizedDocument(NamedTuple):
    """A document or conversation in tokens, with the end of sequence but without its begin."""

    id: str
    ids: np.ndarray  # int32 [n]
    weights: np.ndarray  # float32 [n], weight of each token in the loss
    turn_ends: np.ndarray  # int32 [turns], the number of tokens up to the end of each turn; [0] for documents
    pictures: int
    text_bytes: int
    digest: int  # 64 bits: the same for documents made of equal records in the same place among them
    signature: bytes = b""  # of the record, for near duplicates: that of its text, then 8 bytes for each picture
    number: int = 0  # place among the documents made of the same record, which follow one another


def run_begins(values: np.ndarray) -> list[int]:
    """Where runs of equal values begin."""
    changes = (values[1:] != values[:-1]).nonzero()[0] + 1
    return [0, *changes.tolist()] if len(values) else []


def to_bytes(document: TokenizedDocument, vocab_size: int) -> bytes:
    """Ids take two bytes each in vocabularies of up to 65,536; weights are stored as runs."""
    name = document.id.encode()
    weights = np.asarray(document.weights, "<f4")
    begins = np.array(run_begins(weights), "<u4")
    header = _HEADER.pack(
        len(name), len(document.ids), len(begins), len(document.turn_ends), document.pictures, document.text_bytes,
        len(document.signature), document.number, document.digest,
    )  # fmt: skip
    return b"".join([
        header,
        begins.tobytes(),
        weights[begins].tobytes(),
        np.asarray(document.turn_ends, "<u4").tobytes(),
        np.asarray(document.ids, id_dtype(vocab_size)).tobytes(),
        name,
        document.signature,
    ])  # fmt: skip


def from_bytes(record: bytes, vocab_size: int) -> TokenizedDocument:
    """The inverse of `to_bytes`. Raises ValueError if the bytes are damaged."""
    dtype = id_dtype(vocab_size)
    try:
        name, tokens, runs, turns, pictures, text_bytes, signature, number, digest = _HEADER.unpack_from(record)
        parts = (_HEADER.size, 4 * runs, 4 * runs, 4 * turns, dtype.itemsize * tokens, name, signature)
        sizes = list(itertools.accumulate(parts))
        if sizes[-1] != len(record):
            raise ValueError(f"it has {len(record)} bytes instead of {sizes[-1]}")
        begins = np.frombuffer(record, "<u4", runs, sizes[0]).tolist()
        weights = np.frombuffer(record, "<f4", runs, sizes[1])
        turn_ends = np.frombuffer(record, "<u4", turns, sizes[2]).astype(np.int32)
        ids = np.frombuffer(record, dtype, tokens, sizes[3]).astype(np.int32)
        lengths = np.array([end - begin for begin, end in itertools.pairwise([*begins, tokens])], np.int64)
        return TokenizedDocument(
            record[sizes[4] : sizes[5]].decode(), ids, weights.repeat(lengths), turn_ends, pictures, text_bytes,
            digest, record[sizes[5] :], number,
        )  # fmt: skip
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None


def id_dtype(vocab_size: int) -> np.dtype:
    """The dtype in which ids are stored."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")
