"""Reads the pickles inside torch's checkpoint files without executing them.

A pickle is a program that may call anything that can be imported. `unpickle` interprets such programs itself, knows
only plain values and tensors, and bounds the number of steps. A kilobyte of pickle can still describe terabytes, with
lists that contain the same list again and again, or a tuple nested so deeply that hashing it crashes the interpreter.
So no value of a pickle is hashed, compared, copied or printed before its type and size are known.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from typing import Any

import numpy as np

from chameleon_jax.weights.stored import BFLOAT16, MOST_AXES

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
MAX_STEPS = 300_000  # a tensor takes some 30, and the largest released file has 700 tensors
_MAX_INTEGER = 2**1024
_MAX_KEY = 2**60  # many larger numbers share a hash, which makes dictionaries slow


class MalformedFile(Exception):
    """What is wrong with a file; the message does not name it."""


@dataclasses.dataclass(frozen=True)
class Storage:
    key: str
    dtype: np.dtype
    numel: int


@dataclasses.dataclass(frozen=True)
class UnplacedTensor:
    """A tensor whose position in the file is not known yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


PLAIN = (type(None), bool, int, float, str, bytes)


class _Skipped:
    """Stands for an object of a training framework, and for all that the pickle does with it."""


SKIPPED = _Skipped()
_SKIPPED_MODULES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
_SKIPPED_GLOBALS = {
    "argparse Namespace", "collections defaultdict", "typing Any", "_codecs encode", "numpy dtype",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar",
    *(f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("dict", "list", "set", "tuple")),
}  # fmt: skip
"""What PyTorch Lightning pickles beside the weights: its callbacks, the hyperparameters, scores of NumPy."""


def _set_items(target: Any, keys: list[Any], values: list[Any]) -> None:
    if target is SKIPPED:
        return
    if type(target) is not dict:
        raise ValueError("items for something that is not a dictionary")
    for key, value in zip(keys, values, strict=True):
        if key is SKIPPED:
            continue
        if not isinstance(key, PLAIN):  # a deeply nested tuple would crash Python when hashed
            raise MalformedFile(f"a dictionary in it has a {type(key).__name__} for a key; expected text or a number")
        if isinstance(key, int) and abs(key) >= _MAX_KEY:
            raise MalformedFile("a dictionary in it has a very large number for a key; expected text or a number")
        target[key] = value


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """Python 2 pickles an OrderedDict with a list of pairs, Python 3 without."""
    if type(items) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items):
        raise ValueError("an OrderedDict of something that is not a list of pairs")
    result: dict[Any, Any] = {}
    _set_items(result, [key for key, _ in items], [value for _, value in items])
    return result


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> UnplacedTensor:
    if metadata:  # a conjugated or negated view: its bytes are not its values
        raise MalformedFile("a tensor in it has metadata that changes its values; save a plain copy of the tensor")
    if type(storage) is not Storage or not (_is_axes(shape) and _is_axes(strides) and _is_axes((offset,))):
        raise ValueError("a tensor without a storage, or of an impossible shape")
    elements = math.prod(max(1, size) for size in shape)
    if len(shape) != len(strides) or elements * storage.dtype.itemsize >= 2**63:  # NumPy's limit
        raise ValueError("a tensor of an impossible shape")
    return UnplacedTensor(storage, offset, shape, strides)


def _is_axes(numbers: Any) -> bool:
    if type(numbers) is not tuple or len(numbers) > MOST_AXES:
        return False
    return all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    return data


def _torch_size(shape: Any) -> tuple[Any, ...]:
    if not _is_axes(shape):
        raise ValueError("a torch.Size of something that is not a shape")
    return shape


_GLOBALS = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": _torch_size,
    **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
}


def _global(name: str, skip_objects: bool) -> Any:
    if skip_objects and (name in _SKIPPED_GLOBALS or name.startswith(_SKIPPED_MODULES)):
        return SKIPPED
    if name not in _GLOBALS:
        raise _refusal(ascii(name.replace(" ", "."))[:200])
    return _GLOBALS[name]


