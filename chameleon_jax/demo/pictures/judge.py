"""Says which of all known pictures a drawing is nearest to. There is nothing in it to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CELLS = 8
"""Cells of the histograms of oriented gradients, along each side of a picture."""
ORIENTATIONS = 9
"""Bins of a histogram, from 0 to 180 degrees."""
CLIP = 0.2
"""Largest value of a block after it is normalised, before it is normalised again."""
AT_ONCE = 512
"""Known pictures that are compared at once."""


class Nearest(NamedTuple):
    """Numbers int `[n]` of the pictures that drawings are nearest to."""

    pixels: np.ndarray
    """By mean squared difference of RGB values."""
    edges: np.ndarray
    """By mean squared difference of histograms of oriented gradients, which hardly see colours."""


class Judge:
    """Compares drawings with all pictures. Pictures that are equal to the pixel count as one."""

    def __init__(self, pictures: np.ndarray, families: Sequence[str]):
        """Args:
        pictures: uint8 `[m, h, w, 3]`.
        families: of each, the same for those that differ in tones only.
        """
        self._pictures = pictures
        self._edges = np.concatenate(
            [histograms(pictures[start : start + AT_ONCE]) for start in range(0, len(pictures), AT_ONCE)]
        )
        first: dict[bytes, int] = {}
        self.look = np.array([first.setdefault(each.tobytes(), number) for number, each in enumerate(pictures)])
        """Number of the first picture that is equal to each, int `[m]`."""
        self._families: dict[int, set[str]] = {}
        for look, family in zip(self.look.tolist(), families, strict=True):
            self._families.setdefault(look, set()).add(family)

    def __call__(self, drawings: np.ndarray) -> Nearest:
        """The pictures that drawings, uint8 `[n, h, w, 3]`, are nearest to."""
        return Nearest(_nearest(drawings, self._pictures), _nearest(histograms(drawings), self._edges))

    def same_family(self, one: int, other: int) -> bool:
        """Whether two pictures, or any that are equal to them, differ in tones only."""
        return bool(self._families[int(self.look[one])] & self._families[int(self.look[other])])


def histograms(pictures: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients, float32 `[n, (CELLS - 1)**2 * 4 * ORIENTATIONS]`.

    As Dalal and Triggs (2005) have them: central differences of the colour with the steepest one, histograms over
    `CELLS` x `CELLS` cells weighted by steepness, and blocks of 2 x 2 cells, which overlap and are normalised (L2-Hys).
    Values are not divided between neighbouring cells and bins.

    Args:
      pictures: uint8 `[n, h, w, 3]`, sides of at least `CELLS` pixels.
    """
    values = pictures.astype(np.float32) / 255
    count, height, width = values.shape[:3]
    dy, dx = np.gradient(values, axis=(1, 2))
    steepest = (dx**2 + dy**2).argmax(axis=-1)[..., None]
    dx, dy = (np.take_along_axis(each, steepest, axis=-1)[..., 0] for each in (dx, dy))
    bins = np.minimum(np.arctan2(dy, dx) % np.pi / np.pi * ORIENTATIONS, ORIENTATIONS - 1).astype(int)
    rows, columns = (np.arange(side) * CELLS // side for side in (height, width))
    cell = ((np.arange(count)[:, None, None] * CELLS + rows[:, None]) * CELLS + columns) * ORIENTATIONS + bins
    cells = np.bincount(cell.ravel(), np.hypot(dx, dy).ravel(), count * CELLS**2 * ORIENTATIONS)
    cells = cells.reshape(count, CELLS, CELLS, ORIENTATIONS)
    blocks = np.concatenate([cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:]], axis=-1)
    blocks = np.minimum(_normalised(blocks), CLIP)
    return _normalised(blocks).reshape(count, -1).astype(np.float32)


def _normalised(blocks: np.ndarray) -> np.ndarray:
    return blocks / np.sqrt(np.sum(blocks**2, axis=-1, keepdims=True) + 1e-6)


def _nearest(these: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Number of the first of the nearest known vectors for each of these, int `[n]`."""

    def vectors(values: np.ndarray) -> np.ndarray:
        values = values.reshape(len(values), -1)
        return values.astype(np.float32) / 255 if values.dtype == np.uint8 else values

    a, best, found = vectors(these), np.full(len(these), np.inf), np.zeros(len(these), int)
    for start in range(0, len(known), AT_ONCE):
        b = vectors(known[start : start + AT_ONCE])
        distance = np.sum(b**2, axis=1) - 2 * a @ b.T  # and what is the same for all: the square of these
        nearest = distance.argmin(axis=1)
        least = distance[np.arange(len(a)), nearest]
        better = least < best
        best, found = np.where(better, least, best), np.where(better, start + nearest, found)
    return found
