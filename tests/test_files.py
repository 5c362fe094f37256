"""Files are whole or not there, and what cannot be read or written is named."""

from __future__ import annotations

import errno
import functools
import gc
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.files import (
    FORMAT_VERSION,
    FileError,
    check_version,
    load_arrays,
    new_file,
    read_json,
    save_arrays,
    write_json,
)
from chameleon_jax.replacing import Kind
from chameleon_jax.replacing import new_folder as new_folder_of

new_folder = functools.partial(new_folder_of, kind=Kind("folders of any files", lambda folder: True, ("*",)))

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail_to_write(new, path: Path, error: BaseException) -> None:
    """Half of what was to be written is there when `error` strikes."""
    with new(path) as aside:
        if new is new_folder:
            (aside / "inner").mkdir()
        (aside / "inner" / "new" if new is new_folder else aside).write_bytes(b"half of the n")
        raise error


@pytest.mark.parametrize("error", [ValueError("a mistake"), KeyboardInterrupt(), DISK_FULL])
@pytest.mark.parametrize("before", [None, b"old"])
def test_failed_file_leaves_everything_as_it_was(tmp_path, error, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(FileError if isinstance(error, OSError) else type(error)):
        fail_to_write(new_file, path, error)
    assert contents(tmp_path) == ({} if before is None else {"file": before})


@pytest.mark.parametrize("error", [ValueError("a mistake"), KeyboardInterrupt(), DISK_FULL])
@pytest.mark.parametrize("exists", [False, True])
def test_failed_folder_leaves_everything_as_it_was(tmp_path, error, exists):
    path = tmp_path / "folder"
    if exists:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "old").write_bytes(b"old")
    with pytest.raises(FileError if isinstance(error, OSError) else type(error)):
        fail_to_write(new_folder, path, error)
    assert contents(tmp_path) == ({"folder/inner/old": b"old"} if exists else {})
    assert [each.name for each in tmp_path.iterdir()] == (["folder"] if exists else [])


def test_finished_file_and_folder_replace_the_old_ones(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    (tmp_path / "file").write_text("old")
    with new_file(tmp_path / "file") as aside:
        aside.write_text("new")
        assert (tmp_path / "file").read_text() == "old"
    with new_folder(tmp_path / "folder") as aside:
        (aside / "new").write_text("new")
        assert (tmp_path / "folder" / "old").read_text() == "old"
    assert contents(tmp_path) == {"file": b"new", "folder/new": b"new"}


def test_full_disk_is_named_with_its_reason(tmp_path):
    for new in (new_file, new_folder):
        with (
            pytest.raises(FileError, match=r"result: cannot be written: No space left on device"),
            new(tmp_path / "result"),
        ):
            raise DISK_FULL


def test_missing_parents_are_made(tmp_path):
    with new_file(tmp_path / "a" / "b" / "file") as aside:
        aside.write_text("x")
    with new_folder(tmp_path / "c" / "d" / "folder") as aside:
        (aside / "file").write_text("x")
    assert sorted(contents(tmp_path)) == ["a/b/file", "c/d/folder/file"]


def test_place_that_cannot_be_written_is_named(tmp_path):
    """A file where a folder should be: nobody can write there, not even the superuser."""
    (tmp_path / "file").write_text("in the way")
    for new in (new_file, new_folder):
        with pytest.raises(FileError, match=r"file/below: cannot be written: "), new(tmp_path / "file" / "below"):
            pass
    assert contents(tmp_path) == {"file": b"in the way"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_unwritable_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for new in (new_file, new_folder):
            with (
                pytest.raises(FileError, match="result: cannot be written: Permission denied"),
                new(tmp_path / "result"),
            ):
                pass
    finally:
        tmp_path.chmod(0o700)


def test_leftovers_of_a_killed_process_are_no_obstacle(tmp_path):
    """Process ids come round again."""
    aside = tmp_path / f".folder.{os.getpid()}.part"
    aside.mkdir()
    (aside / "leftover").write_text("x")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path) == {"folder/new": b"new"}


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, True], "ü": "…"}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"{", "as JSON"), (b"", "as JSON"), (b"\xff\xfe", "as JSON")]
)
def test_unreadable_json_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(FileError, match=rf"file\.json: .*{message}"):
        read_json(tmp_path / "file.json")


