"""Pictures of records as documents take them: decoded, checked, augmented."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chameleon_jax.document import DocumentError
from data_pipeline.augment import augment
from data_pipeline.filters import check_picture
from data_pipeline.forms import rng_of
from data_pipeline.records import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from data_pipeline.sources.source import SourceConfig


def open_picture(picture: Picture, source: SourceConfig, seed: int, document_id: str, number: int, side: int) -> Image:
    """Decodes picture `number` of a document as its source says.

    Args:
      side: pixels of the square that it will be cropped to or padded to.

    Raises:
      DocumentError: if it cannot be decoded, or the source's filter does not let it through.
    """
    image = picture.open(exif=getattr(source, "exif", True))
    if reason := check_picture(image.size, source.filter):
        raise DocumentError(f"{picture.name}: {reason}")
    if not source.augment:
        return image
    return augment(image, source.augment, rng_of(seed, document_id, f"augment {number}"), side)
