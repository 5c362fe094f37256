"""Pictures of records as documents take them: decoded, checked, augmented."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chameleon_jax.document import DocumentError
from data_pipeline.augment import OFF, augment
from data_pipeline.filters import check_picture
from data_pipeline.forms import rng_of
from data_pipeline.records import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from data_pipeline.sources.source import SourceConfig


def decode_picture(picture: Picture, source: SourceConfig) -> Image:
    """A picture as it is.

    Raises:
      DocumentError: if it cannot be decoded, or the source's filter does not let it through.
    """
    image = picture.open(exif=getattr(source, "exif", True))
    if reason := check_picture(image.size, source.filter):
        raise DocumentError(f"{picture.name}: {reason}")
    return image


def augmented(image: Image, source: SourceConfig, seed: int, document_id: str, number: int, side: int) -> Image:
    """Picture `number` of a document as its source wants it, before it becomes a square of `side` pixels."""
    if source.augment == OFF:  # the usual case costs no hash
        return image
    return augment(image, source.augment, rng_of(seed, document_id, f"augment {number}"), side)


def open_picture(picture: Picture, source: SourceConfig, seed: int, document_id: str, number: int, side: int) -> Image:
    """Both in one."""
    return augmented(decode_picture(picture, source), source, seed, document_id, number, side)
