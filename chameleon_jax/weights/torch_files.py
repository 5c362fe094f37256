"""Torch's checkpoint files, read without torch.

A checkpoint is a pickle in which a tensor is a call, `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`, and a
storage is a reference to bytes kept outside the pickle (`torch/serialization.py`). Since torch 1.6 all of it lies
in a zip archive: `<name>/data.pkl`, and one uncompressed member `<name>/data/<key>` for each storage. Before, the file
was five pickles (magic number, version, machine, object, order of the storages) and then the storages' bytes.

A pickle is a program and may call anything that can be imported. Ours is run by `_unpickle`, which knows plain values,
tensors, and nothing else.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from chameleon_jax.files import FileError
from chameleon_jax.weights.stored import BFLOAT16, StoredTensor

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "BFloat16Storage": BFLOAT16,
    "HalfStorage": np.dtype(np.float16),
    "DoubleStorage": np.dtype(np.float64),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_LARGEST_PICKLE = 64 << 20  # a hundred bytes or two for a tensor: room for some 300 000 of them


def read_torch_file(path: str | Path) -> Any:
    """What `torch.save` wrote to `path`, with every tensor a `StoredTensor`. Reads the pickle, not the tensors.

    Dictionaries of every kind come back as `dict`, parameters as their tensors. The key of a tensor is its key in
    the dictionary nearest around it, or '' if there is none. Checksums of tensors are not verified, as that would
    read them.

    Raises:
      FileError: if the file cannot be read, is damaged, cut short, compressed, big-endian or no torch checkpoint,
        or if it asks for anything but plain values and dense tensors. Nothing that a file asks for is ever imported
        or run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start == b"PK\3\4":
                value, places = _read_zip(file)
            elif start[:1] == pickle.PROTO:
                value, places = _read_legacy(file)
            else:
                raise _Complaint(f"{'not a' if start else 'empty, no'} torch checkpoint, as torch.save writes it")
            return _place(value, path, places)
    except _Complaint as complaint:
        raise FileError(f"{path}: {complaint}") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive or pickle can raise nearly anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise FileError(
            f"{path}: damaged, cut short, or not what torch.save writes ({reason}); fetch or save it again"
        ) from None


def read_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """What `torch.save` wrote of a state dict.

    Raises:
      FileError: as `read_torch_file`, and if there is anything but a mapping from names to tensors.
    """
    tensors = read_torch_file(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
        raise FileError(f"{path}: expected a mapping from names to tensors and nothing else")
    return tensors


class _Complaint(Exception):
    """What is wrong with a file, said without its name."""


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickled object, and the place of each storage: its first byte in the file, and how many there are."""
    archive = zipfile.ZipFile(file)
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise _Complaint("a zip archive, but no torch checkpoint: expected one data.pkl in it")
    root = pickles[0].removesuffix("data.pkl")
    if root + "byteorder" in members and archive.open(root + "byteorder").read(16).strip() != b"little":
        raise _Complaint("not little-endian; save it again on a little-endian machine")

    def place(info: zipfile.ZipInfo) -> tuple[int, int]:
        if info.compress_type != zipfile.ZIP_STORED:
            raise _Complaint(f"{info.filename!r} is compressed, which torch never does; pack the archive without")
        file.seek(info.header_offset)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
        if signature != b"PK\3\4":
            raise _Complaint(f"damaged: {info.filename!r} is not where the archive says; fetch it again")
        start = info.header_offset + 30 + name_length + extra_length
        return start, min(info.file_size, _size(file) - start)

    _, size = place(members[pickles[0]])
    if size > _LARGEST_PICKLE:
        raise _Complaint(f"its pickle has {size} bytes, more than the {_LARGEST_PICKLE} that weights can need")
    storages: dict[str, _Storage] = {}
    value = _unpickle(io.BytesIO(archive.read(pickles[0])), storages)
    names = {key: f"{root}data/{key}" for key in storages}
    return value, {key: place(members[name]) for key, name in names.items() if name in members}


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Like `_read_zip`, for files of torch before 1.6."""
    size = _size(file)
    with mmap.mmap(file.fileno(), min(size, _LARGEST_PICKLE), access=mmap.ACCESS_READ) as pickles:
        if _unpickle(pickles) != _LEGACY_MAGIC:
            raise _Complaint("a pickle, but no torch checkpoint; expected what torch.save writes")
        if (version := _unpickle(pickles)) != _LEGACY_VERSION:
            raise _Complaint(f"version {ascii(version)[:20]} of torch's old format; expected {_LEGACY_VERSION}")
        if _unpickle(pickles)["little_endian"] is not True:
            raise _Complaint("not little-endian; save it again on a little-endian machine")
        storages: dict[str, _Storage] = {}
        value = _unpickle(pickles, storages)
        keys = _unpickle(pickles)
        position = pickles.tell()

    places = {}
    for key in keys:
        file.seek(position)
        if len(count := file.read(8)) < 8:
            break  # cut short: the tensor that misses its bytes will say so
        if key not in storages or int.from_bytes(count, "little") != storages[key].numel:
            raise _Complaint(f"damaged: storage {key!r} is not as long as its tensors say; fetch it again")
        nbytes = storages[key].numel * storages[key].dtype.itemsize
        places[key] = position + 8, min(nbytes, size - position - 8)
        position += 8 + nbytes
    return value, places


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


# The pickle.


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    numel: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor whose place in the file is not yet known."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_PLAIN = (type(None), bool, int, float, str, bytes)


def _set_items(target: Any, keys: Iterable[Any], values: Iterable[Any]) -> None:
    if type(target) is not dict:
        raise ValueError("items for something that is no dictionary")
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, _PLAIN):  # a deeply nested tuple would crash Python when hashed
            raise _Complaint(f"a dictionary in it has a {type(key).__name__} for a key; expected text or a number")
        target[key] = value


