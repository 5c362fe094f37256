"""Pictures as clients send and get them: data URLs, base64, addresses of other servers."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from chameleon_jax.document import DocumentError, TooManyPixels, decode_image
from chameleon_jax.errors import printable
from chameleon_jax.serving.errors import RequestError, invalid, too_large
from chameleon_jax.tokens.image import ImageTokenizer, to_square

if TYPE_CHECKING:
    from PIL.Image import Image

PictureFormat = Literal["png", "jpeg", "webp"]

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[\w.+-]*)*)(;base64)?,", re.ASCII)


def content_of(url: str, place: str, fetch: Callable[[str, str], bytes]) -> bytes:
    """The bytes of the picture that a URL holds or names.

    Args:
      place: of the URL in the request, for messages.
      fetch: gets those of an address, given it and the place.

    Raises:
      RequestError: if it is no data URL with base64, or `fetch` refuses.
    """
    if url[:8].lower().startswith(("http://", "https://")):
        return fetch(url, place)
    found = _DATA_URL.match(url[:1000])
    if found is None or not found[3]:
        raise invalid(f"{place} = {printable(url, 60)!r}: must be data:image/png;base64,… (or another format)", place)
    return from_base64(url[found.end() :], place)


def from_base64(text: str, place: str) -> bytes:
    """Bytes of base64, also of the alphabet for URLs and without padding."""
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{place}: the picture is no base64", place) from None


def square_of(data: bytes, place: str, tokenizer: ImageTokenizer, most_pixels: int) -> Image:
    """The picture in a file, in the size in which the image tokenizer encodes it: what is kept of it is small.

    Raises:
      RequestError: 413 if it has more than `most_pixels`, 422 if it cannot be decoded.
    """
    try:
        image = decode_image(data, place, most_pixels=most_pixels)
        return to_square(image, tokenizer.config.resolution, tokenizer.preprocessing)
    except TooManyPixels as error:
        raise too_large(str(error), place) from None
    except DocumentError as error:
        raise RequestError(422, str(error), "invalid_image", param=place) from None


def to_base64(image: Image, form: PictureFormat = "png", quality: int | None = None) -> str:
    """A picture file in base64. `quality`, from 0 to 100, is that of JPEG and WebP."""
    file = io.BytesIO()
    options = {} if quality is None or form == "png" else {"quality": quality}
    image.save(file, form.upper(), **options)
    return base64.b64encode(file.getvalue()).decode()


def to_url(image: Image) -> str:
    """A picture as a data URL, PNG."""
    return f"data:image/png;base64,{to_base64(image)}"
