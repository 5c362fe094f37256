"""Kind 'documents': a file of JSON lines, each a list of texts and pictures.

    ["A red kite. ", {"image": "kites/17.jpg"}, "Seen in May."]

Paths of pictures are relative to the file; absolute paths and `..` are allowed. A line is one document, of up to
`LONGEST_LINE` bytes and `MOST_PICTURES` pictures.
"""

from __future__ import annotations

import itertools
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import Document, DocumentError, open_image
from chameleon_jax.errors import FileError
from data_pipeline.sources.source import Resize, SourceConfig, register_source

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

OpenPicture = Callable[[str, str], "Image"]
"""Opens the picture file that a line names. The second argument is 'prompt' or 'answer', as for `Resize`."""

LONGEST_LINE = 16 << 20
"""Bytes. Tokenizing text takes fifty times its size."""
MOST_PICTURES = 512
"""Pictures of one line, which are in memory together."""


def check_text(value: str) -> str:
    """Returns the text. Raises `DocumentError` if it is not valid Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DocumentError(f"{value[:40]!r}…: lone surrogate, not valid Unicode text") from None
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for error messages."""
    try:
        return json.dumps(value)[:80]
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that is nested too deeply"


def _segment(value: Any, open_picture: OpenPicture, part: str) -> str | Image:
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, dict) and value.keys() == {"image"} and isinstance(value["image"], str):
        return open_picture(value["image"], part)
    raise DocumentError(f'{shown(value)}: a segment is text or {{"image": "path"}}')


def parse_document(values: Any, open_picture: OpenPicture, part: str = "prompt") -> Document:
    """A Document from a list of segments.

    Raises:
      DocumentError: if it is not a list of segments, or empty.
    """
    if not isinstance(values, list):
        raise DocumentError("a line must be a list of segments")
    document = [_segment(value, open_picture, part) for value in values]
    if all(segment == "" for segment in document):
        raise DocumentError("the document is empty")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DocumentError(f"not usable JSON: the key {twice[:40]!r} is written twice")
    return values


def _no_number(name: str) -> None:
    raise DocumentError(f"not valid JSON: {name} is no number")


JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)
"""Reads JSON as strictly as its standard."""


def _parse_json(line: bytes) -> Any:
    try:
        return JSON.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not valid UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"not valid JSON: {error.msg} at character {error.pos}") from None
    except DocumentError:
        raise
    except ValueError:  # of whole numbers of thousands of digits
        raise DocumentError("not usable JSON: a number has too many digits") from None
    except RecursionError:
        raise DocumentError("not usable JSON: nested too deeply") from None


def open_records(path: str | Path) -> BinaryIO:
    """Opens a file of records. Raises `FileError` if it is not a regular file or cannot be read."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileError(f"{path}: is no ordinary file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their numbers. At most `LONGEST_LINE` + 1 bytes of a line are read."""
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if line.strip():
            yield number, line


@config
class JsonLinesSource(SourceConfig):
    """A file of JSON lines in which pictures are named by their paths, relative to the file."""

    path: str = ""
    """The file. Must be given."""
    exif: bool = True
    """Rotate pictures as their EXIF data says, so that they stand as people see them. The released code does not; with
    false, the codes are those that it would give."""

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.path), "path", self.path, f"must name the file of JSON lines; kind {self.kind!r} reads one")

    def with_pictures(self, parse: Callable[[Any, OpenPicture], T], resize: Resize | None) -> Callable[[Any], T]:
        """`parse` as a function of the values of one line, which may name up to `MOST_PICTURES` pictures."""
        folder = Path(self.path).parent

        def parse_values(values: Any) -> T:
            numbers = itertools.count(1)

            def open_picture(name: str, part: str) -> Image:
                if next(numbers) > MOST_PICTURES:
                    raise DocumentError(f"more than {MOST_PICTURES} pictures")
                image = open_image(folder / name, exif=self.exif)
                return image if resize is None else resize(image, part)

            return parse(values, open_picture)

        return parse_values

    def read_lines(self, parse: Callable[[Any, OpenPicture], T], resize: Resize | None = None) -> Iterator[T]:
        """Applies `parse` to each line of the file, in order; blank lines are skipped.

        Args:
          parse: called with the values of a line and a function that opens its pictures.
          resize: see `SourceConfig.documents`.

        Raises:
          FileError: if the file cannot be read.
          DocumentError: naming the file and the first invalid line.
        """
        parse_values = self.with_pictures(parse, resize)
        with open_records(self.path) as file:
            for number, line in itertools.islice(_lines(file), self.count or None):
                try:
                    if len(line) > LONGEST_LINE:
                        raise DocumentError(f"longer than {LONGEST_LINE:,} bytes; cut it into several documents")
                    document = parse_values(_parse_json(line))
                except DocumentError as error:
                    raise DocumentError(f"{self.path}, line {number}: {error}") from None
                yield document


@register_source
@config
class DocumentsSource(JsonLinesSource):
    """Your own documents: lines such as ["A red kite. ", {"image": "kites/17.jpg"}]."""

    kind: Literal["documents"] = "documents"

    def documents(self, datasets: str = "", resize: Resize | None = None) -> Iterator[Document]:
        return self.read_lines(parse_document, resize)
