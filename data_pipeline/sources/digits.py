"""Documents about real handwritten digits: captions, drawings, questions, sums, counting."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from chameleon_jax.config import SourceConfig
from data_pipeline.datasets import open_dataset
from data_pipeline.datasets.handwritten_digits import WORDS

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document

NUMBERS = (*WORDS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
CAPTION = "A handwritten {}."
QUESTION = " Which digit is this? It is"
SUM = " equals"


def augment(image: Image, rng: np.random.Generator) -> Image:
    """Shifts by up to 1.5 of 32 pixels, turns by up to 8 degrees, scales by up to 6 %, shears by up to 0.08."""
    from PIL import Image

    turn = math.radians(rng.uniform(-8, 8))
    shear, zoom = rng.uniform(-0.08, 0.08), 1 + rng.uniform(-0.06, 0.06)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = rotation @ np.array([[1, shear], [0, 1]]) / zoom
    centre = (np.array(image.size) - 1) / 2
    shift = rng.uniform(-1.5, 1.5, 2) * np.array(image.size) / 32
    offset = centre - matrix @ (centre + shift)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    white = 255 if image.mode == "L" else (255,) * len(image.getbands())
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=white)


class _Digits:
    """Draws pictures of a wanted or a random digit."""

    def __init__(self, source: SourceConfig, datasets: str, rng: np.random.Generator):
        from PIL import Image

        self.rng = rng
        self.augment = source.augment
        examples = open_dataset("handwritten_digits", source.split, datasets)
        self.images = [Image.open(io.BytesIO(example["png"])) for example in examples]
        self.labels = np.array([example["label"] for example in examples])
        self.of_digit = [np.flatnonzero(self.labels == digit) for digit in range(10)]

    def picture(self, index: int) -> Image:
        return augment(self.images[index], self.rng) if self.augment else self.images[index]

    def draw(self, digit: int) -> Image:
        return self.picture(self.rng.choice(self.of_digit[digit]))


def _caption(digits: _Digits, index: int) -> Document:
    """Picture and caption, either first with probability one half (paper section 3.1)."""
    caption = CAPTION.format(WORDS[digits.labels[index]])
    pair = [digits.picture(index), caption]
    return pair if digits.rng.random() < 0.5 else pair[::-1]


def _question(digits: _Digits, index: int) -> Document:
    """Mostly "which digit", sometimes odd or even, or whether it is some other digit."""
    label = digits.labels[index]
    chance = digits.rng.random()
    if chance < 0.6:
        text = f"{QUESTION} {WORDS[label]}."
    elif chance < 0.8:
        text = f" Is this digit odd or even? It is {WORDS[label]}, which is {'odd' if label % 2 else 'even'}."
    else:
        asked = label if digits.rng.random() < 0.5 else digits.rng.integers(10)
        text = f" Is this a {WORDS[asked]}? {'Yes' if asked == label else 'No'}, it is {WORDS[label]}."
    return [digits.picture(index), text]


def _sum(digits: _Digits, index: int) -> Document:
    """Two pictures and their sum; the addends are spelled out before it."""
    first, other = digits.labels[index], digits.rng.integers(10)
    text = f"{SUM} {NUMBERS[first]} plus {NUMBERS[other]}, that is {NUMBERS[first + other]}."
    return [digits.picture(index), " plus ", digits.draw(other), text]


def _counting(digits: _Digits, index: int) -> Document:
    """Up or down, each number as a word and as a picture."""
    start, length = digits.labels[index], int(digits.rng.integers(3, 6))
    step = 1 if digits.rng.random() < 0.5 else -1
    run = [digit for digit in range(start, start + step * length, step) if 0 <= digit <= 9]
    document: Document = [f"Counting {'up' if step > 0 else 'down'} from {WORDS[start]}:"]
    for place, digit in enumerate(run):
        picture = digits.picture(index) if place == 0 else digits.draw(digit)
        document += [f" {WORDS[digit]} ", picture]
    return document


RECIPES: dict[str, Callable[[_Digits, int], Document]] = {
    "digit_captions": _caption,
    "digit_questions": _question,
    "digit_sums": _sum,
    "digit_counting": _counting,
}


def digit_documents(source: SourceConfig, datasets: str) -> Iterator[Document]:
    """Goes round all pictures of the split in a new random order each time, until `count` documents are made."""
    rng = np.random.default_rng([source.seed, sorted(RECIPES).index(source.kind)])
    digits = _Digits(source, datasets, rng)
    order: list[int] = []
    for _ in range(source.count or len(digits.images)):
        order = order or list(rng.permutation(len(digits.images)))
        yield RECIPES[source.kind](digits, order.pop())
