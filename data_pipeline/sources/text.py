"""Documents of plain text: Python's reference and the source of its library."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from chameleon_jax.config import SourceConfig
from chameleon_jax.document import Document
from data_pipeline.datasets import open_dataset


def text_documents(source: SourceConfig, datasets: str) -> Iterator[Document]:
    examples = open_dataset(source.kind, source.split, datasets)
    for example in itertools.islice(examples, source.count or None):
        yield [example["text"].decode()]
