"""Batches: the fixed-shape arrays that training reads, wherever they come from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chameleon_jax.array_types import Array


class Batch(NamedTuple):
    """Packed rows, each field `[batch, length]`.

    A row holds one or more documents, one after another. `segment_ids` numbers them from 1 and is 0 on padding;
    `positions` counts from 0 in each document. `targets` is the next token of the same document.
    """

    inputs: np.ndarray | Array  # int32
    targets: np.ndarray | Array  # int32
    loss_weights: np.ndarray | Array  # float32, weight of each prediction; 0 on padding
    positions: np.ndarray | Array  # int32
    segment_ids: np.ndarray | Array  # int32


class Pictures(NamedTuple):
    """A batch of pictures, for the image tokenizer."""

    pixels: np.ndarray | Array  # uint8 [batch, height, width, 3]
    loss_weights: np.ndarray | Array  # float32 [batch]; 0 for what fills up the last batch of an evaluation


def row_dtype(length: int) -> np.dtype:
    """The structured dtype of one row of a Batch, as prepared files store it."""
    types = {"loss_weights": "<f4"}
    return np.dtype([(name, types.get(name, "<i4"), (length,)) for name in Batch._fields])


def from_rows(rows: np.ndarray) -> Batch:
    """Makes a Batch from a structured array `[batch]` of `row_dtype`."""
    return Batch(*(np.ascontiguousarray(rows[name]) for name in Batch._fields))
