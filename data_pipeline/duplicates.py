"""Exact duplicates among all documents of a job, in bounded memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable

import numpy as np

DIGESTS_AT_A_TIME = 1 << 24
"""Digests that are compared at a time: 400 MB."""


def find_duplicates(groups: Iterable[Iterable[int]], at_a_time: int = DIGESTS_AT_A_TIME) -> list[np.ndarray]:
    """The places of documents that are the same as an earlier one, for each group; int64 and ascending.

    Digests are kept in a temporary file and compared by ranges of their values.

    Args:
      groups: 64-bit digests of the documents of each group.
    """
    with tempfile.TemporaryFile(prefix="chameleon-") as file:
        sizes = []
        for group in groups:
            digests = np.fromiter(group, np.uint64)
            file.write(digests.tobytes())
            sizes.append(len(digests))
        file.flush()
        total = sum(sizes)
        if total == 0:
            return [np.zeros(0, np.int64) for _ in sizes]
        digests = np.memmap(file, np.uint64, "r", shape=(total,))
        parts = -(-total // at_a_time)
        found = [_in_range(digests, part, parts, at_a_time) for part in range(parts)]
    places = np.sort(np.concatenate(found))
    starts = np.cumsum([0, *sizes])
    return [
        places[np.searchsorted(places, begin) : np.searchsorted(places, end)] - begin
        for begin, end in itertools.pairwise(starts)
    ]


def _in_range(digests: np.ndarray, part: int, parts: int, at_a_time: int) -> np.ndarray:
    """Places of later duplicates among the digests of one of `parts` ranges of equal size."""
    chosen = []
    for begin in range(0, len(digests), at_a_time):
        block = digests[begin : begin + at_a_time]
        mine = block % np.uint64(parts) == part if parts > 1 else np.ones(len(block), bool)
        chosen.append(np.flatnonzero(mine) + begin)
    places = np.concatenate(chosen)
    values = digests[places]
    order = np.argsort(values, kind="stable")
    again = values[order][1:] == values[order][:-1]
    return places[order[1:][again]]
