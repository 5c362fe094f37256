"""Kind 'parquet': Parquet files, and data sets of Hugging Face as they lie on the hub or as `save_to_disk` writes them.

A row is a picture with its caption; or, if it has a column `conversations` or `messages`, a conversation as in kind
'conversations', and with `texts`, texts and pictures in turn. Cells of pictures hold the bytes of picture files, alone
or as Hugging Face writes them ({"bytes": …, "path": …}), or paths relative to the file; or a list of these.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, NamedTuple

from chameleon_jax.config.reading import config
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError, FileError
from data_pipeline.records import Picture, Record, Rejected, Shard
from data_pipeline.sources.captioned import (
    CONVERSATION_KEYS,
    CaptionedSource,
    caption_of,
    find_column,
    parse_structure,
    texts_of,
)
from data_pipeline.sources.files import (
    MOST_PICTURES,
    PICTURE_BYTES,
    PICTURES_PER_SHARD,
    SHARD_BYTES,
    DataFile,
    Pictures,
    identity,
)
from data_pipeline.sources.json_text import shown
from data_pipeline.sources.source import TurnKeys, register_source
from data_pipeline.sources.streams import explained, open_plain

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_A_TIME = 32
_IMAGE_COLUMNS = ("image", "images", "img", "picture", "jpg", "png", "webp", "file_name")
_TEXT_COLUMNS = ("text", "caption", "captions", "txt")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
_NUMBERED = re.compile(r"([\w.]+)-\d+-of-\d+")


@register_source
@config
class ParquetSource(TurnKeys, CaptionedSource):
    """Parquet files or a data set of Hugging Face: pictures with captions, conversations, or texts and pictures."""

    kind: Literal["parquet"] = "parquet"
    split: str = ""
    """The split, where files belong to several. Default: train, or the only one."""
    image_column: str = ""
    """The column of pictures, or of lists of pictures. Default: the first of Hugging Face's type for pictures, or
    called image, images, img, picture, jpg, png, webp or file_name."""
    text_column: str = ""
    """The column of captions; of class labels, the names are. Default: text, caption, captions or txt."""

    patterns: ClassVar[tuple[str, ...]] = ("*.parquet", "*.arrow")

    def shards(self, datasets: str = "") -> list[Shard]:
        files = self.files()
        splits = {file.name: _split_of(file.name) for file in files}
        known = sorted(set(splits.values()))
        wanted = self.split or (known[0] if len(known) == 1 else "train")
        if wanted not in known:
            raise ConfigError(f"split = {self.split!r}: {self.path} has {', '.join(known)}")
        return [shard for file in files if splits[file.name] == wanted for shard in self._shards_of(file)]

    def _shards_of(self, file: DataFile) -> list[Shard]:
        """Shards of whole row groups, of at least `PICTURES_PER_SHARD` rows or `SHARD_BYTES`. Arrow files are one."""
        digest = identity(file.path, size=file.size)
        try:
            with open_plain(file.path) as stream:
                table = _Table(stream, file.path)
                self._columns(table.schema)
                ends = table.ends_of_shards()
        except DocumentError:  # `read` reports it
            ends = []
        if len(ends) < 2:
            rows = ends[0] if ends else 0
            return [Shard(file.name, digest, files=(file.name,), size=max(file.size, rows * PICTURE_BYTES))]
        begins = [0, *ends[:-1]]
        return [
            Shard(f"{file.name}@{begin}", digest, begin, end, end - begin, (file.name,))
            for begin, end in zip(begins, ends, strict=True)
        ]

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        name, folder, number = shard.files[0], os.path.dirname(self.path_of(shard)), shard.begin
        try:
            with open_plain(self.path_of(shard)) as stream:
                table = _Table(stream, self.path_of(shard))
                columns = self._columns(table.schema)
                for row in table.rows(columns.all, shard.begin, shard.end):
                    id, place = f"{name}:{number}", f"{name}, row {number}"
                    try:
                        record = self._record(id, place, row, columns, Pictures(folder, place))
                    except DocumentError as error:
                        record = Rejected(id, place, str(error))
                    yield record
                    number += 1
        except DocumentError as error:
            yield Rejected(f"{name}:{number} and all behind it", f"{name}, row {number} and all behind it", str(error))

    def _columns(self, schema: pa.Schema) -> _Columns:
        names = [field.name for field in schema]
        usual = [field.name for field in schema if _is_picture(field.type)]
        image = find_column("image_column", self.image_column, (*usual, *_IMAGE_COLUMNS), names)
        text = find_column("text_column", self.text_column, _TEXT_COLUMNS, names)
        structure = [name for name in (*CONVERSATION_KEYS, "texts") if name in names]
        if not structure and not text and (self.needs_captions or not (image or self.form.templates)):
            raise ConfigError(f"text_column: must name the column of captions, one of {', '.join(map(repr, names))}")
        plain = [field.name for field in schema if _is_plain(field.type)]
        return _Columns(image, text, [name for name in names if name in {image, text, *structure, *plain}])

    def _record(
        self, id: str, place: str, row: dict[str, Any], columns: _Columns, picture: Pictures
    ) -> Record | Rejected:
        cells = row.pop(columns.image, None)
        cells = cells if isinstance(cells, list) else [cells]
        if len(cells) > MOST_PICTURES:
            raise DocumentError(f"more than {MOST_PICTURES} pictures")
        pictures = {
            str(number): _picture(cell, f"{place}, {columns.image}", picture)
            for number, cell in enumerate(cells)
            if cell is not None
        }
        row["images"] = [str(number) if str(number) in pictures else None for number in range(len(cells))]
        if structure := parse_structure(row, pictures):
            return Record(id, place, **structure)
        if columns.image and not pictures:
            raise DocumentError(f"column {columns.image!r} is empty")
        return self.captioned(id, place, list(pictures.values()), caption_of(row.get(columns.text), id), texts_of(row))


class _Columns(NamedTuple):
    image: str
    text: str
    all: list[str]


def _split_of(name: str) -> str:
    """The split to which a file of a data set belongs: train-00000-of-00003.parquet or test/0000.parquet on the hub,
    test/data-00000-of-00001.arrow of save_to_disk. Others are taken for training, as Hugging Face does."""
    path = PurePosixPath(name)
    first = _NUMBERED.match(path.name)
    if first and first[1] != "data":
        return first[1]
    word = re.split(r"[-_.]", path.name)[0]
    return next((each for each in (word, path.parent.name) if each in _SPLITS), (first and path.parent.name) or "train")


def _is_picture(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_picture(kind.value_type)
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _is_plain(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    checks = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(check(kind) for check in checks)


def _picture(cell: Any, name: str, picture: Pictures) -> Picture:
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
    if isinstance(data, bytes):
        return Picture(name, data)
    if isinstance(path, str):
        return picture(path)
    raise DocumentError(f"{name}: {shown(type(cell).__name__)} is neither the bytes nor the path of a picture")


class _Table:
    """A Parquet or Arrow file. Raises `DocumentError` for whatever damaged ones make pyarrow raise."""

    def __init__(self, stream: BinaryIO, path: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        magic = stream.read(6)
        stream.seek(0)
        file = pa.PythonFile(_Readable(stream, path), "r")
        self._parquet = self._arrow = None
        with _explained():
            if magic.startswith(b"PAR1"):
                # Reads a page of each column at a time, not a whole row group.
                self._parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
                self.schema = self._parquet.schema_arrow
            else:
                self._arrow = pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)
                self.schema = self._arrow.schema
        self._names = _names_of_labels(self.schema)

    def ends_of_shards(self) -> list[int]:
        """The numbers of rows at which shards end; none of Arrow files, in which rows can only be found by reading."""
        ends, rows, size = [0], 0, 0
        for number in range(self._parquet.num_row_groups if self._parquet else 0):
            group = self._parquet.metadata.row_group(number)
            rows, size = rows + group.num_rows, size + group.total_byte_size
            if rows - ends[-1] >= PICTURES_PER_SHARD or size >= SHARD_BYTES:
                ends.append(rows)
                size = 0
        return [*ends[1:], *([rows] if rows > ends[-1] else [])]

    def rows(self, columns: list[str], begin: int, end: int) -> Iterator[dict[str, Any]]:
        """The rows from `begin` to `end` (0: the last); class labels are their names."""
        with _explained():
            for batch in self._batches(columns, begin, end):
                for row in batch.to_pylist():
                    for column, names in self._names.items():
                        label = row.get(column)
                        if label is not None and 0 <= label < len(names):
                            row[column] = names[label]
                    yield row

    def _batches(self, columns: list[str], begin: int, end: int) -> Iterator[pa.RecordBatch]:
        if self._parquet is None:
            arrow = self._arrow
            batches = (
                arrow if hasattr(arrow, "read_next_batch") else map(arrow.get_batch, range(arrow.num_record_batches))
            )
            for batch in batches:
                batch = batch.select(columns)
                yield from (batch.slice(at, _ROWS_AT_A_TIME) for at in range(0, batch.num_rows, _ROWS_AT_A_TIME))
            return
        groups, rows = [], 0
        for number in range(self._parquet.num_row_groups):
            if begin <= rows and (not end or rows < end):
                groups.append(number)
            rows += self._parquet.metadata.row_group(number).num_rows
        yield from self._parquet.iter_batches(_ROWS_AT_A_TIME, groups, columns, use_threads=False)


class _Readable(io.RawIOBase):
    """A file in which a `FileError` tells that it is out of reach from what pyarrow raises for damage."""

    def __init__(self, stream: BinaryIO, path: str):
        self._stream = stream
        self._path = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with explained(self._path):
            return self._stream.read(size)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(place, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _names_of_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of columns of labels, which Hugging Face keeps beside the schema."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        labels = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        return {name: each["names"] for name, each in labels.items() if each.get("_type") == "ClassLabel"}
    return {}


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DocumentError(f"the file cannot be read any further: {reason}") from None
