"""A folder of arrays that is a trap is refused before Orbax opens it; one that claims too much, before it is read."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.arrays import load_arrays, save_arrays

ARRAYS = {"embed": np.arange(12, dtype=np.float32).reshape(3, 4), "norm": np.ones(4, np.float32)}


@pytest.fixture
def saved(tmp_path) -> Path:
    save_arrays(tmp_path / "params", ARRAYS)
    return tmp_path / "params"


def refusal(folder: Path, **shapes: tuple[int, ...]) -> str:
    wanted = {name: jax.ShapeDtypeStruct(shapes.get(name, value.shape), value.dtype) for name, value in ARRAYS.items()}
    with pytest.raises(FileError) as caught:
        load_arrays(folder, wanted)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def claim(folder: Path, shape: list[int], chunks: list[int], dtype: str = "<f4") -> None:
    """Makes `embed` say that it is another array, of which nothing is there."""
    import tensorstore

    base = {"driver": "file", "path": f"{folder / 'state'}/"}
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": "embed/"},
        "metadata": {"shape": shape, "chunks": chunks, "dtype": dtype, "compressor": None, "fill_value": None},
    }
    tensorstore.open(spec, create=True, delete_existing=True).result()


def test_array_of_terabytes_in_a_small_folder_is_refused(saved):
    claim(saved, [2**20, 2**20], [2**10, 2**10])
    message = refusal(saved, embed=(2**20, 2**20))
    assert "its arrays, up to embed, have more than 64 times the bytes" in message


def test_array_in_very_many_chunks_is_refused(saved):
    claim(saved, [2**10, 2**10], [1, 1])
    assert "embed has 1,048,576 chunks of shape (1, 1)" in refusal(saved, embed=(2**10, 2**10))


def test_chunk_larger_than_any_of_ours_is_refused(saved):
    claim(saved, [3, 4], [2**20, 2**20])
    assert "embed has 1 chunks of shape (1048576, 1048576)" in refusal(saved)


def test_array_of_no_numbers_is_refused(saved):
    claim(saved, [3, 4], [3, 4], "<c8")
    assert "embed is of type complex64" in refusal(saved)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt"])
def test_pipe_in_the_place_of_a_file_is_refused_without_waiting(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert f"{saved / name}: is a pipe" in refusal(saved)


def test_device_and_link_to_a_folder_are_refused(saved, tmp_path):
    (saved / "state" / "zero").symlink_to("/dev/zero")
    assert "state/zero: is a pipe, a socket or a device" in refusal(saved)
    (saved / "state" / "zero").unlink()
    (saved / "state" / "more").symlink_to(tmp_path)
    assert "state/more: is a link to a folder" in refusal(saved)


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_metadata_that_is_a_sparse_giant_is_refused(saved, name):
    os.truncate(saved / "state" / name, 1 << 40)
    assert f"{name}: has more than 16,777,216 bytes" in refusal(saved)


def test_links_to_files_are_followed(saved, tmp_path):
    """As in the cache of the Hub."""
    for file in [path for path in saved.rglob("*") if path.is_file() and path.name != "_METADATA"]:
        target = tmp_path / "blobs" / file.relative_to(saved).as_posix().replace("/", "-")
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
        file.symlink_to(target)
    loaded = load_arrays(saved, {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in ARRAYS.items()})
    np.testing.assert_array_equal(loaded["embed"], ARRAYS["embed"])
