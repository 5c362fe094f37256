"""Sections that the reports of all demos have."""

from __future__ import annotations

import html
import math
import os
import platform
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import TrainConfig
from chameleon_jax.pages.parts import document, img, table
from chameleon_jax.tokens.image import to_image
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT

if TYPE_CHECKING:
    from chameleon_jax.document import Document

MARKED = "<span class='written'>(marked)</span>"

STREAM = (
    "An image tokenizer turns each picture into a few codes, a text tokenizer turns words into pieces, and a document "
    "becomes one line of both. The model predicts the next token, whatever it is. What it wrote itself is "
    "<span class='written'>marked</span>."
)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def card(prompt: Document, answer: Document, kind: str = "") -> str:
    """A document that the model continued; `kind` is a class of the style sheet."""
    return f"<div class='card {kind}'>{document(prompt, 'given')}{document(answer, 'written')}</div>"


def token_stream(model: Chameleon, prompt: Document, answer: str) -> str:
    """A document that ends with text, and the same as the model sees it: one line of tokens, text pieces and image
    codes alike."""
    vocabulary, text = model.tokenizer.vocabulary, model.tokenizer.text
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
    return f"{card(prompt, [answer])}<div class='tokens'>{''.join(chips)}</div>"


def reconstructions(model: Chameleon, pixels: np.ndarray, count: int = 20) -> tuple[str, np.ndarray]:
    """Test pictures above what is left of them after going through the codes; and the codes of all."""
    tokenizer = model.tokenizer.image
    codes = tokenizer.encode_pixels(pixels)
    pairs = "".join(
        f"<div>{img(to_image(picture), 'test picture')}{img(rebuilt, 'its reconstruction')}</div>"
        for picture, rebuilt in zip(pixels[:count], tokenizer.detokenize(codes[:count]), strict=True)
    )
    return f"<div class='card pictures'>{pairs}</div>", codes


def stage_table(stages: dict[str, Any], metrics: dict[str, float]) -> str:
    """How long each stage took."""
    done = {title: stage for title, stage in stages.items() if stage["finished"]}
    rows = []
    for title, stage in done.items():
        note = " (stopped in between)" if stage["continued"] else ""
        rows.append((title + note, stage["seconds"], stage["cpu_seconds"]))
    wall, cpu = metrics["total_minutes"] * 60, metrics["cpu_minutes"] * 60
    rows.append(("judge", wall - sum(row[1] for row in rows), cpu - sum(row[2] for row in rows)))
    rows.append(("all, from raw data to this page", wall, cpu))
    return table(("stage", "wall time", "CPU time"), ((name, f"{a:.0f} s", f"{b / 60:.1f} min") for name, a, b in rows))


def config_table(model: Chameleon, train: TrainConfig) -> str:
    """What the model is, and how it was trained."""
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
