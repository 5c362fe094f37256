"""Records: what sources read, with pictures still encoded.

A record is a document or a conversation. Tokenizing text never decodes a picture, and a picture that cannot be decoded
costs one record, not the job.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from chameleon_jax.document import decode_image, open_image, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture file that is not decoded yet."""

    name: str
    """Its path, or gs://… and the like; where `data` is given, a name for messages, such as "kites.tar: 000017.jpg"."""
    data: bytes | None = None
    """The contents of the file. None: they are read from `name`."""

    def read(self) -> bytes:
        """The contents of the file. Raises `DocumentError` if it cannot be read."""
        if self.data is not None:
            return self.data
        if "://" in self.name:  # in a bucket
            from data_pipeline.sources.streams import read_remote_picture

            return read_remote_picture(self.name)
        return read_picture(self.name)

    def open(self, *, exif: bool = True) -> Image:
        """Decodes the picture. Raises `DocumentError`, naming it, as `open_image` does."""
        if self.data is None and "://" not in self.name:
            return open_image(self.name, exif=exif)
        return decode_image(self.read(), self.name, exif=exif)


Segment = str | Picture


class Turn(NamedTuple):
    """A prompt and its answer."""

    prompt: tuple[Segment, ...]
    answer: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """One document or conversation, as a source gives it: exactly one of `segments` and `turns` is not empty."""

    id: str
    """Unique in its source, and the same wherever its files lie. All randomness of its processing is a hash of it."""
    place: str
    """Where it was read, for people: "kites.jsonl, line 17"."""
    segments: tuple[Segment, ...] = ()
    """A document in its order."""
    turns: tuple[Turn, ...] = ()
    """A conversation."""
    fields: Mapping[str, Segment] = dataclasses.field(default_factory=dict)
    """Its parts by name where the source has names (columns, features, sidecar keys), for templates. A document of just
    the fields "image" and "text" has no order of its own."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts in their order."""
        return tuple(segment for segment in self.all_segments if isinstance(segment, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures in their order."""
        return tuple(segment for segment in self.all_segments if not isinstance(segment, str))

    @property
    def all_segments(self) -> tuple[Segment, ...]:
        """Those of the document, or of all turns."""
        return self.segments or tuple(segment for turn in self.turns for part in turn for segment in part)


class Rejected(NamedTuple):
    """A record that cannot be used."""

    id: str
    place: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A part of a source that is read on its own. JSON holds all of it."""

    name: str
    """Unique in its source, and the same wherever its files lie: "part-003.jsonl", "chat.jsonl@67108864"."""
    identity: str
    """Changes when the contents change: a hash of sizes and samples of the files, never of where they lie."""
    begin: int = 0
    end: int = 0
    """The part of a file, in the unit of its kind: bytes, rows, examples. 0, 0: all of it."""
    records: int = 0
    """How many records it holds, where that is known without reading them."""
    files: tuple[str, ...] = ()
    """Its files, relative to the path of the source."""
    size: int = 0
    """Bytes of text that take as long to tokenize, about. Small shards become one unit where there are many of them;
    those of an unknown size, 0, do not."""
