"""Tensors in files: where their bytes are, and memory-mapped views, which use no memory until they are read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from chameleon_jax.errors import FileError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16), np.dtype(np.float64))
"""Supported dtypes of weights."""
MOST_AXES = 8
"""The most axes that a tensor in a file may have; weights have up to four."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
      file: the file that holds it.
      key: its name in that file.
      offset: byte offset of its data in the file.
      shape: its shape.
      dtype: its dtype, little-endian.
      strides: in elements, one per axis; None for row-major order.
    """

    file: Path
    key: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, begin: int, end: int) -> StoredTensor:
        """Rows `begin` to `end`."""
        step = math.prod(self.shape[1:]) if self.strides is None else self.strides[0]
        offset = self.offset + begin * step * self.dtype.itemsize
        return dataclasses.replace(self, offset=offset, shape=(end - begin, *self.shape[1:]))

    def view(self) -> np.ndarray:
        """A read-only memory map of the tensor: pages of the file are read when they are accessed."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        shape = self.shape
        if self.strides is not None:
            shape = (1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)),)
        try:
            array = np.asarray(np.memmap(self.file, self.dtype, "r", self.offset, shape))
        except (OSError, ValueError) as error:
            raise FileError(f"{self.file}: {self.key} cannot be read: {error}") from None
        if self.strides is not None:
            steps = tuple(step * self.dtype.itemsize for step in self.strides)
            array = np.lib.stride_tricks.as_strided(array, self.shape, steps, writeable=False)
        return array


@dataclasses.dataclass(frozen=True, eq=False)
class ComputedTensor:
    """A small tensor that is computed rather than stored, with the interface of `StoredTensor`."""

    file: Path
    key: str
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def view(self) -> np.ndarray:
        return self.values


Tensor = StoredTensor | ComputedTensor


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is infinite or NaN. Tests the exponent bits of 16-bit types: NumPy has no bfloat16."""
    values = np.asarray(values)
    if values.dtype.itemsize != 2:
        return bool(np.isfinite(values).all())
    exponent = np.uint16(0x7F80 if values.dtype == BFLOAT16 else 0x7C00)
    bits = values.view(np.uint16)
    return not any(((bits[part] & 0x7FFF) >= exponent).any() for part in _strips(bits))


def _strips(array: np.ndarray, elements: int = 1 << 20):
    """Slices of the first axis with about `elements` values each, so that temporaries stay in the cache."""
    if array.ndim == 0:
        return [()]
    step = max(1, elements // max(1, math.prod(array.shape[1:])))
    return [slice(start, start + step) for start in range(0, len(array), step)]
