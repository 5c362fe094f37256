"""Weights, in files or in memory, from which any tensor of any layout can be read.

Files are read in pieces, onto the devices of a mesh or into a file of another format.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from chameleon_jax.errors import FileError
from chameleon_jax.weights.layout import IGNORED, Entry, swap_pairs
from chameleon_jax.weights.stored import BFLOAT16, FLOATS, Tensor, all_finite

STRIP = 2 << 20
"""Bytes of a file that each of `THREADS` checks, casts and copies at a time: few enough for a core's cache."""
THREADS = min(8, os.cpu_count() or 1)
CHUNK = 256 << 20
"""Bytes transferred to an accelerator at a time."""

Progress = Callable[[int], None]


def _ignore(size: int) -> None:
    pass


class Weights(Protocol):
    """Parameters of a Transformer or an image tokenizer.

    Attributes:
      dtype: the widest dtype among them.
      dtypes: number of tensors of each dtype.
      nbytes: their size as stored.
    """

    dtype: np.dtype
    dtypes: Mapping[str, int]
    nbytes: int

    def __contains__(self, leaf: str) -> bool:
        """Whether there is a leaf with this path."""

    def place(self, abstract: Mapping[str, jax.ShapeDtypeStruct], progress: Progress = _ignore) -> dict[str, jax.Array]:
        """Loads leaves as arrays of the shapes, dtypes and shardings given by `abstract`."""

    def fetch(self, entry: Entry, dtype: np.dtype) -> np.ndarray:
        """The tensor that `entry` describes, in the form in which it is stored."""


def match(
    entries: Iterable[Entry],
    shards: list[Mapping[str, Tensor]],
    where: str | Path,
    prefix: str = "",
    optional: Callable[[Entry], bool] = lambda entry: False,
) -> tuple[dict[Entry, Tensor], list[str]]:
    """Finds the tensor of every entry.

    Args:
      entries: the expected tensors.
      shards: the tensors in each shard's file, by name.
      where: the folder or file, for error messages.
      prefix: of the unused tensors, only names with this prefix are returned.
      optional: whether an entry may be missing.

    Returns:
      The tensors found, and the names of those that are not used.

    Raises:
      FileError: for a tensor that is missing, has another shape, or is not floating-point.
    """
    found, missing = {}, []
    for entry in entries:
        tensor = shards[entry.shard].get(entry.key)
        if tensor is None:
            if not optional(entry):
                missing.append(entry.key)
            continue
        if tensor.shape != entry.stored:
            raise FileError(f"{tensor.file}: {entry.key} has shape {tensor.shape}, the config expects {entry.stored}")
        if tensor.dtype not in FLOATS:
            raise FileError(
                f"{tensor.file}: {entry.key} is of type {tensor.dtype}; expected "
                f"{', '.join(str(dtype) for dtype in FLOATS)} (quantized weights cannot be read)"
            )
        found[entry] = tensor
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileError(f"{where}: {missing[0]}{more} missing; the config expects them. Is the download complete?")
    known = {(entry.shard, entry.key) for entry in found}
    extra = [key for shard, tensors in enumerate(shards) for key in tensors if (shard, key) not in known]
    return found, [key for key in extra if key.startswith(prefix)]


