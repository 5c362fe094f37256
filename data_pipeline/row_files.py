"""Writes the rows of a source."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import ConfigError
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT, Vocabulary
from data_pipeline.packing import Piece, pack, pieces_of, places_to_cut
from data_pipeline.sources.source import SourceConfig, settings_of
from data_pipeline.tokenized import TokenizedDocument

ROWS_PER_FILE = 65536


@dataclasses.dataclass
class RowCounts:
    """How much of a source went into its rows, and how much did not."""

    documents: int = 0
    pictures: int = 0
    text_bytes: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    image_tokens_learnt: int = 0
    """Image codes whose weight in the loss is above 0."""
    weight: float = 0.0
    """Sum of the loss weights of all tokens."""
    tokens: int = 0
    """All tokens except begin and end of sequence."""
    conversations_skipped: int = 0
    """Conversations dropped because even their first turn does not fit a row."""
    turns_dropped: int = 0
    """Turns dropped at the end of other conversations because they do not fit the row."""
    documents_cut: int = 0
    """Documents longer than a row, which are split over several."""
    pictures_cut_off: int = 0
    """Pictures that such a split separates from all of their text."""

    def add(self, document: TokenizedDocument, vocabulary: Vocabulary) -> None:
        modality = vocabulary.modality[document.ids]
        self.documents += 1
        self.pictures += int((document.ids == vocabulary.begin_image).sum())
        self.text_bytes += document.text_bytes
        self.text_tokens += int((modality == TEXT).sum())
        self.image_tokens += int((modality == IMAGE).sum())
        self.image_tokens_learnt += int(((modality == IMAGE) & (document.weights > 0)).sum())
        self.weight += float(document.weights.sum())
        self.tokens += len(document.ids) - 1


def fit_turns(document: TokenizedDocument, length: int, vocabulary: Vocabulary) -> tuple[TokenizedDocument, int]:
    """A conversation without the turns at its end that do not fit a row, and the number of those that stay. Splitting
    it would separate answers from their prompts."""
    kept = int((document.turn_ends <= length).sum())
    if kept == len(document.turn_ends):
        return document, kept
    end = int(document.turn_ends[kept - 1]) if kept else 0
    ids = document.ids[:end].copy()
    ids[-1:] = vocabulary.eos
    return document._replace(ids=ids, weights=document.weights[:end], turn_ends=document.turn_ends[:kept]), kept


def _pieces(
    documents: Iterable[TokenizedDocument], length: int, vocabulary: Vocabulary, counts: RowCounts
) -> Iterator[Piece]:
    for document in documents:
        if turns := len(document.turn_ends):
            document, kept = fit_turns(document, length, vocabulary)
            if not kept:
                counts.conversations_skipped += 1
                continue
            counts.turns_dropped += turns - kept
        counts.add(document, vocabulary)
        places, cut_off = places_to_cut(document.ids, length, vocabulary)
        counts.documents_cut += bool(places)
        counts.pictures_cut_off += cut_off
        yield from pieces_of(Piece(document.ids, document.weights), places, vocabulary)


def _write_rows(rows: Iterator[np.ndarray], folder: Path, name: str) -> tuple[list[str], int, str]:
    """Writes files of at most `ROWS_PER_FILE` rows; returns their names, the number of rows and a hash of them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    files, total, digest = [], 0, hashlib.sha256()
    for first in rows:
        files.append(f"{name}-{len(files):05d}.arrayrecord")
        writer = ArrayRecordWriter(str(folder / files[-1]), "group_size:1")
        for row in itertools.chain([first], itertools.islice(rows, ROWS_PER_FILE - 1)):
            record = row.tobytes()
            digest.update(record)
            writer.write(record)
            total += 1
        writer.close()
    return files, total, digest.hexdigest()


def write_source(
    part: str,
    source: SourceConfig,
    documents: Iterable[TokenizedDocument],
    length: int,
    vocabulary: Vocabulary,
    folder: Path,
) -> dict[str, Any]:
    """Packs the documents of a source into rows. Returns its entry for dataset.json.

    Raises:
      ConfigError: if there is nothing to train on in it.
    """
    counts = RowCounts()
    rows = pack(_pieces(documents, length, vocabulary, counts), length, vocabulary)
    files, total, digest = _write_rows(rows, folder, f"{part}-{source.name}")
    _check_counts(f"{part}.{source.name}", source, counts, length)
    newer = ("documents_cut", "pictures_cut_off")
    figures = {name: value for name, value in dataclasses.asdict(counts).items() if value or name not in newer}
    return {"files": files, "rows": total, "sha256": digest, **figures, "source": settings_of(source)}


def _check_counts(place: str, source: SourceConfig, counts: RowCounts, length: int) -> None:
    """Reports what was dropped from a source; raises if there is nothing to train on in it."""
    dropped, skipped = counts.turns_dropped, counts.conversations_skipped
    if dropped or skipped:
        console.print(
            f"warning: {place}: some conversations are longer than a row ({length} tokens). Left out whole: {skipped}; "
            f"turns left out at the end of others: {dropped}; conversations kept: {counts.documents}"
        )
    if counts.documents_cut:
        said = (
            f"{place}: {counts.documents_cut:,} of {counts.documents:,} documents are longer than a row ({length} "
            "tokens) and were cut"
        )
        if counts.pictures_cut_off:
            lost = f"{counts.pictures_cut_off:,} of {counts.pictures:,} pictures lost the text beside them"
            said = f"warning: {said}; {lost}; give a longer sequence_length"
        console.print(said)
    if counts.documents == 0:
        raise ConfigError(f"{place}: has no documents" + (f" that fit a row of {length} tokens" if skipped else ""))
    if counts.weight == 0:
        raise ConfigError(f"{place}.loss = {source.loss!r}: nothing in this source is learnt from with it")
