"""Feeds Batches to the mesh: each process reads and places only the rows of its own devices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from chameleon_jax.batch import Batch
from chameleon_jax.errors import ConfigError
from chameleon_jax.sharding import batch_sharding

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
        found = len(batch.inputs)
        if found != batch_size:
            raise ConfigError(f"batch_size = {batch_size}: batch {number}, counted from 0, has {found} rows")
        yield Batch(*(np.asarray(field)[rows] for field in batch))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Indices of the rows of each batch that the devices of this process need, int64 `[n]` in increasing order.

    For a single process these are all rows. If rows are sharded along their length over several hosts, each of these
    hosts needs the whole row.
    """
    regions = batch_sharding(mesh).addressable_devices_indices_map((batch_size, mesh.shape["sequence"]))
    bounds = {region[0].indices(batch_size)[:2] for region in regions.values()}
    return np.unique(np.concatenate([np.arange(*each) for each in bounds]))


def place(batch: Batch, mesh: Mesh, batch_size: int, rows: np.ndarray) -> Batch:
    """Makes a Batch of global arrays `[batch_size, length]` from the rows of this process.

    Args:
      batch: NumPy arrays `[n, length]`.
      rows: the indices of these rows, from `local_rows`.
    """
    sharding = batch_sharding(mesh)

    def place_one(local: np.ndarray) -> jax.Array:
        def piece(region: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = region[0].indices(batch_size)
            start = np.searchsorted(rows, first)
            return local[start : start + stop - first, region[1]]

        return jax.make_array_from_callback((batch_size, local.shape[1]), sharding, piece)

    return Batch(*map(place_one, batch))
