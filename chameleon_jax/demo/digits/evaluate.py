"""Measures the demo's model on pictures and text that it was not trained on, and keeps the examples of each metric."""

from __future__ import annotations

import dataclasses
import io
import lzma
import math
import re
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import EvaluationConfig, GenerationConfig, SamplingConfig, from_dict
from chameleon_jax.demo.digits.judge import Judge, nearest_distances
from chameleon_jax.evaluation.image_tokenizer import evaluate_image_tokenizers
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.tokens.image import resize_and_crop, scale, to_pixels
from chameleon_jax.training.losses import token_losses
from data_pipeline.datasets import open_dataset
from data_pipeline.datasets.digit_documents import CAPTION, QUESTION, SUM
from data_pipeline.datasets.number_words import DIGITS, NUMBERS
from data_pipeline.loader import PreparedData
from data_pipeline.sources import SourceConfig
from data_pipeline.squares import Square

if TYPE_CHECKING:
    from PIL.Image import Image

GREEDY = SamplingConfig(temperature=0.0, top_p=1.0)


@dataclasses.dataclass
class Answers:
    """Prompts with pictures of digits, the model's answers, and whether they are right."""

    pictures: list[list[Image]]
    digits: list[list[int]]
    texts: list[str]
    right: list[bool]

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.right))


@dataclasses.dataclass
class Drawings:
    """Drawings of digits: `drawings_per_digit` of each digit in turn, with the digits asked for and recognised."""

    pictures: list[Image]
    asked: list[int]
    judged: list[int]

    @property
    def accuracy(self) -> float:
        return float(np.mean(np.equal(self.asked, self.judged)))


def digit_pictures(split: str, datasets: str) -> tuple[list[Image], np.ndarray]:
    """Real handwritten digits of a split and their labels."""
    from PIL import Image

    examples = open_dataset("handwritten_digits", split, datasets)
    images = [Image.open(io.BytesIO(example["png"])) for example in examples]
    return images, np.array([int(example["label"]) for example in examples])


def _numbers(text: str) -> list[int]:
    """The number words of a text, in order, as integers."""
    return [NUMBERS.index(word) for word in re.findall("[a-z]+", text) if word in NUMBERS]


def _ask(model: Chameleon, documents: list[list], max_new_tokens: int) -> list[str]:
    config = GenerationConfig(mode="text", max_new_tokens=max_new_tokens, text=GREEDY)
    return ["".join(answer) for answer in model.generate_many(documents, config)]


def ask_captions(model: Chameleon, images: list[Image], labels: np.ndarray) -> Answers:
    """Asks for captions. Right if the first number in the caption is the digit."""
    texts = _ask(model, [[image] for image in images], 12)
    right = [_numbers(text)[:1] == [label] for text, label in zip(texts, labels, strict=True)]
    return Answers([[image] for image in images], labels[:, None].tolist(), texts, right)


def ask_questions(model: Chameleon, images: list[Image], labels: np.ndarray) -> Answers:
    """Asks "which digit is this?". Right if the first number in the answer is the digit."""
    texts = _ask(model, [[image, QUESTION] for image in images], 6)
    right = [_numbers(text)[:1] == [label] for text, label in zip(texts, labels, strict=True)]
    return Answers([[image] for image in images], labels[:, None].tolist(), texts, right)


def ask_sums(model: Chameleon, images: list[Image], labels: np.ndarray, config: EvaluationConfig) -> Answers:
    """Asks for sums of two pictured digits. Right if the last number in the answer is the sum."""
    pairs = np.random.default_rng(config.seed).integers(len(images), size=(config.sums, 2))
    pictures = [[images[first], images[second]] for first, second in pairs]
    texts = _ask(model, [[first, " plus ", second, SUM] for first, second in pictures], 20)
    right = [_numbers(text)[-1:] == [labels[pair].sum()] for text, pair in zip(texts, pairs, strict=True)]
    return Answers(pictures, labels[pairs].tolist(), texts, right)


def draw(model: Chameleon, judge: Judge, config: EvaluationConfig) -> Drawings:
    """Has the model draw `drawings_per_digit` of each digit, from the caption alone."""
    asked = [digit for digit in range(10) for _ in range(config.drawings_per_digit)]
    answers = model.generate_many([[CAPTION.format(DIGITS[digit])] for digit in asked], config.drawing)
    pictures = [answer[0] for answer in answers]
    return Drawings(pictures, asked, [int(digit) for digit in judge(pictures)])


