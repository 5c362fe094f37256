"""Sizes that suit an amount of data and a machine, as pure functions.

How large a model is to be for how much data, and for how long it is trained, are rules of thumb: on a CPU it is to be
there in some minutes, on an accelerator in an hour or so. Whether it fits into the memory of an accelerator is computed
(`bytes_to_train`). People change the numbers in the YAML files once they know better.
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
    accumulation: int
    """Parts of a batch that are computed one after another."""
    steps: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    is_cpu: bool


class ModelSizes(NamedTuple):
    """What the sizes of a Transformer are called in its config."""

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int


TINY, SMALL = ModelSizes(128, 4, 4, 2, 384), ModelSizes(192, 4, 6, 3, 512)
MEDIUM, LARGE = ModelSizes(512, 8, 8, 4, 1408), ModelSizes(1024, 16, 16, 8, 2816)

SHARE = 0.9
"""Of the memory of an accelerator that a train step may take."""


def bytes_to_train(model: ModelSizes, vocab_size: int, length: int, rows: int) -> float:
    """Bytes that a train step of `chameleon init`'s recipe takes on a device that computes `rows` rows at a time.

    For each parameter, 20 bytes in float32 (its value, its gradient, the sum of those of all parts of a batch, two
    moments of the optimizer) and 2 in bfloat16. For each token, what the backward pass needs of the forward pass: in
    each layer the inputs of its products in bfloat16 and the masks of dropout, and up to 1024 tokens a row, where
    attention keeps its scores (`ExecutionConfig.attention`), 6 bytes for each head and token of the row, and 5 once for
    its mask; at the end the logits and their gradient in float32.
    """
    d, layers, heads, kv_heads, mlp = model
    kv = d * kv_heads // heads
    parameters = 2 * vocab_size * d + layers * (2 * d * d + 2 * d * kv + 3 * d * mlp)
    scores = (6 * layers + 5) * heads * length if length <= 1024 else 0
    a_token = layers * (16 * d + 6 * kv + 6 * mlp) + scores + 20 * d + 8 * vocab_size
    return 22 * parameters + rows * length * a_token


def choose(found: Sequence[Found], is_cpu: bool, devices: int = 1, memory: float | None = None) -> Sizes:
    """Sizes for some sources together.

    Args:
      devices: how many there are.
      memory: bytes of each; None: not known, or a CPU's.
    """
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
        models = [TINY if amount < 5e5 else SMALL]
    else:
        models = [LARGE, MEDIUM, SMALL][0 if amount >= 5e8 else 1 if amount >= 2e6 else 2 :]
    epochs = 8 * amount / (batch_size * length)
    vocab_size = _vocab_size(text)
    num_codes = _power_of_two(math.sqrt(max(1, pictures * grid * grid)), 256, 1024 if is_cpu else 8192)
    model, accumulation = _fitting(models, vocab_size + num_codes, length, batch_size // devices, memory)
    return Sizes(
        vocab_size, resolution, grid,
        channels=64 if is_cpu else 128,
        num_codes=num_codes,
        image_steps=_rounded(min(2000 if is_cpu else 20000, max(800, pictures / 4))),
        image_batch=32,
        copies=copies,
        sequence_length=length,
        batch_size=batch_size,
        accumulation=accumulation,
        steps=_rounded(min(1200 if is_cpu else 20000, max(400, epochs))),
        **model._asdict(),
        is_cpu=is_cpu,
    )  # fmt: skip


def _fitting(
    models: Sequence[ModelSizes], vocab_size: int, length: int, rows: int, memory: float | None
) -> tuple[ModelSizes, int]:
    """The first model that fits, in as few parts of a batch as possible; the last one if none does."""
    parts = [parts for parts in range(1, rows + 1) if rows % parts == 0]
    for model in models if memory else ():
        for each in parts:
            if bytes_to_train(model, vocab_size, length, rows // each) <= SHARE * memory:
                return model, each
    return (models[-1], rows) if memory else (models[0], 1)


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
