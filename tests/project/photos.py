"""Pictures with captions, as people have them."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": "#d63031", "yellow": "#f6d53c", "green": "#2ea058", "blue": "#3069d6"}
SHAPES = ("circle", "square", "triangle")


def draw_photos(folder: Path, count: int, suffix: str = ".txt") -> Path:
    """Draws `count` pictures of shapes, each with its caption in a file beside it, if `suffix` says so."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for number in range(count):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        image = Image.new("RGB", (rng.randint(64, 96), rng.randint(64, 96)), (240, 235, rng.randint(200, 240)))
        pen, x, y = ImageDraw.Draw(image), image.width / 2, image.height / 2
        if shape == "circle":
            pen.circle((x, y), 20, COLOURS[colour])
        else:
            pen.regular_polygon((x, y, 24), {"square": 4, "triangle": 3}[shape], fill=COLOURS[colour])
        image.save(folder / f"{number:03d}.jpg", quality=90)
        if suffix:
            (folder / f"{number:03d}{suffix}").write_text(f"A {colour} {shape} on pale paper.\n", encoding="utf-8")
    return folder
