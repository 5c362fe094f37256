"""Pictures one after another as squares, to measure something on: as they are, without forms and augmentation."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.image import to_square
from data_pipeline.filters import FilterConfig, check_picture
from data_pipeline.kept_pictures import from_bytes
from data_pipeline.loader import open_prepared
from data_pipeline.processes import cores
from data_pipeline.records import Picture, Rejected
from data_pipeline.row_files import RecordFiles
from data_pipeline.sources import SourceConfig

AHEAD = 4
"""Pictures for each core that are decoded before they are asked for."""


class Square(NamedTuple):
    """A picture, its centre cropped."""

    name: str
    """Where it is from, for people."""
    pixels: np.ndarray
    """uint8 `[h, w, 3]`."""


class _Encoded(NamedTuple):
    id: str
    place: str
    picture: Picture
    filter: FilterConfig
    exif: bool


def squares_of_sources(sources: Sequence[SourceConfig], datasets: str, resolution: int) -> Iterator[Square | Rejected]:
    """The pictures of all records in their order; `Rejected` where a record or a picture cannot be used.

    Raises:
      FileError: if there is nothing to read.
    """

    def entries() -> Iterator[_Encoded | Rejected]:
        for source in sources:
            for record in source.read_all(datasets):
                if isinstance(record, Rejected):
                    yield record
                    continue
                for number, picture in enumerate(record.pictures, start=1):
                    place = f"{record.place}, picture {number}" if len(record.pictures) > 1 else record.place
                    yield _Encoded(record.id, place, picture, source.filter, getattr(source, "exif", True))

    return _decoded(entries(), resolution)


def squares_of_prepared(folder: str | Path, resolution: int) -> Iterator[Square | Rejected]:
    """The pictures that `chameleon prepare` kept: those held out, or all if none are.

    Raises:
      FileError: if the folder holds none, or is damaged.
    """
    folder, header = open_prepared(folder, keep="pictures")
    part = "held_out" if header["held_out"] else "sources"

    def entries() -> Iterator[_Encoded]:
        for name, entry in header[part].items():
            files = RecordFiles(
                f"{part}.{name}", "picture", [folder / file for file in entry["files"]], entry["file_pictures"], 1 << 20
            )
            for number in range(len(files)):
                try:
                    kept = from_bytes(files.records(np.array([number]))[0])
                except ValueError as error:
                    raise files.damaged(number, error) from None
                place = f"{name}: {kept.id}"
                exif = entry["source"].get("exif", True)
                yield _Encoded(kept.id, place, Picture(place, kept.data), FilterConfig(), exif)

    return _decoded(entries(), resolution)


def _decoded(entries: Iterable[_Encoded | Rejected], resolution: int) -> Iterator[Square | Rejected]:
    """Threads decode a few pictures ahead; no others are held."""

    def decode(entry: _Encoded | Rejected) -> Square | Rejected:
        if isinstance(entry, Rejected):
            return entry
        try:
            image = entry.picture.open(exif=entry.exif)
            if reason := check_picture(image.size, entry.filter):
                return Rejected(entry.id, entry.place, reason)
            return Square(entry.place, np.asarray(to_square(image, resolution)))
        except (DocumentError, FileError) as error:
            return Rejected(entry.id, entry.place, str(error))

    entries = iter(entries)
    with ThreadPoolExecutor(cores()) as pool:
        ahead = collections.deque()
        while True:
            some = itertools.islice(entries, AHEAD * cores() - len(ahead))
            ahead.extend(pool.submit(decode, entry) for entry in some)
            if not ahead:
                return
            yield ahead.popleft().result()
