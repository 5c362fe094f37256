"""Kind 'webdataset': tars in which the files of a record have one name and follow each other.

    kites/17.jpg
    kites/17.txt
    kites/17.json

So are the tars that img2dataset writes. A record is pictures with a caption; or, if its JSON file has the key
`conversations` or `messages`, a conversation as in kind 'conversations', and with `texts`, texts and pictures in turn.
Tars may be compressed with gzip or Zstandard. They are read from begin to end, one record at a time in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar, Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import MOST_BYTES, DocumentError
from chameleon_jax.errors import ChameleonError
from data_pipeline.records import Picture, Record, Rejected, Shard
from data_pipeline.sources.captioned import (
    PICTURE_SUFFIXES,
    CaptionedSource,
    caption_of,
    decode_text,
    parse_structure,
    texts_of,
)
from data_pipeline.sources.files import MOST_PICTURES, identity, of_each
from data_pipeline.sources.json_text import LONGEST_LINE, parse_json
from data_pipeline.sources.source import TurnKeys, register_source
from data_pipeline.sources.streams import open_stream

_TEXT_SUFFIXES = (".txt", ".text", ".caption", ".cls")
_SUFFIXES = PICTURE_SUFFIXES | {*_TEXT_SUFFIXES, ".json"}
_LONGEST_HEADER = 1 << 20
"""Bytes of the names and other texts about a member, which tarfile reads at once."""


@register_source
@config
class WebDatasetSource(TurnKeys, CaptionedSource):
    """Tars of pictures, texts and JSON, as WebDataset and img2dataset write them."""

    kind: Literal["webdataset"] = "webdataset"
    caption_key: str = ""
    """Where captions are: the suffix of a member (cls), or a key of the JSON. Default: txt, text or caption."""

    patterns: ClassVar[tuple[str, ...]] = ("*.tar", "*.tar.gz", "*.tgz", "*.tar.zst")

    def shards(self, datasets: str = "") -> list[Shard]:
        files = self.files()
        identities = of_each(files, lambda file: identity(file.path, size=file.size))
        return [
            Shard(file.name, digest, files=(file.name,), size=file.size)
            for file, digest in zip(files, identities, strict=True)
        ]

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        name, last = shard.files[0], ""
        seen: Counter[str] = Counter()
        try:
            with open_stream(self.path_of(shard)) as stream:
                for sample in _samples(stream):
                    seen[sample.key] += 1
                    again = f"#{seen[sample.key]}" if seen[sample.key] > 1 else ""
                    id, place, last = f"{name}:{sample.key}{again}", f"{name}: {sample.key}", f" behind {sample.key}"
                    try:
                        record = self._record(id, place, sample)
                    except DocumentError as error:
                        record = Rejected(id, place, str(error))
                    yield record
        except DocumentError as error:
            yield Rejected(f"{name}:end", f"{name}: all{last}", str(error))

    def _record(self, id: str, place: str, sample: _Sample) -> Record | Rejected:
        if sample.problem:
            raise DocumentError(sample.problem)
        pictures: dict[str, Picture] = {}
        values: dict[str, Any] = {}
        for suffix, data in sample.contents.items():
            if _kind(suffix) in PICTURE_SUFFIXES:
                pictures[f"{PurePosixPath(sample.key).name}{suffix}"] = Picture(f"{place}{suffix}", data)
                continue
            try:
                values |= _json_object(data) if suffix == ".json" else {suffix[1:]: decode_text(data)}
            except DocumentError as error:
                raise DocumentError(f"{sample.key}{suffix}: {error}") from None
        if structure := parse_structure(values, pictures):
            return Record(id, place, **structure)
        values.pop("image", None)  # what it was called elsewhere
        keys = (self.caption_key,) if self.caption_key else ("txt", "text", "caption")
        caption = next((values[key] for key in keys if values.get(key)), None)
        return self.captioned(id, place, list(pictures.values()), caption_of(caption, id), texts_of(values))


@dataclasses.dataclass
class _Sample:
    """The members of one name."""

    key: str
    contents: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """By suffix, such as ".jpg" or ".left.jpg"."""
    problem: str = ""

    def add(self, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        limit = MOST_BYTES if _kind(suffix) in PICTURE_SUFFIXES else LONGEST_LINE
        if _kind(suffix) not in _SUFFIXES:
            return
        if suffix in self.contents:
            self.problem = self.problem or f"two members {self.key}{suffix}"
        elif len(self.contents) > MOST_PICTURES:
            self.problem = self.problem or f"more than {MOST_PICTURES} pictures"
        elif member.size > limit:
            self.problem = self.problem or f"{self.key}{suffix} has {member.size:,} bytes; up to {limit:,} are read"
        elif member.size + sum(map(len, self.contents.values())) > 2 * MOST_BYTES:
            self.problem = self.problem or f"more than {2 * MOST_BYTES:,} bytes"
        else:
            self.contents[suffix] = tar.extractfile(member).read()


def _json_object(data: bytes) -> dict[str, Any]:
    values = parse_json(data)
    if not isinstance(values, dict):
        raise DocumentError("must be an object")
    return values


def _kind(suffix: str) -> str:
    """The last suffix of those of a member."""
    return f".{suffix.rpartition('.')[2]}"


class _Member(tarfile.TarInfo):
    """Raises where tarfile takes what it cannot read for the end, or reads a header of any size at once."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None

    @classmethod
    def frombuf(cls, buffer: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        member = super().frombuf(buffer, encoding, errors)
        extended = member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if extended and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _samples(stream: BinaryIO) -> Iterator[_Sample]:
    """The samples of a tar in order. Raises `DocumentError` where it cannot be read any further."""
    sample: _Sample | None = None
    with _explained(), tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
        while member := tar.next():
            tar.members.clear()  # it would remember all
            folder, slash, name = member.name.removeprefix("./").rpartition("/")
            stem, dot, suffixes = name.partition(".")
            if not (member.isfile() and stem and dot):
                continue
            key = f"{folder}{slash}{stem}"
            if sample and key != sample.key:
                yield sample
                sample = None
            sample = sample or _Sample(key)
            sample.add(f".{suffixes.lower()}", member, tar)
        if sample:
            yield sample


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns what damaged tars make tarfile raise into a `DocumentError`; files out of reach are another matter."""
    try:
        yield
    except ChameleonError:
        raise
    except (tarfile.TarError, ArithmeticError, EOFError, LookupError, ValueError) as error:
        raise DocumentError(f"the tar cannot be read any further: {error or type(error).__name__}") from None
