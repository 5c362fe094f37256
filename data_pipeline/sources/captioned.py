"""What sources of pictures with captions have in common: the kinds 'folder', 'table', 'webdataset' and 'parquet'."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError
from data_pipeline.records import Picture, Record, Rejected, Segment
from data_pipeline.sources.conversations import parse_turns
from data_pipeline.sources.files import FilesSource
from data_pipeline.sources.interleaved import parse_interleaved
from data_pipeline.sources.json_text import check_text, shown

PICTURE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip
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
    """The valid texts and the numbers among named values, as texts."""
    texts = {}
    for name, value in values.items():
        with contextlib.suppress(DocumentError):
            if text := check_text(_text_of(value) or ""):
                texts[str(name)] = text
    return texts


def _text_of(value: Any) -> str | None:
    if value is None:
        return ""
    return str(value) if isinstance(value, (str, int, float)) else None


def parse_structure(values: Mapping[str, Any], pictures: Mapping[str, Picture]) -> dict[str, Any] | None:
    """`turns` or `segments` of values that are more than a caption: conversations as in kind 'conversations'; `texts`
    between `images` as in OBELICS; or `texts` of questions and answers as in the Cauldron. None of all others.

    Args:
      pictures: by name, in order. If `images` or `image` of the values have other names, they mean these in order.

    Raises:
      DocumentError: if they are not valid.
    """

    def picture(name: str) -> Picture:
        if name not in pictures:
            raise DocumentError(f"{shown(name)}: no such picture in the record; it has {shown(list(pictures))}")
        return pictures[name]

    names = _names_of_pictures(values, pictures)
    chat = {"images": [name for name in names if name is not None]}
    for key in CONVERSATION_KEYS:
        if values.get(key):
            return {"turns": tuple(parse_turns({**chat, key: values[key]}, picture))}
    texts = values.get("texts")
    if not isinstance(texts, list) or not texts:
        return None
    if all(isinstance(text, dict) for text in texts):
        messages = [{"role": role, "content": text.get(role)} for text in texts for role in ("user", "assistant")]
        return {"turns": tuple(parse_turns({**chat, "messages": messages}, picture))}
    return {"segments": parse_interleaved({"texts": texts, "images": names}, picture)}


def _names_of_pictures(values: Mapping[str, Any], pictures: Mapping[str, Picture]) -> list[str | None]:
    given = values.get("images") or values.get("image") or list(pictures)
    given = given if isinstance(given, list) else [given]
    known = all(name is None or (isinstance(name, str) and name in pictures) for name in given)
    if known or sum(name is not None for name in given) != len(pictures):
        return given if known else list(pictures)
    in_order = iter(pictures)
    return [None if name is None else next(in_order) for name in given]


def find_column(key: str, name: str, usual: Sequence[str], columns: Sequence[str]) -> str:
    """The column that a config names, or the first of the usual ones that there is, or "".

    Raises:
      ConfigError: if there is no column of this name, or several.
    """
    found = name or next((each for each in usual if each in columns), "")
    if found and columns.count(found) != 1:
        there_is = "there are several such columns" if found in columns else "there is no such column"
        raise ConfigError(f"{key} = {found!r}: {there_is}; the columns are {', '.join(map(repr, columns))}")
    return found


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

    @property
    def needs_captions(self) -> bool:
        """Whether pictures without a caption are rejected: not where templates say what is needed."""
        return self.uncaptioned == "reject" and not self.form.templates

    def captioned(
        self, record_id: str, place: str, pictures: Sequence[Picture], caption: str, fields: Mapping[str, str]
    ) -> Record | Rejected:
        """The record of pictures and their caption, or of a caption alone.

        Args:
          fields: further texts by name, for templates. With templates, they are enough.
        """
        caption = caption.strip()
        if not pictures and not caption and not (fields and self.form.templates):
            return Rejected(record_id, place, "neither a picture nor a text")
        if not caption and self.needs_captions:
            return Rejected(record_id, place, "the picture has no caption ('uncaptioned: keep' keeps it)")
        named: dict[str, Segment] = {**fields, "text": caption} if caption else {**fields}
        if len(pictures) == 1:  # with more, {image} in templates stands for one after another
            named["image"] = pictures[0]
        return Record(record_id, place, (*pictures, *([caption] if caption else [])), fields=named)
