"""The demo's report as one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import TrainConfig
from chameleon_jax.demo.digits.evaluate import Answers, Evaluation
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
from chameleon_jax.training.metrics import read_metrics
from data_pipeline.datasets.number_words import DIGITS

if TYPE_CHECKING:
    from chameleon_jax.document import Document


HELD_OUT = (
    ("python_reference", "text_loss", "held-out prose"),
    ("digit_captions", "image_loss", "held-out pictures"),
)


def _tiles(evaluation: Evaluation, metrics: dict[str, float]) -> str:
    pictures = f"{len(evaluation.pixels):,} test pictures"
    pairs = f"{len(evaluation.sums.right):,} pairs of test pictures"
    tiles = [
        tile(percent(metrics["caption_accuracy"]), "of captions name the digit", pictures),
        tile(percent(metrics["drawing_accuracy"]), "of drawings recognised", "by a judge trained on real digits"),
        tile(percent(metrics["question_accuracy"]), "of answers name the digit", pictures),
        tile(percent(metrics["sum_accuracy"]), "of sums right", pairs),
        tile(f"{metrics['reconstruction_psnr_db']:.1f} dB", "picture → codes → picture", "PSNR on test pictures"),
        tile(percent(metrics["codebook_used"]), "of the codes in use", "on test pictures"),
        tile(
            f"{metrics['text_bits_per_byte']:.2f}", "bits per byte of unseen prose",
            f"xz -9 needs {metrics['xz_bits_per_byte']:.2f}",
        ),
        tile(
            f"{metrics['total_minutes']:.1f} min", "from raw data to this page",
            f"peak memory {metrics['peak_memory_gib']:.1f} GiB",
        ),
    ]  # fmt: skip
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _continuations(continuations: Sequence[tuple[Document, Document]], prose: bool) -> str:
    return "".join(
        card(prompt, answer, "prose" if prose else "")
        for prompt, answer in continuations
        if (len(prompt) == 1 and len(prompt[0]) > 100) == prose
    )


def _answers(answers: Answers, show_right: int) -> str:
    """All wrong answers, and some right ones before them."""

    def figure(index: int) -> str:
        kind, mark = ("", "") if answers.right[index] else (" class='wrong'", "✗ ")
        pictures = "".join(
            img(image, f"handwritten {DIGITS[digit]}")
            for image, digit in zip(answers.pictures[index], answers.digits[index], strict=True)
        )
        caption = f"<figcaption>{mark}{html.escape(answers.texts[index])}</figcaption>"
        return f"<figure{kind}><div class='pictures'>{pictures}</div>{caption}</figure>"

    indices = range(len(answers.right))
    right = [index for index in indices if answers.right[index]][:show_right]
    wrong = [index for index in indices if not answers.right[index]]
    count = f"{len(answers.right) - len(wrong)} of {len(answers.right)} right"
    shown = f"{len(right)} of the right ones, then all {len(wrong)} that are wrong:" if wrong else "Some of them:"
    size = " of-two" if len(answers.pictures[0]) > 1 else ""
    cards = "".join(figure(index) for index in right + wrong)
    return f"<p>{count}. {shown}</p><div class='answers{size}'>{cards}</div>"


def _drawings(evaluation: Evaluation, metrics: dict[str, float]) -> tuple[str, str]:
    """What was asked for and who judged it; and the drawings, digit by digit."""
    drawings, figures = evaluation.drawings, []
    text = (
        "Asked for “A handwritten three.” and so on, it writes image codes, with a classifier-free guidance scale of "
        f"{evaluation.guidance:g}. A judge looks at every drawing: a support vector machine that has only seen real "
        f"digits (right on {percent(metrics['judge_accuracy_on_real_digits'])} of real test digits). Drawings that it "
        "takes for another digit are framed in red."
    )
    for digit in range(10):
        pictures = "".join(
            img(picture, f"drawing of {DIGITS[digit]}, judged {DIGITS[judged]}", kind="" if judged == digit else "bad")
            for picture, asked, judged in zip(drawings.pictures, drawings.asked, drawings.judged, strict=True)
            if asked == digit
        )
        figures.append(
            f"<figure><figcaption>{DIGITS[digit]}</figcaption><div class='pictures'>{pictures}</div></figure>"
        )
    copies = (
        f"<p>Are they copies? {percent(metrics['copied_drawings'])} of the drawings are as close to a training "
        "picture, shifted by up to two pixels, as a picture typically is to its own reconstruction. Of real test "
        f"pictures, {percent(metrics['real_pictures_as_near'])} are.</p>"
    )
    return text, f"<div class='gallery of-digits'>{''.join(figures)}</div>{copies}"


def _bits(metrics: dict[str, float]) -> str:
    """How well the model predicts held-out text, beside a compressor."""
    prose, code = (
        f"{metrics[ours]:.2f} for {name} (xz -9: {metrics[xz]:.2f})"
        for name, ours, xz in (
            ("prose", "text_bits_per_byte", "xz_bits_per_byte"),
            ("code", "code_bits_per_byte", "xz_code_bits_per_byte"),
        )
    )
    return f"Continuations of files that it never saw. Bits per byte on all held-out text: {prose}, {code}."


def write_report(
    path: Path,
    model: Chameleon,
    train: TrainConfig,
    evaluation: Evaluation,
    metrics: dict[str, float],
    stages: dict[str, Any],
) -> None:
    """Writes the page; nothing in it refers to another file."""
    rebuilt, codes = reconstructions(model, evaluation.pixels)
    run_lines = read_metrics(Path(train.output) / "metrics.jsonl")
    tokenizer_lines = read_metrics(path.parent / "image_tokenizer" / "metrics.jsonl")
    counts = np.bincount(codes.ravel(), minlength=model.tokenizer.image.config.num_codes)
    (first, second), answer = evaluation.sums.pictures[0], evaluation.sums.texts[0]
    stream = token_stream(model, [first, " plus ", second, " equals"], answer)
    sections = [
        Section("One stream of tokens", STREAM, stream),
        Section("It reads pictures", "Captions for handwriting that it never saw.", _answers(evaluation.captions, 40)),
        Section("It draws", *_drawings(evaluation, metrics)),
        Section("It answers questions", "“Which digit is this?”", _answers(evaluation.questions, 20)),
        Section("It adds what it sees", "Two pictures, “plus” between them.", _answers(evaluation.sums, 20)),
        Section("It continues documents", f"Given the grey part, it writes text and pictures as it likes {MARKED}.",
                _continuations(evaluation.continuations, prose=False)),
        Section("It writes", _bits(metrics), _continuations(evaluation.continuations, prose=True)),
        Section("How pictures become codes", "Test pictures, each above what is rebuilt from its codes.",
                rebuilt + charts.code_use(counts) + charts.tokenizer_curve(tokenizer_lines)),
        Section("How it learnt", "", charts.loss_curves(run_lines, HELD_OUT) + stage_table(stages, metrics)
                + config_table(model, train)),
        Section("All figures", "", table(("key", "value"), ((key, f"{value:.4g}") for key, value in metrics.items()))),
    ]  # fmt: skip
    lead = (
        "<p>One Transformer reads and writes documents of text and pictures in any order, because to it both are "
        "tokens of one vocabulary. It was trained from scratch, on this machine alone, on "
        f"{evaluation.training_pictures:,} handwritten digits, Python’s reference manual and a little source code.</p>"
        f"{_tiles(evaluation, metrics)}"
    )
    footer = "Written by <code>chameleon demo</code>, which reuses finished stages when it is run again."
    write_text(path, page("A Chameleon, trained here", lead, sections, footer))
