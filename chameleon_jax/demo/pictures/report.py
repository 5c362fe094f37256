"""The report of `chameleon demo pictures` as one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import TrainConfig
from chameleon_jax.demo.pictures.evaluate import Caption, Drawing, Emoji, Evaluation
from chameleon_jax.demo.sections import (
    MARKED,
    STREAM,
    card,
    config_table,
    percent,
    reconstructions,
    stage_table,
    token_stream,
)
from chameleon_jax.pages import charts
from chameleon_jax.pages.parts import Section, img, page, table, tile
from chameleon_jax.runtime.files import write_text
from chameleon_jax.tokens.image import scale
from chameleon_jax.training.metrics import read_metrics
from data_pipeline.datasets.languages import LANGUAGES

if TYPE_CHECKING:
    from PIL.Image import Image

WALL, SOME = 96, 24
"""Drawings on the wall, and examples of every other kind."""

LICENCES = """<p>Pictures: all that are called true, and those that the model learnt from, are by the contributors of
<a href="https://openmoji.org">OpenMoji</a>, the open-source emoji and icon project, licence
<a href="https://creativecommons.org/licenses/by-sa/4.0/">CC BY-SA 4.0</a>. What the model draws is adapted from them,
and is under the same licence.</p><p>Names: Unicode CLDR, through the Python package <code>emoji</code>, under the
<a href="https://www.unicode.org/license.txt">Unicode License</a>.</p>"""
LINKS = (
    "https://openmoji.org", "https://creativecommons.org/licenses/by-sa/4.0/", "https://www.unicode.org/license.txt",
)  # fmt: skip


def _small(image: Image) -> Image:
    """A drawing in 256 colours, which cannot be told apart here and take a third of the bytes."""
    return image.quantize(256)


def _name(emoji: Emoji, language: str = "en") -> str:
    return emoji.names[language] or emoji.names["en"] or "a picture without name"


def _in_language(text: str, language: str) -> str:
    return f"<span lang='{language}' dir='auto'>{html.escape(text)}</span>"


def _some(examples: Sequence[Any], count: int) -> list[Any]:
    """Chosen at random, the same ones each time."""
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[number] for number in order[:count].tolist()]


def _pictures(images: Iterable[tuple[str, Image]]) -> str:
    return f"<div class='pictures'>{''.join(img(image, alt) for alt, image in images)}</div>"


def _figure(pictures: str, caption: str, right: bool) -> str:
    kind, mark = ("", "") if right else (" class='wrong'", "✗ ")
    return f"<figure{kind}>{pictures}<figcaption>{mark}{caption}</figcaption></figure>"


def _grid(figures: Iterable[str], kind: str = "pairs") -> str:
    return f"<div class='answers {kind}'>{''.join(figures)}</div>"


def _count(examples: Sequence[Drawing | Caption], shown: int) -> str:
    right = sum(each.right for each in examples)
    some = f" {min(shown, len(examples))} of them, chosen at random:" if len(examples) > shown else ""
    return f"<p>{right:,} of {len(examples):,} right.{some}</p>"


def _taken_for(drawing: Drawing, emojis: Sequence[Emoji]) -> str:
    return "" if drawing.right else f"<br>nearest: {html.escape(_name(emojis[drawing.nearest]))}"


def _drawings(drawings: Sequence[Drawing], emojis: Sequence[Emoji], shown: int) -> str:
    figures = []
    for drawing in _some(drawings, shown):
        true = emojis[drawing.asked]
        name, language = true.names[drawing.language], LANGUAGES[drawing.language]
        caption = f"<b>{_in_language(name, drawing.language)}</b>{_taken_for(drawing, emojis)}"
        if drawing.language != "en":
            caption += f"<br>{html.escape(language)}: {html.escape(_name(true))}"
        pictures = [(f"drawn: {_name(true)}", _small(drawing.image)), (f"true: {_name(true)}", true.image)]
        figures.append(_figure(_pictures(pictures), caption, drawing.right))
    return _count(drawings, shown) + _grid(figures)


def _edits(drawings: Sequence[Drawing], emojis: Sequence[Emoji]) -> str:
    figures = []
    for drawing in _some(drawings, SOME):
        true, (source, asked) = emojis[drawing.asked], drawing.prompt
        pictures = [
            ("given", source), (f"drawn: {_name(true)}", _small(drawing.image)), (f"true: {_name(true)}", true.image),
        ]  # fmt: skip
        caption = f"<b>{html.escape(asked.strip(' :'))}</b>{_taken_for(drawing, emojis)}"
        figures.append(_figure(_pictures(pictures), caption, drawing.right))
    return _count(drawings, SOME) + _grid(figures, "triples")


def _captions(captions: Sequence[Caption], shown: int = SOME) -> str:
    figures = []
    for caption in _some(captions, shown):
        asked = "".join(part for part in caption.prompt if isinstance(part, str)).strip()
        truth = "" if caption.right else f"<br>true: {_in_language(caption.expected, caption.language)}"
        text = f"{_in_language(asked, caption.language)} <b>{_in_language(caption.text, caption.language)}</b>{truth}"
        image = next(part for part in caption.prompt if not isinstance(part, str))
        figures.append(_figure(_pictures([("given", image)]), text, caption.right))
    return _count(captions, shown) + _grid(figures, "of-two")


def _translations(translations: Sequence[Caption]) -> str:
    figures = []
    for each in _some(translations, SOME):
        name, drawn, asked = each.prompt
        truth = "" if each.right else f"<br>true: {_in_language(each.expected, each.language)}"
        text = f"{html.escape(asked.strip())} <b>{_in_language(each.text, each.language)}</b>{truth}"
        pictures = f"<p dir='auto'>{html.escape(name)}</p>" + _pictures([("drawn", _small(drawn))])
        figures.append(_figure(pictures, text, each.right))
    return _count(translations, SOME) + _grid(figures, "of-two")


def _tiles(evaluation: Evaluation, metrics: dict[str, float]) -> str:
    new = f"{len(evaluation.drawings):,} combinations it never saw"
    tiles = [
        tile(percent(metrics["drawing_accuracy"]), "of drawings right", new),
        tile(percent(metrics["drawing_family_accuracy"]), "are the right thing", "in some tone of skin"),
        tile(percent(metrics["caption_accuracy"]), "of captions exact",
             f"in English; {percent(metrics['caption_family_accuracy'])} name the right thing"),
        tile(percent(metrics["caption_accuracy_in_languages"]), "of captions exact", "in one of 14 languages"),
        tile(percent(metrics["edit_accuracy"]), "of edits right", "tone changed, the rest kept"),
        tile(percent(metrics["trained_drawing_accuracy"]), "of trained names drawn right",
             f"{len(evaluation.trained_drawings):,} at random"),
        tile(f"{metrics['reconstruction_psnr_db']:.1f} dB", "picture → codes → picture",
             f"{percent(metrics['reconstruction_accuracy'])} of reconstructions right"),
        tile(f"{metrics['total_minutes']:.0f} min", "from packages to this page",
             f"peak memory {metrics['peak_memory_gib']:.1f} GiB"),
    ]  # fmt: skip
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _judged(evaluation: Evaluation, metrics: dict[str, float]) -> str:
    return (
        "Drawings on the left, the true pictures on the right. Nothing that learns is the judge: a drawing is right if "
        f"the nearest of all {len(evaluation.pictures.all):,} pictures, by the mean squared difference of pixels, is "
        "the one asked for, or looks the same to the pixel, or has the same name. All others are framed in red. "
        f"{percent(metrics['drawing_family_accuracy'])} are nearest to a picture of the right thing in some tone, and "
        f"{percent(metrics['drawing_family_accuracy_by_edges'])} by histograms of oriented gradients."
    )


def _curves(train: TrainConfig, folder: Path) -> str:
    lines = read_metrics(Path(train.output) / "metrics.jsonl")
    names = dict.fromkeys(name for line in lines for name in line.get("held_out", {}))
    held_out = [
        (name, loss, f"{name}, held-out {what}")
        for name in names
        for loss, what in (("text_loss", "text"), ("image_loss", "pictures"))
    ]
    tokenizer = read_metrics(folder / "image_tokenizer" / "metrics.jsonl")
    return charts.loss_curves(lines, held_out) + charts.tokenizer_curve(tokenizer)


def write_report(
    path: Path,
    model: Chameleon,
    train: TrainConfig,
    evaluation: Evaluation,
    metrics: dict[str, float],
    stages: dict[str, Any],
) -> None:
    """Writes the page; nothing in it refers to another file."""
    pictures, emojis = evaluation.pictures, evaluation.pictures.all
    some = _some(pictures.test, 20)
    rebuilt, _ = reconstructions(model, scale(pictures.pixels[some]))
    shown = evaluation.captions[0]
    stories = "".join(card(prompt, [part if isinstance(part, str) else _small(part) for part in answer])
                      for prompt, answer in evaluation.stories)  # fmt: skip
    sections = [
        Section("It draws what it never saw", _judged(evaluation, metrics),
                _drawings(evaluation.drawings, emojis, WALL)),
        Section("The same in any language", "", _drawings(evaluation.drawings_in_languages, emojis, SOME)),
        Section("It edits", "A picture that it knows, what is asked, its drawing, and the true picture, which it never "
                "saw.", _edits(evaluation.edits, emojis)),
        Section("It reads pictures", "Pictures that it never saw, and the name that it gives them: in English, and "
                "below in a language drawn at random. Right is only what is right to the letter; "
                f"{percent(metrics['caption_family_accuracy'])} of those in English name the right thing, in whatever "
                "tone.",
                _captions(evaluation.captions) + _captions(evaluation.captions_in_languages)),
        Section("It answers questions", "", _captions(evaluation.questions)),
        Section("It translates", "A name in one language, its own drawing of that, and from there the name in another.",
                _translations(evaluation.translations)),
        Section("It continues documents", f"Given the grey part, it writes text and pictures as it likes {MARKED}.",
                stories),
        Section("Things it has never seen", "Not a new combination: nothing of the kind was in its training. What it "
                "takes them for is reported, and right by luck at best.", _captions(evaluation.novel)),
        Section("What it was trained on", "Names from the training, drawn.",
                _drawings(evaluation.trained_drawings, emojis, SOME)),
        Section("One stream of tokens", STREAM, token_stream(model, shown.prompt, f" {shown.text}.")),
        Section("How pictures become codes", "Pictures that it never saw, each above what is rebuilt from its codes.",
                rebuilt + charts.code_use(evaluation.measured.counts[0])),
        Section("How it learnt", "", _curves(train, path.parent) + stage_table(stages, metrics)
                + config_table(model, train)),
        Section("All figures", "", table(("key", "value"), ((key, f"{value:.4g}") for key, value in metrics.items()))),
        Section("Licences", "", LICENCES),
    ]  # fmt: skip
    lead = (
        "<p>One Transformer reads and writes documents of text and pictures in any order, because to it both are "
        f"tokens of one vocabulary. It was trained from scratch, on this machine alone, on {len(pictures.train):,} "
        f"pictures by people and their names in {len(LANGUAGES)} languages. Here it is asked for combinations of thing "
        f"and tone of skin that were kept from it.</p>{_tiles(evaluation, metrics)}"
    )
    footer = "Written by <code>chameleon demo pictures</code>, which reuses finished stages when it is run again."
    write_text(path, page("A Chameleon that draws in colour", lead, sections, footer))
