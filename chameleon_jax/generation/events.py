"""What a stream tells of an answer while it is written."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.generation.answer import Answer


@dataclasses.dataclass(frozen=True)
class TextPiece:
    """More text, in whole characters. All pieces between two pictures make up one text of the answer."""

    text: str


@dataclasses.dataclass(frozen=True)
class PictureStarted:
    """A picture was begun."""

    number: int
    """Pictures of the answer are counted from 1."""


@dataclasses.dataclass(frozen=True)
class PictureProgress:
    """More of a picture is written."""

    number: int
    written: int
    """Codes so far, from the upper left to the right and down."""
    of: int
    """Codes of a whole picture."""
    preview: Image | None = None
    """The picture as far as it is written, the rest grey, if previews were asked for and one is due."""


@dataclasses.dataclass(frozen=True)
class PictureDone:
    """A picture is whole."""

    number: int
    picture: Image


@dataclasses.dataclass(frozen=True)
class Finished:
    """The answer has ended; nothing follows."""

    answer: Answer


Event = TextPiece | PictureStarted | PictureProgress | PictureDone | Finished
