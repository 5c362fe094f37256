"""Charts as SVG, which take their colours from the page."""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT, IMAGE, INK, SOFT, GRID = "#010203", "#010204", "#010205", "#010206", "#010207"
VARIABLES = {TEXT: "--leaf", IMAGE: "--amber", INK: "--ink", SOFT: "--soft", GRID: "--line"}
"""Colours that stand for variables of the style sheet."""

WIDTHS = {"wide": 9.0, "narrow": 4.6}
"""In inches; the style sheet shows the one that fits the window. Scaling one chart makes its text too small to read."""

MOST_POINTS = 1024
"""Points of a curve: more cannot be told apart."""

NOT_SHOWN = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| id=\"[\w.]+_\d+\"", re.DOTALL)
"""What Matplotlib writes beside the drawing: addresses, rules for the whole page, ids that occur in every chart."""


def _chart(draw: Callable[[Axes], None], label: str, height: float) -> str:
    """A chart for wide and for narrow windows; `height` in inches."""
    charts = "".join(_svg(draw, label, size, (width, height)) for size, width in WIDTHS.items())
    return f"<figure class='chart'>{charts}</figure>"


def _svg(draw: Callable[[Axes], None], label: str, size: str, inches: tuple[float, float]) -> str:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style = {
        "svg.fonttype": "none", "svg.hashsalt": f"{label} {size}", "font.family": "sans-serif", "font.size": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.labelcolor": INK,
        "text.color": INK, "xtick.color": SOFT, "ytick.color": SOFT, "axes.grid": True, "grid.color": GRID,
        "axes.axisbelow": True,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=inches, layout="constrained")
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = NOT_SHOWN.sub("", file.getvalue())
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    label = html.escape(label, quote=True)
    return f'<svg class="{size}" role="img" aria-label="{label}"' + svg[svg.index("<svg") + len("<svg") :]


HeldOut = tuple[str, Literal["text_loss", "image_loss"], str]
"""Name of a held-out source, which of its losses, and what that is called."""


def loss_curves(lines: Sequence[dict[str, Any]], held_out: Sequence[HeldOut]) -> str:
    """Training loss per modality, and the held-out losses where they were measured, from metrics.jsonl."""
    colours = {"text_loss": TEXT, "image_loss": IMAGE}
    measured = [line for line in lines if "held_out" in line]
    sources = dict.fromkeys(source for source, _, _ in held_out)
    markers = dict(zip(sources, itertools.cycle("os^Dv")))

    def draw(axes: Axes) -> None:
        for key, name in (("text_loss", "text, training"), ("image_loss", "image codes, training")):
            if points := [(line["step"], line[key]) for line in lines if key in line]:
                axes.plot(*zip(*points, strict=True), color=colours[key], linewidth=1.8, label=name)
        for source, key, name in held_out:
            points = [
                (line["step"], line["held_out"][source][key])
                for line in measured
                if key in line["held_out"].get(source, {})
            ]
            if points:
                axes.plot(*zip(*points, strict=True), f"{markers[source]}--", color=colours[key], markersize=4,
                          linewidth=1, label=name)  # fmt: skip
        axes.set(xlabel="step", ylabel="loss, nats per token", ylim=(0, None))
        columns = int(axes.figure.get_figwidth() // 4)
        axes.figure.legend(loc="outside upper left", ncols=columns, frameon=False)

    return _chart(draw, "Training and held-out loss over steps", 4)


def tokenizer_curve(lines: Sequence[dict[str, Any]]) -> str:
    """PSNR and codebook perplexity of the image tokenizer while it trains."""

    def draw(axes: Axes) -> None:
        steps = [line["step"] for line in lines]
        axes.plot(steps, [line["psnr_db"] for line in lines], color=IMAGE, linewidth=1.8)
        axes.set(xlabel="step", ylabel="PSNR, dB")
        axes.yaxis.label.set_color(IMAGE)
        other = axes.twinx()
        other.grid(False)
        other.plot(steps, [line["perplexity"] for line in lines], color=SOFT, linewidth=1.4)
        other.set(ylabel="codebook perplexity", ylim=(0, None))
        other.yaxis.label.set_color(SOFT)

    return _chart(draw, "PSNR and codebook perplexity of the image tokenizer over steps", 3)


def code_use(counts: np.ndarray, of: str = "") -> str:
    """How often each code occurs, most frequent first; codes never used are marked.

    Args:
      counts: of each code.
      of: the model, if there are several on the page.
    """
    counts, num_codes = np.sort(counts)[::-1], len(counts)
    used = int((counts > 0).sum())
    shown = np.unique(np.linspace(0, num_codes - 1, MOST_POINTS, dtype=int))

    def draw(axes: Axes) -> None:
        axes.fill_between(shown, counts[shown], step="mid", color=IMAGE, alpha=0.75, linewidth=0)
        axes.axvline(used, color=INK, linewidth=1)
        side, gap = ("right", -6) if used > num_codes / 2 else ("left", 6)
        axes.annotate(f"{used:,} of {num_codes:,} codes used", (used, counts.max() * 0.8), xytext=(gap, 0),
                      textcoords="offset points", ha=side)  # fmt: skip
        axes.set(xlabel="codes, most frequent first", ylabel="occurrences", xlim=(0, num_codes), ylim=(0, None))

    label = f"How often each code {f'of {of} ' if of else ''}occurs: {used:,} of {num_codes:,} codes are used"
    return _chart(draw, label, 2.4)