def _refusal(what: str) -> MalformedFile:
    return MalformedFile(
        f"asks for {what}: the file tries to run or build something that weights do not need. It was not run. "
        "Use a file that holds nothing but tensors and plain values"
    )


def _storage(reference: Any, storages: dict[str, Storage] | None) -> Storage:
    if storages is None or type(reference) is not tuple or len(reference) not in (5, 6):
        raise ValueError("a reference to something that is not a storage")
    kind, dtype, key, _location, numel, *view = reference
    if type(kind) is not str or kind != "storage" or not (isinstance(dtype, np.dtype) and type(key) is str):
        raise ValueError("a reference to something that is not a storage")
    if view and view[0] is not None:
        raise MalformedFile("a storage in it is a view of another; save it again with a newer torch")
    if type(numel) is not int or not 0 <= numel < 2**63:
        raise ValueError(f"storage {key!r} has an impossible length")
    storage = Storage(key, dtype, numel)
    if storages.setdefault(key, storage) != storage:
        raise ValueError(f"storage {key!r} has two lengths or types")
    return storage


def _call(function: Any, arguments: Any, budget: list[int]) -> Any:
    """Calls a function. Only those in `_GLOBALS` can be on the stack, so nothing else can be called."""
    if function is SKIPPED:
        return SKIPPED
    if type(arguments) is not tuple or len(arguments) > 7:
        raise ValueError("a call without arguments, or with too many")
    if function is _ordered_dict and arguments and type(arguments[0]) in (list, tuple):
        budget[0] -= len(arguments[0])  # it is copied
        _require_budget(budget)
    return function(*arguments)


def _require_budget(budget: list[int]) -> None:
    if budget[0] < 0:
        raise MalformedFile(f"its pickle takes more than the {MAX_STEPS:,} steps that weights can need")


def unpickle(file: Any, storages: dict[str, Storage] | None = None, skip_objects: bool = False) -> Any:
    """Reads one pickle from a binary file and leaves the file positioned after it.

    Python's own unpicklers can be told what may be imported, but not what may be done with it: a file can still set
    attributes of the objects that were let in, or ask for gigabytes of memo. This one does what tensors and plain
    values need. Fills `storages` with those that the tensors refer to; without it there may be none.

    With `skip_objects`, the objects that PyTorch Lightning keeps beside the weights are known by name and become
    `SKIPPED`; dictionaries drop the items that have one for a key.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    budget = [MAX_STEPS]

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        budget[0] -= 1
        _require_budget(budget)
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                if type(argument) is int and abs(argument) >= _MAX_INTEGER:
                    raise MalformedFile("a number in it has hundreds of digits, which weights cannot need")
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
                if type(stack[-1]) is list:
                    stack[-1].extend(items)
                elif stack[-1] is not SKIPPED:
                    raise ValueError("items for something that is not a list")
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
                stack.append(_global(argument, skip_objects))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if type(name) is not str or type(module) is not str:
                    raise ValueError("a name that is not a string")
                stack.append(_global(f"{module} {name}", skip_objects))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments, budget))
            case "BUILD":  # torch hangs `_metadata` on state dicts; nothing reads it
                stack.pop()
                if type(stack[-1]) is not dict and stack[-1] is not SKIPPED:
                    raise _refusal("attributes of something that is not a dictionary")
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storages))
            case "NEWOBJ" if stack[-2] is SKIPPED:
                stack.pop()
            case "INST":
                raise _refusal(ascii(argument.replace(" ", "."))[:200])
            case "OBJ" | "NEWOBJ" | "NEWOBJ_EX":
                raise _refusal("a new object")
            case _:
                raise ValueError(f"{opcode.name} in its pickle")
    raise EOFError("no end of the pickle")
