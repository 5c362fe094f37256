"""Documents of plain text: Python's reference and the source of its library."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import Document
from data_pipeline.datasets import open_dataset
from data_pipeline.sources.source import Resize, SourceConfig, register_source


@config
class PythonSource(SourceConfig):
    """Text that every Python carries, one document per topic or file."""

    split: str = "train"
    """Split of the data set, or a slice of one: train, test, train[:90%]."""

    def documents(self, datasets: str, resize: Resize | None = None) -> Iterator[Document]:
        examples = open_dataset(self.kind, self.split, datasets)
        for example in itertools.islice(examples, self.count or None):
            yield [example["text"].decode()]


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
