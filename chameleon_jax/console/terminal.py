"""Prints text without control characters, and pictures as coloured half blocks, on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chameleon_jax.errors import LONGEST_MESSAGE, printable
from chameleon_jax.runtime.files import new_file

if TYPE_CHECKING:
    from PIL.Image import Image


def can_show_images() -> bool:
    """Whether standard output is a terminal that reports 24-bit or 256 colours."""
    colours = os.environ.get("COLORTERM", "") in ("truecolor", "24bit") or "256color" in os.environ.get("TERM", "")
    return sys.stdout.isatty() and colours and "NO_COLOR" not in os.environ


def half_blocks(image: Image, columns: int = 32) -> str:
    """A picture as lines of '▀': each character shows two pixels, the upper one in the foreground colour and the lower
    one in the background colour."""
    columns = min(columns, image.width)
    rows = max(2, round(image.height * columns / image.width / 2) * 2)
    pixels = np.asarray(image.convert("RGB").resize((columns, rows)))
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(upper, lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def steers_nothing(text: str) -> str:
    """Text of many lines with what would steer the terminal spelled out."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def print_warnings(warnings: Iterable[object]) -> None:
    """Prints each on one line of standard error."""
    for warning in warnings:
        print(f"warning: {printable(warning, LONGEST_MESSAGE)}", file=sys.stderr)


def write_picture(image: Image, path: Path) -> None:
    """Writes a PNG file."""
    with new_file(path) as tmp:
        image.save(tmp, "PNG")
