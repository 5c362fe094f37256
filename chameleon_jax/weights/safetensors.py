"""Safetensors files: a reader that only parses the header, and a writer that holds one tensor in memory at a time.

A file is the length of the header in eight bytes, a JSON header of names, dtypes, shapes and offsets, and the data. The
`safetensors` package (0.8.0) does not meet our needs:

- Its writer takes all tensors at once, so a model would be in memory twice. Writing 201 MB took 0.38 s of CPU time and
  192 MB of memory; the writer here takes 0.10 s and no memory.
- Its NumPy reader does not support bfloat16, the dtype of every released model, and copies what it reads: 0.15 s of CPU
  time for the same file, against 0.08 s here. `StoredTensor` also represents tensors in torch's files, so conversion
  code deals with one kind of tensor.
- It accepts headers that name a tensor twice or give it a million axes, and its errors name neither file nor tensor.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from chameleon_jax.errors import FileError, printable
from chameleon_jax.runtime.files import read_json
from chameleon_jax.runtime.reading import LARGEST_JSON, open_file, parse_json
from chameleon_jax.weights.layout import IGNORED
from chameleon_jax.weights.stored import BFLOAT16, MOST_AXES, StoredTensor

_DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"), "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"),
}  # fmt: skip
_NAMES = {_DTYPES[name]: name for name in ("F64", "F32", "F16", "BF16")}

Value = Callable[[str], np.ndarray]
Tensors = dict[str, StoredTensor]
Spec = tuple[tuple[int, ...], np.dtype]


def read_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """Reads the header of a file and returns its tensors by name; their data is not read.

    Raises:
      FileError: if the file is missing, cut short, or not a safetensors file. As the format demands, the tensors must
        fill the file without gaps or overlaps.
    """
    path = Path(path)
    try:
        header, start, size = _read_header(path)
        tensors = {key: _stored_tensor(path, key, entry, start, size) for key, entry in header.items()}
        _require_contiguous(tensors.values(), start, size)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _Malformed as error:
        raise FileError(f"{path}: not a whole safetensors file: {error}; download or copy it again") from None
    return tensors


class _Malformed(Exception):
    """What is wrong with a file; the message does not name it."""


def _read_header(path: Path) -> tuple[dict, int, int]:
    """The header without its metadata, the offset of the data, and the size of the file."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _Malformed(f"it has {size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            raise _Malformed(f"its header claims {length} bytes, the file has {size}")
        if length > LARGEST_JSON:
            raise _Malformed(
                f"its header claims {length:,} bytes, more than the {LARGEST_JSON:,} that weights can need"
            )
        content = file.read(length)
    try:
        header = parse_json(content)
    except ValueError as error:
        raise _Malformed(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _Malformed("its header is not a mapping of tensors")
    header.pop("__metadata__", None)
    return header, 8 + length, size


def _stored_tensor(path: Path, key: str, entry: object, start: int, size: int) -> StoredTensor:
    """The tensor that an entry of the header describes, in a file of `size` bytes whose data begins at `start`."""
    try:
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        sizes_are_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise _Malformed(f"{key} is described as {printable(entry)}") from None
    if len(shape) > MOST_AXES:
        raise _Malformed(f"{key} has {len(shape)} axes")
    # NumPy's limit, which also applies to empty arrays.
    if sizes_are_whole and math.prod(max(1, axis) for axis in shape) >= 2**60:
        raise _Malformed(f"{key} has the impossible shape {printable(shape)}")
    if not sizes_are_whole or end - begin != math.prod(shape) * dtype.itemsize:
        raise _Malformed(f"{key} of shape {printable(shape)} and type {entry['dtype']} claims bytes {begin} to {end}")
    if start + end > size:
        raise _Malformed(f"{key} should end at byte {start + end}, the file has {size}")
    return StoredTensor(path, key, start + begin, shape, dtype)


def _require_contiguous(tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    """Raises unless the tensors fill the file from `start` to its end."""
    position = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != position:
            fault = "is shared with another tensor" if tensor.offset < position else "comes after bytes of no tensor"
            raise _Malformed(f"the data of {tensor.key}, from byte {tensor.offset}, {fault}")
        position += tensor.nbytes
    if position != size:
        raise _Malformed(f"its tensors end at byte {position}, the file has {size}")


def write_safetensors(
    path: str | Path, specs: Mapping[str, Spec], value: Value, progress: Callable[[int], None] = lambda size: None
) -> None:
    """Writes a file one tensor at a time, so that no more than one is in memory.

    Args:
      path: the file, usually inside `runtime.folders.new_folder`.
      specs: shape and dtype of every tensor by name, in the order in which they are written.
      value: returns the tensor of a name; called once for each.
      progress: called with the size in bytes of each tensor written.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, (shape, dtype) in specs.items():
        size = math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned for readers that memory-map it
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, (shape, dtype) in specs.items():
            array = value(key)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{key}: {array.dtype}{array.shape} given, {dtype}{shape} announced")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            progress(array.nbytes)


def read_index(
    path: Path, read: Callable[[Path], dict[str, StoredTensor]] = read_safetensors
) -> dict[str, StoredTensor]:
    """Reads the tensors of several files listed in a `….index.json`; `read` opens each file.

    Tensors that every loader ignores (`IGNORED`) may be in the files but not in the index, or the reverse.

    Raises:
      FileError: if the index is damaged, a file is missing, or index and files disagree about a tensor.
    """
    index = read_json(path)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise FileError(f"{path}: has no weight_map from tensors to files")
    tensors: dict[str, StoredTensor] = {}
    beside = set(os.listdir(path.parent))
    for name in sorted(set(where.values())):
        if name not in beside:
            count = sum(file == name for file in where.values())
            raise FileError(f"{path}: places {count} tensors in {name}, but there is no such file beside it")
        found = read(path.parent / name)
        for key in found:
            if where.get(key) != name and not key.endswith(IGNORED):
                owner = f"the index places it in {where[key]}" if key in where else "the index does not know it"
                raise FileError(f"{path.parent / name}: holds {key}, but {owner}; two models are mixed in one folder")
        tensors |= found
    for key, name in where.items():
        if key not in tensors and not key.endswith(IGNORED):
            raise FileError(f"{path.parent / name}: {key} is missing, though {path.name} places it there")
    return tensors


def parts_of(specs: Mapping[str, Spec], largest: int) -> Iterable[dict[str, Spec]]:
    """Splits specs, in order, into parts of at most `largest` bytes (or of one larger tensor)."""
    part: dict[str, Spec] = {}
    size = 0
    for key, (shape, dtype) in specs.items():
        nbytes = math.prod(shape) * dtype.itemsize
        if part and size + nbytes > largest:
            yield part
            part, size = {}, 0
        part[key] = (shape, dtype)
        size += nbytes
    yield part
