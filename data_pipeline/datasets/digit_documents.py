"""Documents about real handwritten digits: captions, questions, sums, counting."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np

from chameleon_jax.config.reading import config, require_seed
from data_pipeline.datasets import in_turn, open_dataset, shards_of
from data_pipeline.datasets.number_words import DIGITS, NUMBERS
from data_pipeline.records import Picture, Record, Segment, Shard
from data_pipeline.sources.source import SourceConfig, register_source

CAPTION = "A handwritten {}."
QUESTION = " Which digit is this? It is"
SUM = " equals"


class _Pictures:
    """The pictures of a split, and those of a wanted digit."""

    def __init__(self, split: str, datasets: str):
        examples = list(open_dataset("handwritten_digits", split, datasets))
        self._files = [example["png"] for example in examples]
        self._names = f"handwritten_digits {split}, example {{}}"
        self.labels = np.array([example["label"] for example in examples])
        self._of_digit = [np.flatnonzero(self.labels == digit) for digit in range(10)]

    def picture(self, index: int) -> Picture:
        return Picture(self._names.format(index), self._files[index])

    def draw(self, digit: int, rng: np.random.Generator) -> Picture:
        return self.picture(rng.choice(self._of_digit[digit]))


_known_pictures = functools.lru_cache(maxsize=4)(_Pictures)  # for the next shard
_reading = threading.Lock()


def _pictures(split: str, datasets: str) -> _Pictures:
    with _reading:  # once, if several threads begin with it
        return _known_pictures(split, datasets)


@config
class DigitsSource(SourceConfig):
    """Documents about handwritten digits: `count` of them, or one for each picture of the split."""

    split: str = "train"
    """Split of the data set, or a slice of one: train, test, train[:90%]."""
    seed: int = 0

    stream: ClassVar[int]
    """Number of the kind's stream of random numbers."""

    def __post_init__(self):
        super().__post_init__()
        require_seed(self.seed)

    def shards(self, datasets: str = "") -> list[Shard]:
        return shards_of("handwritten_digits", self.split, datasets, self.count)

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record]:
        """Goes through all pictures of the split in a new random order each time."""
        pictures = _pictures(self.split, datasets)
        for number, index, rng in in_turn(shard, len(pictures.labels), self.seed, self.stream):
            segments = tuple(self.document(pictures, index, rng))
            place = f"{self.kind} {self.split}, document {number}"
            yield Record(str(number), place, segments, fields=self.fields(segments))

    def document(self, pictures: _Pictures, index: int, rng: np.random.Generator) -> list[Segment]:
        """A document that begins with picture `index`."""
        raise NotImplementedError

    def fields(self, segments: tuple[Segment, ...]) -> dict[str, Segment]:
        """The parts of the document by name, if their order is free."""
        return {}


@register_source
@config
class DigitCaptionsSource(DigitsSource):
    """Picture and caption, either first in half of them unless the form says otherwise."""

    kind: Literal["digit_captions"] = "digit_captions"
    stream = 0

    def document(self, pictures: _Pictures, index: int, rng: np.random.Generator) -> list[Segment]:
        return [pictures.picture(index), CAPTION.format(DIGITS[pictures.labels[index]])]

    def fields(self, segments: tuple[Segment, ...]) -> dict[str, Segment]:
        return dict(zip(("image", "text"), segments, strict=True))


@register_source
@config
class DigitQuestionsSource(DigitsSource):
    """A picture and a question about it with its answer: which digit, odd or even, or whether it is some digit."""

    kind: Literal["digit_questions"] = "digit_questions"
    stream = 2

    def document(self, pictures: _Pictures, index: int, rng: np.random.Generator) -> list[Segment]:
        label = pictures.labels[index]
        chance = rng.random()
        if chance < 0.6:
            text = f"{QUESTION} {DIGITS[label]}."
        elif chance < 0.8:
            text = f" Is this digit odd or even? It is {DIGITS[label]}, which is {'odd' if label % 2 else 'even'}."
        else:
            asked = label if rng.random() < 0.5 else rng.integers(10)
            text = f" Is this a {DIGITS[asked]}? {'Yes' if asked == label else 'No'}, it is {DIGITS[label]}."
        return [pictures.picture(index), text]


@register_source
@config
class DigitSumsSource(DigitsSource):
    """Two pictures and their sum; the addends are spelled out before it."""

    kind: Literal["digit_sums"] = "digit_sums"
    stream = 3

    def document(self, pictures: _Pictures, index: int, rng: np.random.Generator) -> list[Segment]:
        first, other = pictures.labels[index], rng.integers(10)
        text = f"{SUM} {NUMBERS[first]} plus {NUMBERS[other]}, that is {NUMBERS[first + other]}."
        return [pictures.picture(index), " plus ", pictures.draw(other, rng), text]


@register_source
@config
class DigitCountingSource(DigitsSource):
    """Counting up or down, each number as a word and as a picture."""

    kind: Literal["digit_counting"] = "digit_counting"
    stream = 1

    def document(self, pictures: _Pictures, index: int, rng: np.random.Generator) -> list[Segment]:
        start, length = pictures.labels[index], int(rng.integers(3, 6))
        step = 1 if rng.random() < 0.5 else -1
        run = [digit for digit in range(start, start + step * length, step) if 0 <= digit <= 9]
        document: list[Segment] = [f"Counting {'up' if step > 0 else 'down'} from {DIGITS[start]}:"]
        for place, digit in enumerate(run):
            picture = pictures.picture(index) if place == 0 else pictures.draw(digit, rng)
            document += [f" {DIGITS[digit]} ", picture]
        return document
