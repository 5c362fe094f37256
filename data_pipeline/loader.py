"""Reads prepared rows as Batches. Its whole state is one integer, the number of the next batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import grain
import numpy as np

from chameleon_jax.batch import Batch, from_rows, row_dtype
from chameleon_jax.config import ConfigError, StageConfig
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.cloud import is_cloud, on_disk
from chameleon_jax.runtime.folders import recover
from chameleon_jax.runtime.headers import read_header
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import DocumentTokenizer
from data_pipeline.batch_memory import BatchMemory
from data_pipeline.mixture import Mixture
from data_pipeline.row_files import Rows, read_batch
from data_pipeline.rows import FIXED_ROWS, FIXED_ROWS_PER_FILE, PREPARED_VERSION, fixed_to_batch, to_batch

T = TypeVar("T")

TOKENS_AT_A_TIME = 1 << 18
"""Small batches are read several at a time, up to this many tokens."""
ROWS_LOOKED_UP = 1 << 12
"""The rows that the next batches hold are looked up about so many at a time, since few take as long."""


def places_of(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """`rows` of a batch, checked; None: all."""
    places = np.arange(batch_size) if rows is None else np.asarray(rows)
    if len(places) == 0 or places.min() < 0 or places.max() >= batch_size:
        raise ValueError(f"rows = {places.tolist()}: must be some of the numbers 0 to {batch_size - 1}")
    return places


def in_one_line(batches: Iterable[T]) -> Iterator[T]:
    """The batches, or parts of them; errors lose the lines that Grain adds to their messages."""
    try:
        yield from batches
    except FileError as error:
        raise type(error)(str(error.args[0]).splitlines()[0]) from None


def _on_disk(folder: str | Path) -> str | Path:
    if is_cloud(folder):
        console.print(
            f"{folder}: rows (ArrayRecord) cannot be read from a bucket; every host reads a copy on its own disk. "
            "Where there is no room, mount the bucket (gcsfuse) and give that path."
        )
    return on_disk(folder)


def open_prepared(folder: str | Path, keep: Literal["tokens", "pictures"]) -> tuple[Path, dict[str, Any]]:
    """The local copy of a folder that `chameleon prepare` wrote, and the contents of its dataset.json.

    Raises:
      FileError: if it is none, it is damaged, or something else was kept.
    """
    folder = Path(_on_disk(folder))
    recover(folder)
    if not (folder / "dataset.json").is_file():
        raise FileError(f"{folder}: holds no prepared data (no dataset.json); run `chameleon prepare` first")
    header = read_header(folder / "dataset.json", PREPARED_VERSION)
    if header.get("keep", "tokens") != keep:
        found, wanted = ("rows of tokens", "keep: pictures") if keep == "pictures" else ("pictures", "keep: tokens")
        raise FileError(f"{folder}: holds {found}; run `chameleon prepare` with {wanted} into another folder")
    return folder, header


class PreparedData:
    """A folder that `chameleon prepare` wrote.

    Attributes:
      folder: the folder on this machine.
      header: the contents of dataset.json.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.header = open_prepared(folder, keep="tokens")

    @property
    def sequence_length(self) -> int:
        return self.header["sequence_length"]

    @property
    def fingerprint(self) -> str:
        """Identifies the rows and what they were made from."""
        return self.header["fingerprint"]

    def tokenizer(self, *, with_image: bool = True) -> DocumentTokenizer:
        return DocumentTokenizer.load(self.folder / "tokenizer", with_image=with_image)

    def rows(self, part: str, name: str) -> Rows:
        """The rows of one pool. `part` is "sources" or "held_out".

        Raises:
          FileError: if files are missing or damaged. A damaged row raises when it is read.
        """
        entry, length, vocab_size = self.header[part][name], self.sequence_length, self.header["vocab_size"]
        if self.header["format_version"] == FIXED_ROWS:
            decode = functools.partial(fixed_to_batch, length=length, vocab_size=vocab_size)
            begins = range(0, entry["rows"], FIXED_ROWS_PER_FILE)
            file_rows = [min(FIXED_ROWS_PER_FILE, entry["rows"] - begin) for begin in begins]
        else:
            pad, empty = self.header["pad"], BatchMemory().empty
            decode = functools.partial(to_batch, length=length, vocab_size=vocab_size, pad=pad, empty=empty)
            file_rows = entry["file_rows"]
        return Rows(f"{part}.{name}", [self.folder / file for file in entry["files"]], file_rows, length, decode)

    def mixture(self, stages: Sequence[StageConfig], steps: int, batch_size: int, seed: int = 0) -> Mixture:
        """The rows of a training run, as for `batches`."""
        return Mixture(self.header["sources"], stages, steps * batch_size, seed)

    def batches(
        self,
        stages: Sequence[StageConfig],
        steps: int,
        batch_size: int,
        seed: int = 0,
        *,
        start: int = 0,
        rows: np.ndarray | None = None,
    ) -> Iterator[Batch]:
        """The batches of a training run from number `start` on.

        Args:
          stages: mixtures of the pools, with their shares of the run.
          steps: number of batches of the whole run.
          batch_size: rows per batch.
          seed: of the shuffling.
          start: number of the first batch to read.
          rows: int `[n]`, the rows of each batch that this process needs, in this order; None: all. A row is the same
            whichever others are read.

        Raises:
          ConfigError: if there is no stage, or one names a pool that was not prepared.
          FileError: if files are missing. A damaged row raises when it is read.
        """
        places, mixture = places_of(batch_size, rows), self.mixture(stages, steps, batch_size, seed)
        pools = [self.rows("sources", name) for name in mixture.pools]
        at_a_time = max(TOKENS_AT_A_TIME // (len(places) * self.sequence_length), 1)
        looked_up = at_a_time * max(ROWS_LOOKED_UP // (at_a_time * len(places)), 1)

        @functools.lru_cache(maxsize=2)
        def look_up(begin: int) -> tuple[np.ndarray, np.ndarray]:
            numbers = np.arange(begin, min(begin + looked_up, steps))
            return mixture.rows((numbers[:, None] * batch_size + places).ravel())

        def read(begin: int) -> list[Batch]:
            count = min(at_a_time, steps - begin)
            before = (begin - start) % looked_up
            here = slice(before * len(places), (before + count) * len(places))
            pool_of_row, numbers = look_up(begin - before)
            batch = read_batch(pools, pool_of_row[here], numbers[here])
            return [Batch(*fields) for fields in zip(*(np.split(field, count) for field in batch), strict=True)]

        read_ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        reading = grain.MapDataset.range(start, steps, at_a_time).map(read).to_iter_dataset(read_ahead)
        return in_one_line(batch for batches in reading for batch in batches)

    def rows_of_batch(
        self, stages: Sequence[StageConfig], steps: int, batch_size: int, seed: int = 0
    ) -> Callable[[int], list[tuple[str, int]]]:
        """A function from the number of a batch of `batches` to the pool and the number of each of its rows."""
        mixture = self.mixture(stages, steps, batch_size, seed)

        def rows(number: int) -> list[tuple[str, int]]:
            pools, rows = mixture.rows(number * batch_size + np.arange(batch_size))
            return [(mixture.pools[pool], row) for pool, row in zip(pools.tolist(), rows.tolist(), strict=True)]

        return rows

    def held_out_batches(
        self, name: str, batch_size: int, limit: int = 0, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """The rows of a held-out source in order, read lazily; the last batch is filled up with padding.

        Args:
          name: of the source.
          batch_size: rows per batch.
          limit: number of batches; 0: all.
          rows: as for `batches`.

        Raises:
          ConfigError: if there is no such source.
        """
        if name not in self.header["held_out"]:
            raise ConfigError(f"held_out.{name}: was not prepared; there is {', '.join(self.header['held_out'])}")
        pool, places = self.rows("held_out", name), places_of(batch_size, rows)

        def read(number: int) -> Batch:
            numbers = number * batch_size + places
            there = numbers < len(pool)
            batch = from_rows(np.zeros(len(places), row_dtype(self.sequence_length)))
            if there.any():
                for field, values in zip(batch, pool.batch(numbers[there]), strict=True):
                    field[there] = values
            return batch

        count = -(-len(pool) // batch_size)
        read_ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        return in_one_line(grain.MapDataset.range(min(count, limit or count)).map(read).to_iter_dataset(read_ahead))
