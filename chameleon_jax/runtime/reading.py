"""Reads small untrusted files: only regular files of a bounded size, and only strict JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from chameleon_jax.errors import FileError

LARGEST_JSON = 16 << 20
"""Most bytes of a config, an index or a header. The largest released one, with a vocabulary in it, has 1.7 MB."""
DEEPEST = 32
"""Deepest nesting of mappings and lists in such a file; released ones have up to 6 levels."""
LONGEST_NUMBER = 400
"""Most characters of a number; a float64 written out in full has up to 327."""
_LARGEST_INTEGER = 10**40
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_file(path: str | Path) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading. Never waits, as opening a pipe would.

    Raises:
      OSError: as `open`, and for folders, pipes, sockets and devices.
    """
    return os.fdopen(open_descriptor(path), "rb")


def open_descriptor(path: str | Path) -> int:
    """`open_file` for `os.pread`, which takes a third of the time."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "is a pipe, a socket or a device, not a file", str(path))


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a file.

    Raises:
      FileError: if it cannot be read, or has more than `limit` bytes.
    """
    try:
        with open_file(path) as file:
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise FileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > limit:
        raise FileError(f"{path}: has more than {limit:,} bytes, which no such file needs; is it another file?")
    return content


def parse_json(content: bytes) -> Any:
    """Parses JSON as strictly as the standard demands.

    Raises:
      ValueError: if it is not JSON, has a duplicate key, is nested more than `DEEPEST` deep, or contains a value that
        is infinite or NaN, absurdly long numbers, or text with lone surrogates. The message is the reason.
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_mapping,
            parse_int=_integer,
            parse_float=_float,
        )
        _check_depth(value)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    if _SURROGATE.search(content):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {key[:100]!r} is written twice")
    for key, value in pairs:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key[:100]} = {str(value)!r}: must be a number")
    return mapping


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER or abs(value := int(text)) >= _LARGEST_INTEGER:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return value


def _float(text: str) -> float:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text):,} characters")
    return float(text)


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise RecursionError
