"""The demo's report as one self-contained HTML file."""

from __future__ import annotations

import html
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import TrainConfig
from chameleon_jax.demo.evaluate import Answers, Evaluation
from chameleon_jax.pages import charts
from chameleon_jax.pages.parts import Section, document, img, page, table, tile
from chameleon_jax.runtime.files import write_text
from chameleon_jax.tokens.image import to_image
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT
from chameleon_jax.training.metrics import read_metrics
from data_pipeline.datasets.number_words import DIGITS

if TYPE_CHECKING:
    from chameleon_jax.document import Document


HELD_OUT = (
    ("python_reference", "text_loss", "held-out prose"),
    ("digit_captions", "image_loss", "held-out pictures"),
)


MARKED = "<span class='written'>(marked)</span>"

STREAM = (
    "An image tokenizer turns each picture into a few codes, a text tokenizer turns words into pieces, and a document "
    "becomes one line of both. The model predicts the next token, whatever it is. What it wrote itself is "
    "<span class='written'>marked</span>."
)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _tiles(evaluation: Evaluation, metrics: dict[str, float]) -> str:
    pictures = f"{len(evaluation.pixels):,} test pictures"
    pairs = f"{len(evaluation.sums.right):,} pairs of test pictures"
    tiles = [
        tile(_percent(metrics["caption_accuracy"]), "of captions name the digit", pictures),
        tile(_percent(metrics["drawing_accuracy"]), "of drawings recognised", "by a judge trained on real digits"),
        tile(_percent(metrics["question_accuracy"]), "of answers name the digit", pictures),
        tile(_percent(metrics["sum_accuracy"]), "of sums right", pairs),
        tile(f"{metrics['reconstruction_psnr_db']:.1f} dB", "picture → codes → picture", "PSNR on test pictures"),
        tile(_percent(metrics["codebook_used"]), "of the codes in use", "on test pictures"),
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


def _stream(model: Chameleon, sums: Answers) -> str:
    """The first sum, and the same as the model sees it: one line of tokens, text pieces and image codes alike."""
    vocabulary, text = model.tokenizer.vocabulary, model.tokenizer.text
    first, second = sums.pictures[0]
    prompt, answer = [first, " plus ", second, " equals"], sums.texts[0]
    chips = ["<span>begin</span>"]
    for token in model.encode([*prompt[:-1], prompt[-1] + answer]):
        kind = vocabulary.modality[token]
        if kind == TEXT:
            piece = text.decode([vocabulary.piece_of_id[token]]).replace(" ", "␣")
            chips.append(f"<span class='text'>{html.escape(piece)}</span>")
        elif kind == IMAGE:
            chips.append(f"<span class='image'>{vocabulary.code_of_id[token]}</span>")
        else:
            chips.append(f"<span>{'⟨image' if token == vocabulary.begin_image else 'image⟩'}</span>")
    card = f"<div class='card'>{document(prompt, 'given')}{document([answer], 'written')}</div>"
    return f"{card}<div class='tokens'>{''.join(chips)}</div>"


def _continuations(continuations: Sequence[tuple[Document, Document]], prose: bool) -> str:
    cards = []
    for prompt, answer in continuations:
        is_prose = len(prompt) == 1 and len(prompt[0]) > 100
        if is_prose == prose:
            cards.append(
                f"<div class='card {'prose' if prose else ''}'>{document(prompt, 'given')}"
                f"{document(answer, 'written')}</div>"
            )
    return "".join(cards)


def _answers(answers: Answers, show_right: int) -> str:
    """All wrong answers, and some right ones before them."""

    def card(index: int) -> str:
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
    cards = "".join(card(index) for index in right + wrong)
    return f"<p>{count}. {shown}</p><div class='answers{size}'>{cards}</div>"


def _drawings(evaluation: Evaluation, metrics: dict[str, float]) -> tuple[str, str]:
    """What was asked for and who judged it; and the drawings, digit by digit."""
    drawings, figures = evaluation.drawings, []
    text = (
        "Asked for “A handwritten three.” and so on, it writes image codes, with a classifier-free guidance scale of "
        f"{evaluation.guidance:g}. A judge looks at every drawing: a support vector machine that has only seen real "
        f"digits (right on {_percent(metrics['judge_accuracy_on_real_digits'])} of real test digits). Drawings that it "
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
        f"<p>Are they copies? {_percent(metrics['copied_drawings'])} of the drawings are as close to a training "
        "picture, shifted by up to two pixels, as a picture typically is to its own reconstruction. Of real test "
        f"pictures, {_percent(metrics['real_pictures_as_near'])} are.</p>"
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


def _reconstructions(model: Chameleon, pixels: np.ndarray, count: int = 20) -> tuple[str, np.ndarray]:
    """Test pictures above what is left of them after going through the codes; and the codes of all."""
    tokenizer = model.tokenizer.image
    codes = tokenizer.encode_pixels(pixels)
    pairs = "".join(
        f"<div>{img(to_image(picture), 'test picture')}{img(rebuilt, 'its reconstruction')}</div>"
        for picture, rebuilt in zip(pixels[:count], tokenizer.detokenize(codes[:count]), strict=True)
    )
    return f"<div class='card pictures'>{pairs}</div>", codes


def _stage_table(stages: dict[str, Any], metrics: dict[str, float]) -> str:
    done = {title: stage for title, stage in stages.items() if stage["finished"]}
    rows = []
    for title, stage in done.items():
        note = " (after a stop; the last part only)" if stage["continued"] else ""
        rows.append((title + note, stage["seconds"], stage["cpu_seconds"]))
    wall, cpu = metrics["total_minutes"] * 60, metrics["cpu_minutes"] * 60
    rows.append(("judge", wall - sum(row[1] for row in rows), cpu - sum(row[2] for row in rows)))
    rows.append(("all, from raw data to this page", wall, cpu))
    return table(("stage", "wall time", "CPU time"), ((name, f"{a:.0f} s", f"{b / 60:.1f} min") for name, a, b in rows))


def _config_table(model: Chameleon, train: TrainConfig) -> str:
    c, i = model.config, model.tokenizer.image.config
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params))
    image_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.tokenizer.image.params))
    rows = [
        ("Transformer", f"{parameters / 1e6:.2f} M parameters: {c.num_layers} layers, width {c.d_model}, {c.num_heads} "
         f"query and {c.num_kv_heads} key/value heads, norms '{c.norm_order}', QK-norm {'on' if c.qk_norm else 'off'}"),
        ("Image tokenizer", f"{image_parameters / 1e6:.2f} M parameters: {i.resolution}×{i.resolution} pixels to "
         f"{i.grid}×{i.grid} codes of {i.num_codes}"),
        ("Vocabulary", f"{model.tokenizer.vocabulary.size} tokens: {model.tokenizer.text.num_pieces} text pieces, "
         f"{i.num_codes} image codes, special tokens"),
        ("Training", f"{train.steps} steps of {train.batch_size} rows, {train.optimizer.name}, peak learning rate "
         f"{train.optimizer.learning_rate:g}, {train.optimizer.schedule} decay, z-loss {train.z_loss:g}"),
        ("Made with", f"Python {platform.python_version()}, jax {jax.__version__}, {os.cpu_count()} CPU cores"),
    ]  # fmt: skip
    return table(("what", "how"), rows)


