"""What sources of pictures with captions have in common: the kinds 'folder', 'table', 'webdataset' and 'parquet'."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError
from data_pipeline.records import Picture, Record, Rejected, Segment
from data_pipeline.sources.conversations import parse_turns
from data_pipeline.sources.files import FilesSource
from data_pipeline.sources.json_text import check_text, shown

PICTURE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip
PICTURES_PER_SHARD = 1000
CONVERSATION_KEYS = ("conversations", "messages")


def caption_of(value: Any, record_id: str) -> str:
    """The caption that a value is; of a list, one that is the same every time for a record.

    Raises:
      DocumentError: if it is neither a text, nor a list of texts, nor a number, nor nothing.
    """
    if isinstance(value, (list, tuple)):
        captions = [caption for each in value if (caption := caption_of(each, record_id).strip())]
        number = int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:8], "big")
        return captions[number % len(captions)] if captions else ""
    text = _text_of(value)
    if text is None:
        raise DocumentError(f"{shown(value)}: a caption is a text or a list of texts")
    return check_text(text)


def texts_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The texts and numbers among named values, as texts."""
    return {str(name): text for name, value in values.items() if (text := _text_of(value))}


def _text_of(value: Any) -> str | None:
    if value is None:
        return ""
    return str(value) if isinstance(value, (str, int, float)) else None


def parse_structure(values: Mapping[str, Any], pictures: Mapping[str, Picture]) -> dict[str, Any] | None:
    """`turns` or `segments` of values that are no captions: a conversation as in kind 'conversations' or, with the key
    `texts`, texts and pictures in turn. None for all others.

    Args:
      pictures: by their names, in order. Values may name them; otherwise they are taken in order.

    Raises:
      DocumentError: if the conversation or its like is not valid.
    """
    keys = [key for key in CONVERSATION_KEYS if values.get(key) is not None]
    if not keys:
        return None

    def picture(name: str) -> Picture:
        if name not in pictures:
            raise DocumentError(f"{shown(name)}: no such picture in the record; it has {shown(list(pictures))}")
        return pictures[name]

    given = values.get("images") or values.get("image") or ()
    given = [given] if isinstance(given, str) else given
    named = isinstance(given, list) and all(
        name is None or (isinstance(name, str) and name in pictures) for name in given
    )
    chosen = {keys[0]: values[keys[0]], "images": given if named and given else list(pictures)}
    return {"turns": tuple(parse_turns(chosen, picture))}


def find_column(key: str, name: str, usual: Sequence[str], columns: Sequence[str]) -> str:
    """The column that a config names, or the first of the usual ones that there is, or "".

    Raises:
      ConfigError: if there is no column of this name.
    """
    if name and name not in columns:
        raise ConfigError(f"{key} = {name!r}: there is no such column; the columns are {', '.join(map(repr, columns))}")
    return name or next((each for each in usual if each in columns), "")


def decode_text(data: bytes) -> str:
    """Text in UTF-8, with or without a byte-order mark, or in UTF-16 with one. Raises `DocumentError`."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(f"not valid {encoding.removesuffix('-sig').upper()} at byte {error.start}") from None


@config
class CaptionedSource(FilesSource):
    """Files of pictures with captions."""

    uncaptioned: Literal["reject", "keep"] = "reject"
    """What becomes of a picture without a caption: it is rejected, or kept as a document of its own."""

    def captioned(
        self, record_id: str, place: str, pictures: Sequence[Picture], caption: str, fields: Mapping[str, Segment]
    ) -> Record | Rejected:
        """The record of pictures and their caption, or of a caption alone."""
        caption = caption.strip()
        if not pictures and not caption:
            return Rejected(record_id, place, "neither a picture nor a text")
        if not caption and self.uncaptioned == "reject":
            return Rejected(record_id, place, "the picture has no caption ('uncaptioned: keep' keeps it)")
        named: dict[str, Segment] = {f"image_{number}": each for number, each in enumerate(pictures[1:], start=2)}
        named |= {"image": pictures[0]} if pictures else {}
        named |= {"text": caption} if caption else {}
        return Record(
            record_id, place, (*pictures, caption) if caption else tuple(pictures), fields={**fields, **named}
        )
