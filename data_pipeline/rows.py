"""Packed rows as bytes: what packing writes and training reads.

A row holds the ids of its documents, how long each is, and runs of equal weights in the loss. Everything else of a
Batch follows from these, and is computed for all rows of a batch together.

Little-endian 32-bit words: [documents, runs], the number of places that each document takes, that each run covers, and
the weight of each run (float32). Then ids, of two bytes in vocabularies of up to 65,536: the first id of each document,
the targets of all places, and zeros up to the next word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from chameleon_jax.batch import Batch, from_rows, row_dtype
from data_pipeline.tokenized import id_dtype, run_begins

PREPARED_VERSION = 2
"""`format_version` of dataset.json."""
FIXED_ROWS = 1
"""The version in which rows were structured scalars of `row_dtype`, and files had up to `FIXED_ROWS_PER_FILE` rows."""
FIXED_ROWS_PER_FILE = 65536


Empty = Callable[[tuple[int, ...], Any], np.ndarray]
"""Gives an array of some shape and dtype that is not filled, as `np.empty` does."""


class Piece(NamedTuple):
    """A document, or a part of one, in a row: n + 1 tokens take n places, where each predicts the next."""

    ids: np.ndarray  # int32 [n + 1], the first is begin of sequence
    weights: np.ndarray  # float32 [n + 1], weight of each token in the loss; the first is never predicted


def to_bytes(pieces: Sequence[Piece], vocab_size: int) -> bytes:
    """One row."""
    weights = np.concatenate([piece.weights[1:] for piece in pieces]).astype("<f4", copy=False)
    begins = run_begins(weights)
    places = [len(piece.ids) - 1 for piece in pieces]
    lengths = [end - begin for begin, end in itertools.pairwise([*begins, len(weights)])]
    words = np.array([len(pieces), len(begins), *places, *lengths], "<u4")
    ids = np.concatenate([piece.ids[:1] for piece in pieces] + [piece.ids[1:] for piece in pieces])
    ids = ids.astype(id_dtype(vocab_size))
    return b"".join([words.tobytes(), weights[begins].tobytes(), ids.tobytes(), bytes(-ids.nbytes % 4)])


def to_batch(records: Sequence[bytes], length: int, vocab_size: int, pad: int, empty: Empty = np.empty) -> Batch:
    """The rows as arrays `[len(records), length]`.

    Args:
      empty: gives the memory for all of them.

    Raises:
      ValueError: with the reason, if any of them is damaged. To know which, read them one by one.
    """
    row = _tables(records, length, id_dtype(vocab_size))
    count, padding = len(records), length - row.used
    # What follows the last document of a row is derived as if it belonged to it, and then overwritten.
    pads = _ranges(np.arange(1, count + 1) * length - padding, padding)
    lengths = _with_rest(row.document_places, row.documents, padding)
    starts = np.cumsum(lengths) - lengths
    first = row.content[_ranges(row.ids, row.documents)]
    inputs, targets, loss_weights, positions, segment_ids = empty((len(Batch._fields), count * length), np.int32)
    loss_weights = loss_weights.view(np.float32)

    targets.reshape(count, length)[:] = sliding_window_view(row.content, length)[row.ids + row.documents]
    inputs[1:] = targets[:-1]
    inputs[starts] = first
    loss_weights[:] = row.run_weights.repeat(_with_rest(row.run_places, row.runs, padding))
    np.subtract(np.arange(len(positions), dtype=np.int32), starts.astype(np.int32).repeat(lengths), out=positions)
    segment_ids[:] = (_count_up(row.documents) + 1).astype(np.int32).repeat(lengths)
    fields = Batch(inputs, targets, loss_weights, positions, segment_ids)
    for field, value in zip(fields, (pad, pad, 0, 0, 0), strict=True):
        field[pads] = value
    _check(first, targets, row.run_weights, vocab_size)
    return Batch(*(field.reshape(count, length) for field in fields))


class _Tables(NamedTuple):
    """The tables of several rows, those of one after those of another."""

    content: np.ndarray  # all bytes, as ids
    ids: np.ndarray  # int64 [rows], where the ids of each begin in `content`
    used: np.ndarray  # int64 [rows], places taken by documents
    documents: np.ndarray  # int64 [rows]
    runs: np.ndarray  # int64 [rows]
    document_places: np.ndarray  # int64 [sum of documents]
    run_places: np.ndarray  # int64 [sum of runs]
    run_weights: np.ndarray  # float32 [sum of runs]


def _tables(records: Sequence[bytes], length: int, ids: np.dtype) -> _Tables:
    sizes = np.array([len(record) for record in records])
    if (wrong := sizes[(sizes % 4 > 0) | (sizes < 8)]).size:
        raise ValueError(f"no row has {wrong[0]} bytes")
    content = b"".join([*records, bytes(4 * length)])  # so much follows the begin of any row
    words = np.frombuffer(content, "<u4")
    starts = (np.cumsum(sizes) - sizes) // 4
    documents, runs = words[starts].astype(np.int64), words[starts + 1].astype(np.int64)
    tables = 2 + documents + 2 * runs
    if (documents == 0).any() or (runs == 0).any() or (4 * tables > sizes).any():
        raise ValueError("the tables of its documents and weights do not fit its size")
    document_places = words[_ranges(starts + 2, documents)].astype(np.int64)
    run_places = words[_ranges(starts + 2 + documents, runs)].astype(np.int64)
    run_weights = words[_ranges(starts + 2 + documents + runs, runs)].view("<f4")
    used = np.add.reduceat(document_places, np.cumsum(documents) - documents)
    if (document_places == 0).any() or (used > length).any():
        raise ValueError(f"its documents must take 1 to {length} places")
    if (np.add.reduceat(run_places, np.cumsum(runs) - runs) != used).any():
        raise ValueError("its weights are not those of its documents")
    expected = 4 * (tables - (-ids.itemsize * (documents + used)) // 4)
    if (wrong := np.flatnonzero(sizes != expected)).size:
        raise ValueError(f"it has {sizes[wrong[0]]} bytes instead of {expected[wrong[0]]}")
    return _Tables(
        np.frombuffer(content, ids), (starts + tables) * 4 // ids.itemsize, used, documents, runs, document_places,
        run_places, run_weights,
    )  # fmt: skip


def _with_rest(places: np.ndarray, counts: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """`places`, `counts` of them in each row, where the last of a row has its rest, too."""
    places = places.copy()
    places[np.cumsum(counts) - 1] += rest
    return places


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0, 1, … counts[0] - 1, 0, 1, … counts[1] - 1, and so on."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as `counts` says."""
    return np.repeat(starts, counts) + _count_up(counts)


def _check(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, vocab_size: int) -> None:
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("loss weights must be finite and 0 or more, not NaN, infinite or negative")
    for name, ids in (("targets", targets), ("inputs", inputs)):
        if ids.view(f"u{ids.itemsize}").max() >= vocab_size:  # negative ones are the largest
            raise ValueError(f"{name} must be ids from 0 to {vocab_size - 1}")


def fixed_to_batch(records: Sequence[bytes], length: int, vocab_size: int) -> Batch:
    """`to_batch` for rows of `FIXED_ROWS`: structured scalars of `row_dtype`."""
    dtype = row_dtype(length)
    for record in records:
        if len(record) != dtype.itemsize:
            raise ValueError(f"it has {len(record)} bytes instead of {dtype.itemsize}")
    batch = from_rows(np.frombuffer(b"".join(records), dtype))
    _check(batch.inputs, batch.targets, batch.loss_weights, vocab_size)
    return batch