def write_report(
    path: Path,
    model: Chameleon,
    train: TrainConfig,
    evaluation: Evaluation,
    metrics: dict[str, float],
    stages: dict[str, Any],
) -> None:
    """Writes the page; nothing in it refers to another file."""
    reconstructions, codes = _reconstructions(model, evaluation.pixels)
    run_lines = read_metrics(Path(train.output) / "metrics.jsonl")
    tokenizer_lines = read_metrics(path.parent / "image_tokenizer" / "metrics.jsonl")
    counts = np.bincount(codes.ravel(), minlength=model.tokenizer.image.config.num_codes)
    sections = [
        Section("One stream of tokens", STREAM, _stream(model, evaluation.sums)),
        Section("It reads pictures", "Captions for handwriting that it never saw.", _answers(evaluation.captions, 40)),
        Section("It draws", *_drawings(evaluation, metrics)),
        Section("It answers questions", "“Which digit is this?”", _answers(evaluation.questions, 20)),
        Section("It adds what it sees", "Two pictures, “plus” between them.", _answers(evaluation.sums, 20)),
        Section("It continues documents", f"Given the grey part, it writes text and pictures as it likes {MARKED}.",
                _continuations(evaluation.continuations, prose=False)),
        Section("It writes", _bits(metrics), _continuations(evaluation.continuations, prose=True)),
        Section("How pictures become codes", "Test pictures, each above what is rebuilt from its codes.",
                reconstructions + charts.code_use(counts) + charts.tokenizer_curve(tokenizer_lines)),
        Section("How it learnt", "", charts.loss_curves(run_lines, HELD_OUT) + _stage_table(stages, metrics)
                + _config_table(model, train)),
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
