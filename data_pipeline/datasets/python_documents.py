"""Documents of plain text: Python's reference and the source of its library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from chameleon_jax.config.reading import config
from data_pipeline.datasets import open_dataset, shards_of
from data_pipeline.records import Record, Shard
from data_pipeline.sources.source import SourceConfig, register_source


@config
class PythonSource(SourceConfig):
    """Text that every Python carries, one document per topic or file."""

    split: str = "train"
    """Split of the data set, or a slice of one: train, test, train[:90%]."""

    def shards(self, datasets: str = "") -> list[Shard]:
        return shards_of(self.kind, self.split, datasets)

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record]:
        examples = open_dataset(self.kind, self.split, datasets)
        for index in range(shard.begin, shard.end):
            place = f"{self.kind} {self.split}, example {index}"
            yield Record(str(index), place, (examples[index]["text"].decode(),))


@register_source
@config
class PythonReferenceSource(PythonSource):
    """The prose of Python's language reference, one document per topic."""

    kind: Literal["python_reference"] = "python_reference"


@register_source
@config
class PythonStdlibSource(PythonSource):
    """The source code of Python's standard library, one document per file."""

    kind: Literal["python_stdlib"] = "python_stdlib"
