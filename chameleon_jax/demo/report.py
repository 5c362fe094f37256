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
from chameleon_jax.demo.evaluate import Answers, Drawings, Evaluation
from chameleon_jax.demo.page import PAGE
from chameleon_jax.pages import charts
from chameleon_jax.pages.parts import CSS, document, img, table, tile
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


def _tiles(metrics: dict[str, float]) -> str:
    def percent(key: str) -> str:
        return f"{100 * metrics[key]:.1f} %"

    tiles = [
        tile(percent("caption_accuracy"), "captions name the digit", "360 test pictures, greedy"),
        tile(percent("drawing_accuracy"), "drawings recognised", "by a judge trained on real digits"),
        tile(percent("question_accuracy"), "“which digit?” right", "360 test pictures"),
        tile(percent("sum_accuracy"), "sums of two pictures right", "pairs of test pictures"),
        tile(f"{metrics['reconstruction_psnr_db']:.1f} dB", "picture → codes → picture", "PSNR on test pictures"),
        tile(percent("codebook_used"), "of the codes in use", "on test pictures"),
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


def _token_strip(model: Chameleon, document: Document) -> str:
    """A document as the model sees it: one line of tokens, text pieces and image codes alike."""
    vocabulary, text = model.tokenizer.vocabulary, model.tokenizer.text
    chips = ["<i class='special'>begin</i>"]
    for token in model.encode(document):
        kind = vocabulary.modality[token]
        if kind == TEXT:
            piece = text.decode([vocabulary.piece_of_id[token]]).replace(" ", "␣")
            chips.append(f"<i class='text'>{html.escape(piece)}</i>")
        elif kind == IMAGE:
            chips.append(f"<i class='image'>{vocabulary.code_of_id[token]}</i>")
        else:
            chips.append(f"<i class='special'>{'⟨image' if token == vocabulary.begin_image else 'image⟩'}</i>")
    return f"<div class='strip'>{''.join(chips)}</div>"


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
        kind = "right" if answers.right[index] else "wrong"
        pictures = "".join(img(image) for image in answers.pictures[index])
        return f"<figure class='{kind}'>{pictures}<figcaption>{html.escape(answers.texts[index])}</figcaption></figure>"

    indices = range(len(answers.right))
    right = [index for index in indices if answers.right[index]][:show_right]
    wrong = [index for index in indices if not answers.right[index]]
    count = f"{len(answers.right) - len(wrong)} of {len(answers.right)} right"
    text = f"<p class='count'>{count}. " + (
        f"{len(right)} of the right ones, then all {len(wrong)} that are wrong:" if wrong else "Some of them:"
    )
    return f"{text}</p><div class='answers'>{''.join(card(index) for index in right + wrong)}</div>"


def _drawings(drawings: Drawings) -> str:
    rows = []
    for digit in range(10):
        pictures = [
            img(picture, "ok" if judged == asked else "bad", f"asked {asked}, judged {judged}")
            for picture, asked, judged in zip(drawings.pictures, drawings.asked, drawings.judged, strict=True)
            if asked == digit
        ]
        rows.append(f"<div class='row'><span>{DIGITS[digit]}</span>{''.join(pictures)}</div>")
    return f"<div class='drawings'>{''.join(rows)}</div>"


def _reconstructions(model: Chameleon, pixels: np.ndarray, count: int = 20) -> tuple[str, np.ndarray]:
    """Test pictures above what is left of them after going through the codes; and the codes of all."""
    tokenizer = model.tokenizer.image
    codes = tokenizer.encode_pixels(pixels)
    originals = "".join(img(to_image(picture)) for picture in pixels[:count])
    rebuilt = "".join(img(picture) for picture in tokenizer.detokenize(codes[:count]))
    return f"<div class='pairs'><div>{originals}</div><div>{rebuilt}</div></div>", codes


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
    first_sum = [*evaluation.sums.pictures[0][:1], " plus ", evaluation.sums.pictures[0][1], " equals"]
    values = {
        "tiles": _tiles(metrics),
        "digits": f"{evaluation.training_pictures:,}",
        "example": document(first_sum, "given") + document([evaluation.sums.texts[0]], "written"),
        "strip": _token_strip(model, [*first_sum[:-1], first_sum[-1] + evaluation.sums.texts[0]]),
        "captions": _answers(evaluation.captions, 40),
        "questions": _answers(evaluation.questions, 20),
        "sums": _answers(evaluation.sums, 20),
        "drawings": _drawings(evaluation.drawings),
        "guidance": f"{evaluation.guidance:g}",
        "copied": f"{100 * metrics['copied_drawings']:.1f} %",
        "as_near": f"{100 * metrics['real_pictures_as_near']:.1f} %",
        "judge": f"{100 * metrics['judge_accuracy_on_real_digits']:.1f} %",
        "interleaved": _continuations(evaluation.continuations, prose=False),
        "prose": _continuations(evaluation.continuations, prose=True),
        "bits": "; ".join(
            f"{name} {metrics[ours]:.2f} bits per byte, xz -9 {metrics[xz]:.2f}"
            for name, ours, xz in (
                ("prose", "text_bits_per_byte", "xz_bits_per_byte"),
                ("code", "code_bits_per_byte", "xz_code_bits_per_byte"),
            )
        ),
        "reconstructions": reconstructions,
        "code_use": charts.code_use(codes, model.tokenizer.image.config.num_codes),
        "tokenizer_curve": charts.tokenizer_curve(tokenizer_lines),
        "loss_curves": charts.loss_curves(run_lines, HELD_OUT),
        "stages": _stage_table(stages, metrics),
        "config": _config_table(model, train),
        "metrics": table(("key", "value"), ((key, f"{value:.4g}") for key, value in metrics.items())),
    }
    write_text(path, PAGE.format(css=CSS, **values))
