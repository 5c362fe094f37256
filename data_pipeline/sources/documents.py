"""Kind 'documents': JSON lines, each a document. Either a list of texts and pictures in our own format,

    ["A red kite. ", {"image": "kites/17.jpg"}, "Seen in May."]

or an object: a text or a picture with its caption, interleaved as in OBELICS, or as in MMC4:

    {"text": "A red kite was seen in May."}
    {"image": "kites/17.jpg", "caption": "A red kite."}
    {"images": ["kites/17.jpg"], "text": "A red kite: <image>"}
    {"texts": ["A red kite. ", null, "Seen in May."], "images": [null, "kites/17.jpg", null]}
    {"text_list": ["A red kite."], "image_info": [{"image_name": "kites/17.jpg", "matched_text_index": 0}]}

Without marks (<image>, <|image|>, ⟨image⟩) in the text, `images` come first; without pictures, marks are text. Of other
objects, such as {"question": …, "answer": …}, `form.templates` make documents. A file called .json may be one array of
objects instead of lines. A picture is a path relative to the file (absolute paths and `..` are allowed), a `data:` URL,
or the file in base64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import DocumentError
from data_pipeline.records import Picture, Record, Segment
from data_pipeline.sources.interleaved import is_empty, is_interleaved, parse_interleaved
from data_pipeline.sources.json_text import check_text, shown
from data_pipeline.sources.jsonl import JsonLinesSource
from data_pipeline.sources.named_pictures import has_marks, names_of, put_at_marks
from data_pipeline.sources.source import register_source

Segments = tuple[Segment, ...]


def _segment(value: Any, picture: Callable[[str], Picture]) -> Segment:
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, dict) and value.keys() == {"image"} and isinstance(value["image"], str):
        return picture(value["image"])
    raise DocumentError(f'{shown(value)}: a segment is text or {{"image": "path"}}')


def parse_segments(values: list[Any], picture: Callable[[str], Picture]) -> Segments:
    """The segments that a list in JSON means.

    Raises:
      DocumentError: if it is not a list of segments, or empty.
    """
    segments = tuple(_segment(value, picture) for value in values)
    if is_empty(segments):
        raise DocumentError("the document is empty")
    return segments


def _parse_columns(values: dict[str, Any], picture: Callable[[str], Picture]) -> tuple[Segments, dict[str, Segment]]:
    """The document that a text and pictures make, and all texts and numbers by their names, for templates.

    There are no such fields if marks in the text say where the pictures stand.
    """
    fields: dict[str, Segment] = {
        name: check_text(value) if isinstance(value, str) else str(value)
        for name, value in values.items()
        if isinstance(value, (str, int, float)) and name != "image"
    }
    name = next((name for name in ("text", "caption") if values.get(name)), "text")
    text = values.get(name) or ""
    if not isinstance(text, str):
        raise DocumentError(f"{name} must be a text, not {shown(text)}")
    pictures = [picture(each) for each in names_of(values)]
    if pictures and has_marks(text):
        return put_at_marks(text, pictures), {}
    fields |= {"image": pictures[0]} if len(pictures) == 1 else {}
    fields |= {"text": text} if text else {}
    return (*pictures, *([text] if text.strip() else [])), fields


@register_source
@config
class DocumentsSource(JsonLinesSource):
    """Your own documents as JSON lines: lists such as ["A red kite. ", {"image": "kites/17.jpg"}], or objects such as
    {"text": "A red kite."} and {"image": "kites/17.jpg", "caption": "A red kite."}."""

    kind: Literal["documents"] = "documents"

    def parse(self, values: Any, id: str, place: str, picture: Callable[[str], Picture]) -> Record:
        if isinstance(values, list):
            return Record(id, place, parse_segments(values, picture))
        if not isinstance(values, dict):
            raise DocumentError("a line must be a list of segments, or an object with a text or a picture")
        if is_interleaved(values):
            return Record(id, place, parse_interleaved(values, picture))
        segments, fields = _parse_columns(values, picture)
        if not segments and not (fields and self.form.templates):
            keys = shown(list(values))
            raise DocumentError(f"no text, caption or image in an object with the keys {keys}; or set form.templates")
        return Record(id, place, segments, fields=fields)
