"""Sizes that suit an amount of data and a machine: rules of thumb, as pure functions.

On a CPU a model is to be there in some minutes, on an accelerator in an hour or so. People change the numbers in the
YAML files once they know better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from chameleon_jax.project.look import Found


class Sizes(NamedTuple):
    """What the four YAML files say about sizes."""

    vocab_size: int
    resolution: int
    grid: int
    """Codes along each side of a picture."""
    channels: int
    num_codes: int
    image_steps: int
    image_batch: int
    copies: int
    """Documents made of each record, each with its own augmentation."""
    sequence_length: int
    batch_size: int
    steps: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    is_cpu: bool


_MODELS = {  # width, layers, query heads, key/value heads, feed-forward
    "tiny": (128, 4, 4, 2, 384),
    "small": (192, 4, 6, 3, 512),
    "medium": (512, 8, 8, 4, 1408),
    "large": (1024, 16, 16, 8, 2816),
}


def choose(found: Sequence[Found], is_cpu: bool, devices: int = 1) -> Sizes:
    """Sizes for some sources together, on so many devices."""
    records = sum(each.records for each in found)
    pictures = sum(each.records * each.pictures for each in found)
    text = sum(each.records * each.text_bytes for each in found)
    side = max((each.shorter_side for each in found), default=0)
    resolution, grid = _resolution(side, is_cpu)
    codes = grid * grid + 2
    copies = max(1, min(20, math.ceil(2000 / records))) if pictures else 1
    # Two bytes a token is what small vocabularies reach on captions, four what large ones do on prose.
    tokens = [each.pictures * codes + each.text_bytes / (2 if text < 1e5 else 4) + 1 for each in found]
    longest = max(tokens)
    length = _round_up(4 * longest, 64)
    length = min(max(length, 128), max(512 if is_cpu else 2048, _round_up(longest * 1.25, 64)))
    batch_size = _round_up(max(2, (3072 if is_cpu else 32768) // length), devices)
    documents = records * copies
    amount = documents * sum(tokens) / len(tokens)
    if is_cpu:
        size = "tiny" if amount < 5e5 else "small"
    else:
        size = "small" if amount < 2e6 else "medium" if amount < 5e8 else "large"
    epochs = 8 * amount / (batch_size * length)
    return Sizes(
        _vocab_size(text), resolution, grid,
        channels=64 if is_cpu else 128,
        num_codes=_power_of_two(math.sqrt(max(1, pictures * grid * grid)), 256, 1024 if is_cpu else 8192),
        image_steps=_rounded(min(2000 if is_cpu else 20000, max(800, pictures / 4))),
        image_batch=32,
        copies=copies,
        sequence_length=length,
        batch_size=batch_size,
        steps=_rounded(min(1200 if is_cpu else 20000, max(400, epochs))),
        d_model=_MODELS[size][0], num_layers=_MODELS[size][1], num_heads=_MODELS[size][2],
        num_kv_heads=_MODELS[size][3], mlp_dim=_MODELS[size][4],
        is_cpu=is_cpu,
    )  # fmt: skip


def _resolution(side: int, is_cpu: bool) -> tuple[int, int]:
    """Pixels and codes along each side of a picture, from the shorter side of those there are."""
    if side == 0:
        return 0, 0
    for resolution, grid in ((256, 16), (128, 16), (64, 8), (48, 6)):
        if side >= resolution and (resolution <= 64 or not is_cpu):
            return resolution, grid
    return 32, 4


def _vocab_size(text_bytes: float) -> int:
    """Text pieces: 256 bytes, and about as many learnt ones as can each occur some dozen times."""
    return min(32768, max(320, _round_up(256 + text_bytes**0.6 / 2, 64)))


def _power_of_two(value: float, least: int, most: int) -> int:
    return min(most, max(least, 2 ** math.ceil(math.log2(max(1, value)))))


def _round_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def _rounded(steps: float) -> int:
    return round(steps / 100) * 100
