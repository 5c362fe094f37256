"""The lanes of an engine: their caches, and reading prompts into them.

A prompt is read in chunks that begin at multiples of `CHUNK`, the last one in the smallest bucket that holds it. Lanes
remember what was read into them, so that a prompt that begins like another is copied as far as whole chunks go. As the
chunks of a prompt are always the same, so are its keys and values, whether they were computed or copied.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from chameleon_jax.config import TransformerConfig
from chameleon_jax.models.decoding import Cache, CacheDType, DecodeWeights, copy_lane, extend_lane

CHUNK = 256
BUCKETS = (32, 128, CHUNK)
"""Lengths of chunks, each of which is compiled once."""

extend_chunk = jax.jit(extend_lane, static_argnames="config", donate_argnames="cache")
_copy_lane = jax.jit(copy_lane, donate_argnames="cache")


class Lanes:
    """Caches of the rows' own lanes and, once a row draws with guidance, of their second and third lanes.

    Attributes:
      caches: what `decode` takes and returns; as many as were needed so far.
    """

    def __init__(
        self, config: TransformerConfig, weights: DecodeWeights, rows: int, slots: Sequence[int], dtype: CacheDType
    ):
        """
        Args:
          slots: of each row's own, second and third lane.
        """
        self._config, self._weights, self._rows, self._slots, self._dtype = config, weights, rows, slots, dtype
        self.caches: list[Cache] = []
        self._read = [[np.zeros(0, np.int32)] * rows for _ in slots]  # what each lane of each kind has read

    def best_row(self, prompt: np.ndarray, free: Sequence[int]) -> int:
        """The free row whose own lane spares most of reading `prompt`."""
        return max(free, key=lambda row: _shared(self._read[0][row], prompt[:-1]))

    def read(self, kind: int, row: int, ids: np.ndarray) -> int:
        """Reads ids into the row's own lane (`kind` = 0), its second or its third one, from their first slot on.

        Returns:
          how many of them were there already, or were copied from another row.
        """
        read = self._read[kind]
        source = max(range(self._rows), key=lambda other: (_shared(read[other], ids), other == row))
        shared = _shared(read[source], ids)
        if source != row and shared >= BUCKETS[0]:
            self.caches[kind] = _copy_lane(self.caches[kind], np.int32(source), np.int32(row))
        elif source != row:
            shared = 0  # reading them costs no more than copying a lane
        self._extend(kind, row, ids, shared)
        return shared

    def _extend(self, kind: int, row: int, ids: np.ndarray, start: int) -> None:
        while len(self.caches) <= kind:
            slots = self._slots[len(self.caches)]
            empty = functools.partial(Cache.empty, self._config, self._rows, slots, self._dtype, self._weights)
            self.caches.append(jax.jit(empty)())
        for begin in range(start, len(ids), CHUNK):
            part = ids[begin : begin + CHUNK]
            chunk = np.zeros(next(size for size in BUCKETS if size >= len(part)), np.int32)
            chunk[: len(part)] = part  # what stands behind it is overwritten by the next tokens
            self.caches[kind] = extend_chunk(
                self._weights, self._config, chunk, np.int32(begin), np.int32(row), self.caches[kind]
            )
        self._read[kind][row] = ids


def _shared(read: np.ndarray, prompt: np.ndarray) -> int:
    """How many tokens of `prompt` a lane has read in the chunks in which it is to be read."""
    if len(read) == len(prompt) and np.array_equal(read, prompt):
        return len(prompt)
    short = min(len(read), len(prompt))
    if short < CHUNK:
        return 0
    different = np.flatnonzero(read[:short] != prompt[:short])
    return int(different[0] if len(different) else short) // CHUNK * CHUNK
