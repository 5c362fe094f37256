"""Rows find their way onto the mesh whole and in order, whatever part of them a process has."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon_jax.config import MeshConfig
from chameleon_jax.sharding import batch_sharding, make_mesh
from chameleon_jax.training import feeding
from chameleon_jax.training.feeding import local_rows, place

MESHES = [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=2, sequence=4)]


@pytest.mark.parametrize("config", MESHES, ids=str)
def test_a_single_process_reads_and_places_all_rows(tiny, config):
    mesh, batch = make_mesh(config), tiny.batch(3)
    rows = local_rows(mesh, len(batch.inputs))
    assert rows.tolist() == list(range(8))
    for placed, values in zip(place(batch, batch_sharding(mesh), 8, rows), batch, strict=True):
        np.testing.assert_array_equal(np.asarray(placed), values)
        assert placed.sharding.is_equivalent_to(batch_sharding(mesh), 2)


def test_a_process_reads_only_the_rows_of_its_own_devices(monkeypatch):
    """With four of eight devices, two on each side of the mesh's data axis."""
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    own = set(mesh.devices[1].reshape(-1)) | set(mesh.devices[3].reshape(-1))

    class Sharding:
        def addressable_devices_indices_map(self, shape):
            regions = feeding_sharding.devices_indices_map(shape)
            return {device: region for device, region in regions.items() if device in own}

    feeding_sharding = feeding.batch_sharding(mesh)
    monkeypatch.setattr(feeding, "batch_sharding", lambda mesh: Sharding())
    assert local_rows(mesh, 8).tolist() == [2, 3, 6, 7]
