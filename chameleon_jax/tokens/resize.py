"""Resizes a part of a picture with Lanczos, with exactly the result of resizing the whole picture with Pillow.

For ordinary pictures it is faster to resize the whole, but for one a thousand times as high as wide that takes
gigabytes. Pillow's own `box` argument is in single precision, so its results are rounded differently.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_LANCZOS = 3
"""Radius of the filter in source pixels, when enlarging."""
_BITS = 22
"""Pillow's fixed-point precision of a weight: 32 bits, less 8 for the values and 2 of headroom."""


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


def _weights(source: int, target: int, place: int) -> tuple[int, np.ndarray]:
    """The first source pixel that contributes to target pixel `place` along one axis, and the fixed-point weights."""
    scale = source / target
    stretch = max(scale, 1.0)
    support = _LANCZOS * stretch
    centre = (place + 0.5) * scale
    first = max(int(centre - support + 0.5), 0)
    last = min(int(centre + support + 0.5), source)
    offsets = [(pixel - centre + 0.5) / stretch for pixel in range(first, last)]
    weights = [_sinc(x) * _sinc(x / _LANCZOS) if -_LANCZOS <= x < _LANCZOS else 0.0 for x in offsets]
    total = sum(weights)
    fixed = [weight / total * (1 << _BITS) for weight in weights]
    return first, np.array([int(value + math.copysign(0.5, value)) for value in fixed], np.float64)


def _resize_rows(pixels: np.ndarray, before: int, source: int, target: int, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of `source` rows resized to `target`; `pixels` holds source rows from `before` on."""
    rows = np.empty((stop - start, *pixels.shape[1:]), np.uint8)
    for place in range(start, stop):
        first, weights = _weights(source, target, place)
        part = pixels[first - before : first - before + len(weights)]
        total = np.tensordot(weights, part.astype(np.float64), 1)  # exact: whole numbers below 2^53
        rows[place - start] = np.clip(np.floor(total / (1 << _BITS) + 0.5), 0, 255)
    return rows


def resize_part(image: Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image:
    """`image.resize(size, LANCZOS).crop(box)` of an RGB picture, without resizing all of it.

    Width is resized first, then height, with 8-bit values in between. Pillow 13 does it in the other order for high
    pictures that become smaller.

    Args:
      box: left, top, right and bottom within `size`.
    """
    from PIL import Image

    spans = []
    for source, target, start, stop in zip(image.size, size, box[:2], box[2:], strict=True):
        last, weights = _weights(source, target, stop - 1)
        spans.append((_weights(source, target, start)[0], last + len(weights)))
    (left, right), (top, bottom) = spans
    pixels = np.asarray(image.crop((left, top, right, bottom)))  # all pixels that contribute
    columns = np.ascontiguousarray(pixels.swapaxes(0, 1))
    columns = _resize_rows(columns, left, image.width, size[0], box[0], box[2])
    rows = np.ascontiguousarray(columns.swapaxes(0, 1))
    return Image.fromarray(_resize_rows(rows, top, image.height, size[1], box[1], box[3]))
