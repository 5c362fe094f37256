"""Kind 'folder': a folder of pictures, with captions in files beside them, in their own names or in those of folders.

    kites/17.jpg
    kites/17.txt        A red kite over the Jura.

Folders in the folder are read too. A caption file has the name of its picture with another suffix (17.txt) or with one
more (17.jpg.txt).
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Set
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from data_pipeline.records import Picture, Record, Rejected, Shard
from data_pipeline.sources.captioned import (
    PICTURE_SUFFIXES,
    CaptionedSource,
    caption_of,
    decode_text,
    texts_of,
)
from data_pipeline.sources.files import PICTURES_PER_SHARD, DataFile, identity, of_each
from data_pipeline.sources.json_text import LONGEST_LINE, parse_json
from data_pipeline.sources.source import register_source
from data_pipeline.sources.streams import open_plain


@register_source
@config
class FolderSource(CaptionedSource):
    """A folder of pictures with captions beside them."""

    kind: Literal["folder"] = "folder"
    captions: Literal["txt", "json", "folder_name", "file_name"] = "txt"
    """Where captions are: in text files or JSON files beside the pictures, or in the name of the folder
    (red_kites/17.jpg: "red kites") or of the file (red_kite-17.jpg: "red kite")."""
    caption_key: str = "caption"
    """The key of the caption in JSON files: a text, or a list of texts, of which one is chosen."""
    lines: Literal["all", "one"] = "all"
    """Text files are captions as they are, or hold a caption per line, of which one is chosen."""

    patterns: ClassVar[tuple[str, ...]] = tuple(f"*{suffix}" for suffix in (*sorted(PICTURE_SUFFIXES), ".txt", ".json"))

    def shards(self, datasets: str = "") -> list[Shard]:
        files = {file.name: file for file in self.files()}
        pictures = [name for name in files if _is_picture(name)]
        if not pictures:
            raise FileError(f"{self.path}: no pictures in this folder ({', '.join(sorted(PICTURE_SUFFIXES))})")
        shards = []
        for begin in range(0, len(pictures), PICTURES_PER_SHARD):
            some = pictures[begin : begin + PICTURES_PER_SHARD]
            names = [name for each in some for name in (each, *self._caption_files(each)) if name in files]
            identities = of_each([files[name] for name in names], _identity)
            contents = hashlib.sha256(" ".join([*names, *identities]).encode()).hexdigest()
            shards.append(Shard(f"pictures@{begin}", contents, files=tuple(names)))
        return shards

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        root, files = self.root, frozenset(shard.files)
        for name in shard.files:
            if not _is_picture(name):
                continue
            picture = Picture(os.path.join(root, name))
            try:
                caption, fields = self._caption(name, root, files)
            except (DocumentError, FileError) as error:
                yield Rejected(name, name, str(error))
            else:
                yield self.captioned(name, name, [picture], caption, fields)

    def _caption_files(self, picture: str) -> list[str]:
        if self.captions not in ("txt", "json"):
            return []
        suffix = f".{self.captions}"
        return [posixpath.splitext(picture)[0] + suffix, picture + suffix]

    def _caption(self, picture: str, root: str, files: Set[str]) -> tuple[str, dict[str, str]]:
        """The caption of a picture, "" if it has none, and what else is known of it."""
        path = PurePosixPath(picture)
        names = {"file_name": _words(path.stem), "folder_name": _words(path.parent.name)}
        if self.captions in names:
            return names[self.captions], names
        file = next((name for name in self._caption_files(picture) if name in files), None)
        if file is None:
            return "", names
        with open_plain(os.path.join(root, file)) as stream:
            data = stream.read(LONGEST_LINE + 1)
        try:
            if len(data) > LONGEST_LINE:
                raise DocumentError(f"longer than {LONGEST_LINE:,} bytes")
            caption, fields = self._from_json(data) if self.captions == "json" else (self._from_text(data), {})
            return caption_of(caption, picture), {**fields, **names}
        except DocumentError as error:
            raise DocumentError(f"{file}: {error}") from None

    def _from_text(self, data: bytes) -> str | list[str]:
        text = decode_text(data)
        return text.splitlines() if self.lines == "one" else text

    def _from_json(self, data: bytes) -> tuple[Any, dict[str, str]]:
        values = parse_json(data)
        if not isinstance(values, dict):
            raise DocumentError('must be an object such as {"caption": "A red kite."}')
        if self.caption_key not in values and self.needs_captions:
            raise DocumentError(f"no key {self.caption_key!r} (caption_key), but {', '.join(map(repr, values))}")
        return values.get(self.caption_key), texts_of(values)


def _is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _identity(file: DataFile) -> str:
    """Of pictures, whose files change as a whole, samples of a few KiB tell."""
    return identity(file.path, whole=0 if _is_picture(file.name) else LONGEST_LINE, size=file.size, sample=4096)


def _words(name: str) -> str:
    """The words of a name, without the number at its end."""
    return re.sub(r"(^| )\(?\d+\)?$", "", re.sub(r"[\s_-]+", " ", name).strip())
