"""Files are whole or not there, and what cannot be read or written is named."""

from __future__ import annotations

import errno
import functools
import json
import os
from pathlib import Path

import pytest

from chameleon_jax.config import ConfigError
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.files import new_file, read_json, write_json
from chameleon_jax.runtime.folders import Kind
from chameleon_jax.runtime.folders import new_folder as new_folder_of
from chameleon_jax.runtime.headers import FORMAT_VERSION, check_version, read_header, with_checksum

new_folder = functools.partial(new_folder_of, kind=Kind("folders of any files", lambda folder: True, ("*",)))

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail_to_write(new, path: Path, error: BaseException) -> None:
    """Half of what was to be written is there when `error` strikes."""
    with new(path) as tmp:
        if new is new_folder:
            (tmp / "inner").mkdir()
        (tmp / "inner" / "new" if new is new_folder else tmp).write_bytes(b"half of the n")
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
    with new_file(tmp_path / "file") as tmp:
        tmp.write_text("new")
        assert (tmp_path / "file").read_text() == "old"
    with new_folder(tmp_path / "folder") as tmp:
        (tmp / "new").write_text("new")
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
    with new_file(tmp_path / "a" / "b" / "file") as tmp:
        tmp.write_text("x")
    with new_folder(tmp_path / "c" / "d" / "folder") as tmp:
        (tmp / "file").write_text("x")
    assert sorted(contents(tmp_path)) == ["a/b/file", "c/d/folder/file"]


def test_place_that_cannot_be_written_is_named(tmp_path):
    """A file where a folder should be: nobody can write there, not even the superuser."""
    (tmp_path / "file").write_text("in the way")
    for new in (new_file, new_folder):
        with pytest.raises(FileError, match=r"file/below: cannot be written: "), new(tmp_path / "file" / "below"):
            pass
    assert contents(tmp_path) == {"file": b"in the way"}


def test_unwritable_folder_is_named(read_only_folder):
    reason_of_folder = f"nothing may be written into {read_only_folder}"
    for new, reason in ((new_file, "Permission denied"), (new_folder, reason_of_folder)):
        with pytest.raises(FileError, match=f"result: cannot be written: {reason}"), new(read_only_folder / "result"):
            pass


def test_leftovers_of_a_killed_process_are_no_obstacle(tmp_path):
    """Process ids come round again."""
    tmp = tmp_path / f".folder.{os.getpid()}.part"
    tmp.mkdir()
    (tmp / "leftover").write_text("x")
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


def test_json_file_is_plain(tmp_path):
    write_json(tmp_path / "file.json", {"b": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"b": 1}
    assert (tmp_path / "file.json").read_text().endswith("\n")


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_what_cannot_be_read_is_not_said_to_be_unwritable(tmp_path, new):
    """A picture that cannot be opened while the rows of an output are written."""
    picture = tmp_path / "photos" / "kite.png"
    picture.mkdir(parents=True)
    with pytest.raises(FileError) as caught, new(tmp_path / "rows"):
        picture.read_bytes()
    assert str(caught.value) == f"{picture}: Is a directory"


@pytest.mark.parametrize("error", [DocumentError("kite.png: Permission denied"), ConfigError("steps = 0: no")])
def test_an_error_of_ours_passes_as_it_is(tmp_path, error):
    """Some of them are a ValueError too."""
    with pytest.raises(type(error)) as caught, explain_disk_errors(tmp_path / "rows"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("inside", [".", "deep/in/it", "../.rows.123.part", "../.rows.123.part/x", ".."])
def test_a_full_disk_names_what_was_to_be_written(tmp_path, inside):
    path = tmp_path / "rows"
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path / inside))
    for raised in (error, OSError(errno.ENOSPC, "No space left on device"), ValueError("x: No space left on device")):
        message = rf"^{path}: cannot be written: No space left on device"
        with pytest.raises(FileError, match=message), explain_disk_errors(path):
            raise raised


def test_an_error_that_is_not_of_the_disk_is_not_explained_away(tmp_path):
    for error in (ValueError("a mistake"), OSError("cannot identify image file"), ConnectionResetError(104, "reset")):
        with pytest.raises(type(error)) as caught, explain_disk_errors(tmp_path):
            raise error
        assert caught.value is error


def test_a_header_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "config.json"
    header = {"format_version": 1, "model": {"sizes": [1, 2.5e-05], "name": "ä"}}
    write_json(path, with_checksum(header))
    assert read_header(path) == header
    content, found = path.read_bytes(), 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            values = read_header(path)
        except FileError as error:
            found += str(path) in str(error)
        else:  # space between tokens, or the word "sha256" itself
            assert {key: values[key] for key in header} == header
    assert found > len(content) / 2


def test_a_header_without_a_hash_is_read(tmp_path):
    write_json(tmp_path / "config.json", {"format_version": 1, "model": 3})
    assert read_header(tmp_path / "config.json")["model"] == 3
