"""Augmentation: pictures changed a little at random, so that few of them teach more than themselves.

All of it is off by default. Pixels are moved by Pillow, whose results are the same on every machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chameleon_jax.config.reading import config, require, to_dict
from chameleon_jax.document import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image


@config
class AugmentConfig:
    """By how much pictures are changed at random. Each number is the largest change, and all smaller ones are as
    likely; 0 is off."""

    crop: float = 0.0
    """Cuts off up to this share of both sides, somewhere, and keeps the aspect ratio. LlamaGen: 0.2."""
    flip: bool = False
    """Mirrors half of the pictures. Not for pictures of writing, nor where the text says left and right."""
    shift: float = 0.0
    """Moves by a share of the sides."""
    rotation: float = 0.0
    """Turns by degrees, either way."""
    scale: float = 0.0
    """Enlarges or shrinks by a share; with border 'cut', only enlarges."""
    shear: float = 0.0
    """Slants by pixels sideways for each pixel down."""
    border: Literal["cut", "white"] = "cut"
    """After a shift, rotation, scale or shear, what lies outside of the picture is 'white', as on paper, or 'cut': the
    picture is enlarged until none of it shows."""
    brightness: float = 0.0
    """Multiplies by 1 plus or minus this."""
    contrast: float = 0.0
    """The same for the distance of each pixel from the mean grey of the picture."""
    saturation: float = 0.0
    """The same for the distance of each pixel from its own grey."""

    @classmethod
    def short_form(cls, value: Any) -> Any:
        """true: a small shift, rotation, scaling and shear; false: nothing."""
        return to_dict(LIGHT if value else cls()) if isinstance(value, bool) else value

    def __post_init__(self):
        for name in ("crop", "shift", "scale", "brightness", "contrast", "saturation"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be at least 0 and below 1")
        require(0 <= self.rotation <= 180, "rotation", self.rotation, "must be from 0 to 180 degrees")
        require(0 <= self.shear <= 1, "shear", self.shear, "must be from 0 to 1")


OFF = AugmentConfig()
LIGHT = AugmentConfig(shift=1.5 / 32, rotation=8, scale=0.06, shear=0.08, border="white")
"""What `augment: true` is: pictures still say the same, also those of writing."""


def augment(image: Image, settings: AugmentConfig, rng: np.random.Generator, side: int = 0) -> Image:
    """A copy of a picture that is changed at random, of mode RGB or L; the picture itself if that is off.

    Args:
      side: pixels that the picture will be shrunk to later. If it has more than twice as many it is shrunk by a whole
        number first, as all else takes time in proportion to the pixels; 0: never.
    """
    from PIL import ImageEnhance, ImageOps

    if settings == OFF:
        return image
    image = image if image.mode == "L" else to_rgb(image)
    if side and (factor := min(image.size) // (2 * side)) > 1:
        image = image.reduce(factor)
    # All numbers are drawn, whether they are needed or not, so that no setting changes what the others do.
    mirror, places, moves, colours = rng.random() < 0.5, rng.random(3), rng.uniform(-1, 1, 5), rng.uniform(-1, 1, 3)
    if settings.crop:
        image = _crop(image, settings.crop, places)
    if settings.flip and mirror:
        image = ImageOps.mirror(image)
    if settings.shift or settings.rotation or settings.scale or settings.shear:
        image = _move(image, settings, moves)
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, strength, chance in zip(enhancers, strengths, colours, strict=True):
        if strength:
            image = enhancer(image).enhance(1 + strength * chance)
    return image


def _crop(image: Image, most: float, places: np.ndarray) -> Image:
    """Cuts out a rectangle of the same aspect ratio. `places`: its size, left and top, each from 0 to 1."""
    share = 1 - most * places[0]
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = round((image.width - width) * places[1]), round((image.height - height) * places[2])
    return image.crop((left, top, left + width, top + height))


def _move(image: Image, settings: AugmentConfig, moves: np.ndarray) -> Image:
    """Shift, rotation, scale and shear about the centre as one affine map. `moves`: how much of each, from -1 to 1."""
    from PIL import Image

    cut = settings.border == "cut"
    moves = moves.tolist()
    angle, shear = math.radians(settings.rotation) * moves[0], settings.shear * moves[1]
    zoom = settings.scale * (abs(moves[2]) if cut else moves[2])
    # A matrix from places of the result to those of the picture. Arrays of so few numbers would take most of the time.
    cos, sin = math.cos(angle) / (1 + zoom), math.sin(angle) / (1 + zoom)
    a, b, c, d = cos, cos * shear - sin, sin, sin * shear + cos
    x, y = (side / 2 for side in image.size)  # the centre
    left, top = (2 * settings.shift * move * half for move, half in zip(moves[3:], (x, y), strict=True))
    if cut:
        corners = [(sign_x * x - left, sign_y * y - top) for sign_x in (-1, 1) for sign_y in (-1, 1)]
        outside = max(max(abs(a * u + b * v) / x, abs(c * u + d * v) / y) for u, v in corners)
        a, b, c, d = (each / max(1, outside) for each in (a, b, c, d))
    offset_x, offset_y = x - a * (x + left) - b * (y + top), y - c * (x + left) - d * (y + top)
    white = (255,) * len(image.getbands())
    return image.transform(
        image.size, Image.Transform.AFFINE, (a, b, offset_x, c, d, offset_y), Image.Resampling.BICUBIC,
        fillcolor=white,
    )  # fmt: skip
