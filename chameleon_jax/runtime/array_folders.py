"""Checks a folder of arrays before Orbax and TensorStore open it, and the metadata of its arrays before they are read.

Neither checks its input: they block on a pipe in place of a file, and a kilobyte of metadata for a terabyte matrix in
chunks of one number keeps them busy for days.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.reading import LARGEST_JSON

METADATA = ("_", ".z", "zarr.json", "manifest")
"""Prefixes of the names of metadata files (of Orbax, Zarr and OCDBT), which are read completely into memory."""
MOST_FILES = 100_000
MOST_CHUNKS = 100_000
"""Most chunks of an array; ours have up to 1 GiB each."""
LARGEST_CHUNK = 4 << 30
LARGEST_GROWTH = 64
"""Most bytes of arrays per byte of the folder: early versions compressed them, which gains little for weights."""
_ALWAYS_ALLOWED = 64 << 20  # bytes of arrays in any folder, however small


def check_folder(path: Path) -> int:
    """Total size in bytes of the files in a folder of arrays.

    Raises:
      FileError: for anything but files, links to files, and folders, and for metadata files that are too large.
    """
    total = count = 0
    for root, folders, names in os.walk(path):
        for name in (*folders, *names):
            count += 1
            entry = Path(root, name)
            try:
                found = entry.stat()
            except OSError as error:
                raise FileError(f"{entry}: cannot be read: {error.strerror or error}") from None
            if name in folders and entry.is_symlink():
                raise FileError(f"{entry}: is a link to a folder; a folder of arrays holds its own")
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                raise FileError(f"{entry}: is a pipe, a socket or a device, not a file")
            if name.startswith(METADATA) and found.st_size > LARGEST_JSON:
                raise FileError(f"{entry}: has more than {LARGEST_JSON:,} bytes, which no such file needs")
            total += found.st_size if name in names else 0
        if count > MOST_FILES:
            raise FileError(f"{path}: holds more than {MOST_FILES:,} files; is it a folder of arrays?")
    return total


def check_claims(path: Path, stored: Any, size: int) -> None:
    """Rejects arrays that are not numeric, have too many chunks, or claim far more bytes than the folder holds.

    Args:
      stored: Orbax's metadata of the arrays, as a tree.
      size: size of the folder in bytes, from `check_folder`.

    Raises:
      FileError: naming the array.
    """
    left = LARGEST_GROWTH * size + _ALWAYS_ALLOWED
    for place, leaf in jax.tree_util.tree_leaves_with_path(stored):
        name = jax.tree_util.keystr(place, simple=True, separator="/")
        if not (jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer)):
            raise FileError(f"{path}: {name} is of type {leaf.dtype}; expected numbers")
        left -= math.prod(leaf.shape) * leaf.dtype.itemsize
        if left < 0:
            raise FileError(
                f"{path}: its arrays, up to {name}, have more than {LARGEST_GROWTH} times the bytes of its files; "
                "download or write it again"
            )
        chunk = getattr(getattr(leaf, "storage_metadata", None), "chunk_shape", None) or leaf.shape
        pieces = math.prod(-(-axis // max(1, step)) for axis, step in zip(leaf.shape, chunk, strict=True))
        if pieces > MOST_CHUNKS or math.prod(chunk) * leaf.dtype.itemsize > LARGEST_CHUNK:
            raise FileError(f"{path}: {name} has {pieces:,} chunks of shape {chunk}; expected fewer, or smaller ones")
