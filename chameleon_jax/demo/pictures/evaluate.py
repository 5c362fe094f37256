"""Measures the model of `chameleon demo pictures` on pictures that it was not trained on, and keeps the examples.

Prompts are those of the training documents, and every drawing has a true picture to be compared with.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import GenerationConfig, PicturesEvaluationConfig, SamplingConfig
from chameleon_jax.demo.pictures.judge import Judge
from chameleon_jax.evaluation.image_tokenizer import Measured, evaluate_image_tokenizers
from chameleon_jax.runtime.progress import progress_bar
from chameleon_jax.tokens.image import resize_and_crop, scale
from data_pipeline.datasets import open_dataset
from data_pipeline.datasets.languages import LANGUAGES
from data_pipeline.datasets.openmoji_documents import (
    QUESTIONS,
    caption_prompt,
    drawing_prompt,
    tone_edit,
    tone_in_words,
)
from data_pipeline.squares import Square

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document

ENGLISH = "en"
LONGEST_NAME = 64
"""Text tokens of a caption at most."""
AT_ONCE = 256
"""Prompts that are handed to the model at once, between two lines of progress."""
STORIES = ("Breakfast", "A fruit salad", "On the farm", "In the sea", "Music", "In space", "Weather", "Hearts")
"""Themes of the stories that are continued, of those in `data_pipeline.datasets.openmoji_stories`."""
_OTHER_LANGUAGE = re.compile("|".join(re.escape(f".{caption_prompt(language)}") for language in LANGUAGES))


@dataclasses.dataclass(frozen=True)
class Emoji:
    """A picture and what is known of it. Texts that are not known are empty."""

    image: Image
    names: dict[str, str]
    family: str
    tone: str
    gender: str
    group: str


class Pictures:
    """All pictures.

    Attributes:
      all: in a fixed order; elsewhere a picture is its number in it.
      pixels: uint8 `[n, h, w, 3]`.
      judge: that knows them.
    """

    def __init__(self, datasets: str, resolution: int, config: PicturesEvaluationConfig):
        self._datasets, self._name = datasets, f"openmoji/{resolution}px"
        self.all: list[Emoji] = []
        self._numbers: dict[str, int] = {}
        examples = self._examples("train+test+novel")
        for example in examples:
            self._numbers[_text(example["code_points"])] = len(self.all)
            self.all.append(_emoji(example))
        self.pixels = np.stack([np.asarray(resize_and_crop(emoji.image, resolution)) for emoji in self.all])
        self.judge = Judge(self.pixels, [emoji.family for emoji in self.all])
        self.test, self.train, self.novel = (
            [self._numbers[_text(example["code_points"])] for example in self._examples(split)]
            for split in (config.split, config.train_split, config.novel_split)
        )

    def _examples(self, split: str) -> Sequence[dict[str, Any]]:
        return open_dataset(self._name, split, self._datasets)

    def named(self, name: str, language: str) -> set[int]:
        """Looks of the pictures of this name: in some languages, several have the same."""
        return {int(self.judge.look[number]) for number, emoji in enumerate(self.all) if emoji.names[language] == name}

    def names_of(self, number: int, language: str) -> set[str]:
        """Names of a picture, and of those that look the same to the pixel."""
        (alike,) = np.nonzero(self.judge.look == self.judge.look[number])
        return {self.all[each].names[language] for each in alike} - {""}

    def names_of_family(self, number: int, language: str) -> set[str]:
        """Names of the same thing in all tones."""
        family = self.all[number].family
        return {emoji.names[language] for emoji in self.all if emoji.family == family} - {""}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _emoji(example: dict[str, Any]) -> Emoji:
    from PIL import Image

    texts = {key: _text(example[key]) for key in ("family", "tone", "gender", "group")}
    image = Image.open(io.BytesIO(example["png"])).convert("RGB")
    return Emoji(image, {language: _text(name) for language, name in example["names"].items()}, **texts)


@dataclasses.dataclass(frozen=True)
class Drawing:
    prompt: Document
    image: Image
    asked: int
    """The true picture."""
    nearest: int
    right: bool
    """Whether `nearest` looks as a picture of what was asked for."""
    right_family: bool
    right_family_by_edges: bool
    language: str = ENGLISH


@dataclasses.dataclass(frozen=True)
class Caption:
    prompt: Document
    text: str
    expected: str
    """The true name or answer."""
    right: bool
    language: str = ENGLISH
    right_family: bool = False
    """Of the name of a picture: whether it is that of the right thing, in whatever tone."""


def _share(examples: Sequence[Drawing | Caption], of: str = "right") -> float:
    """NaN if there are none."""
    return float(np.mean([getattr(each, of) for each in examples])) if examples else float("nan")


def _answers(model: Chameleon, prompts: Sequence[Document], config: GenerationConfig, title: str) -> list[Document]:
    answers: list[Document] = []
    with progress_bar(title, len(prompts)) as bar:
        for start in range(0, len(prompts), AT_ONCE):
            answers += model.generate_many(prompts[start : start + AT_ONCE], config)
            bar.update(len(answers))
    return answers


def draw(
    model: Chameleon,
    pictures: Pictures,
    asked: Sequence[tuple[Document, int, str]],
    config: GenerationConfig,
    by_name: bool = True,
) -> list[Drawing]:
    """Has pictures drawn and judged.

    Args:
      asked: prompt, true picture and language of each.
      by_name: count every picture of the same name as right, where names are what was asked for.
    """
    answers = _answers(model, [prompt for prompt, _, _ in asked], config, "draw")
    images = [answer[0] for answer in answers]
    if not images:
        return []
    resolution = pictures.pixels.shape[1]
    nearest = pictures.judge(np.stack([np.asarray(resize_and_crop(image, resolution)) for image in images]))
    look, same_family = pictures.judge.look, pictures.judge.same_family
    drawings = []
    for (prompt, true, language), image, found, by_edges in zip(asked, images, *nearest, strict=True):
        name = pictures.all[true].names[language] if by_name else ""
        wanted = pictures.named(name, language) if name else {int(look[true])}
        drawings.append(
            Drawing(prompt, image, true, int(found), int(look[found]) in wanted, same_family(true, found),
                    same_family(true, by_edges), language)
        )  # fmt: skip
    return drawings


def first_name(answer: str) -> str:
    """What an answer says before it goes on with other languages, as documents with several names of a picture do."""
    return _OTHER_LANGUAGE.split(answer, maxsplit=1)[0].strip().removesuffix(".")


def ask(model: Chameleon, asked: Sequence[tuple[Document, set[str], str]]) -> list[Caption]:
    """Has texts written, each right if it is one of those expected and nothing else (`first_name`).

    Args:
      asked: prompt, right answers and language of each.
    """
    greedy = GenerationConfig(mode="text", max_new_tokens=LONGEST_NAME, text=SamplingConfig(temperature=0.0, top_p=1.0))
    answers = _answers(model, [prompt for prompt, _, _ in asked], greedy, "ask")
    texts = [first_name("".join(answer)) for answer in answers]
    return [
        Caption(prompt, text, min(expected), text in expected, language)
        for (prompt, expected, language), text in zip(asked, texts, strict=True)
    ]


def _in_any_language(pictures: Pictures, numbers: Sequence[int], rng: np.random.Generator) -> list[tuple[int, str]]:
    """Each picture with one of the languages in which it has a name."""
    known = [(number, [each for each, name in pictures.all[number].names.items() if name]) for number in numbers]
    return [(number, str(rng.choice(languages))) for number, languages in known if languages]


def _by_name(pictures: Pictures, asked: Sequence[tuple[int, str]]) -> list[tuple[Document, int, str]]:
    return [([drawing_prompt(pictures.all[number].names[each])], number, each) for number, each in asked]


def ask_names(model: Chameleon, pictures: Pictures, asked: Sequence[tuple[int, str]]) -> list[Caption]:
    """Asks for the name of each picture in a language."""
    captions = ask(
        model,
        [
            ([pictures.all[number].image, caption_prompt(language)], pictures.names_of(number, language), language)
            for number, language in asked
        ],
    )
    return [
        dataclasses.replace(each, right_family=each.right or each.text in pictures.names_of_family(number, language))
        for each, (number, language) in zip(captions, asked, strict=True)
    ]


def ask_questions(model: Chameleon, pictures: Pictures, rng: np.random.Generator) -> list[Caption]:
    """One question about each test picture: its tone, gender or group, as far as they are known."""
    asked = []
    for number in pictures.test:
        emoji = pictures.all[number]
        known = [about for about in QUESTIONS if getattr(emoji, about)]
        if known:
            about = str(rng.choice(known))
            asked.append(([emoji.image, QUESTIONS[about]], {tone_in_words(getattr(emoji, about))}, ENGLISH))
    return ask(model, asked)


def draw_edits(
    model: Chameleon, pictures: Pictures, config: PicturesEvaluationConfig, rng: np.random.Generator
) -> list[Drawing]:
    """Asks for each test picture as another tone of a training picture of its family."""
    families: dict[str, list[int]] = {}
    for number in pictures.train:
        families.setdefault(pictures.all[number].family, []).append(number)
    asked = []
    for number in pictures.test:
        emoji = pictures.all[number]
        others = families.get(emoji.family)
        if emoji.tone and others:
            source = pictures.all[int(rng.choice(others))]
            asked.append(([source.image, tone_edit(emoji.tone)], number, ENGLISH))
    return draw(model, pictures, asked, config.editing, by_name=False)


def translate(
    model: Chameleon, pictures: Pictures, drawings: Sequence[Drawing], rng: np.random.Generator
) -> list[Caption]:
    """Asks for the name of what it drew in another language. Right if it is that of what was asked for."""
    asked = []
    for drawing in drawings:
        names = pictures.all[drawing.asked].names
        others = [each for each, name in names.items() if name and each != drawing.language]
        if others:
            language = str(rng.choice(others))
            prompt = [*drawing.prompt, drawing.image, caption_prompt(language)]
            asked.append((prompt, pictures.names_of(drawing.asked, language), language))
    return ask(model, asked)


@dataclasses.dataclass
class Evaluation:
    """Contents of the report."""

    metrics: dict[str, float]
    pictures: Pictures
    drawings: list[Drawing]
    """Of held-out combinations, by their English names."""
    drawings_in_languages: list[Drawing]
    trained_drawings: list[Drawing]
    edits: list[Drawing]
    captions: list[Caption]
    captions_in_languages: list[Caption]
    novel: list[Caption]
    questions: list[Caption]
    translations: list[Caption]
    stories: list[tuple[Document, Document]]
    measured: Measured
    """Reconstructions of test pictures."""


def evaluate(model: Chameleon, config: PicturesEvaluationConfig, datasets: str) -> Evaluation:
    """Evaluates a model on the splits of `config`."""
    tokenizer = model.tokenizer.image
    pictures = Pictures(datasets, tokenizer.config.resolution, config)
    rng = np.random.default_rng(config.seed)
    in_english = [(number, ENGLISH) for number in pictures.test]
    in_languages = _in_any_language(pictures, pictures.test, rng)
    named = [number for number in pictures.train if pictures.all[number].names[ENGLISH]]
    trained = rng.permutation(named)[: config.trained_drawings].tolist()

    drawings, drawings_in_languages, trained_drawings = (
        draw(model, pictures, _by_name(pictures, asked), config.drawing)
        for asked in (in_english, in_languages, [(number, ENGLISH) for number in trained])
    )
    edits = draw_edits(model, pictures, config, rng)
    captions = ask_names(model, pictures, in_english)
    captions_in_languages = ask_names(model, pictures, in_languages)
    novel = ask_names(model, pictures, [(number, ENGLISH) for number in pictures.novel])
    questions = ask_questions(model, pictures, rng)
    translations = translate(model, pictures, drawings_in_languages, rng)
    prompts = [[f"{theme}: "] for theme in STORIES]
    interleaved = GenerationConfig(
        max_new_tokens=60, text=config.drawing.text, image=config.drawing.image,
        text_guidance=config.drawing.text_guidance, image_guidance=config.drawing.image_guidance, seed=config.seed,
    )  # fmt: skip
    stories = list(zip(prompts, model.generate_many(prompts, interleaved), strict=True))

    true = pictures.pixels[pictures.test]
    measured = evaluate_image_tokenizers([tokenizer], map(Square, map(str, pictures.test), true))
    rebuilt = tokenizer.detokenize(tokenizer.encode_pixels(scale(true)))
    look, nearest = pictures.judge.look, pictures.judge(np.stack([np.asarray(each) for each in rebuilt]))
    metrics = {
        "drawing_accuracy": _share(drawings),
        "drawing_family_accuracy": _share(drawings, "right_family"),
        "drawing_family_accuracy_by_edges": _share(drawings, "right_family_by_edges"),
        "drawing_accuracy_in_languages": _share(drawings_in_languages),
        "caption_accuracy": _share(captions),
        "caption_family_accuracy": _share(captions, "right_family"),
        "caption_accuracy_in_languages": _share(captions_in_languages),
        "edit_accuracy": _share(edits),
        "edit_family_accuracy": _share(edits, "right_family"),
        "trained_drawing_accuracy": _share(trained_drawings),
        "question_accuracy": _share(questions),
        "translation_accuracy": _share(translations),
        "novel_caption_accuracy": _share(novel),
        "reconstruction_accuracy": float(np.mean(look[nearest.pixels] == look[pictures.test])),
        **measured.figures[0],
    }
    return Evaluation(
        metrics, pictures, drawings, drawings_in_languages, trained_drawings, edits, captions, captions_in_languages,
        novel, questions, translations, stories, measured,
    )  # fmt: skip
