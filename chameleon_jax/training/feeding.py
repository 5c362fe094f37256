"""Feeds batches to the mesh: each process reads and places only the rows of its own devices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from chameleon_jax.errors import ConfigError
from chameleon_jax.sharding import batch_sharding
from chameleon_jax.training.task import Batch

Batches = Iterable[Batch] | Callable[[int, np.ndarray], Iterator[Batch]]
"""The batches of a run. Either an iterable of whole batches, which must yield the same ones again when the run is
resumed; or, to read only what is needed, a function `(start, rows)` that yields the batches from number `start` on,
each with only the rows `rows`, those of this process."""

HeldOut = Iterable[Batch] | Callable[[np.ndarray], Iterable[Batch]]
"""The batches of a held-out source. Either an iterable that can be iterated repeatedly, such as a list; or a function
of `rows` as for `Batches`. Rows that pad the last batch have loss weights of 0."""


def batches_from(batches: Batches, start: int, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """The batches of a run from number `start` on, each with only the rows `rows`.

    Raises:
      ConfigError: if a batch of an iterable does not have `batch_size` rows.
    """
    return batches(start, rows) if callable(batches) else _selected(batches, start, rows, batch_size)


def held_out_batches(batches: HeldOut, rows: np.ndarray, batch_size: int) -> Iterable[Batch]:
    """The batches of a held-out source, each with only the rows `rows`. Raises as `batches_from`."""
    return batches(rows) if callable(batches) else _selected(batches, 0, rows, batch_size)


def _selected(batches: Iterable[Batch], start: int, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    for number, batch in enumerate(itertools.islice(batches, start, None), start):
        found = len(batch[0])
        if found != batch_size:
            raise ConfigError(f"batch_size = {batch_size}: batch {number}, counted from 0, has {found} rows")
        yield type(batch)(*(np.asarray(field)[rows] for field in batch))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Indices of the rows of each batch that the devices of this process need, int64 `[n]` in increasing order.

    For a single process these are all rows. If rows are sharded along their length over several hosts, each of these
    hosts needs the whole row.
    """
    regions = batch_sharding(mesh).addressable_devices_indices_map((batch_size, mesh.shape["sequence"]))
    bounds = {region[0].indices(batch_size)[:2] for region in regions.values()}
    return np.unique(np.concatenate([np.arange(*each) for each in bounds]))


def place(batch: Batch, shardings: Any, batch_size: int, rows: np.ndarray) -> Batch:
    """Makes a batch of global arrays, of `batch_size` rows, from the rows of this process.

    Args:
      batch: NumPy arrays `[n, …]`.
      shardings: of the arrays, or one for all; see `Task.batch_shardings`.
      rows: the indices of these rows, from `local_rows`.
    """

    def place_one(local: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        def piece(region: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = region[0].indices(batch_size)
            start = np.searchsorted(rows, first)
            return local[(slice(start, start + stop - first), *region[1:])]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, piece)

    if isinstance(shardings, jax.sharding.Sharding):
        shardings = [shardings] * len(batch)
    return type(batch)(*map(place_one, batch, shardings))
