"""Prepared rows to Batches. The whole state of the data side is one integer, the number of the next batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from chameleon_jax.batch import Batch, from_rows, row_dtype
from chameleon_jax.config import ConfigError, TrainConfig
from chameleon_jax.files import FileError, check_version, read_json
from chameleon_jax.tokens.documents import DocumentTokenizer
from data_pipeline.mixture import mix


class PreparedData:
    """A folder that `chameleon prepare` wrote.

    Attributes:
      folder: where it is.
      header: the contents of dataset.json.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "dataset.json").is_file():
            raise FileError(f"{self.folder}: holds no prepared data (no dataset.json); run `chameleon prepare` first")
        self.header = read_json(self.folder / "dataset.json")
        check_version(self.header, self.folder / "dataset.json")

    @property
    def sequence_length(self) -> int:
        return self.header["sequence_length"]

    @property
    def fingerprint(self) -> str:
        """Differs whenever the rows or what they were made with differ."""
        return self.header["fingerprint"]

    def tokenizer(self) -> DocumentTokenizer:
        return DocumentTokenizer.load(self.folder / "tokenizer")

    def rows(self, part: str, name: str) -> grain.MapDataset:
        """Rows of one source as structured scalars. `part` is "sources" or "held_out"."""
        entry = self.header[part][name]
        dtype = row_dtype(self.sequence_length)
        paths = [str(self.folder / file) for file in entry["files"]]
        try:
            source = grain.sources.ArrayRecordDataSource(paths)
        except Exception as error:
            raise FileError(f"{self.folder}: {', '.join(entry['files'])} cannot be read: {error}") from None
        if len(source) != entry["rows"]:
            raise FileError(
                f"{self.folder}: {part}.{name} has {len(source)} rows, dataset.json says {entry['rows']}; prepare again"
            )
        return grain.MapDataset.source(source).map(lambda record: np.frombuffer(record, dtype)[0])

    def batches(self, config: TrainConfig, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, … of the run that `config` describes, up to its last step."""
        sources = {name: self.rows("sources", name) for name in self.header["sources"]}
        dataset = mix(sources, config.stages, config.steps * config.batch_size, config.seed)
        batches = dataset.batch(config.batch_size, drop_remainder=True, batch_fn=np.stack)
        reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        return map(from_rows, iter(batches[start:].to_iter_dataset(reading)))

    def held_out_batches(self, name: str, batch_size: int, limit: int = 0) -> list[Batch]:
        """All rows of a held-out source in order (or the first `limit` batches); the last is filled with padding."""
        if name not in self.header["held_out"]:
            raise ConfigError(f"held_out.{name}: was not prepared; there is {', '.join(self.header['held_out'])}")
        dataset = self.rows("held_out", name)
        stop = min(len(dataset), limit * batch_size) if limit else len(dataset)
        rows = np.stack([dataset[index] for index in range(stop)])
        padding = np.zeros(-len(rows) % batch_size, rows.dtype)
        rows = np.concatenate([rows, padding])
        return [from_rows(rows[index : index + batch_size]) for index in range(0, len(rows), batch_size)]
