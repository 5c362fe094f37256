"""Batches for the loop, and onto the mesh: each process reads and places only the rows that its own devices hold."""

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
"""The batches of a run: either an iterable of whole ones, which must give the same ones again when the run is resumed;
or, to read no more than is needed, a function that is given the number of the batch to begin with and the numbers of
the rows that this process needs, and gives batches of these rows only."""

HeldOut = Iterable[Batch] | Callable[[np.ndarray], Iterable[Batch]]
"""The batches of a held-out source: either an iterable that can be gone through again and again, such as a list; or a
function as for `Batches`, without the number. Rows that fill up the last batch have no loss weights."""


def batches_from(batches: Batches, start: int, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Batches `start`, `start` + 1, … of a run, of each only the rows with the numbers `rows`.

    Raises:
      ConfigError: at a batch of an iterable that has another number of rows than `batch_size`.
    """
    return batches(start, rows) if callable(batches) else _selected(batches, start, rows, batch_size)


def held_out_batches(batches: HeldOut, rows: np.ndarray, batch_size: int) -> Iterable[Batch]:
    """The same for all batches of a held-out source."""
    return batches(rows) if callable(batches) else _selected(batches, 0, rows, batch_size)


def _selected(batches: Iterable[Batch], start: int, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    for number, batch in enumerate(itertools.islice(batches, start, None), start):
        found = len(batch.inputs)
        if found != batch_size:
            raise ConfigError(f"batch_size = {batch_size}: batch {number}, counted from 0, has {found} rows")
        yield Batch(*(np.asarray(field)[rows] for field in batch))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Numbers int64 `[n]` of the rows of every batch that devices of this process hold, in rising order.

    All rows on a single process. With rows cut along their length over several hosts, each of these needs the row.
    """
    regions = batch_sharding(mesh).addressable_devices_indices_map((batch_size, mesh.shape["sequence"]))
    bounds = {region[0].indices(batch_size)[:2] for region in regions.values()}
    return np.unique(np.concatenate([np.arange(*each) for each in bounds]))


def place(batch: Batch, mesh: Mesh, batch_size: int, rows: np.ndarray) -> Batch:
    """A Batch of global arrays `[batch_size, length]` from the rows that this process has.

    Args:
      batch: NumPy arrays `[n, length]`.
      rows: the numbers of these rows, as `local_rows` gives them.
    """
    sharding = batch_sharding(mesh)

    def place_one(local: np.ndarray) -> jax.Array:
        def piece(region: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = region[0].indices(batch_size)
            start = np.searchsorted(rows, first)
            return local[start : start + stop - first, region[1]]

        return jax.make_array_from_callback((batch_size, local.shape[1]), sharding, piece)

    return Batch(*map(place_one, batch))
