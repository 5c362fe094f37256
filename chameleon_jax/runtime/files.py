"""Files that are either complete or absent, on disk or in a bucket."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chameleon_jax.errors import DamagedFile, FileError
from chameleon_jax.runtime.cloud import append, as_path, is_cloud, local_copy, read_object
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.locks import in_use, is_unused
from chameleon_jax.runtime.reading import LARGEST_JSON, parse_json, read_bytes


@contextlib.contextmanager
def new_file(path: str | Path, *, tidy: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success and removes it otherwise.

    Symbolic links are followed. For a path in a bucket, the file is uploaded at the end.

    Args:
      tidy: whether to remove temporary files of killed processes, which takes a listing of the folder.
    """
    if is_cloud(path):
        with local_copy(as_path(path)) as tmp:
            yield tmp
        return
    path = Path(path)
    with explain_disk_errors(path):
        real = Path(os.path.realpath(path))
        if os.path.lexists(real) and not real.is_file():
            raise FileError(f"{path}: is not a regular file and cannot be replaced by one")
        real.parent.mkdir(parents=True, exist_ok=True)
        for file in leftovers(real, r"\d+") if tidy else ():
            if is_unused(file):
                file.unlink()
        tmp = temporary_name(real)
        try:
            with in_use(tmp):
                yield tmp
                flush_to_disk(tmp)
                os.replace(tmp, real)
        finally:
            with contextlib.suppress(OSError):
                tmp.unlink()


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses. Process ids would repeat on hosts that share the folder."""
    return path.with_name(f".{path.name}.{secrets.randbelow(10**12)}.part")


def leftovers(path: Path, *states: str) -> list[Path]:
    """Temporary files and folders beside `path` whose names match one of the patterns in `states`."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    found = [re.compile(rf"\.{re.escape(path.name)}\.(?:{state})\.part") for state in states]
    return [path.with_name(name) for pattern in found for name in sorted(names) if pattern.fullmatch(name)]


def flush_to_disk(path: Path) -> None:
    """Flushes a file, or the directory entries of a folder, to disk, where the file system supports that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    with new_file(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def absolute(path: str | Path) -> Path:
    """The absolute path, or the path in a bucket, for Orbax."""
    return as_path(path) if is_cloud(path) else Path(path).absolute()


def append_text(path: str | Path, text: str) -> None:
    """Appends text to a file, or creates it."""
    if is_cloud(path):
        append(path, text)
        return
    with explain_disk_errors(path), Path(path).open("a", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file of ours or of a released model.

    Raises:
      FileError: if it cannot be read, has more than `LARGEST_JSON` bytes, or is not JSON (see `parse_json`).
    """
    content = read_object(path, LARGEST_JSON) if is_cloud(path) else read_bytes(path, LARGEST_JSON)
    try:
        return parse_json(content)
    except ValueError as error:
        raise DamagedFile(f"{path}: cannot be read as JSON: {error}") from None