def test_versions():
    check_version({"format_version": FORMAT_VERSION}, "here")
    check_version({"format_version": FORMAT_VERSION - 1}, "here")
    with pytest.raises(FileError, match=rf"^here: format_version {FORMAT_VERSION + 1} is newer .*update"):
        check_version({"format_version": FORMAT_VERSION + 1}, "here")
    for header in ({}, {"format_version": "1"}, {"format_version": None}):
        with pytest.raises(FileError, match=r"^here: has no format_version"):
            check_version(header, "here")


@pytest.mark.parametrize("header", [[], "text", None, 3])
def test_header_that_is_no_mapping_is_named(header):
    with pytest.raises(FileError, match=r"^here: "):
        check_version(header, "here")


def tree() -> dict:
    rng = np.random.default_rng(0)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, np.finfo(np.float32).max], np.float32)
    return {
        "layers": {"q": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32), "scale": jnp.asarray(odd)},
        "half": jnp.asarray(rng.normal(size=(7,)), jnp.bfloat16),
        "step": jnp.asarray(12, jnp.int32),
    }


def abstract(arrays) -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)


@pytest.fixture
def saved(tmp_path) -> Path:
    save_arrays(tmp_path / "params", tree())
    return tmp_path / "params"


def test_arrays_come_back_bit_for_bit(saved):
    loaded = load_arrays(saved, abstract(tree()))
    assert jax.tree.structure(loaded) == jax.tree.structure(tree())
    for array, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree()), strict=True):
        assert array.dtype == original.dtype
        assert array.shape == original.shape
        assert np.asarray(array).tobytes() == np.asarray(original).tobytes()


def test_arrays_are_born_on_a_mesh(saved):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    wanted = abstract(tree())
    wanted["layers"]["q"] = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32, sharding=sharding)
    loaded = load_arrays(saved, wanted)["layers"]["q"]
    assert loaded.sharding == sharding
    assert {shard.data.shape for shard in loaded.addressable_shards} == {(3, 1, 5)}
    np.testing.assert_array_equal(loaded, tree()["layers"]["q"])


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileError, match="params: no such folder of arrays"):
        load_arrays(tmp_path / "params", abstract(tree()))


def test_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "readme").write_text("nothing here")
    with pytest.raises(FileError, match="params: not a complete folder of arrays"):
        load_arrays(tmp_path / "params", abstract(tree()))


def test_array_of_another_shape_is_named(saved):
    wanted = abstract(tree())
    wanted["layers"]["q"] = jax.ShapeDtypeStruct((3, 4, 6), jnp.float32)
    with pytest.raises(FileError, match=r"layers/q has shape \(3, 4, 5\), the config expects \(3, 4, 6\)"):
        load_arrays(saved, wanted)


def test_missing_and_surplus_arrays_are_named(saved):
    wanted = abstract(tree())
    wanted["layers"]["k"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(FileError, match=r"layers/k has shape none \(missing\), the config expects \(2,\)"):
        load_arrays(saved, wanted)
    wanted = abstract(tree())
    del wanted["half"]
    with pytest.raises(FileError, match=r"half has shape \(7,\), the config expects no such array"):
        load_arrays(saved, wanted)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax abandons its other reads
@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut in half"])
def test_damaged_folder_is_named_or_harmless(saved, damage):
    """Whichever file is hit: the arrays come back as they were, or the error names the folder. Never other numbers."""
    wanted, messages = abstract(tree()), []
    for name in files_of(saved):
        content = (saved / name).read_bytes()
        if damage == "deleted":
            (saved / name).unlink()
        else:
            (saved / name).write_bytes(content[: len(content) // 2] if damage == "cut in half" else b"")
        try:
            loaded = load_arrays(saved, wanted)
        except FileError as error:
            messages.append(str(error))
        else:
            for array, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree()), strict=True):
                assert np.asarray(array).tobytes() == np.asarray(original).tobytes(), name
        (saved / name).write_bytes(content)
    gc.collect()
    assert len(messages) >= 2
    for message in messages:
        assert message.startswith(f"{saved}: ")
        assert "\n" not in message


def test_json_file_is_plain(tmp_path):
    write_json(tmp_path / "file.json", {"b": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"b": 1}
    assert (tmp_path / "file.json").read_text().endswith("\n")
