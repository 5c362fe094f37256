"""Reads torch's checkpoint files without torch.

A checkpoint is a pickle in which a tensor is a call, `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`, and a
storage is a reference to bytes outside the pickle (`torch/serialization.py`). Since torch 1.6 the file is a zip
archive with a member `<name>/data.pkl` and one uncompressed member `<name>/data/<key>` for each storage. Before, it was
five pickles (magic number, version, machine, object, order of the storages) followed by the bytes of the storages.

`torch_pickle.unpickle` runs the pickles; the values that they describe are built here, within limits of their own.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.reading import open_file
from chameleon_jax.weights.stored import FLOATS, StoredTensor, all_finite
from chameleon_jax.weights.torch_pickle import PLAIN, SKIPPED, MalformedFile, Storage, UnplacedTensor, unpickle

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
MAX_PICKLE_BYTES = 16 << 20  # a tensor takes some 150 bytes
MAX_VALUES = 500_000
_MAX_DEPTH = 32
_MAX_EXPANSION = 4
"""Bytes of tensors per byte of the file: tensors may share a storage or be expanded views of one."""
_ALWAYS_ALLOWED = 1 << 20  # bytes of tensors in any file, however small


def read_torch_file(path: str | Path, skip_objects: bool = False) -> Any:
    """Reads what `torch.save` wrote to `path`, with a `StoredTensor` for every tensor; their data is not read.

    Dictionaries of every kind are returned as `dict`, parameters as their tensors. The key of a tensor is its key in
    the innermost dictionary that contains it, or '' if there is none. Checksums of tensors are not verified, as that
    would mean reading them.

    Args:
      skip_objects: leave out the objects that PyTorch Lightning keeps beside the weights, such as callbacks, instead of
        rejecting the file.

    Raises:
      FileError: if the file cannot be read, is damaged, cut short, compressed, big-endian or not a torch checkpoint,
        or contains anything but plain values and dense tensors. Nothing that a file names is ever imported or run.
    """
    path = Path(path)
    try:
        with open_file(path) as file:
            start = file.read(4)
            if start == b"PK\3\4":
                value, places = _read_zip(file, skip_objects)
            elif start[:1] == pickle.PROTO:
                value, places = _read_legacy(file, skip_objects)
            else:
                raise MalformedFile(f"{'not a' if start else 'empty, no'} torch checkpoint, as torch.save writes it")
            return _Builder(path, places, _size(file)).build(value)
    except MalformedFile as error:
        raise FileError(f"{path}: {error}") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile and pickletools raise nearly anything for damaged input
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise FileError(
            f"{path}: damaged, cut short, or not what torch.save writes ({reason}); fetch or save it again"
        ) from None


def read_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """Reads a state dict that `torch.save` wrote.

    Raises:
      FileError: as `read_torch_file`, and if it is anything but a mapping from names to tensors.
    """
    tensors = read_torch_file(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
        raise FileError(f"{path}: expected a mapping from names to tensors and nothing else")
    return tensors


def read_floats(
    path: str | Path, tensors: Mapping[str, StoredTensor], key: str, shape: tuple[int, ...], expected: str
) -> np.ndarray:
    """One tensor of a published file as float32.

    Args:
      path: the file, for messages.
      tensors: what `read_tensors` found in it.
      expected: which file it should be, in words.

    Raises:
      FileError: if the tensor is missing, has another shape, or values that are not finite.
    """
    if key not in tensors:
        found = ", ".join(list(tensors)[:3]) or "nothing"
        raise FileError(f"{path}: holds no {key}, but {found} …; expected {expected}")
    stored = tensors[key]
    if stored.shape != shape or stored.dtype not in FLOATS:
        raise FileError(
            f"{path}: {key} is {stored.dtype} {list(stored.shape)}, not of floats {list(shape)}; expected {expected}"
        )
    values = np.asarray(stored.view(), np.float32)
    if not all_finite(values):
        raise FileError(f"{path}: {key} has values that are not finite; fetch the file again")
    return values


def _read_zip(file: BinaryIO, skip_objects: bool) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickled object, and the place of each storage: its offset in the file and its size in bytes."""
    archive = zipfile.ZipFile(_Bounded(file))
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise MalformedFile("a zip archive with several members of one name, which torch never writes")
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise MalformedFile("a zip archive, but no torch checkpoint: expected one data.pkl in it")
    root = pickles[0].removesuffix("data.pkl")

    def place(info: zipfile.ZipInfo) -> tuple[int, int]:
        if info.compress_type != zipfile.ZIP_STORED:
            raise MalformedFile(
                f"{info.filename!r} is compressed, which torch never does; store its members uncompressed"
            )
        file.seek(info.header_offset)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
        if signature != b"PK\3\4":
            raise MalformedFile(f"damaged: {info.filename!r} is not where the archive says; fetch it again")
        start = info.header_offset + 30 + name_length + extra_length
        return start, min(info.file_size, _size(file) - start)

    if root + "byteorder" in members:
        place(members[root + "byteorder"])
        if archive.open(root + "byteorder").read(16).strip() != b"little":
            raise MalformedFile("not little-endian; save it again on a little-endian machine")
    _, size = place(members[pickles[0]])
    if size > MAX_PICKLE_BYTES:
        raise MalformedFile(f"its pickle has {size} bytes, more than the {MAX_PICKLE_BYTES} that weights can need")
    storages: dict[str, Storage] = {}
    value = unpickle(io.BytesIO(archive.read(pickles[0])), storages, skip_objects)
    names = {key: f"{root}data/{key}" for key in storages}
    places = {key: place(members[name]) for key, name in names.items() if name in members}
    end = 0
    for key, (start, present) in sorted(places.items(), key=lambda item: item[1]):
        if start < end:
            raise MalformedFile(f"damaged: storage {key!r} overlaps another; fetch it again")
        end = start + present
    return value, places


