"""Your own Documents: a file of JSON lines, each a list of texts and pictures.

    ["A red kite. ", {"image": "kites/17.jpg"}, "Seen in May."]

Paths of pictures are relative to the file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from chameleon_jax.config import SourceConfig
from chameleon_jax.document import Document, DocumentError, open_image
from chameleon_jax.files import FileError

T = TypeVar("T")


def check_text(value: str) -> str:
    """The text, which must be valid Unicode."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DocumentError(f"{value[:40]!r}…: lone surrogate, not valid Unicode text")
    return value


def _segment(value: Any, folder: Path):
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, dict) and value.keys() == {"image"} and isinstance(value["image"], str):
        return open_image(folder / value["image"])
    raise DocumentError(f'{json.dumps(value)[:80]}: a segment is text or {{"image": "path"}}')


def parse_document(values: Any, folder: Path) -> Document:
    """A Document from a list of segments; its pictures are in files beside `folder`.

    Raises:
      DocumentError: if it is none, or empty.
    """
    if not isinstance(values, list):
        raise DocumentError("a line must be a list of segments")
    document = [_segment(value, folder) for value in values]
    if all(segment == "" for segment in document):
        raise DocumentError("the document is empty")
    return document


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not valid UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"not valid JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise DocumentError("not usable JSON: nested too deeply") from None


def read_lines(source: SourceConfig, parse: Callable[[Any, Path], T]) -> Iterator[T]:
    """What `parse` makes of each line of the file and of the file's folder, in order; blank lines are passed over.

    Raises:
      FileError: if the file cannot be read.
      DocumentError: naming file and line of one that cannot be used. Nothing is skipped silently.
    """
    path = Path(source.path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for number, line in itertools.islice(lines, source.count or None):
            try:
                yield parse(_parse_json(line), path.parent)
            except DocumentError as error:
                raise DocumentError(f"{path}, line {number}: {error}") from None


def jsonl_documents(source: SourceConfig) -> Iterator[Document]:
    """Documents of the file in order; see `read_lines`."""
    return read_lines(source, parse_document)
