"""Documents about real handwritten digits: captions, questions, sums, counting."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from chameleon_jax.config.reading import config, require_seed
from data_pipeline.datasets import open_dataset
from data_pipeline.datasets.number_words import DIGITS, NUMBERS
from data_pipeline.sources.source import Resize, SourceConfig, register_source

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document

CAPTION = "A handwritten {}."
QUESTION = " Which digit is this? It is"
SUM = " equals"


def augment(image: Image, rng: np.random.Generator) -> Image:
    """Shifts by up to 1.5 of 32 pixels, rotates by up to 8 degrees, scales by up to 6 %, shears by up to 0.08."""
    from PIL import Image

    angle = math.radians(rng.uniform(-8, 8))
    shear, zoom = rng.uniform(-0.08, 0.08), 1 + rng.uniform(-0.06, 0.06)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = rotation @ np.array([[1, shear], [0, 1]]) / zoom
    centre = (np.array(image.size) - 1) / 2
    shift = rng.uniform(-1.5, 1.5, 2) * np.array(image.size) / 32
    offset = centre - matrix @ (centre + shift)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    white = 255 if image.mode == "L" else (255,) * len(image.getbands())
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=white)


class _Pictures:
    """Draws pictures of a wanted or a random digit."""

    def __init__(self, source: DigitsSource, datasets: str, rng: np.random.Generator):
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


@config
class DigitsSource(SourceConfig):
    """Documents about handwritten digits: `count` of them, or one for each picture of the split."""

    split: str = "train"
    """Split of the data set, or a slice of one: train, test, train[:90%]."""
    augment: bool = False
    """Shift, rotate and scale each picture a little. For training only."""
    seed: int = 0

    stream: ClassVar[int]
    """Number of the kind's stream of random numbers."""

    def __post_init__(self):
        super().__post_init__()
        require_seed(self.seed)

    def documents(self, datasets: str, resize: Resize | None = None) -> Iterator[Document]:
        """Goes through all pictures of the split in a new random order each time, until `count` documents are made."""
        rng = np.random.default_rng([self.seed, self.stream])
        pictures = _Pictures(self, datasets, rng)
        order: list[int] = []
        for _ in range(self.count or len(pictures.images)):
            order = order or list(rng.permutation(len(pictures.images)))
            yield self.document(pictures, order.pop())

    def document(self, pictures: _Pictures, index: int) -> Document:
        """A document that begins with picture `index`."""
        raise NotImplementedError


@register_source
@config
class DigitCaptionsSource(DigitsSource):
    """Picture and caption, either first with probability one half (paper section 3.1)."""

    kind: Literal["digit_captions"] = "digit_captions"
    stream = 0

    def document(self, pictures: _Pictures, index: int) -> Document:
        caption = CAPTION.format(DIGITS[pictures.labels[index]])
        pair = [pictures.picture(index), caption]
        return pair if pictures.rng.random() < 0.5 else pair[::-1]


@register_source
@config
class DigitQuestionsSource(DigitsSource):
    """A picture and a question about it with its answer: which digit, odd or even, or whether it is some digit."""

    kind: Literal["digit_questions"] = "digit_questions"
    stream = 2

    def document(self, pictures: _Pictures, index: int) -> Document:
        label = pictures.labels[index]
        chance = pictures.rng.random()
        if chance < 0.6:
            text = f"{QUESTION} {DIGITS[label]}."
        elif chance < 0.8:
            text = f" Is this digit odd or even? It is {DIGITS[label]}, which is {'odd' if label % 2 else 'even'}."
        else:
            asked = label if pictures.rng.random() < 0.5 else pictures.rng.integers(10)
            text = f" Is this a {DIGITS[asked]}? {'Yes' if asked == label else 'No'}, it is {DIGITS[label]}."
        return [pictures.picture(index), text]


@register_source
@config
class DigitSumsSource(DigitsSource):
    """Two pictures and their sum; the addends are spelled out before it."""

    kind: Literal["digit_sums"] = "digit_sums"
    stream = 3

    def document(self, pictures: _Pictures, index: int) -> Document:
        first, other = pictures.labels[index], pictures.rng.integers(10)
        text = f"{SUM} {NUMBERS[first]} plus {NUMBERS[other]}, that is {NUMBERS[first + other]}."
        return [pictures.picture(index), " plus ", pictures.draw(other), text]


@register_source
@config
class DigitCountingSource(DigitsSource):
    """Counting up or down, each number as a word and as a picture."""

    kind: Literal["digit_counting"] = "digit_counting"
    stream = 1

    def document(self, pictures: _Pictures, index: int) -> Document:
        start, length = pictures.labels[index], int(pictures.rng.integers(3, 6))
        step = 1 if pictures.rng.random() < 0.5 else -1
        run = [digit for digit in range(start, start + step * length, step) if 0 <= digit <= 9]
        document: Document = [f"Counting {'up' if step > 0 else 'down'} from {DIGITS[start]}:"]
        for place, digit in enumerate(run):
            picture = pictures.picture(index) if place == 0 else pictures.draw(digit)
            document += [f" {DIGITS[digit]} ", picture]
        return document
