"""Packs tokenized documents into rows of fixed length.

Attention stays inside documents (segment ids), every token of a document is predicted exactly once with its own weight
in the loss, and an image block is never split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from chameleon_jax.batch import row_dtype
from chameleon_jax.tokens.vocabulary import Vocabulary

OPEN_ROWS = 64
"""Rows that are filled at the same time. When another is needed, the fullest is finished."""


class Piece(NamedTuple):
    """Tokens that go into one row together."""

    ids: np.ndarray  # int32 [n]
    weights: np.ndarray  # float32 [n], weight of each token in the loss


class _Group(NamedTuple):
    """Adjacent pictures and the text that belongs to them: tokens `begin` to `end`, of which `first` to `last` are the
    pictures. One of the two may be empty."""

    begin: int
    first: int
    last: int
    end: int


def _groups(ids: np.ndarray, vocabulary: Vocabulary) -> list[_Group]:
    """Divides a document into pictures with their captions. The caption is the text before a picture if the document
    begins with text, else the text after it; text after the last of pictures that follow their captions is a group of
    its own."""
    begins = np.flatnonzero(ids == vocabulary.begin_image).tolist()
    ends = (np.flatnonzero(ids == vocabulary.end_image) + 1).tolist()
    runs: list[list[int]] = []
    for begin, end in zip(begins, ends, strict=True):
        if runs and runs[-1][1] == begin:
            runs[-1][1] = end
        else:
            runs.append([begin, end])
    size = len(ids)
    if not runs:
        return [_Group(0, 0, 0, size)]
    if runs[0][0] == 0:
        stops = [begin for begin, _ in runs[1:]] + [size]
        return [_Group(begin, begin, end, stop) for (begin, end), stop in zip(runs, stops, strict=True)]
    starts = [0] + [end for _, end in runs]
    groups = [_Group(start, begin, end, end) for start, (begin, end) in zip(starts, runs, strict=False)]
    rest = starts[-1]
    if size - rest <= 1:  # nothing, or end of sequence
        groups[-1] = groups[-1]._replace(end=size)
        return groups
    return [*groups, _Group(rest, rest, rest, size)]


def places_to_cut(ids: np.ndarray, length: int, vocabulary: Vocabulary) -> tuple[list[int], int]:
    """Where to split a document so that each piece has at most `length` tokens, and how many pictures that separates
    from all of their text.

    A piece takes as much as fits, but pictures are never split, and a picture stays with its text if both fit into one
    piece, or else with as much of the text as fits.

    Raises:
      ValueError: if a picture does not fit.
    """
    if len(ids) <= length:
        return [], 0
    groups = _groups(ids, vocabulary)
    text_end = len(ids) - 1  # before end of sequence
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    ends = np.flatnonzero(ids == vocabulary.end_image) + 1
    places, start = [], 0
    while len(ids) - start > length:
        stop = start + length
        block = np.searchsorted(begins, stop) - 1  # the last picture that begins before `stop`
        if block >= 0 and begins[block] < stop < ends[block]:
            stop = int(begins[block])
        if stop == start:
            raise ValueError(f"a picture of {ends[block] - start} tokens does not fit a row of {length}")
        group = next(group for group in groups if group.begin <= stop < group.end)
        if start < group.begin < stop and group.end - group.begin <= length:
            stop = group.begin
        elif stop == group.first:  # its text comes before it
            stop = max(stop - max(0, length - (group.last - group.first)), group.begin, start + 1)
        elif stop == group.last < min(group.end, text_end) and start < group.first:  # its text comes behind it
            stop = group.first
        places.append(stop)
        start = stop
    apart = [
        (group.first in places and group.begin < group.first)
        or (group.last in places and group.last < min(group.end, text_end))
        for group in groups
    ]
    pictures = [int((ids[group.first : group.last] == vocabulary.begin_image).sum()) for group in groups]
    return places, int(np.dot(pictures, apart))


def cut(document: Piece, length: int, vocabulary: Vocabulary) -> list[Piece]:
    """Splits a document, end of sequence included, into pieces of at most `length` + 1 tokens, as `places_to_cut` says.

    Every piece begins with the begin-of-sequence token, which is never predicted; only the last ends with end of
    sequence.
    """
    places, _ = places_to_cut(document.ids, length, vocabulary)
    return pieces_of(document, places, vocabulary)


def pieces_of(document: Piece, places: list[int], vocabulary: Vocabulary) -> list[Piece]:
    """Splits a document at `places`."""
    ids, weights = document
    return [
        Piece(
            np.concatenate([[vocabulary.bos], ids[start:stop]]).astype(np.int32),
            np.concatenate([[0], weights[start:stop]]).astype(np.float32),
        )
        for start, stop in zip([0, *places], [*places, len(ids)], strict=True)
    ]


def pack(pieces: Iterable[Piece], length: int, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    """Packs pieces into rows (`batch.row_dtype`) by best fit: each goes where it leaves the least room.

    A piece of n + 1 tokens takes n places: its inputs are all tokens but the last, its targets all but the first.
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