class _Bounded:
    """A file that limits what `zipfile` reads at once: it reads the whole list of members, however long."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, MAX_PICKLE_BYTES + 1) if size >= 0 else MAX_PICKLE_BYTES + 1)
        if len(content) > MAX_PICKLE_BYTES:
            raise MalformedFile(f"its list of members has more than the {MAX_PICKLE_BYTES} bytes that weights can need")
        return content


def _read_legacy(file: BinaryIO, skip_objects: bool) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Like `_read_zip`, for files of torch before 1.6."""
    size = _size(file)
    file.seek(0)
    with io.BytesIO(file.read(MAX_PICKLE_BYTES)) as pickles:
        magic = unpickle(pickles)
        if type(magic) is not int or magic != _LEGACY_MAGIC:
            raise MalformedFile("a pickle, but no torch checkpoint; expected what torch.save writes")
        version = unpickle(pickles)
        if type(version) is not int or version != _LEGACY_VERSION:
            found = str(version)[:20] if type(version) is int else f"of type {type(version).__name__}"
            raise MalformedFile(f"version {found} of torch's old format; expected {_LEGACY_VERSION}")
        machine = unpickle(pickles)
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise MalformedFile("not little-endian; save it again on a little-endian machine")
        storages: dict[str, Storage] = {}
        value = unpickle(pickles, storages, skip_objects)
        keys = unpickle(pickles)
        position = pickles.tell()
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) < len(keys):
        raise MalformedFile("damaged: its list of storages is not one; fetch it again")

    places = {}
    for key in keys:
        file.seek(position)
        if len(count := file.read(8)) < 8:
            break  # cut short: reported for the tensor whose bytes are missing
        if key not in storages or int.from_bytes(count, "little") != storages[key].numel:
            raise MalformedFile(f"damaged: storage {key!r} is not as long as its tensors say; fetch it again")
        nbytes = storages[key].numel * storages[key].dtype.itemsize
        places[key] = position + 8, min(nbytes, size - position - 8)
        position += 8 + nbytes
    return value, places


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


class _Builder:
    """Copies the values of a pickle, replacing each tensor by a `StoredTensor`, within limits on their size.

    Values that the pickle refers to twice are copied twice, so that the result is a tree and safe to walk.
    """

    def __init__(self, path: Path, places: dict[str, tuple[int, int]], size: int):
        self._path, self._places = path, places
        self._values = MAX_VALUES
        self._bytes = _MAX_EXPANSION * size + _ALWAYS_ALLOWED

    def build(self, value: Any, key: str = "", depth: int = 0) -> Any:
        self._values -= 1
        if self._values < 0 or depth > _MAX_DEPTH:
            raise MalformedFile(
                f"holds more than {MAX_VALUES:,} values, or lists nested more than {_MAX_DEPTH} deep; weights need "
                "neither. Save only the state dict"
            )
        if isinstance(value, PLAIN):
            return value
        if type(value) is UnplacedTensor:
            stored = _stored(value, key, self._path, self._places)
            self._bytes -= stored.nbytes
            if self._bytes < 0:
                raise MalformedFile(
                    f"its tensors, up to {key!r}, have more than {_MAX_EXPANSION} times the bytes of the file"
                )
            return stored
        if type(value) is dict:
            items = ((name, item) for name, item in value.items() if item is not SKIPPED)
            return {name: self.build(item, str(name), depth + 1) for name, item in items}
        if type(value) in (list, tuple):
            return type(value)([self.build(item, key, depth + 1) for item in value if item is not SKIPPED])
        raise MalformedFile(f"holds something at {key!r} that is neither a tensor nor a plain value")


def _stored(tensor: UnplacedTensor, key: str, path: Path, places: dict[str, tuple[int, int]]) -> StoredTensor:
    storage, shape = tensor.storage, tensor.shape
    start, present = places.get(storage.key, (0, 0))
    present = min(present, storage.numel * storage.dtype.itemsize)
    offset = tensor.offset * storage.dtype.itemsize
    if 0 in shape:
        return StoredTensor(path, key, start, shape, storage.dtype)
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, tensor.strides, strict=True))
    needed = offset + extent * storage.dtype.itemsize
    if needed > present:
        raise MalformedFile(
            f"damaged or cut short: {key!r} needs {needed} bytes of its storage, {max(0, present)} are there; "
            "fetch it again"
        )
    plain = row_major(shape)
    # The stride of an axis of size 1 is never used, and torch may write any value there.
    strides = tuple(a if size == 1 else b for size, a, b in zip(shape, plain, tensor.strides, strict=True))
    return StoredTensor(path, key, start + offset, shape, storage.dtype, None if strides == plain else strides)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
