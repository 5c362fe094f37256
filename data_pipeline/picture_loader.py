"""Reads kept pictures as batches for the image tokenizer. Its whole state is one integer, the number of the next batch.

Which picture a place of a batch holds, and how it is changed, are functions of seed and number alone. Pictures are
decoded by threads while the devices compute, a few batches ahead. However many there are, they take the same memory;
small data sets are decoded only once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grain
import numpy as np

from chameleon_jax.batch import Pictures
from chameleon_jax.config import ConfigError
from chameleon_jax.document import DocumentError, decode_image
from chameleon_jax.tokens.image import to_square
from data_pipeline.augment import OFF, AugmentConfig, augment
from data_pipeline.kept_pictures import from_bytes
from data_pipeline.loader import in_one_line, open_prepared, places_of
from data_pipeline.mixture import shuffled
from data_pipeline.processes import cores
from data_pipeline.row_files import RecordFiles

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS_AT_A_TIME = 1 << 16
"""Small pictures are decoded several at a time, up to this many pixels in all."""
BATCHES_AHEAD = 2
MEMORY = 128 << 20
"""Bytes of decoded pictures that are kept, those that were read first."""


class _Source(NamedTuple):
    files: RecordFiles
    augment: AugmentConfig
    exif: bool
    decoded: dict[int, Image | np.ndarray]
    """Pictures by their place, as many as there is memory for."""


class PreparedPictures:
    """A folder that `chameleon prepare` wrote with `keep: pictures`.

    Attributes:
      folder: the folder on this machine.
      header: the contents of dataset.json.
    """

    def __init__(self, folder: str | Path, resolution: int, memory: int = MEMORY):
        """Args:
          resolution: pixels of the sides of the squares.
          memory: bytes for decoded pictures.

        Raises:
          FileError: if the folder holds no pictures, or files are missing.
          ConfigError: if the pictures were kept for a lower resolution.
        """
        self.folder, self.header = open_prepared(folder, keep="pictures")
        self.resolution, self._room, prepared = resolution, memory, self.header["resolution"]
        if resolution > prepared:
            raise ConfigError(
                f"tokenizer.model.resolution = {resolution}: the pictures in {folder} were shrunk for up to {prepared} "
                f"pixels; prepare them with resolution: {resolution}"
            )
        self._sources = [self._open("sources", name) for name in self.header["sources"]]
        self._held_out = {name: self._open("held_out", name) for name in self.header["held_out"]}
        self._begins = np.cumsum([0, *(len(source.files) for source in self._sources)])

    def _open(self, part: str, name: str) -> _Source:
        entry = self.header[part][name]
        files = [self.folder / file for file in entry["files"]]
        settings = entry["source"]
        augmentation = AugmentConfig(**settings["augment"]) if "augment" in settings else OFF
        return _Source(
            RecordFiles(f"{part}.{name}", "picture", files, entry["file_pictures"], 4096),
            augmentation if part == "sources" else OFF,
            settings.get("exif", True),
            {},
        )

    def __len__(self) -> int:
        """Pictures to learn from."""
        return int(self._begins[-1])

    @property
    def fingerprint(self) -> str:
        """Identifies the pictures, and how they are changed."""
        return self.header["fingerprint"]

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of the held-out sources."""
        return tuple(self._held_out)

    def batches(
        self, batch_size: int, seed: int = 0, *, start: int = 0, rows: np.ndarray | None = None
    ) -> Iterator[Pictures]:
        """Batches from number `start` on, without end: all pictures in a random order, which is another one in each
        epoch, as are the changes that `augment` of their sources makes.

        Args:
          batch_size: pictures per batch.
          seed: of the order and the changes.
          start: number of the first batch to read.
          rows: int `[n]`, the rows of each batch that this process needs, in this order; None: all. A row is the same
            whichever others are read.

        Raises:
          FileError: naming the file and the picture, if one is damaged.
        """
        places = places_of(batch_size, rows)
        size = max(1, PIXELS_AT_A_TIME // self.resolution**2)
        parts = [places[begin : begin + size] for begin in range(0, len(places), size)]

        def read_part(number: int) -> np.ndarray:
            batch, part = divmod(number, len(parts))
            return self._squares(batch * batch_size + parts[part], seed)

        reading = grain.MapDataset.range(start * len(parts), 2**62).map(read_part)
        squares = iter(in_one_line(reading.to_iter_dataset(_read_ahead(BATCHES_AHEAD * len(parts)))))
        weights = np.ones(len(places), np.float32)
        while True:
            some = list(itertools.islice(squares, len(parts)))
            yield Pictures(np.concatenate(some) if len(some) > 1 else some[0], weights)

    def held_out_batches(
        self, name: str, batch_size: int, limit: int = 0, rows: np.ndarray | None = None
    ) -> Iterator[Pictures]:
        """The pictures of a held-out source in order, as they are; what fills up the last batch has a weight of 0.

        Args:
          name: of the source.
          batch_size: pictures per batch.
          limit: number of batches; 0: all.
          rows: as for `batches`.
        """
        source, places = self._held_out[name], places_of(batch_size, rows)

        def read(number: int) -> Pictures:
            numbers = number * batch_size + places
            there = np.flatnonzero(numbers < len(source.files))
            pixels = np.zeros((len(places), self.resolution, self.resolution, 3), np.uint8)
            squares = self._read(source, numbers[there], numbers[there], seed=0)
            for place, square in zip(there.tolist(), squares, strict=True):
                pixels[place] = square
            return Pictures(pixels, (numbers < len(source.files)).astype(np.float32))

        count = -(-len(source.files) // batch_size)
        reading = grain.MapDataset.range(min(count, limit or count)).map(read)
        return in_one_line(reading.to_iter_dataset(_read_ahead(BATCHES_AHEAD)))

    def _squares(self, numbers: np.ndarray, seed: int) -> np.ndarray:
        """The pictures with these numbers in a run, uint8 `[n, resolution, resolution, 3]`."""
        epochs, order = np.divmod(numbers, len(self))
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order[here] = shuffled(order[here], len(self), f"{seed}/pictures/{epoch}")
        pixels = np.empty((len(order), self.resolution, self.resolution, 3), np.uint8)
        of_source = np.searchsorted(self._begins, order, side="right") - 1
        for index in np.unique(of_source).tolist():
            here = np.flatnonzero(of_source == index)
            squares = self._read(self._sources[index], order[here] - self._begins[index], numbers[here], seed)
            for place, square in zip(here.tolist(), squares, strict=True):
                pixels[place] = square
        return pixels

    def _read(self, source: _Source, places: np.ndarray, numbers: np.ndarray, seed: int) -> Iterator[np.ndarray]:
        """Squares of the pictures at these places of a source, with these numbers in a run."""
        unknown = np.array([place for place in places.tolist() if place not in source.decoded], np.int64)
        records = dict(zip(unknown.tolist(), source.files.records(unknown), strict=True))
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
            try:
                picture = source.decoded.get(place)
                if picture is None:
                    picture = self._decode(source, place, records[place])
                if source.augment == OFF:
                    yield picture
                    continue
                rng = np.random.default_rng([seed, number])
                yield self._square(augment(picture, source.augment, rng, self.resolution))
            except (ValueError, DocumentError) as error:
                raise source.files.damaged(place, error) from None

    def _decode(self, source: _Source, place: int, record: bytes) -> Image | np.ndarray:
        """A picture that is to be changed, or the square of another."""
        picture = decode_image(from_bytes(record).data, exif=source.exif)
        size = 3 * picture.width * picture.height
        if source.augment == OFF:
            picture = self._square(picture)
            size = picture.nbytes
        if size + 1024 <= self._room:  # the first ones stay; the order is random, so that others would serve no better
            self._room -= size + 1024
            source.decoded[place] = picture
        return picture

    def _square(self, image: Image) -> np.ndarray:
        return np.asarray(to_square(image, self.resolution))


def _read_ahead(elements: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=cores(), prefetch_buffer_size=max(elements, cores()))
