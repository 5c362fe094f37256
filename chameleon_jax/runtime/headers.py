"""Headers of our own folders: JSON with the version of the layout and a hash of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chameleon_jax.errors import DamagedFile, FileError
from chameleon_jax.runtime.files import read_json

FORMAT_VERSION = 1
"""Version of the layout of our own folders; incremented when older code cannot read new folders."""


def with_checksum(header: dict[str, Any]) -> dict[str, Any]:
    """Adds a hash of the header, which `read_header` verifies."""
    return {**header, "sha256": _hash_of_header(header)}


def read_header(path: str | Path, newest: int = FORMAT_VERSION) -> dict[str, Any]:
    """Reads what `write_json(path, with_checksum(header))` wrote; older folders have no hash.

    Args:
      newest: version of the layout that this library reads.

    Raises:
      FileError: if there is no such file, or it was written by a newer version.
      DamagedFile: if it does not match its hash.
    """
    header = read_json(path)
    found = header.pop("sha256", None) if isinstance(header, dict) else None
    if found is not None and found != _hash_of_header(header):
        raise DamagedFile(
            f"{path}: damaged: it does not match its sha256; restore a copy, or if it was edited by hand, remove the "
            "key sha256"
        )
    check_version(header, path, newest)
    return header


def _hash_of_header(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header).encode()).hexdigest()


def check_version(header: dict[str, Any], path: str | Path, newest: int = FORMAT_VERSION) -> None:
    """Raises `FileError` if a folder was written by a newer version of this library, or is not ours."""
    version = header.get("format_version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise FileError(f"{path}: has no format_version; it was not written by chameleon_jax")
    if version > newest:
        raise FileError(
            f"{path}: format_version {version} is newer than this version can read ({newest}); update chameleon_jax"
        )
