"""Pictures as `chameleon prepare` keeps them for an image tokenizer: encoded, checked, of bounded size.

A picture stays the bytes of its file where it can, since encoding it again costs time and detail. Only those that are
larger than training can use are shrunk, and those in formats that are slow to read, or rarely found, are converted.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from chameleon_jax.document import DocumentError, to_rgb
from data_pipeline.forms import documents_of
from data_pipeline.near_duplicates import NearDuplicatesConfig, picture_signature
from data_pipeline.pictures import decode_picture
from data_pipeline.records import Picture, Record, Rejected
from data_pipeline.sources.source import SourceConfig

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 2
"""The shorter side that pictures may have, as a multiple of the resolution. Random crops have something to choose from
then, and when training halves them, no trace is left of how they were encoded."""
BYTES_PER_PIXEL = 4
"""Bytes that a file may have for each pixel of a square of that side; others carry more than pixels."""
_BEGINS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_LONGEST_JPEG = 65_500
_HEADER = struct.Struct("<IIQ")
"""Bytes of id, bytes of signature, digest."""


class KeptPicture(NamedTuple):
    id: str
    """Of its record."""
    data: bytes
    """The contents of a picture file."""
    digest: int
    """Hash of the contents before they were changed, for exact duplicates."""
    signature: bytes
    """For near duplicates; b"" if they are not looked for."""

    @property
    def number(self) -> int:
        """Every picture is compared with others on its own."""
        return 0


def to_bytes(picture: KeptPicture) -> bytes:
    id = picture.id.encode(errors="surrogatepass")
    header = _HEADER.pack(len(id), len(picture.signature), picture.digest)
    return b"".join([header, id, picture.signature, picture.data])


def from_bytes(content: bytes) -> KeptPicture:
    """Raises ValueError with the reason if the bytes are damaged."""
    if len(content) < _HEADER.size:
        raise ValueError(f"no picture has {len(content)} bytes")
    of_id, of_signature, digest = _HEADER.unpack_from(content)
    begin = _HEADER.size + of_id + of_signature
    if begin >= len(content):
        raise ValueError("the sizes of its parts do not fit its size")
    id = content[_HEADER.size : _HEADER.size + of_id].decode(errors="surrogatepass")
    return KeptPicture(id, content[begin:], digest, content[_HEADER.size + of_id : begin])


def keep_pictures(
    items: Iterable[Record | Rejected],
    source: SourceConfig,
    resolution: int,
    seed: int,
    compared: NearDuplicatesConfig,
) -> Iterator[list[KeptPicture] | Rejected]:
    """The pictures of the documents made of each record, or why there are none; in order.

    Args:
      items: as `source.read` gives them.
      resolution: of the image tokenizer.
      seed: of forms.
      compared: what signatures of near duplicates are computed of.
    """
    for item in items:
        made = item if isinstance(item, Rejected) else documents_of(item, source, seed)
        if isinstance(made, Rejected):
            yield made
            continue
        known: dict[int, KeptPicture] = {}  # documents may be copies of each other
        try:
            for picture in (picture for document in made for picture in document.pictures):
                if id(picture) not in known:
                    known[id(picture)] = _keep(picture, item.id, source, resolution, compared)
        except DocumentError as error:
            yield Rejected(item.id, item.place, str(error))
        else:
            yield [known[id(picture)] for document in made for picture in document.pictures]


def _keep(
    picture: Picture, id: str, source: SourceConfig, resolution: int, compared: NearDuplicatesConfig
) -> KeptPicture:
    data = picture.read()
    image = decode_picture(Picture(picture.name, data), source)
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    signature = b"" if compared.pictures is None else picture_signature(image)
    return KeptPicture(id, _bounded(data, image, LARGEST * resolution), digest, signature)


def _bounded(data: bytes, image: Image, side: int) -> bytes:
    """A picture file of which the shorter side has at most `side` pixels."""
    is_small = min(image.size) <= side
    is_common = data.startswith(_BEGINS) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    if is_small and is_common and len(data) <= BYTES_PER_PIXEL * side * side:
        return data
    image = to_rgb(image)
    if not is_small:
        from PIL.Image import Resampling

        scale = side / min(image.size)
        image = image.resize([max(side, round(scale * each)) for each in image.size], Resampling.LANCZOS)
    file = io.BytesIO()
    if is_small or max(image.size) > _LONGEST_JPEG:
        image.save(file, "PNG")
    else:  # lossless files take four times as long to decode, in every epoch
        image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
