"""Output folders that appear only when complete, and replace nothing but an older folder of the same kind."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fnmatch
import itertools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.cloud import (
    as_path,
    download,
    finish,
    is_cloud,
    new_tmp_folder,
    objects_in,
    put_in_place,
    remove,
    upload,
)
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.distributed import broadcast_from_first, wait_for_all
from chameleon_jax.runtime.files import flush_to_disk, leftovers, read_json, temporary_name
from chameleon_jax.runtime.locks import only_writer

_EXISTS = "is there already; choose another folder or remove it first"
COMPLETE, REPLACED = "complete", "replaced"
"""States in the temporary names of the new and the old folder at the moment when neither is in place."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of output, and how an earlier output of the same kind is recognised."""

    name: str
    """For error messages, such as 'prepared data'."""
    is_one: Callable[[Path], bool]
    """Whether a folder or file is of this kind."""
    contents: tuple[str, ...] = ()
    """Paths that a folder of this kind may hold, as patterns of `fnmatch`; `*` also stands for slashes."""


def check_folder(path: str | Path, kind: Kind | None = None) -> Path:
    """Checks, before any work is done, that a folder may be written to `path`; changes nothing.

    An empty folder may exist there, or an older one of the same kind with nothing else in it. Symbolic links are
    followed.

    Returns:
      The path without symbolic links.

    Raises:
      FileError: if something else is there, or nothing can be written there.
    """
    if is_cloud(path):
        return _check_cloud_folder(as_path(path), kind)
    path, real = Path(path), _without_links(path)
    if real.is_dir():
        if real == (here := Path.cwd()) or real in here.parents:
            raise FileError(f"{path}: is the current folder or contains it; give a new folder inside it")
        if os.path.ismount(real):
            raise FileError(f"{path}: is a mount point and cannot be replaced; give a new folder inside it")
        foreign = _foreign_entry(real, kind)
        if foreign is not None:
            raise FileError(_exists_message(path, foreign, kind))
    elif os.path.lexists(real):
        raise FileError(f"{path}: {_EXISTS} (it is a file)")
    _check_parent(path, real)
    return real


def check_file(path: str | Path, kind: Kind) -> None:
    """`check_folder` for a file: an empty file or an older one of the same kind may exist."""
    if is_cloud(path):
        path = as_path(path)
        real = download(path) if path.is_file() else Path("absent")
    else:
        path, real = Path(path), _without_links(path)
    if path.is_dir():
        raise FileError(f"{path}: is a folder; expected the name of a file")
    if os.path.lexists(real):
        is_regular = stat.S_ISREG(real.stat().st_mode)
        if not is_regular or (real.stat().st_size and not kind.is_one(real)):
            raise FileError(
                f"{path}: is there already; choose another name or remove it first (only {kind.name} is replaced)"
            )
    if not is_cloud(path):
        _check_parent(path, real)


def check_writable(folder: str | Path) -> None:
    """Raises `FileError` unless files can be added to a folder, or the folder can be created."""
    if is_cloud(folder):
        objects_in(folder)
        return
    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise FileError(f"{folder}: is a file; expected a folder")
    _check_parent(folder, Path(os.path.realpath(folder / "file")))


def remove_folder(path: str | Path, kind: Kind) -> None:
    """Removes a folder of this kind, if there is one.

    Raises:
      FileError: if it holds anything else.
    """
    real = check_folder(path, kind)
    with explain_disk_errors(path):
        if real.exists():
            shutil.rmtree(real)


