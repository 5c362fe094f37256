"""Memory of batches, used again when nobody holds its arrays any more.

Where the kernel has to find, clear and map fresh memory, writing a batch into it takes twice as long.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

MOST_FREE = 16
"""Pieces of memory that are kept for later batches: as many as are read ahead, and a few more."""


class BatchMemory:
    """Gives arrays as `np.empty` does. Several threads may call it."""

    def __init__(self):
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=MOST_FREE)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        try:
            memory = self._free.pop()
        except IndexError:
            memory = None
        if memory is None or memory.shape != shape or memory.dtype != dtype:
            memory = np.empty(shape, dtype)
        return np.asarray(_Loan(memory, self._free))


class _Loan:
    """What the array of a batch, and each part of it, refers to as long as it exists."""

    def __init__(self, memory: np.ndarray, free: collections.deque[np.ndarray]):
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self):
        self._free.append(self._memory)
