"""Charts as SVG."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

TEXT, IMAGE, INK, GREY = "#1f7a5c", "#c2571a", "#22302b", "#8a968f"


@contextlib.contextmanager
def _figure(width: float, height: float, result: list[str]) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style = {
        "svg.fonttype": "none", "svg.hashsalt": "chameleon", "font.family": "sans-serif", "font.size": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": INK,
        "xtick.color": GREY, "ytick.color": GREY, "axes.grid": True, "grid.color": "#e6eae7", "axes.axisbelow": True,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        yield axes
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = file.getvalue()
    result.append(svg[svg.index("<svg") :])


HeldOut = tuple[str, Literal["text_loss", "image_loss"], str]
"""Name of a held-out source, which of its losses, and what that is called."""


def loss_curves(lines: Sequence[dict[str, Any]], held_out: Sequence[HeldOut]) -> str:
    """Training loss per modality, and the held-out losses where they were measured, from metrics.jsonl."""
    result: list[str] = []
    colours = {"text_loss": TEXT, "image_loss": IMAGE}
    with _figure(10, 4, result) as axes:
        for key, name in (("text_loss", "text"), ("image_loss", "image codes")):
            if points := [(line["step"], line[key]) for line in lines if key in line]:
                axes.plot(*zip(*points, strict=True), color=colours[key], linewidth=1.8, label=f"{name}, training")
        measured = [line for line in lines if "held_out" in line]
        for source, key, name in held_out:
            points = [
                (line["step"], line["held_out"][source][key])
                for line in measured
                if key in line["held_out"].get(source, {})
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o--", color=colours[key], markersize=4, linewidth=1, label=name)
        axes.set(xlabel="step", ylabel="loss, nats per token", ylim=(0, None))
        axes.legend(frameon=False, fontsize=9)
    return result[0]


def tokenizer_curve(lines: Sequence[dict[str, Any]]) -> str:
    """PSNR and codebook perplexity of the image tokenizer while it trains."""
    result: list[str] = []
    with _figure(10, 3, result) as axes:
        steps = [line["step"] for line in lines]
        axes.plot(steps, [line["psnr_db"] for line in lines], color=IMAGE, linewidth=1.8)
        axes.set(xlabel="step", ylabel="PSNR, dB")
        axes.yaxis.label.set_color(IMAGE)
        other = axes.twinx()
        other.grid(False)
        other.plot(steps, [line["perplexity"] for line in lines], color=GREY, linewidth=1.4)
        other.set(ylabel="codes in even use (perplexity)", ylim=(0, None))
        other.yaxis.label.set_color(GREY)
    return result[0]


def code_use(codes: np.ndarray, num_codes: int) -> str:
    """How often each code occurs, most frequent first; codes never used are marked."""
    result: list[str] = []
    counts = np.sort(np.bincount(codes.ravel(), minlength=num_codes))[::-1]
    with _figure(10, 2.4, result) as axes:
        axes.fill_between(np.arange(num_codes), counts, step="mid", color=IMAGE, alpha=0.75, linewidth=0)
        used = int((counts > 0).sum())
        axes.axvline(used, color=INK, linewidth=1)
        axes.annotate(f"{used} of {num_codes} codes used", (used, counts.max() * 0.8), xytext=(-6, 0),
                      textcoords="offset points", ha="right", color=INK)  # fmt: skip
        axes.set(xlabel="codes, most frequent first", ylabel="occurrences", xlim=(0, num_codes), ylim=(0, None))
    return result[0]