@contextlib.contextmanager
def new_folder(path: str | Path, kind: Kind | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it to `path` on success and removes it otherwise.

    An older folder at `path` is replaced at the very end, and only if it is of the same kind (see `check_folder`). If
    the process is killed at any moment, either the old or the new folder is in place, and the next writer removes the
    temporary ones beside it.

    Raises:
      FileError: if `path` is something else or cannot be written, or another process is writing it. A finished folder
        that cannot be moved into place is kept, and the message says where.
    """
    recover(path)
    if is_cloud(path):
        with _new_cloud_folder(path, kind) as tmp, tempfile.TemporaryDirectory(prefix="chameleon-") as local:
            yield Path(local)
            upload(Path(local), tmp)
        return
    path = Path(path)
    real = check_folder(path, kind)
    with explain_disk_errors(path), _parents(real), only_writer(real.with_name(f".{real.name}.lock"), path):
        _remove_leftovers(real)
        tmp = temporary_name(real)
        try:
            tmp.mkdir()
            yield tmp
            _put_in_place(tmp, real, path, kind)
        finally:
            # Writers in the background may still add a file after a failure.
            for _ in range(50):
                shutil.rmtree(tmp, ignore_errors=True)
                if not tmp.exists():
                    break
                time.sleep(0.1)


@contextlib.contextmanager
def new_shared_folder(path: str | Path, kind: Kind | None = None) -> Iterator[Path]:
    """`new_folder` for all processes of a run, each of which writes its own files.

    In a bucket they write directly, so the yielded path is not local.
    """
    new = _new_cloud_folder if is_cloud(path) else new_folder
    if jax.process_count() == 1:
        with new(path, kind) as tmp:
            yield tmp
        return
    with contextlib.ExitStack() as first:
        tmp = broadcast_from_first(lambda: str(first.enter_context(new(path, kind))))
        yield as_path(tmp)
        wait_for_all("folder is complete")
        broadcast_from_first(lambda: first.close() or "in place")


def read_marker(path: Path) -> dict[str, Any]:
    """The JSON object in the file that marks a folder's kind; empty if the file is missing or damaged."""
    try:
        content = read_json(path)
    except FileError:
        return {}
    return content if isinstance(content, dict) else {}


def model_section(config: Path) -> dict[str, Any]:
    """The key `model` of our own config.json; empty if it is missing or the file is not ours."""
    header = read_marker(config)
    model = header.get("model")
    return model if isinstance(header.get("format_version"), int) and isinstance(model, dict) else {}


def recover(path: str | Path) -> None:
    """Finishes the replacement of a folder by a process that was killed, so that readers find it.

    Where the system cannot exchange two folders atomically, there is a moment when neither the old nor the new one is
    in place. Does nothing if the parent folder is not writable.
    """
    if is_cloud(path):
        finish(path)
        return
    real = _without_links(Path(path))
    if os.path.lexists(real) or not leftovers(real, COMPLETE, REPLACED):
        return
    with contextlib.suppress(OSError), only_writer(real.with_name(f".{real.name}.lock"), path):
        if not os.path.lexists(real):
            os.rename(leftovers(real, COMPLETE, REPLACED)[0], real)


def _check_cloud_folder(path: Path, kind: Kind | None) -> Path:
    names = sorted(objects_in(path))
    ours = bool(names) and kind is not None and kind.is_one(path)
    foreign = next((name for name in names if not (ours and _belongs(name, kind))), None)
    if foreign is not None:
        raise FileError(_exists_message(path, foreign, kind))
    return path


@contextlib.contextmanager
def _new_cloud_folder(path: str | Path, kind: Kind | None) -> Iterator[Path]:
    """`new_folder` in a bucket."""
    path = check_folder(path, kind)
    tmp = new_tmp_folder(path)
    try:
        yield tmp
    except BaseException:
        with contextlib.suppress(FileError):
            remove(tmp)
        raise
    try:
        check_folder(path, kind)
    except FileError as error:
        raise FileError(f"{error}. The finished output was kept as {tmp}") from None
    put_in_place(tmp, path)


def _exists_message(path: Path, foreign: str, kind: Kind | None) -> str:
    more = f", or one that holds {kind.name} and nothing else" if kind else ""
    return f"{path}: {_EXISTS} (it holds {foreign!r}; only an empty folder is replaced{more})"


def _belongs(name: str, kind: Kind) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in kind.contents)


def _without_links(path: str | Path) -> Path:
    real = Path(os.path.realpath(path))
    if os.path.islink(path) and (real.is_symlink() or not real.parent.is_dir()):
        raise FileError(f"{path}: is a link to {os.readlink(path)!r}, where nothing can be written")
    return real


def _foreign_entry(folder: Path, kind: Kind | None) -> str | None:
    """The first path in `folder` that a folder of this kind cannot contain; None if there is none."""
    entries = sorted(os.listdir(folder))
    if kind is not None:  # another process may be writing the first file
        entries = [name for name in entries if not (fnmatch.fnmatchcase(name, ".*.part") and _belongs(name, kind))]
    if not entries or kind is None or not kind.is_one(folder):
        return entries[0] if entries else None
    for where, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        for name in sorted([*files, *links]):
            inside = os.path.relpath(os.path.join(where, name), folder)
            if not _belongs(inside, kind):
                return inside
    return None


def _check_parent(path: Path, real: Path) -> None:
    """Raises `FileError` unless the folder that contains `real` exists and is writable, or can be created; and `real`
    itself is, if it is a folder."""
    parent = next(folder for folder in real.parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise FileError(f"{path}: cannot be written: {parent} is a file")
    for folder in (parent, *([real] if real.is_dir() else [])):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise FileError(f"{path}: cannot be written: nothing may be written into {folder}")


@contextlib.contextmanager
def _parents(real: Path) -> Iterator[None]:
    """Creates the parents of `real`, and removes those that are still empty at the end."""
    created = list(itertools.takewhile(lambda folder: not folder.exists(), real.parents))
    real.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


def _remove_leftovers(real: Path) -> None:
    """Removes temporary folders of killed processes beside `real`. The caller must hold the lock."""
    for folder in leftovers(real, r"\d+", COMPLETE, REPLACED):
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(tmp: Path, real: Path, path: Path, kind: Kind | None) -> None:
    """Renames the finished folder to `real`. If that fails, it is kept under another name, which the error gives."""
    for file in tmp.rglob("*"):
        flush_to_disk(file)
    try:
        check_folder(real, kind)
        _replace(tmp, real)
    except (FileError, OSError) as error:
        complete = real.with_name(f".{real.name}.{COMPLETE}.part")
        finished = complete if complete.exists() else tmp
        names = (real.with_name(f"{real.name}-finished{number}") for number in itertools.chain([""], range(2, 1000)))
        kept = next(name for name in names if not os.path.lexists(name))
        os.rename(finished, kept)
        reason = error if isinstance(error, FileError) else f"{path}: cannot be written: {error.strerror}"
        raise FileError(f"{reason}. The finished output was kept as {kept}") from error
    with contextlib.suppress(OSError):
        flush_to_disk(real.parent)


def _replace(new: Path, real: Path) -> None:
    if not real.exists() or not os.listdir(real):
        os.rename(new, real)
        return
    if _swap(new, real):
        return
    complete, replaced = (real.with_name(f".{real.name}.{state}.part") for state in (COMPLETE, REPLACED))
    os.rename(new, complete)
    os.rename(real, replaced)
    try:
        os.rename(complete, real)
    except OSError:
        os.rename(replaced, real)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchanges two folders atomically; returns False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
