"""Locks that allow one writer at a time; the system releases them when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.progress import console

_NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF)
"""Errors of file systems without locks."""


@contextlib.contextmanager
def only_writer(lock: Path, what: str | Path, wait: bool = False) -> Iterator[None]:
    """Holds an exclusive lock on the file `lock`, and removes the file at the end.

    On a file system without locks, prints a warning and continues without one.

    Args:
      lock: the lock file.
      what: what is written, for error messages.
      wait: wait for a process that holds the lock, instead of raising.

    Raises:
      FileError: naming the running process that holds it, on this host or another that shares the file system.
    """
    descriptor = _hold(lock, what, wait)
    try:
        os.truncate(descriptor, 0)
        holder = {"process": os.getpid(), "host": platform.node(), "since": time.time()}
        os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)


@contextlib.contextmanager
def in_use(file: Path) -> Iterator[None]:
    """Creates an empty file and holds a lock on it within the context, if the file system has locks."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_unused(path: Path) -> bool:
    """Whether no running process holds a lock on a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _hold(lock: Path, what: str | Path, wait: bool) -> int:
    """Acquires the lock and returns its open file descriptor."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0)
            os.close(descriptor)
            raise FileError(f"{what}: {_describe(holder)}; wait until it has ended, or stop it first") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            console.print(f"{what}: this file system has no locks; make sure that no other process writes there.")
            return descriptor
        # Its previous holder may have removed the file after we opened it; another file is then the lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)


def _describe(holder: bytes) -> str:
    try:
        values = json.loads(holder)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(values["since"])))
        return f"is being written by process {int(values['process'])} on {str(values['host'])!r} since {since}"
    except (ValueError, KeyError, TypeError):
        return "is being written by another process"
