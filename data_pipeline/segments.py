"""The texts of some sources, for text tokenizers to learn from."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from chameleon_jax.config import ConfigError
from chameleon_jax.runtime.progress import console
from data_pipeline.forms import documents_of
from data_pipeline.records import Record, Rejected
from data_pipeline.sources import SourceConfig

MOST_TEXT = 256 << 20
"""Bytes of text that are kept. SentencePiece learns no better from more."""
SEED = 0
"""Of forms. What text tokenizers learn from need not be what rows hold."""


class Sample:
    """As many items as fit into `limit` bytes, chosen by a hash of their ids: the same ones in whatever order they
    come, and each as likely as any other."""

    def __init__(self, limit: int):
        self._limit = limit
        self._size = 0
        self._heap: list[tuple[int, int, int, Any]] = []  # -hash, number, size, item: the largest hash comes first
        self._bound = 1 << 64
        self._seen = 0

    @property
    def kept(self) -> int:
        return len(self._heap)

    def wants(self, id: str) -> bool:
        """Whether an item of this id may still be in the sample."""
        return _hash(id) < self._bound

    def add(self, id: str, item: Any, size: int) -> None:
        self._seen += 1
        if not self.wants(id):
            return
        heapq.heappush(self._heap, (-_hash(id), self._seen, size, item))
        self._size += size
        while self._size > self._limit and len(self._heap) > 1:
            rank, _, size, _ = heapq.heappop(self._heap)
            self._size -= size
            self._bound = -rank

    def items(self, of: str) -> list[Any]:
        """The sample in the order in which it came. Says so if it is not everything."""
        if self._bound < 1 << 64:
            share = self._bound / (1 << 64)
            console.print(f"learning from the {of} of {self.kept:,} records, {share:.1%} of all, chosen by a hash")
        return [item for _, _, _, item in sorted(self._heap, key=lambda entry: entry[1])]


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8])


class Unread:
    """Records that tokenizers do not learn from because they cannot be read, or not be used."""

    def __init__(self):
        self._count = 0
        self._first = self._last = ""

    def add(self, place: str, reason: object) -> None:
        self._count += place != self._last  # a record counts once, however many copies were to be made of it
        self._last = place
        self._first = self._first or f"{place}: {reason}"

    def report(self) -> None:
        if self._count:
            console.print(f"warning: records that cannot be used: {self._count:,}; the first is {self._first}")


def _documents(sources: Sequence[SourceConfig], datasets: str, unread: Unread) -> Iterator[tuple[SourceConfig, Record]]:
    """What the sources' filters and forms make of their records."""
    for source in sources:
        for record in source.read_all(datasets):
            made = record if isinstance(record, Rejected) else documents_of(record, source, SEED)
            if isinstance(made, Rejected):
                unread.add(made.place, made.reason)
                continue
            for document in made:
                yield source, document


def read_texts(sources: Sequence[SourceConfig], datasets: str) -> list[str]:
    """The texts of the documents of `sources`, or of a sample of them that has `MOST_TEXT` bytes. Says which records
    cannot be used.

    Raises:
      ConfigError: if there are none.
    """
    sample, unread = Sample(MOST_TEXT), Unread()
    for source, document in _documents(sources, datasets, unread):
        if texts := [text for text in document.texts if text]:
            sample.add(f"{source.name} {document.id}", texts, sum(len(text.encode()) for text in texts))
    unread.report()
    texts = list(itertools.chain.from_iterable(sample.items("text")))
    if not texts:
        raise ConfigError("sources: their documents hold no text")
    return texts
