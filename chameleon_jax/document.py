"""Documents: ordered lists of text and pictures, the unit of everything a person sees.

`["The digit ", picture, " is a seven."]` is a prompt, a training example or an answer alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_jax.errors import ChameleonError

if TYPE_CHECKING:
    from PIL.Image import Image

Document = list["str | Image"]  # PIL itself is imported only where a picture is at hand

IMAGE_MARKS = ("⟨image⟩", "<image>")
"""Where pictures go in a prompt typed as one text."""


class DocumentError(ChameleonError, ValueError):
    """A document, or a picture for one, that cannot be used."""


def open_image(path: str | Path) -> Image:
    """Reads a picture file whole.

    Raises:
      DocumentError: if it is missing, empty or not a picture that Pillow can decode.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise DocumentError(f"{path}: the file is empty (0 bytes)")
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise DocumentError(f"{path}: no such picture file") from None
    except UnidentifiedImageError:
        raise DocumentError(f"{path}: not a picture in a format that can be read (PNG, JPEG, WebP, GIF, …)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{path}: the picture cannot be decoded: {error}") from None


def to_rgb(image: Image) -> Image:
    """Any picture as 8-bit RGB.

    Transparent pixels are blended with white in floating point and truncated, as the released code does. 16-bit grey
    keeps its upper eight bits (Pillow's own conversion would clip nearly everything to white). CMYK, palette, grey and
    bilevel pictures are converted by Pillow.

    Raises:
      DocumentError: for floating-point pictures, whose range is unknown, and pictures without pixels.
    """
    import numpy as np
    from PIL import Image

    if image.width == 0 or image.height == 0:
        raise DocumentError(f"the picture has no pixels: {image.width} x {image.height}")
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DocumentError("floating-point pictures (mode F) have no known range; save as 8- or 16-bit first")
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    if alpha.min() == 1:
        return image.convert("RGB")
    return Image.fromarray(((1 - alpha) * 255 + alpha * rgba[..., :3]).astype(np.uint8))


def parse_prompt(text: str, images: Sequence[Image]) -> Document:
    """Puts `images` where `text` says ⟨image⟩ (or <image>); if it never does, they go before the text.

    Raises:
      DocumentError: if the marks and the pictures differ in number, or nothing is left.
    """
    for mark in IMAGE_MARKS[1:]:
        text = text.replace(mark, IMAGE_MARKS[0])
    pieces = text.split(IMAGE_MARKS[0])
    if len(pieces) == 1:
        return [*images, *([text] if text else [])]
    if len(pieces) - 1 != len(images):
        raise DocumentError(
            f"the prompt has {len(pieces) - 1} ⟨image⟩ marks but {len(images)} pictures were given (--image FILE)"
        )
    document: Document = []
    for piece, image in zip(pieces, [*images, None], strict=True):
        document += [piece] if piece else []
        document += [image] if image is not None else []
    return document
