"""Kind 'text': files of text or code, each a document.

A file is read in UTF-8, or in UTF-16 if it begins with its byte-order mark, plain or compressed. One of more than
`LONGEST_TEXT` is cut at ends of lines into several documents.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

from chameleon_jax.config.reading import config
from data_pipeline.records import Record, Rejected, Shard
from data_pipeline.sources.files import GROUP_BYTES, GROUP_FILES, DataFile, PathSource, identity, of_each
from data_pipeline.sources.source import register_source
from data_pipeline.sources.streams import BrokenStreamError, open_text

LONGEST_TEXT = 1 << 20
"""Bytes of a document."""


@register_source
@config
class TextSource(PathSource):
    """Files of text or code, each a document; `path` may be a folder, or a pattern such as src/**/*.py."""

    kind: Literal["text"] = "text"

    def shards(self, datasets: str = "") -> list[Shard]:
        files = self.files()
        identities = of_each(files, lambda file: identity(file.path, whole=LONGEST_TEXT, size=file.size))
        shards, start = [], 0
        for end in _ends_of_groups(files):
            names = tuple(file.name for file in files[start:end])
            contents = hashlib.sha256(" ".join([*names, *identities[start:end]]).encode()).hexdigest()
            shards.append(Shard(names[0], contents, files=names))
            start = end
        return shards

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        root = self.root
        for name in shard.files:
            with open_text(os.path.join(root, name)) as file:
                try:
                    yield from _documents(file, name)
                except BrokenStreamError as error:
                    yield Rejected(f"{name}@end", f"{name}, its end", str(error))


def _ends_of_groups(files: list[DataFile]) -> Iterator[int]:
    """The number of files up to the end of each shard."""
    start = size = 0
    for end, file in enumerate(files, start=1):
        size += file.size
        if size >= GROUP_BYTES or end - start == GROUP_FILES or end == len(files):
            yield end
            start, size = end, 0


def _documents(file: BinaryIO, name: str) -> Iterator[Record | Rejected]:
    at, line, rest = 0, 1, b""
    while data := rest + file.read(LONGEST_TEXT - len(rest)):
        end = len(data) if len(data) < LONGEST_TEXT else _place_to_cut(data)
        piece, rest = data[:end], data[end:]
        id = f"{name}@{at}" if at else name
        try:
            text = (piece.removeprefix(codecs.BOM_UTF8) if not at else piece).decode()
        except UnicodeDecodeError as error:
            yield Rejected(id, _place(name, line, piece[: error.start]), "not valid UTF-8")
        else:
            if (nul := piece.find(b"\0")) >= 0:
                yield Rejected(id, _place(name, line, piece[:nul]), "holds a NUL byte: it is no text")
            elif text.strip():
                yield Record(id, f"{name}, line {line}" if at else name, (text,), fields={"path": name})
            elif not at:
                yield Rejected(id, name, "the file is empty")
        at, line = at + end, line + piece.count(b"\n")
    if not at:
        yield Rejected(name, name, "the file is empty")


def _place(name: str, line: int, before: bytes) -> str:
    line += before.count(b"\n")
    return f"{name}, line {line}"


def _place_to_cut(data: bytes) -> int:
    """Behind the last line, or word, or character."""
    for end in (b"\n", b" "):
        if (place := data.rfind(end)) >= 0:
            return place + 1
    place = len(data) - 1
    while place and data[place] & 0xC0 == 0x80:
        place -= 1
    return place or len(data)
