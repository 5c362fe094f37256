"""Packs tokenized documents into rows of fixed length.

Attention stays inside documents (segment ids), every token of a document is predicted exactly once with its own weight
in the loss, and an image block is never split.

Rows are packed by best fit. Documents that do not fit a row whole:

- Conversations lose the turns at their end that do not fit, and the last answer that is kept ends with end of sequence.
- Other documents longer than a row are split by the rules of `places_to_cut`, or rejected.
- In pools of several sources, text fills the room that pictures leave: a text that takes a quarter of a row or more may
  be cut where a row is full, also more than once. Shorter texts are never cut, and no part of a text is shorter than
  1/32 of a row.

Each part begins with begin of sequence; only the last ends with end of sequence.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from chameleon_jax.tokens.vocabulary import Vocabulary
from data_pipeline.rows import Piece
from data_pipeline.tokenized import TokenizedDocument

OPEN_ROWS = 64
"""Rows that are filled at the same time. When another is needed, the fullest is finished."""
RESERVED_TEXTS = 16
"""Texts that are kept back to fill the rows that are finished."""


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


@dataclasses.dataclass
class Fitted:
    """What of a document goes into rows of a certain length."""

    pieces: list[Piece]
    may_be_cut: bool = False
    """Text that `Packer` may cut, longer than a row or not."""
    turns_dropped: int = 0
    pictures_cut_off: int = 0
    """Pictures that are separated from all of their text."""
    reason: str = ""
    """Why there are no pieces."""


def fit(
    document: TokenizedDocument,
    length: int,
    vocabulary: Vocabulary,
    too_long: Literal["split", "reject"] = "split",
    fill: bool = False,
) -> Fitted:
    """The parts of a document that take at most `length` places each.

    Args:
      fill: leaves it to `Packer` to cut long texts.

    Raises:
      ValueError: if a picture does not fit.
    """
    whole, turns = Piece(document.ids, document.weights), len(document.turn_ends)
    if turns:
        kept = int(np.searchsorted(document.turn_ends, length, side="right"))
        if not kept:
            return Fitted(
                [], turns_dropped=turns, reason=f"its first turn takes more than the {length} tokens of a row"
            )
        end = document.turn_ends[kept - 1]
        whole = Piece(np.append(whole.ids[: end - 1], vocabulary.eos), whole.weights[:end])
        return Fitted(pieces_of(whole, [], vocabulary), turns_dropped=turns - kept)
    if len(whole.ids) > length and too_long == "reject":
        return Fitted([], reason=f"it takes {len(whole.ids)} tokens, more than the {length} of a row")
    if fill and len(whole.ids) >= _shortest_to_cut(length) and not (whole.ids == vocabulary.begin_image).any():
        return Fitted(pieces_of(whole, [], vocabulary), may_be_cut=True)
    places, cut_off = places_to_cut(whole.ids, length, vocabulary)
    return Fitted(pieces_of(whole, places, vocabulary), pictures_cut_off=cut_off)


def pieces_of(document: Piece, places: list[int], vocabulary: Vocabulary) -> list[Piece]:
    """Splits a document at `places`, and puts begin of sequence, which is never predicted, before each part."""
    pieces = []
    for start, stop in zip([0, *places], [*places, len(document.ids)], strict=True):
        ids, weights = np.empty(stop - start + 1, np.int32), np.empty(stop - start + 1, np.float32)
        ids[0], ids[1:] = vocabulary.bos, document.ids[start:stop]
        weights[0], weights[1:] = 0, document.weights[start:stop]
        pieces.append(Piece(ids, weights))
    return pieces


def _shortest_to_cut(length: int) -> int:
    return max(length // 4, 2 * _shortest_part(length))


def _shortest_part(length: int) -> int:
    return max(length // 32, 1)


class Packer:
    """Rows that are being filled. Each piece goes where it leaves the least room."""

    def __init__(self, length: int, open_rows: int = OPEN_ROWS):
        self.cuts = 0
        """How often a text was cut to fill a row."""
        self._length, self._open_rows = length, open_rows
        self._open: list[tuple[int, int, list[Piece]]] = []  # room, number and pieces of rows, the fullest first
        self._opened = 0
        self._texts: list[tuple[int, int, Piece]] = []  # places, number and piece, the shortest first
        self._reserved = 0

    def add(self, piece: Piece, may_be_cut: bool = False) -> Iterator[list[Piece]]:
        """Takes a piece, and yields the rows that are finished with it.

        Args:
          may_be_cut: it is a text that may be longer than a row.
        """
        if may_be_cut and self._reserve(piece):
            return
        while (places := len(piece.ids) - 1) > self._length:
            part, piece = _split(piece, min(self._length, places - _shortest_part(self._length)))
            yield from self._place(part)
        yield from self._place(piece)

    def finish(self) -> Iterator[list[Piece]]:
        """Yields the rows that are left."""
        while self._texts:
            yield from self.add(self._texts.pop()[-1])
        yield from (pieces for _, _, pieces in self._open)
        self._open.clear()

    def _place(self, piece: Piece) -> Iterator[list[Piece]]:
        need = len(piece.ids) - 1
        place = bisect.bisect_left(self._open, (need,))
        if place < len(self._open):
            room, _, pieces = self._open.pop(place)
        else:
            if len(self._open) == self._open_rows:
                yield from self._finish_fullest()
            room, pieces = self._length, []
        pieces.append(piece)
        if room == need:
            yield pieces
        else:
            self._opened += 1
            bisect.insort(self._open, (room - need, self._opened, pieces))

    def _reserve(self, text: Piece) -> bool:
        """Keeps a text back if it is long enough and there is a place for it."""
        need = len(text.ids) - 1
        if need < _shortest_to_cut(self._length) or len(self._texts) == RESERVED_TEXTS:
            return False
        self._reserved += 1
        bisect.insort(self._texts, (need, self._reserved, text))
        return True

    def _finish_fullest(self) -> Iterator[list[Piece]]:
        """Yields the fullest row, its room filled with text if there is some."""
        room, _, pieces = self._open.pop(0)
        shortest, rests = _shortest_part(self._length), []
        while room >= shortest and self._texts:
            fitting = bisect.bisect_left(self._texts, (room + 1,))
            need, _, text = self._texts.pop(fitting - 1)  # the longest that fits, or else the longest
            if need > room:
                need = min(room, need - shortest)
                text, rest = _split(text, need)
                rests.append(rest)
                self.cuts += 1
            pieces.append(text)
            room -= need
        yield pieces
        for rest in rests:
            yield from self.add(rest, may_be_cut=True)


def _split(piece: Piece, places: int) -> tuple[Piece, Piece]:
    ids, weights = piece
    return (
        Piece(ids[: places + 1], weights[: places + 1]),
        Piece(np.append(ids[:1], ids[places + 1 :]), np.append(np.float32(0), weights[places + 1 :])),
    )


def pack(pieces: Iterable[Piece], length: int) -> Iterator[list[Piece]]:
    """Packs pieces that take at most `length` places into rows, none of them cut."""
    packer = Packer(length)
    for piece in pieces:
        yield from packer.add(piece)
    yield from packer.finish()
