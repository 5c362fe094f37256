"""Safetensors files: a header that is read into offsets, and a writer that holds one tensor at a time.

The format is eight bytes of length, a JSON header of names, types, shapes and offsets, and the data. The `safetensors`
package (0.8.0) does not do what is needed here:

- Its writer takes all tensors at once, so that a model would be held in memory a second time. Writing 201 MB took
  0.38 s of CPU time and 192 MB of memory with it, 0.10 s and none here.
- Its reader has no bfloat16 for NumPy, the type of every released model, and copies what it reads: 0.15 s of CPU time
  for the same file, 0.08 s here. `StoredTensor` also serves torch's files, so conversion code sees one kind of tensor.
- It takes a header that names a tensor twice, or has a million axes; and no error names the file or the tensor.
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
      FileError: if the file is missing, cut short, or not a safetensors file: as the format demands, its tensors
        have to fill it without gaps or overlaps.
    """
    path = Path(path)

    def wrong(reason: str) -> FileError:
        return FileError(f"{path}: not a whole safetensors file: {reason}; download or copy it again")

    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            if len(start) < 8:
                raise wrong(f"it has {size} bytes")
            (length,) = struct.unpack("<Q", start)
            if length > size - 8:
                raise wrong(f"its header claims {length} bytes, the file has {size}")
            if length > LARGEST_JSON:
                raise wrong(f"its header claims {length:,} bytes, more than the {LARGEST_JSON:,} that weights can need")
            content = file.read(length)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        header = parse_json(content)
    except ValueError as error:
        raise wrong(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise wrong("its header is not a mapping of tensors")
    header.pop("__metadata__", None)
    tensors = {}
    for key, entry in header.items():
        try:
            dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            sizes_are_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            raise wrong(f"{key} is described as {printable(entry)}") from None
        if len(shape) > MOST_AXES:
            raise wrong(f"{key} has {len(shape)} axes")
        if sizes_are_whole and math.prod(max(1, axis) for axis in shape) >= 2**60:  # NumPy's limit, also for none
            raise wrong(f"{key} has the impossible shape {printable(shape)}")
        if not sizes_are_whole or end - begin != math.prod(shape) * dtype.itemsize:
            raise wrong(f"{key} of shape {printable(shape)} and type {entry['dtype']} claims bytes {begin} to {end}")
        if 8 + length + end > size:
            raise wrong(f"{key} should end at byte {8 + length + end}, the file has {size}")
        tensors[key] = StoredTensor(path, key, 8 + length + begin, shape, dtype)
    position = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != position:
            fault = "is shared with another tensor" if tensor.offset < position else "comes after bytes of no tensor"
            raise wrong(f"the data of {tensor.key}, from byte {tensor.offset}, {fault}")
        position += tensor.nbytes
    if position != size:
        raise wrong(f"its tensors end at byte {position}, the file has {size}")
    return tensors


def write_safetensors(
    path: str | Path, specs: Mapping[str, Spec], value: Value, progress: Callable[[int], None] = lambda size: None
) -> None:
    """Writes a file one tensor at a time, so that no more than one is in memory.

    Args:
      path: the file, best inside `runtime.folders.new_folder`.
      specs: shape and dtype of every tensor, in the order in which they are written.
      value: returns the tensor of a name; called once for each.
      progress: called with the number of bytes of each tensor that was written.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, (shape, dtype) in specs.items():
        size = math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the data as arrays and want it aligned
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
    """Reads the tensors of several files, as a `….index.json` lists them; `read` opens each file.

    Tensors that every loader ignores (`IGNORED`) may be in the files but not in the index, or in the index only.

    Raises:
      FileError: if the index is damaged, names a file that is not there, or a tensor that is not in its file.
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
