"""Files that are either whole or not there, and messages that say which file and why."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chameleon_jax.cloud import append, as_path, is_cloud, local_copy, read_object
from chameleon_jax.errors import ChameleonError, DamagedFile, FileError
from chameleon_jax.locks import in_use, is_unused
from chameleon_jax.reading import LARGEST_JSON, parse_json, read_bytes

FORMAT_VERSION = 1
"""Version of the layout of our own folders. Raised when older code could no longer read them."""


@contextlib.contextmanager
def explain_disk_errors(path: str | Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into a `FileError` that names the file.

    That is `path`, which is being written, unless the system names another one: what is read meanwhile may fail too.
    Orbax and ArrayRecord write through C++ and report the system's error as text in a ValueError or RuntimeError.
    """
    try:
        yield
    except ChameleonError:
        raise
    except OSError as error:
        if error.filename is not None and not _belongs_to(error.filename, Path(path)):
            raise FileError(f"{os.fsdecode(error.filename)}: {error.strerror or error}") from error
        if error.filename is None and error.errno not in _OF_WRITING:
            raise
        raise _cannot_write(path, error.strerror or str(error)) from error
    except (ValueError, RuntimeError) as error:
        reason = next((text for text in map(os.strerror, _OF_WRITING) if text in str(error)), None)
        if reason is None:
            raise
        raise _cannot_write(path, reason) from error


_OF_WRITING = (errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EPERM)


def _cannot_write(path: str | Path, reason: str) -> FileError:
    return FileError(
        f"{path}: cannot be written: {reason}. What was complete before is untouched; free space or choose another "
        "folder and run the command again"
    )


def _belongs_to(filename: Any, path: Path) -> bool:
    """Whether the file is `path`, lies in it, is one of the unfinished things beside it, or a folder above it."""
    if not isinstance(filename, (str, bytes, os.PathLike)):  # a number that the system knows an open file by
        return True
    file, path = Path(os.path.realpath(os.fsdecode(filename))), Path(os.path.realpath(path))
    if path.is_relative_to(file) or file.is_relative_to(path):
        return True
    return any(part.name.startswith(f".{path.name}.") and part.parent == path.parent for part in (file, *file.parents))


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it into place if all went well, removes it otherwise.

    A link is followed. What killed processes left beside it goes. For a path in a bucket, the file is uploaded at the
    end instead.
    """
    if is_cloud(path):
        with local_copy(as_path(path)) as aside:
            yield aside
        return
    path = Path(path)
    with explain_disk_errors(path):
        real = Path(os.path.realpath(path))
        if os.path.lexists(real) and not real.is_file():
            raise FileError(f"{path}: is no plain file and cannot be replaced by one")
        real.parent.mkdir(parents=True, exist_ok=True)
        for file in leftovers(real, r"\d+"):
            if is_unused(file):
                file.unlink()
        aside = real.with_name(f".{real.name}.{os.getpid()}.part")
        try:
            with in_use(aside):
                yield aside
                flush_to_disk(aside)
                os.replace(aside, real)
        finally:
            with contextlib.suppress(OSError):
                aside.unlink()


def leftovers(path: Path, *states: str) -> list[Path]:
    """Unfinished things beside `path`, named after it and one of the patterns in `states`."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    found = [re.compile(rf"\.{re.escape(path.name)}\.(?:{state})\.part") for state in states]
    return [path.with_name(name) for pattern in found for name in sorted(names) if pattern.fullmatch(name)]


def flush_to_disk(path: Path) -> None:
    """Returns once a file, or the list of names in a folder, would survive a loss of power; where the file system can
    promise that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    with new_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def absolute(path: str | Path) -> Path:
    """The path from the root of this machine, or of its bucket, as Orbax wants it."""
    return as_path(path) if is_cloud(path) else Path(path).absolute()


def append_text(path: str | Path, text: str) -> None:
    """Adds text to a file, or begins it."""
    if is_cloud(path):
        append(path, text)
        return
    with explain_disk_errors(path), Path(path).open("a", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """What a JSON file of ours or of a released model says.

    Raises:
      FileError: if it cannot be read, is larger than such files are, or is no JSON (`parse_json`).
    """
    content = read_object(path, LARGEST_JSON) if is_cloud(path) else read_bytes(path, LARGEST_JSON)
    try:
        return parse_json(content)
    except ValueError as error:
        raise DamagedFile(f"{path}: cannot be read as JSON: {error}") from None


def sealed(header: dict[str, Any]) -> dict[str, Any]:
    """The header of a folder of ours, with a hash of everything in it that `read_header` compares."""
    return {**header, "sha256": _hash_of_header(header)}


def read_header(path: str | Path) -> dict[str, Any]:
    """Reads what `write_json(path, sealed(header))` wrote; older folders have no hash.

    Raises:
      FileError: if there is no such file, or a newer version wrote it.
      DamagedFile: if it is not what was written.
    """
    header = read_json(path)
    found = header.pop("sha256", None) if isinstance(header, dict) else None
    if found is not None and found != _hash_of_header(header):
        raise DamagedFile(
            f"{path}: damaged: it does not match its sha256; restore a copy, or if it was edited by hand, take the "
            "key sha256 out"
        )
    check_version(header, path)
    return header


def _hash_of_header(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header).encode()).hexdigest()


def check_version(header: dict[str, Any], path: str | Path) -> None:
    """Refuses a folder that a newer version of this library wrote."""
    version = header.get("format_version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise FileError(f"{path}: has no format_version; it was not written by chameleon_jax")
    if version > FORMAT_VERSION:
        raise FileError(
            f"{path}: format_version {version} is newer than this library reads ({FORMAT_VERSION}); "
            "update chameleon_jax"
        )
