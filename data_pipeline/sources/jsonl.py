"""Reading JSON lines: what the kinds 'documents' and 'conversations' share.

Plain files are read in shards of `SHARD_BYTES`, or less where lines refer to many pictures; compressed ones, and those
in UTF-16, whole. A line is one record, of up to `LONGEST_LINE` bytes. A file may also be one JSON array of records,
where a kind says so.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar

from chameleon_jax.config.reading import config
from chameleon_jax.document import DocumentError
from data_pipeline.records import Picture, Record, Rejected, Shard
from data_pipeline.sources.files import (
    GROUP_BYTES,
    PICTURES_PER_SHARD,
    SHARD_BYTES,
    DataFile,
    FilesSource,
    Pictures,
    identity,
    of_each,
)
from data_pipeline.sources.json_array import array_items
from data_pipeline.sources.json_text import LONGEST_LINE, parse_json
from data_pipeline.sources.streams import UTF_16, BrokenStreamError, compression, is_remote, open_text, read_ranges

_HEAD = 64 << 10
"""Bytes at the beginning of a file by which it is judged."""
_SMALL = 8 << 20
"""Bytes of files of which all contents count for their identity, since people edit them by hand."""


def read_lines(file: BinaryIO, begin: int = 0, end: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin in the given bytes of a file (0, 0: all of it), each with the place of its first byte.

    Lines of more than `LONGEST_LINE` bytes are None; no more than that of a file is in memory.
    """

    def skip_line() -> int:
        size = 0
        while part := file.readline(1 << 20):
            size += len(part)
            if part.endswith(b"\n"):
                break
        return size

    place = begin
    if begin:  # a line that began before is that of another shard
        file.seek(begin - 1)
        place += skip_line() - 1
    while not end or place < end:
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) <= LONGEST_LINE:
            yield place, line
            place += len(line)
        else:
            yield place, None
            place += len(line) + (0 if line.endswith(b"\n") else skip_line())


@config
class JsonLinesSource(FilesSource):
    """Files of JSON lines, plain or compressed with gzip or Zstandard."""

    picture_folder: str = ""
    """Folder to which the paths of pictures are relative. Default: that of the file that names them."""

    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst")
    arrays: ClassVar[bool] = False
    """Whether a file may be one JSON array of records, whatever it is called."""

    def parse(self, values: Any, id: str, place: str, picture: Callable[[str], Picture]) -> Record:
        """The record that the values of a line are.

        Args:
          picture: makes a picture of its path or base64.

        Raises:
          DocumentError: if they are none.
        """
        raise NotImplementedError

    def shards(self, datasets: str = "") -> list[Shard]:
        return list(itertools.chain.from_iterable(of_each(self.files(), self._shards_of)))

    def _shards_of(self, file: DataFile) -> list[Shard]:
        (head,) = read_ranges(file.path, [(0, _HEAD)])
        is_one = compression(head) or head.startswith(UTF_16) or self._is_array(file.name, head)
        step = SHARD_BYTES if is_one else self._bytes_of_shards(head, 100 if file.size > GROUP_BYTES else 1)
        if is_one or file.size <= step:
            contents = identity(file.path, whole=_SMALL, size=file.size, head=head)
            return [Shard(file.name, contents, files=(file.name,), size=file.size * SHARD_BYTES // step)]
        # rather than wait for a sample of each part
        whole = identity(file.path, size=file.size) if is_remote(file.path) else ""
        return [
            Shard(
                f"{file.name}@{begin}", whole or identity(file.path, begin, end, size=file.size), begin, end,
                files=(file.name,),
            )
            for begin in range(0, file.size, step)
            for end in [min(begin + step, file.size)]
        ]  # fmt: skip

    def _bytes_of_shards(self, head: bytes, lines: int) -> int:
        """`SHARD_BYTES`, or the power of two in which not more than `PICTURES_PER_SHARD` pictures are expected by the
        first lines of a file."""
        size = pictures = 0
        for line in head[: head.rfind(b"\n") + 1].splitlines(keepends=True)[:lines]:
            size += len(line)
            with contextlib.suppress(DocumentError):
                pictures += len(self.parse(parse_json(line), "", "", Pictures("", "")).pictures)
        expected = PICTURES_PER_SHARD * size // pictures if pictures else SHARD_BYTES
        return min(SHARD_BYTES, 1 << max(expected, 1).bit_length() - 1)

    def _is_array(self, name: str, head: bytes) -> bool:
        may_be = self.arrays or ".json" in PurePosixPath(name).suffixes  # a line of 'documents' begins with [ too
        return may_be and head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        name, path = shard.files[0], self.path_of(shard)
        folder = self.picture_folder or os.path.dirname(path)
        with open_text(path) as file:
            items = not shard.begin and self._is_array(name, file.peek(4096))
            for id, place, values in _items(file, name) if items else _lines(file, name, shard):
                try:
                    if isinstance(values, DocumentError):
                        raise values
                    if isinstance(values, bytes):
                        values = parse_json(values)
                    record = self.parse(values, id, place, Pictures(folder, place))
                except DocumentError as error:
                    record = Rejected(id, place, str(error))
                yield record


def _lines(file: BinaryIO, name: str, shard: Shard) -> Iterator[tuple[str, str, bytes | DocumentError]]:
    """Id, place and bytes of each line that is not blank. Lines can be counted only from the beginning of a file."""
    place = name
    try:
        for number, (at, line) in enumerate(read_lines(file, shard.begin, shard.end), start=1):
            if line is None:
                line = DocumentError(f"longer than {LONGEST_LINE:,} bytes; cut it into several documents")
            elif line.isspace():
                continue
            place = f"{name}, byte {at:,}" if shard.begin else f"{name}, line {number}"
            yield f"{name}@{at}", place, line
    except BrokenStreamError as error:
        yield f"{name}@end", f"{name}, all behind {place.removeprefix(f'{name}, ')}", error


def _items(file: BinaryIO, name: str) -> Iterator[tuple[str, str, dict[str, Any] | DocumentError]]:
    """The same of the items of an array. An error is the last."""
    items = array_items(file)
    for number in itertools.count(1):
        try:
            values = next(items, None)
        except DocumentError as error:
            values = error
        if values is None:
            return
        yield f"{name}:{number}", f"{name}, item {number}", values
