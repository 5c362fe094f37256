"""Kind 'table': CSV, TSV or JSON lines that name pictures and their captions, such as metadata.jsonl.

    file_name,text
    kites/17.jpg,A red kite over the Jura.

Paths are relative to the table. A cell with line breaks stands in quotes, and a quote in it is written twice. Text is
in UTF-8, or in UTF-16 if the file begins with its mark, or in the encoding that a config names.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError
from data_pipeline.records import Picture, Record, Rejected, Shard
from data_pipeline.sources.captioned import CaptionedSource, caption_of, find_column, texts_of
from data_pipeline.sources.files import PICTURES_PER_SHARD, SHARD_BYTES, DataFile, Pictures, identity
from data_pipeline.sources.json_text import LONGEST_LINE, parse_json, shown
from data_pipeline.sources.jsonl import read_lines
from data_pipeline.sources.source import register_source
from data_pipeline.sources.streams import UTF_16, compression, open_plain, open_text

_IMAGE_COLUMNS = ("image", "file_name", "image_path", "path")
_TEXT_COLUMNS = ("text", "caption")
_SUFFIXES = (".csv", ".tsv", ".jsonl")


class _Row(NamedTuple):
    at: int  # the place of its first byte
    line: int  # the number of its first line
    values: Any | DocumentError


@register_source
@config
class TableSource(CaptionedSource):
    """Tables of pictures and captions: CSV, TSV, or JSON lines such as metadata.jsonl."""

    kind: Literal["table"] = "table"
    image_column: str = ""
    """The column of paths of pictures. Default: image, file_name, image_path or path. Without one, captions are
    texts of their own."""
    text_column: str = ""
    """The column of captions. Default: text or caption."""
    columns: tuple[str, ...] = ()
    """Names of the columns, for tables whose first line does not hold them."""
    delimiter: str = ""
    """The character between cells. Default: tab in .tsv files; otherwise the first of , ; tab | that is in the first
    line."""
    quote: str = '"'
    """The character around cells with delimiters or line breaks in them. "": quotes are text like any other."""
    encoding: str = ""
    """The encoding of the text, such as cp1252. Default: UTF-8, or UTF-16 if a file begins with its mark."""

    patterns: ClassVar[tuple[str, ...]] = tuple(
        f"*{s}{compressed}" for s in _SUFFIXES for compressed in ("", ".gz", ".zst")
    )

    def __post_init__(self):
        super().__post_init__()
        require(len(self.delimiter) <= 1, "delimiter", self.delimiter, "must be one character")
        require(len(self.quote) <= 1, "quote", self.quote, "must be one character, or empty")
        try:
            in_bytes = "\n".encode(self.encoding or "utf-8") == b"\n"
        except LookupError:
            raise ConfigError(f"encoding = {self.encoding!r}: Python knows no such encoding") from None
        require(in_bytes, "encoding", self.encoding, "must leave ASCII as it is; UTF-16 is read by its mark")

    def shards(self, datasets: str = "") -> list[Shard]:
        return [shard for file in self.files() for shard in self._shards_of(file)]

    def _shards_of(self, file: DataFile) -> list[Shard]:
        """Shards of whole rows: `PICTURES_PER_SHARD` of them, or `SHARD_BYTES`. Compressed tables, and those in UTF-16,
        are one."""
        begins = [0]
        with open_plain(file.path) as stream:
            head = stream.read(8)
        with open_text(file.path) as stream:
            try:
                columns, rows = self._open(file.name, stream)
                most = PICTURES_PER_SHARD if self._columns(columns)[0] else file.size
                for number, row in enumerate(() if compression(head) or head.startswith(UTF_16) else rows):
                    if number and (number % most == 0 or row.at - begins[-1] >= SHARD_BYTES):
                        begins.append(row.at)
            except DocumentError:  # `read` reports it
                pass
        if len(begins) == 1:
            return [Shard(file.name, identity(file.path), files=(file.name,))]
        shards = []
        for begin, end in itertools.pairwise([*begins, file.size]):
            contents = hashlib.sha256(f"{identity(file.path, begin, end)} {columns}".encode()).hexdigest()
            shards.append(Shard(f"{file.name}@{begin}", contents, begin, end, files=(file.name,)))
        return shards

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        name, folder = shard.files[0], os.path.dirname(self.path_of(shard))
        where = "its begin"
        try:
            with open_text(self.path_of(shard)) as stream:
                columns, rows = self._open(name, stream, shard.begin)
                image_column, text_column = self._columns(columns)
                for row in itertools.takewhile(lambda row: not shard.end or row.at < shard.end, rows):
                    where = f"byte {row.at:,}" if shard.begin else f"line {row.line}"
                    id, place = f"{name}@{row.at}", f"{name}, {where}"
                    try:
                        if isinstance(row.values, DocumentError):
                            raise row.values
                        pictures = _pictures(row.values, image_column, Pictures(folder, place))
                        caption = caption_of(row.values.get(text_column), id)
                        others = {name: value for name, value in row.values.items() if name != image_column}
                        record = self.captioned(id, place, pictures, caption, texts_of(others))
                    except DocumentError as error:
                        record = Rejected(id, place, str(error))
                    yield record
        except DocumentError as error:
            yield Rejected(f"{name}@end", f"{name}, all behind {where}", str(error))

    def _columns(self, columns: Sequence[str]) -> tuple[str, str]:
        """The column of pictures, "" if there is none, and that of captions."""
        image = find_column("image_column", self.image_column, _IMAGE_COLUMNS, columns)
        text = find_column("text_column", self.text_column, _TEXT_COLUMNS, columns)
        if not text and (self.needs_captions or not (image or self.form.templates)):
            raise ConfigError(f"text_column: must name the column of captions, one of {', '.join(map(repr, columns))}")
        return image, text

    def _open(self, name: str, file: BinaryIO, begin: int = 0) -> tuple[Sequence[str], Iterator[_Row]]:
        """The names of the columns, and the rows that begin at `begin` or behind it; their values are mappings.

        Raises:
          DocumentError: if the first line does not say what the columns are.
        """
        if ".jsonl" in os.path.basename(name).lower():
            rows = _json_rows(file, 0)
            first = list(itertools.islice(rows, 100))
            columns = tuple(dict.fromkeys(name for row in first if isinstance(row.values, dict) for name in row.values))
            rows = _json_rows(file, begin) if begin else itertools.chain(first, rows)
        else:
            lines = _Lines(read_lines(file), self.encoding or "utf-8")
            cells = _cells(lines, self._csv_format(name, lines.peek()))
            header = None if self.columns else next(cells, None)
            if header and isinstance(header.values, DocumentError):
                raise header.values
            columns = self.columns or tuple(header.values if header else ())
            if begin:
                lines = _Lines(read_lines(file, begin), self.encoding or "utf-8")
                cells = _cells(lines, self._csv_format(name, "".join(columns)))
            rows = (row._replace(values=_named(row.values, columns)) for row in cells)
        if not columns:
            raise DocumentError("the table is empty, or does not begin with the names of its columns")
        return columns, rows

    def _csv_format(self, name: str, first_line: str) -> dict[str, Any]:
        """Arguments of `csv.reader`."""
        delimiter = "\t" if ".tsv" in os.path.basename(name).lower() else ","
        delimiter = next((char for char in ",;\t|" if char in first_line), ",") if delimiter == "," else delimiter
        quoting = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        return {"delimiter": self.delimiter or delimiter, "strict": True, **quoting}


def _pictures(values: Mapping[str, Any], column: str, picture: Pictures) -> list[Picture]:
    if not column:
        return []
    paths = values.get(column)
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise DocumentError(f"column {column!r}, {shown(paths)}: must be a path")
    if not all(paths):
        raise DocumentError(f"column {column!r} is empty")
    return [picture(path) for path in paths]


def _named(cells: list[str] | DocumentError, columns: Sequence[str]) -> dict[str, str] | DocumentError:
    if isinstance(cells, DocumentError):
        return cells
    if len(cells) != len(columns):
        return DocumentError(f"{len(cells)} cells, but the table has {len(columns)} columns")
    return dict(zip(columns, cells, strict=True))


class _Lines:
    """The lines of a table as text; `csv` takes as many as a row has."""

    def __init__(self, lines: Iterator[tuple[int, bytes | None]], encoding: str):
        self._lines = enumerate(lines, start=1)
        self.encoding = encoding
        self._held: tuple[int, int, str | None] | None = None
        self.begin_row()

    def begin_row(self) -> None:
        """Forgets what is known of the last row."""
        self.at, self.line, self.too_long = -1, 0, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        number, at, text = self._held or self._read()
        self._held = None
        if self.at < 0:
            self.at, self.line = at, number
        self.too_long |= text is None
        return text or "\n"

    def peek(self) -> str:
        """The next line, or "" at the end."""
        try:
            self._held = self._held or self._read()
        except StopIteration:
            return ""
        return self._held[2] or ""

    def _read(self) -> tuple[int, int, str | None]:
        number, (at, line) = next(self._lines)
        text = None if line is None else line.decode(self.encoding, "surrogateescape")
        return number, at, text.removeprefix("\ufeff") if text and not at else text


def _cells(lines: _Lines, csv_format: dict[str, Any]) -> Iterator[_Row]:
    """The rows of a CSV file that are not blank, each a list of cells."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    reader = csv.reader(lines, **csv_format)
    while True:
        lines.begin_row()
        try:
            cells: list[str] | DocumentError | None = next(reader, None)
        except csv.Error as error:
            cells = DocumentError(
                f"not valid CSV: {error}; quotes in text are written twice, or turned off (quote: '')"
            )
        if cells is None:
            return
        if lines.too_long:
            cells = DocumentError(f"longer than {LONGEST_LINE:,} bytes")
        elif isinstance(cells, list):
            try:
                "".join(cells).encode()
            except UnicodeEncodeError:
                cells = DocumentError(f"not valid {lines.encoding}; see the key `encoding`")
        if cells:
            yield _Row(lines.at, lines.line, cells)


def _json_rows(file: BinaryIO, begin: int) -> Iterator[_Row]:
    """The lines that are not blank, each an object."""
    for number, (at, line) in enumerate(read_lines(file, begin), start=1):
        values: Any
        try:
            if line is None:
                raise DocumentError(f"longer than {LONGEST_LINE:,} bytes")
            if line.isspace():
                continue
            values = parse_json(line)
            if not isinstance(values, dict):
                raise DocumentError('a line must be an object such as {"file_name": "17.jpg", "text": "A red kite."}')
        except DocumentError as error:
            values = error
        yield _Row(at, number, values)
