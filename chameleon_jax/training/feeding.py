"""Batches onto the mesh: each process reads and places only the rows that its own devices hold."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from chameleon_jax.batch import Batch
from chameleon_jax.sharding import batch_sharding


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
