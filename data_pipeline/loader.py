"""Reads prepared rows as Batches. Its whole state is one integer, the number of the next batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from chameleon_jax.batch import Batch, from_rows, row_dtype
from chameleon_jax.config import ConfigError, StageConfig
from chameleon_jax.errors import DamagedFile, FileError
from chameleon_jax.runtime.cloud import is_cloud, on_disk
from chameleon_jax.runtime.folders import recover
from chameleon_jax.runtime.headers import read_header
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import DocumentTokenizer
from data_pipeline.mixture import mix
from data_pipeline.row_files import ROWS_PER_FILE


def _parse(record: bytes, dtype: np.dtype, vocab_size: int) -> np.ndarray:
    """A row from its bytes. Raises ValueError with the reason if it is invalid."""
    if len(record) != dtype.itemsize:
        raise ValueError(f"it has {len(record)} bytes instead of {dtype.itemsize}")
    row = np.frombuffer(record, dtype)[0]
    weights = row["loss_weights"]
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("loss weights must be finite and 0 or more, not NaN, infinite or negative")
    for name in ("inputs", "targets"):
        if row[name].min() < 0 or row[name].max() >= vocab_size:
            raise ValueError(f"{name} must be ids from 0 to {vocab_size - 1}")
    return row


def _places(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """`rows` of a batch, checked; None: all."""
    places = np.arange(batch_size) if rows is None else np.asarray(rows)
    if len(places) == 0 or places.min() < 0 or places.max() >= batch_size:
        raise ValueError(f"rows = {places.tolist()}: must be some of the numbers 0 to {batch_size - 1}")
    return places


def _in_one_line(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; errors lose the lines that Grain adds to their messages."""
    try:
        yield from batches
    except FileError as error:
        raise type(error)(str(error.args[0]).splitlines()[0]) from None


class _Rows:
    """Random access to the rows of one source, as Grain expects it. Errors name the file and the row."""

    def __init__(self, name: str, paths: list[Path], count: int, dtype: np.dtype, vocab_size: int):
        self._name, self._paths, self._dtype, self._vocab_size = name, paths, dtype, vocab_size
        for path in paths:
            if not path.is_file():
                raise FileError(f"{path}: no such file; prepare again")
        try:
            self._records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
            found = len(self._records)
        except Exception:
            found = -1
        if found != count:
            self._find_damaged(count)

    def _find_damaged(self, count: int) -> None:
        for number, path in enumerate(self._paths):
            wanted = min(ROWS_PER_FILE, count - number * ROWS_PER_FILE)
            try:
                found = len(grain.sources.ArrayRecordDataSource([str(path)]))
            except Exception as error:
                raise DamagedFile(f"{path}: damaged ({_first_line(error)}); prepare again") from None
            if found != wanted:
                raise DamagedFile(f"{path}: {self._name} has {found} rows, dataset.json says {wanted}; prepare again")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> np.ndarray:
        try:
            return _parse(self._records[number], self._dtype, self._vocab_size)
        except Exception as error:
            place = f"{self._paths[number // ROWS_PER_FILE]}: row {number} of {self._name}"
            raise DamagedFile(f"{place} is damaged: {_first_line(error)}; prepare again") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".; ")


def _on_disk(folder: str | Path) -> str | Path:
    if is_cloud(folder):
        console.print(
            f"{folder}: rows (ArrayRecord) cannot be read from a bucket; every host reads a copy on its own disk. "
            "Where there is no room, mount the bucket (gcsfuse) and give that path."
        )
    return on_disk(folder)


class PreparedData:
    """A folder that `chameleon prepare` wrote.

    Attributes:
      folder: the folder on this machine.
      header: the contents of dataset.json.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(_on_disk(folder))
        recover(self.folder)
        if not (self.folder / "dataset.json").is_file():
            raise FileError(f"{self.folder}: holds no prepared data (no dataset.json); run `chameleon prepare` first")
        self.header = read_header(self.folder / "dataset.json")

    @property
    def sequence_length(self) -> int:
        return self.header["sequence_length"]

    @property
    def fingerprint(self) -> str:
        """Identifies the rows and what they were made from."""
        return self.header["fingerprint"]

    def tokenizer(self, *, with_image: bool = True) -> DocumentTokenizer:
        return DocumentTokenizer.load(self.folder / "tokenizer", with_image=with_image)

    def rows(self, part: str, name: str) -> grain.MapDataset:
        """Rows of one source as structured scalars. `part` is "sources" or "held_out".

        Raises:
          FileError: if files are missing or damaged. A damaged row raises when it is read.
        """
        entry = self.header[part][name]
        paths = [self.folder / file for file in entry["files"]]
        dtype = row_dtype(self.sequence_length)
        rows = _Rows(f"{part}.{name}", paths, entry["rows"], dtype, self.header["vocab_size"])
        return grain.MapDataset.source(rows)

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
          stages: mixtures of the sources, with their shares of the run.
          steps: number of batches of the whole run.
          batch_size: rows per batch.
          seed: of the shuffling.
          start: number of the first batch to read.
          rows: int `[n]`, the rows of each batch that this process needs, in this order; None: all. A row is the same
            whichever others are read.

        Raises:
          ConfigError: if there is no stage, or one names a source that was not prepared.
          FileError: if files are missing. A damaged row raises when it is read.
        """
        places = _places(batch_size, rows)
        sources = {name: self.rows("sources", name) for name in self.header["sources"]}
        mixed = mix(sources, stages, steps * batch_size, seed)

        def read(number: int) -> Batch:
            return from_rows(np.stack([mixed[number * batch_size + place] for place in places.tolist()]))

        reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        return _in_one_line(grain.MapDataset.range(steps).map(read)[start:].to_iter_dataset(reading))

    def rows_of_batch(
        self, stages: Sequence[StageConfig], steps: int, batch_size: int, seed: int = 0
    ) -> Callable[[int], list[tuple[str, int]]]:
        """A function from the number of a batch of `batches` to the source and the number of each of its rows."""
        sources = {
            name: grain.MapDataset.range(entry["rows"]).map(lambda row, name=name: (name, int(row)))
            for name, entry in self.header["sources"].items()
        }
        mixed = mix(sources, stages, steps * batch_size, seed)
        return lambda number: [mixed[number * batch_size + place] for place in range(batch_size)]

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
        dataset = self.rows("held_out", name)
        places, padding = _places(batch_size, rows), np.zeros((), row_dtype(self.sequence_length))

        def read(number: int) -> Batch:
            numbers = (number * batch_size + places).tolist()
            return from_rows(np.stack([dataset[row] if row < len(dataset) else padding for row in numbers]))

        count = -(-len(dataset) // batch_size)
        reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        return _in_one_line(grain.MapDataset.range(min(count, limit or count)).map(read).to_iter_dataset(reading))
