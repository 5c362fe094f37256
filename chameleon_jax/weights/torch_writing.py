"""Writes torch's checkpoint files without torch, one tensor at a time. For the format see `torch_files.py`."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from chameleon_jax.weights.torch_files import row_major
from chameleon_jax.weights.torch_pickle import STORAGES

_ALIGNMENT = 64  # of tensors, as in torch's own files
_CHUNK = 4 << 20  # bytes: few enough to stay in the cache between computing the checksum and writing


def write_torch_file(
    path: str | Path,
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    value: Callable[[str], np.ndarray],
    progress: Callable[[int], None] = lambda size: None,
    top: str | None = None,
) -> None:
    """Writes a dictionary of tensors that `torch.load` reads, also with `weights_only=True` or `mmap=True`.

    Args:
      path: the file; it is overwritten, and left incomplete if writing fails (see `runtime.files.new_file`).
      specs: shape and dtype of each tensor by key, in the order in which they are written.
      value: returns the tensor of a key; called once for each, in order, and no tensor is kept.
      progress: called with the size in bytes of each tensor written.
      top: if given, the dictionary is written as the value of this key of another one, often 'state_dict'.

    Raises:
      ValueError: if torch has no such dtype, or `value` returns another shape or dtype than in `specs`.
      OSError: if the file cannot be written.
    """
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), _pickled(specs, top))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for number, (key, (shape, dtype)) in enumerate(specs.items()):
            progress(_write_tensor(archive, file.tell(), number, _checked(value(key), key, shape, dtype)))
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


def _checked(array: np.ndarray, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(f"{key} was announced as {dtype} {tuple(shape)}, but is {array.dtype} {array.shape}")
    return array


def _write_tensor(archive: zipfile.ZipFile, position: int, number: int, array: np.ndarray) -> int:
    member = zipfile.ZipInfo(f"archive/data/{number}")
    # Padding before the data, in an extra field of the header like torch's own. The 20 bytes are the zip64 sizes, which
    # are always written so that the length of the header is known.
    padding = -(position + 30 + len(member.filename) + 4 + 20) % _ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    with archive.open(member, "w", force_zip64=True) as stream:
        for start in range(0, data.size, _CHUNK):
            stream.write(data[start : start + _CHUNK])
    return data.size


def _pickled(specs: Mapping[str, tuple[tuple[int, ...], np.dtype]], top: str | None = None) -> bytes:
    """The pickle of a dictionary of tensors, assembled by hand: `pickle` would have to import torch."""
    names = {dtype: name for name, dtype in STORAGES.items()}
    empty = _pickled_global("collections OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.EMPTY_DICT + pickle.MARK]
    for number, (key, (shape, dtype)) in enumerate(specs.items()):
        if np.dtype(dtype) not in names:
            raise ValueError(f"{key}: torch files have no type {dtype}; expected one of {', '.join(map(str, names))}")
        shape = tuple(map(int, shape))
        parts += [
            _pickled_value(key),
            _pickled_global("torch._utils _rebuild_tensor_v2") + pickle.MARK,
            pickle.MARK
            + _pickled_value("storage")
            + _pickled_global(f"torch {names[np.dtype(dtype)]}")
            + _pickled_value(str(number)),
            _pickled_value("cpu") + _pickled_value(math.prod(shape)) + pickle.TUPLE + pickle.BINPERSID,
            _pickled_value(0) + _pickled_value(shape) + _pickled_value(row_major(shape)) + pickle.NEWFALSE + empty,
            pickle.TUPLE + pickle.REDUCE,
        ]
    content = b"".join([*parts, pickle.SETITEMS])
    if top is not None:
        content = pickle.EMPTY_DICT + _pickled_value(top) + content + pickle.SETITEM
    return pickle.PROTO + b"\2" + content + pickle.STOP


def _pickled_global(name: str) -> bytes:
    return pickle.GLOBAL + name.replace(" ", "\n").encode() + b"\n"


def _pickled_value(value: str | int | tuple[int, ...]) -> bytes:
    return pickle.dumps(value, 2)[2:-1]  # without PROTO and STOP
