"""Tokenized documents to rows of fixed length.

Attention never crosses documents (segment ids), every token of a document is predicted exactly once, with its own
weight in the loss, and an image block is never cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from chameleon_jax.batch import row_dtype
from chameleon_jax.tokens.vocabulary import Vocabulary

OPEN_ROWS = 64
"""Rows being filled at the same time; the fullest is finished when another is needed."""


class Piece(NamedTuple):
    """A stretch of tokens that goes into one row."""

    ids: np.ndarray  # int32 [n]
    weights: np.ndarray  # float32 [n]: weight in the loss of predicting each token


def cut(document: Piece, length: int, vocabulary: Vocabulary) -> list[Piece]:
    """A document, end of sequence included, in pieces of at most `length` + 1 tokens (one row each).

    Every piece begins with the begin-of-sequence token, which nothing predicts; only the last ends with end of
    sequence. A picture that would not fit goes whole into the next piece.
    """
    ids, weights = document
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    ends = np.flatnonzero(ids == vocabulary.end_image) + 1
    pieces, start = [], 0
    while start < len(ids):
        stop = min(start + length, len(ids))
        block = np.searchsorted(begins, stop) - 1  # the last picture that begins before `stop`
        if block >= 0 and begins[block] < stop < ends[block]:
            stop = begins[block]
        if stop == start:
            raise ValueError(f"a picture of {ends[block] - start} tokens does not fit a row of {length}")
        pieces.append(
            Piece(
                np.concatenate([[vocabulary.bos], ids[start:stop]]).astype(np.int32),
                np.concatenate([[0], weights[start:stop]]).astype(np.float32),
            )
        )
        start = stop
    return pieces


def pack(pieces: Iterable[Piece], length: int, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    """Rows (`batch.row_dtype`) of pieces, best fit: each piece goes where it leaves the least room.

    A piece of n + 1 tokens fills n places: its inputs are all but the last token, its targets all but the first.
    """
    rows: list[list[Piece]] = []
    room: list[int] = []
    for piece in pieces:
        need = len(piece.ids) - 1
        fitting = [index for index in range(len(rows)) if room[index] >= need]
        if fitting:
            best = min(fitting, key=room.__getitem__)
        else:
            if len(rows) == OPEN_ROWS:
                fullest = min(range(len(rows)), key=room.__getitem__)
                yield _row(rows.pop(fullest), length, vocabulary)
                room.pop(fullest)
            rows.append([])
            room.append(length)
            best = len(rows) - 1
        rows[best].append(piece)
        room[best] -= need
    for row in rows:
        yield _row(row, length, vocabulary)


def _row(pieces: list[Piece], length: int, vocabulary: Vocabulary) -> np.ndarray:
    row = np.zeros((), row_dtype(length))
    row["inputs"] = row["targets"] = vocabulary.pad
    start = 0
    for segment, (ids, weights) in enumerate(pieces, start=1):
        stop = start + len(ids) - 1
        row["inputs"][start:stop] = ids[:-1]
        row["targets"][start:stop] = ids[1:]
        row["loss_weights"][start:stop] = weights[1:]
        row["positions"][start:stop] = np.arange(len(ids) - 1)
        row["segment_ids"][start:stop] = segment
        start = stop
    return row
