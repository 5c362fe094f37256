"""Packed rows as bytes: what packing writes and training reads.

A row holds the ids of its documents, how long each is, and runs of equal weights in the loss. Everything else of a
Batch follows from these, and is computed for all rows of a batch together.

Little-endian 32-bit words: [documents, runs], the number of places that each document takes, that each run covers, and
the weight of each run (float32). Then ids, of two bytes in vocabularies of up to 65,536: the first id of each document,
the targets of all places, and zeros up to the next word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chameleon_jax.batch import Batch, from_rows, row_dtype
from data_pipeline.tokenized import id_dtype

PREPARED_VERSION = 2
"""`format_version` of dataset.json."""
FIXED_ROWS = 1
"""The version in which rows were structured scalars of `row_dtype`, and files had up to `FIXED_ROWS_PER_FILE` rows."""
FIXED_ROWS_PER_FILE = 65536


class Piece(NamedTuple):
    """A document, or a part of one, in a row: n + 1 tokens take n places, where each predicts the next."""

    ids: np.ndarray  # int32 [n + 1], the first is begin of sequence
    weights: np.ndarray  # float32 [n + 1], weight of each token in the loss; the first is never predicted


def to_bytes(pieces: Sequence[Piece], vocab_size: int) -> bytes:
    """One row."""
    weights = np.concatenate([piece.weights[1:] for piece in pieces]).astype("<f4")
    begins = np.flatnonzero(np.diff(weights, prepend=np.float32(np.nan)) != 0)
    places = [len(piece.ids) - 1 for piece in pieces]
    words = np.array([len(pieces), len(begins), *places, *np.diff(begins, append=len(weights))], "<u4")
    first = [piece.ids[0] for piece in pieces]
    ids = np.concatenate([first, *(piece.ids[1:] for piece in pieces)]).astype(id_dtype(vocab_size))
    return b"".join([words.tobytes(), weights[begins].tobytes(), ids.tobytes(), bytes(-ids.nbytes % 4)])


def to_batch(records: Sequence[bytes], length: int, vocab_size: int, pad: int) -> Batch:
    """The rows as arrays `[len(records), length]`.

    Raises:
      ValueError: with the reason, if any of them is damaged. To know which, read them one by one.
    """
    row = _tables(records, length, id_dtype(vocab_size))
    count, padding = len(records), length - row.used
    # Padding is the last segment of its row, with number 0 and weight 0; it may be empty.
    ends = np.cumsum(row.documents)
    lengths = np.insert(row.document_places, ends, padding)
    numbers = np.insert(_count_up(row.documents) + 1, ends, 0).astype(np.int32)
    starts = np.cumsum(lengths) - lengths
    segment_ids = np.repeat(numbers, lengths)
    positions = np.arange(count * length, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    positions[segment_ids == 0] = 0
    ends = np.cumsum(row.runs)
    loss_weights = np.repeat(np.insert(row.run_weights, ends, 0), np.insert(row.run_places, ends, padding))
    begins, pads = row.ids + row.documents, np.full(length, pad, row.content.dtype)
    parts = zip(begins.tolist(), (begins + row.used).tolist(), padding.tolist(), strict=True)
    targets = np.concatenate([part for begin, end, rest in parts for part in (row.content[begin:end], pads[:rest])])
    targets = targets.astype(np.int32)
    first = np.insert(row.content[_ranges(row.ids, row.documents)].astype(np.int32), np.cumsum(row.documents), pad)
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    inputs[starts[lengths > 0]] = first[lengths > 0]
    _check(inputs, targets, row.run_weights, vocab_size)
    return Batch(*(field.reshape(count, length) for field in (inputs, targets, loss_weights, positions, segment_ids)))


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
    content = b"".join(records)
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
        if ids.min() < 0 or ids.max() >= vocab_size:
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
