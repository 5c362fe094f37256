"""Error messages for a full disk, missing permissions and the like, which name the file and the reason."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chameleon_jax.errors import ChameleonError, FileError


@contextlib.contextmanager
def explain_disk_errors(path: str | Path) -> Iterator[None]:
    """Turns a full disk, missing permissions and the like into a `FileError` that names the file.

    This is `path`, which is being written, unless the system's error names another file, which may be read meanwhile.
    Orbax and ArrayRecord write through C++ and report system errors as text in a ValueError or RuntimeError.
    """
    try:
        yield
    except ChameleonError:
        raise
    except OSError as error:
        if error.filename is not None and not _belongs_to(error.filename, Path(path)):
            raise FileError(f"{os.fsdecode(error.filename)}: {error.strerror or error}") from error
        if error.filename is None and error.errno not in _WRITE_ERRNOS:
            raise
        raise _cannot_write(path, error.strerror or str(error)) from error
    except (ValueError, RuntimeError) as error:
        reason = next((text for text in map(os.strerror, _WRITE_ERRNOS) if text in str(error)), None)
        if reason is None:
            raise
        raise _cannot_write(path, reason) from error


_WRITE_ERRNOS = (errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EPERM)


def _cannot_write(path: str | Path, reason: str) -> FileError:
    return FileError(
        f"{path}: cannot be written: {reason}. Everything that was complete is untouched; free space or choose "
        "another folder, and run the command again"
    )


def _belongs_to(filename: Any, path: Path) -> bool:
    """Whether a file is `path`, is inside it, is one of its temporary files or folders, or is a folder above it."""
    if not isinstance(filename, (str, bytes, os.PathLike)):  # a file descriptor
        return True
    file, path = Path(os.path.realpath(os.fsdecode(filename))), Path(os.path.realpath(path))
    if path.is_relative_to(file) or file.is_relative_to(path):
        return True
    return any(part.name.startswith(f".{path.name}.") and part.parent == path.parent for part in (file, *file.parents))
