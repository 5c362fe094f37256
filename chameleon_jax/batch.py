"""Batch: the fixed-shape arrays that training reads. Whoever makes them can train."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chameleon_jax.array_types import Array


class Batch(NamedTuple):
    """Packed rows, each field `[batch, length]`.

    A row holds several documents one after another; `segment_ids` numbers them from 1 and is 0 on padding, and
    `positions` counts from 0 in each. `targets` is the token after each input in the same document.
    """

    inputs: Array  # int32
    targets: Array  # int32
    loss_weights: Array  # float32; 0 where a prediction does not count, always so on padding
    positions: Array  # int32
    segment_ids: Array  # int32


def row_dtype(length: int) -> np.dtype:
    """One row of a Batch as a fixed number of bytes; this is what the prepared files hold."""
    types = {"loss_weights": "<f4"}
    return np.dtype([(name, types.get(name, "<i4"), (length,)) for name in Batch._fields])


def from_rows(rows: np.ndarray) -> Batch:
    """A structured array of `row_dtype`, shape `[batch]`, as a Batch."""
    return Batch(*(np.ascontiguousarray(rows[name]) for name in Batch._fields))