def refuse_unknown(extra: list[str], where: str | Path) -> None:
    """Raises `FileError` if there are tensors that the config does not account for, other than those in `IGNORED`."""
    unknown = [key for key in extra if not key.endswith(IGNORED)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise FileError(
            f"{where}: holds {unknown[0]}{more}, which the config does not explain; is it another kind of model, or "
            "are two models mixed in one folder?"
        )


class FileWeights:
    """Weights in files; each tensor may be in any file, at any offset."""

    def __init__(self, tensors: Mapping[Entry, Tensor]):
        self._pieces: dict[tuple[str, int | None], list[tuple[Entry, Tensor]]] = collections.defaultdict(list)
        for entry, tensor in tensors.items():
            self._pieces[entry.leaf, entry.layer].append((entry, tensor))
        self.dtype = max((tensor.dtype for tensor in tensors.values()), key=lambda dtype: dtype.itemsize)
        self.dtypes = collections.Counter(str(tensor.dtype) for tensor in tensors.values())
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())

    def __contains__(self, leaf: str) -> bool:
        return any(name == leaf for name, _ in self._pieces)

    def fetch(self, entry: Entry, dtype: np.dtype) -> np.ndarray:
        sources = self._pieces[entry.leaf, entry.layer]
        first, tensor = sources[0]
        if (first.start, first.piece) == (entry.start, entry.piece):
            values = tensor.view()
            _require_finite(values, tensor)
            piece = first.unfold(first.spread(values))
        else:
            # In stored memory order, so that shards are copied row by row.
            stored = np.empty([entry.piece[axis] for axis in entry.axes], self.dtype)
            piece = stored.transpose(np.argsort(entry.axes))
            for source, tensor in sources:
                end = [a + n for a, n in zip(entry.start, entry.piece, strict=True)]
                low, high = _overlap(source, entry.start, end)
                if any(a >= b for a, b in zip(low, high, strict=True)):
                    continue
                values = source.unfold(source.spread(tensor.view()))[_slices(low, high, source.start)]
                _require_finite(values, tensor)
                piece[_slices(low, high, entry.start)] = values
        return entry.fold(piece).astype(dtype, copy=False)

    def place(self, abstract: Mapping[str, jax.ShapeDtypeStruct], progress: Progress = _ignore) -> dict[str, jax.Array]:
        """Loads leaves onto their devices.

        Every process reads only what its own devices hold. Besides the arrays, host memory holds at most `CHUNK` bytes
        (or one layer of a leaf) in transfer to a device, and a few times `STRIP` bytes of the files.

        Args:
          abstract: shape, dtype and sharding of each leaf, by path. Leaves without a sharding go to the first device.
          progress: called repeatedly with the number of bytes read since the last call.

        Raises:
          FileError: for values that are infinite or NaN.
        """
        return {leaf: self._place(leaf, target, progress) for leaf, target in abstract.items()}

    def _place(self, leaf: str, target: jax.ShapeDtypeStruct, progress: Progress) -> jax.Array:
        sharding = target.sharding or SingleDeviceSharding(jax.local_devices()[0])
        regions = sharding.addressable_devices_indices_map(target.shape)
        devices_of = collections.defaultdict(list)
        for device, region in regions.items():
            bounds = tuple(part.indices(size)[:2] for part, size in zip(region, target.shape, strict=True))
            devices_of[bounds].append(device)
        buffers = {}
        for bounds, devices in devices_of.items():
            shape = [high - low for low, high in bounds]
            row_bytes = math.prod(shape[1:]) * target.dtype.itemsize
            # A CPU array adopts the memory it is assembled in; other devices are sent one chunk after the other.
            rows = shape[0] if devices[0].platform == "cpu" else max(1, CHUNK // row_bytes)
            for first in range(0, shape[0], rows):
                begin = bounds[0][0] + first
                chunk = ((begin, min(begin + rows, bounds[0][1])), *bounds[1:])
                values = self._assemble(leaf, chunk, target.dtype, progress)
                for device in devices:
                    sent = jax.device_put(values, device)
                    if len(values) < shape[0]:
                        buffer = buffers[device] if first else jnp.zeros(shape, target.dtype, device=device)
                        sent = _update(buffer, sent, first)
                    buffers[device] = sent
                if len(values) < shape[0]:
                    jax.block_until_ready([buffers[device] for device in devices])
        return jax.make_array_from_single_device_arrays(target.shape, sharding, [buffers[device] for device in regions])

    def _assemble(
        self, leaf: str, bounds: tuple[tuple[int, int], ...], dtype: np.dtype, progress: Progress
    ) -> np.ndarray:
        """Reads the region `bounds` of a leaf from its files."""
        out = _aligned_empty([high - low for low, high in bounds], dtype)

        def copy_strip(strip: _Strip) -> int:
            _require_finite(strip.values, strip.tensor)
            values = strip.values.astype(dtype, copy=False)
            if strip.entry.rotary:
                values = swap_pairs(values, strip.entry.rotary_axis, pairs_last=True)
            _copy(strip.target, values)
            return strip.values.nbytes

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for size in pool.map(copy_strip, self._strips(leaf, bounds, out)):
                progress(size)
        return out

    def _strips(self, leaf: str, bounds: tuple[tuple[int, int], ...], out: np.ndarray) -> Iterator[_Strip]:
        """The strips that together fill `out`, the region `bounds` of a leaf."""
        stacked = (leaf, None) not in self._pieces
        inner = bounds[1:] if stacked else bounds
        origin = [low for low, _ in inner]
        for layer in range(*bounds[0]) if stacked else [None]:
            for entry, tensor in self._pieces[leaf, layer]:
                low, high = _overlap(entry, origin, [high for _, high in inner])
                if any(a >= b for a, b in zip(low, high, strict=True)):
                    continue
                region = _slices(low, high, entry.start)
                stored = entry.spread(tensor.view())[tuple(region[axis] for axis in entry.axes)]
                target = out[layer - bounds[0][0]] if stacked else out
                target = target[_slices(low, high, origin)].transpose(entry.axes)
                step = max(1, STRIP // max(1, stored[0].nbytes))
                for first in range(0, len(stored), step):
                    yield _Strip(entry, tensor, stored[first : first + step], target[first : first + step])


class _Strip(NamedTuple):
    entry: Entry
    tensor: Tensor
    values: np.ndarray  # as stored, with merged axes split
    target: np.ndarray  # view of the output, with its axes in the same order


def _aligned_empty(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array aligned to 64 bytes, which JAX on a CPU adopts without a copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def _copy(target: np.ndarray, values: np.ndarray) -> None:
    """target[...] = values, fast even if one of them is transposed."""
    if target.dtype == BFLOAT16:  # NumPy copies types that are not its own one element at a time
        target, values = target.view(np.uint16), values.view(np.uint16)
    if target.ndim == 3 and target.strides[0] == target.shape[1] * target.strides[1]:
        target = np.reshape(target, (-1, target.shape[2]), copy=False)
        values = values.reshape(target.shape)
    # Sixteen rows at a time, so that cache lines stay in the cache until they have been written completely.
    rows = 16 if target.ndim > 1 and target.strides[-1] != target.itemsize else len(target)
    for first in range(0, len(target), rows):
        target[first : first + rows] = values[first : first + rows]


@functools.partial(jax.jit, donate_argnums=0)
def _update(buffer: jax.Array, values: jax.Array, first: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(buffer, values, first, axis=0)


def _overlap(entry: Entry, low, high) -> tuple[list[int], list[int]]:
    """Intersection of an entry's piece with the region from `low` to `high` of its leaf."""
    starts = [max(a, b) for a, b in zip(entry.start, low, strict=True)]
    ends = [min(a + n, b) for a, n, b in zip(entry.start, entry.piece, high, strict=True)]
    return starts, ends


def _slices(low, high, origin) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))


def _require_finite(values: np.ndarray, tensor: Tensor) -> None:
    if not all_finite(values):
        raise FileError(
            f"{tensor.file}: {tensor.key} holds infinite values or NaN; the file is damaged, or the training that "
            "wrote it diverged"
        )


class MemoryWeights:
    """Weights in memory, such as those of a loaded model; `leaves` maps paths to arrays, of JAX or of NumPy."""

    def __init__(self, leaves: Mapping[str, jax.Array | np.ndarray]):
        self._leaves = leaves
        self.dtype = np.dtype(max((leaf.dtype for leaf in leaves.values()), key=lambda dtype: dtype.itemsize))
        self.dtypes = collections.Counter(str(leaf.dtype) for leaf in leaves.values())
        self.nbytes = sum(leaf.nbytes for leaf in leaves.values())

    def __contains__(self, leaf: str) -> bool:
        return leaf in self._leaves

    def place(self, abstract: Mapping[str, jax.ShapeDtypeStruct], progress: Progress = _ignore) -> dict[str, jax.Array]:
        leaves = {leaf: self._leaves[leaf].astype(target.dtype) for leaf, target in abstract.items()}
        return {
            leaf: jax.device_put(values, abstract[leaf].sharding) if abstract[leaf].sharding else values
            for leaf, values in leaves.items()
        }

    def fetch(self, entry: Entry, dtype: np.dtype) -> np.ndarray:
        start = entry.start if entry.layer is None else (entry.layer, *entry.start)
        leaf = self._leaves[entry.leaf]
        if isinstance(leaf, np.ndarray):  # which needs no compiled program
            size = (1,) * (leaf.ndim - len(entry.piece)) + entry.piece
            part = leaf[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
            return entry.fold(part.reshape(entry.piece)).astype(dtype, copy=False)
        # Only what the compiled program depends on, so that layers and shards share one.
        spec = dataclasses.replace(entry, key="", shard=0, leaf="", layer=None, start=())
        return np.asarray(_fold(leaf, np.array(start, np.int32), spec, dtype))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _fold(leaf: jax.Array, start: jax.Array, entry: Entry, dtype: np.dtype) -> jax.Array:
    size = (1,) * (leaf.ndim - len(entry.piece)) + entry.piece
    return entry.fold(jax.lax.dynamic_slice(leaf, tuple(start), size).reshape(entry.piece)).astype(dtype)


def leaves_of(tree: Any) -> dict[str, Any]:
    """Flattens nested mappings into one, keyed by paths such as 'layers/attention/q'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def tree_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `leaves_of`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        parent = tree
        for folder in folders:
            parent = parent.setdefault(folder, {})
        parent[name] = leaf
    return tree