def _ordered_dict(items: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    pairs = list(items)
    _set_items(result, [key for key, _ in pairs], [value for _, value in pairs])
    return result


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _Tensor:
    if metadata:  # a conjugated or negated view: its bytes are not its values
        raise _Complaint("a tensor in it has metadata that changes its values; save a plain copy of the tensor")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a tensor of no storage, or of an impossible shape")
    elements = math.prod(max(1, size) for size in shape)
    if len(shape) != len(strides) or len(shape) > 64 or elements * storage.dtype.itemsize >= 2**63:  # NumPy's limits
        raise ValueError("a tensor of an impossible shape")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    return data


def _torch_size(shape: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(shape)


_GLOBALS = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": _torch_size,
    **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
}


def _global(name: str) -> Any:
    if name not in _GLOBALS:
        raise _refusal(ascii(name.replace(" ", "."))[:200])
    return _GLOBALS[name]


def _refusal(what: str) -> _Complaint:
    return _Complaint(
        f"asks for {what}: the file tries to run or build something that weights do not need. It was not run. "
        "Use a file that holds nothing but tensors and plain values"
    )


def _storage(reference: Any, storages: dict[str, _Storage] | None) -> _Storage:
    kind, dtype, key, _location, numel, *view = reference
    if storages is None or kind != "storage" or not (isinstance(dtype, np.dtype) and isinstance(key, str)):
        raise ValueError("a reference to something that is no storage")
    if view not in ([], [None]):
        raise _Complaint("a storage in it is a view of another; save it again with a newer torch")
    storage = _Storage(key, dtype, numel)
    if type(numel) is not int or numel < 0 or storages.setdefault(key, storage) != storage:
        raise ValueError(f"storage {key!r} has an impossible length, or two lengths")
    return storage


def _unpickle(file: Any, storages: dict[str, _Storage] | None = None) -> Any:
    """Runs one pickle from a file of bytes and leaves the file behind its end.

    Python's own unpicklers can be told what may be imported, but not what may be done with it: a file can still set
    attributes of the objects that were let in, or ask for gigabytes of memo. This one does what tensors and plain
    values need. Fills `storages` with those that the tensors refer to; without it there may be none.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode.name == "APPEND" else pop_to_mark()
                if type(stack[-1]) is not list:
                    raise ValueError("items for something that is no list")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode.name == "SETITEM" else pop_to_mark()
                _set_items(stack[-1], items[::2], items[1::2])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_global(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(f"{module} {name}"))
            case "REDUCE":  # nothing on the stack can be called but the functions of _GLOBALS
                arguments, function = stack.pop(), stack.pop()
                stack.append(function(*arguments))
            case "BUILD":  # torch hangs `_metadata` on state dicts; nothing reads it
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise _refusal("attributes of something that is no dictionary")
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storages))
            case "INST":
                raise _refusal(ascii(argument.replace(" ", "."))[:200])
            case "OBJ" | "NEWOBJ" | "NEWOBJ_EX":
                raise _refusal("a new object")
            case unknown:
                raise ValueError(f"{unknown} in its pickle")
    raise EOFError("no end of the pickle")


def _place(value: Any, path: Path, places: dict[str, tuple[int, int]]) -> Any:
    """A copy of `value` in which every tensor knows its key and its place in the file."""
    done: dict[tuple[int, str], Any] = {}  # a small file can refer to the same list again and again and again

    def placed(value: Any, key: str) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, _Tensor):
            return _stored(value, key, path, places)
        known = id(value), key
        if known not in done:
            if isinstance(value, dict):
                done[known] = {name: placed(item, str(name)) for name, item in value.items()}
            elif isinstance(value, (list, tuple)):
                done[known] = type(value)([placed(item, key) for item in value])
            else:
                raise _Complaint(f"holds something at {key!r} that is neither a tensor nor a plain value")
        return done[known]

    return placed(value, "")


def _stored(tensor: _Tensor, key: str, path: Path, places: dict[str, tuple[int, int]]) -> StoredTensor:
    storage, shape = tensor.storage, tensor.shape
    start, present = places.get(storage.key, (0, 0))
    present = min(present, storage.numel * storage.dtype.itemsize)
    offset = tensor.offset * storage.dtype.itemsize
    if 0 in shape:
        return StoredTensor(path, key, start, shape, storage.dtype)
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, tensor.strides, strict=True))
    needed = offset + extent * storage.dtype.itemsize
    if needed > present:
        raise _Complaint(
            f"damaged or cut short: {key!r} needs {needed} bytes of its storage, {max(0, present)} are there; "
            "fetch it again"
        )
    plain = row_major(shape)
    # The step along an axis of one element is never taken, and torch writes anything there.
    strides = tuple(a if size == 1 else b for size, a, b in zip(shape, plain, tensor.strides, strict=True))
    return StoredTensor(path, key, start + offset, shape, storage.dtype, None if strides == plain else strides)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