def share_of_copies(model: Chameleon, drawings: list[Image], train: list[Image], real: list[Image]) -> dict[str, float]:
    """The share of drawings that are as near to a shifted training picture as pictures are to their reconstructions.

    For comparison, the same share of real pictures that the model was not trained on.
    """
    resolution = model.tokenizer.image.config.resolution
    drawn, known, unseen = (
        np.stack([to_pixels(image, resolution) for image in images]) for images in (drawings, train, real)
    )
    tokenizer = model.tokenizer.image
    rebuilt = np.clip(tokenizer.decode_codes(tokenizer.encode_pixels(known)), -1, 1)
    near = float(np.median(np.sqrt(np.mean((rebuilt - known) ** 2, axis=(1, 2, 3)))))
    return {
        "copied_drawings": float(np.mean(nearest_distances(drawn, known, shift=2) <= near)),
        "real_pictures_as_near": float(np.mean(nearest_distances(unseen, known, shift=2) <= near)),
    }


def bits_per_byte(model: Chameleon, data: PreparedData, name: str) -> float:
    """Bits per byte of the model on held-out text; all tokens count, ends of documents included."""

    @jax.jit
    def nats(params, batch):
        logits = Transformer(model.config, model.execution).apply(
            {"params": params}, batch.inputs, batch.positions, batch.segment_ids
        )
        return jnp.sum(token_losses(logits, batch.targets)[0] * batch.loss_weights)

    total = sum(float(nats(model.params, batch)) for batch in data.held_out_batches(name, 16))
    return total / math.log(2) / data.header["held_out"][name]["text_bytes"]


def xz_bits_per_byte(data: PreparedData, name: str, datasets: str) -> float:
    """Bits per byte of `xz -9` on the same text."""
    source = from_dict(SourceConfig, data.header["held_out"][name]["source"])
    text = b"".join(segment.encode() for record in source.records(datasets) for segment in record.segments)
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def continue_documents(
    model: Chameleon, images: list[Image], labels: np.ndarray, data: PreparedData, datasets: str
) -> list[tuple[list, list]]:
    """Prompts and the model's continuations: interleaved documents, prose, code."""
    first = {int(label): image for image, label in reversed(list(zip(images, labels, strict=True)))}
    mixed = [
        ["Counting up from three: three ", first[3]],
        ["Counting down from nine: nine ", first[9]],
        ["Counting up from five:"],
        [first[8], " plus ", first[1]],
    ]
    texts = []
    for name in ("python_reference", "python_stdlib"):
        source = from_dict(SourceConfig, data.header["held_out"][name]["source"])
        text = next(source.records(datasets)).segments[0]
        texts.append([text[: text.find("\n", 250) + 1]])
    interleaved = GenerationConfig(max_new_tokens=120)
    prose = GenerationConfig(mode="text", max_new_tokens=100)
    answers = model.generate_many(mixed, interleaved) + model.generate_many(texts, prose)
    return list(zip(mixed + texts, answers, strict=True))


@dataclasses.dataclass
class Evaluation:
    """Contents of the report."""

    metrics: dict[str, float]
    captions: Answers
    questions: Answers
    sums: Answers
    drawings: Drawings
    continuations: list[tuple[list, list]]
    pixels: np.ndarray  # float32 [n, h, w, 3], the pictures judged on
    training_pictures: int
    guidance: float


def evaluate(model: Chameleon, data: PreparedData, config: EvaluationConfig, datasets: str) -> Evaluation:
    """Evaluates a model on the split of `config`."""
    images, labels = digit_pictures(config.split, datasets)
    train_images, train_labels = digit_pictures(config.train_split, datasets)
    judge = Judge(train_images, train_labels, config.seed)
    captions = ask_captions(model, images, labels)
    questions = ask_questions(model, images, labels)
    sums = ask_sums(model, images, labels, config)
    drawings = draw(model, judge, config)
    resolution = model.tokenizer.image.config.resolution
    squares = np.stack([np.asarray(resize_and_crop(image, resolution)) for image in images])
    measured = evaluate_image_tokenizers([model.tokenizer.image], map(Square, map(str, range(len(squares))), squares))
    metrics: dict[str, Any] = {
        "caption_accuracy": captions.accuracy,
        "drawing_accuracy": drawings.accuracy,
        "question_accuracy": questions.accuracy,
        "sum_accuracy": sums.accuracy,
        "judge_accuracy_on_real_digits": float(np.mean(judge(images) == labels)),
        **share_of_copies(model, drawings.pictures, train_images, images),
        **measured.figures[0],
        "text_bits_per_byte": bits_per_byte(model, data, "python_reference"),
        "xz_bits_per_byte": xz_bits_per_byte(data, "python_reference", datasets),
        "code_bits_per_byte": bits_per_byte(model, data, "python_stdlib"),
        "xz_code_bits_per_byte": xz_bits_per_byte(data, "python_stdlib", datasets),
    }
    continuations = continue_documents(model, images, labels, data, datasets)
    return Evaluation(
        metrics, captions, questions, sums, drawings, continuations, scale(squares), len(train_images),
        config.drawing.text_guidance,
    )  # fmt: skip
