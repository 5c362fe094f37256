"""Kind 'documents': JSON lines, each a list of texts and pictures.

    ["A red kite. ", {"image": "kites/17.jpg"}, "Seen in May."]

Paths of pictures are relative to the file; absolute paths and `..` are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import DocumentError
from data_pipeline.records import Picture, Record, Segment
from data_pipeline.sources.files import Pictures
from data_pipeline.sources.json_text import check_text, shown
from data_pipeline.sources.jsonl import JsonLinesSource
from data_pipeline.sources.source import register_source


def _segment(value: Any, picture: Callable[[str], Picture]) -> Segment:
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, dict) and value.keys() == {"image"} and isinstance(value["image"], str):
        return picture(value["image"])
    raise DocumentError(f'{shown(value)}: a segment is text or {{"image": "path"}}')


def parse_segments(values: Any, picture: Callable[[str], Picture]) -> tuple[Segment, ...]:
    """The segments that a list in JSON means.

    Raises:
      DocumentError: if it is not a list of segments, or empty.
    """
    if not isinstance(values, list):
        raise DocumentError("a line must be a list of segments")
    segments = tuple(_segment(value, picture) for value in values)
    if all(segment == "" for segment in segments):
        raise DocumentError("the document is empty")
    return segments


@register_source
@config
class DocumentsSource(JsonLinesSource):
    """Your own documents: lines such as ["A red kite. ", {"image": "kites/17.jpg"}]."""

    kind: Literal["documents"] = "documents"

    def parse(self, values: Any, id: str, place: str, picture: Pictures) -> Record:
        return Record(id, place, parse_segments(values, picture))
