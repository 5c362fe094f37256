"""Pools of rows: the documents of one source, or of several in a certain ratio, packed together."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chameleon_jax.config import ConfigError
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.files import flush_to_disk
from chameleon_jax.runtime.locks import in_use
from chameleon_jax.runtime.progress import console, progress_bar
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT, Vocabulary
from data_pipeline.config import PoolConfig, PrepareCommand
from data_pipeline.packing import Fitted, Packer, fit
from data_pipeline.rows import Piece, to_bytes
from data_pipeline.tokenized import TokenizedDocument

ROWS_PER_FILE = 1 << 19

Reject = Callable[[str, str, str], None]
"""Called with the source, the id and the reason of each document that is not packed."""


@dataclasses.dataclass(frozen=True)
class PoolSource:
    """One source of a pool."""

    name: str
    weight: float
    """Its tokens in the pool, relative to those of the other sources."""
    tokens: int
    """How many it has; for the display of progress."""
    open: Callable[[], Iterator[TokenizedDocument]]
    """Reads its documents, the same ones in the same order every time."""
    epochs: int = 1
    """How often they may be used."""


@dataclasses.dataclass
class PackedCounts:
    """What of a source went into rows, and what did not."""

    documents: int = 0
    pictures: int = 0
    text_bytes: int = 0
    """For conversations that lost turns, in proportion to their text tokens."""
    text_tokens: int = 0
    image_tokens: int = 0
    image_tokens_learnt: int = 0
    """Image codes whose weight in the loss is above 0."""
    weight: float = 0.0
    """Sum of the loss weights of all tokens."""
    tokens: int = 0
    """All tokens except begin and end of sequence."""
    conversations: int = 0
    """Documents that are conversations."""
    conversations_skipped: int = 0
    """Conversations dropped because even their first turn does not fit a row."""
    turns_dropped: int = 0
    """Turns dropped at the end of other conversations because they do not fit the row."""
    documents_cut: int = 0
    """Documents longer than a row, which are split over several."""
    pictures_cut_off: int = 0
    """Pictures that such a split separates from all of their text."""
    documents_rejected: int = 0
    """Documents longer than a row that were left out."""

    def add(self, document: TokenizedDocument, fitted: Fitted, length: int, vocabulary: Vocabulary) -> None:
        kept = sum(len(piece.ids) - 1 for piece in fitted.pieces)
        modality, weights = vocabulary.modality[document.ids], document.weights[:kept]
        _, text_tokens, image_tokens = np.bincount(modality[:kept], minlength=3).tolist()
        self.documents += 1
        self.text_tokens += text_tokens
        self.image_tokens += image_tokens
        if image_tokens:
            self.image_tokens_learnt += int(np.count_nonzero(weights[modality[:kept] == IMAGE] > 0))
        self.weight += float(weights.sum())
        self.tokens += kept - 1
        if fitted.turns_dropped:
            self.pictures += int(np.count_nonzero(document.ids[:kept] == vocabulary.begin_image))
            self.text_bytes += round(document.text_bytes * text_tokens / max(np.count_nonzero(modality == TEXT), 1))
        else:
            self.pictures += document.pictures
            self.text_bytes += document.text_bytes
        self.conversations += len(document.turn_ends) > 0
        self.turns_dropped += fitted.turns_dropped
        self.documents_cut += kept > length
        self.pictures_cut_off += fitted.pictures_cut_off

    def figures(self) -> dict[str, Any]:
        """For dataset.json, without newer ones that are 0."""
        newer = ("conversations", "documents_cut", "pictures_cut_off", "documents_rejected")
        return {name: value for name, value in dataclasses.asdict(self).items() if value or name not in newer}


def pools_of(command: PrepareCommand) -> list[PoolConfig]:
    """The pools that a command packs: those it lists, and one of its own for each other source."""
    listed = {name for pool in command.pools for name in pool.sources}
    own = [source.name for source in command.sources if source.name not in listed]
    return [*command.pools, *(PoolConfig(name, {name: 1.0}) for name in own)]


def write_pool(
    name: str,
    sources: Sequence[PoolSource],
    length: int,
    vocabulary: Vocabulary,
    too_long: Literal["split", "reject"],
    folder: Path,
    reject: Reject = lambda source, document, reason: None,
) -> dict[str, Any]:
    """Packs documents into rows and writes them as ArrayRecord files, which appear one by one as they are complete.

    With several sources, the next document is always of the source that is furthest behind its weight, so that the
    shares of tokens follow the weights everywhere in the pool. A source whose documents have been used `epochs` times
    ends it. The same documents always give the same files.

    Args:
      name: the begin of the names of the files.
      length: tokens a row.
      too_long: what to do with documents that are longer, except for conversations, which lose turns.

    Returns:
      the entry of the pool in dataset.json: `files` with their number of rows and hash, and the totals of
      `PackedCounts`. In a pool of several sources, `sources` has those of each.

    Raises:
      ValueError: if a picture does not fit a row.
    """
    counts, packer, several = [PackedCounts() for _ in sources], Packer(length), len(sources) > 1
    shares = [source.weight / sum(each.weight for each in sources) for source in sources]
    expected = min(source.tokens * source.epochs / share for source, share in zip(sources, shares, strict=True))

    def records() -> Iterator[bytes]:
        with progress_bar(f"pack {name}", int(expected) or None) as bar:
            for rows, row in enumerate(_rows(sources, counts, packer, length, vocabulary, too_long, reject), start=1):
                yield to_bytes(row, vocabulary.size)
                if rows % 256 == 0:
                    bar.update(sum(each.tokens for each in counts), rows=f"{rows:,}")

    entry = _write(records(), folder, name)
    entry |= PackedCounts(*(sum(values) for values in zip(*map(dataclasses.astuple, counts), strict=True))).figures()
    if several:
        of_sources = zip(sources, shares, counts, strict=True)
        entry["texts_cut_to_fill"] = packer.cuts
        entry["sources"] = {source.name: {"share": share, **each.figures()} for source, share, each in of_sources}
    return entry


def _rows(
    sources: Sequence[PoolSource],
    counts: Sequence[PackedCounts],
    packer: Packer,
    length: int,
    vocabulary: Vocabulary,
    too_long: Literal["split", "reject"],
    reject: Reject,
) -> Iterator[list[Piece]]:
    """The rows of a pool; updates `counts` along the way."""
    for number, document, again in _draw(sources, counts):
        fitted = fit(document, length, vocabulary, too_long, fill=len(sources) > 1)
        if fitted.pieces:
            counts[number].add(document, fitted, length, vocabulary)
        elif not again:
            counts[number].conversations_skipped += fitted.turns_dropped > 0
            counts[number].documents_rejected += fitted.turns_dropped == 0
            reject(sources[number].name, document.id, fitted.reason)
        for piece in fitted.pieces:
            yield from packer.add(piece, fitted.may_be_cut)
    yield from packer.finish()


def check_figures(place: str, figures: Mapping[str, Any], length: int) -> None:
    """Reports what of a source is not in its rows as it was; raises if there is nothing to train on in it.

    Args:
      figures: its entry in dataset.json.
    """
    documents, skipped = figures["documents"], figures["conversations_skipped"]
    if skipped or figures["turns_dropped"]:
        console.print(
            f"warning: {place}: some conversations are longer than a row ({length} tokens). Left out whole: {skipped}; "
            f"turns left out at the end of others: {figures['turns_dropped']}; conversations kept: {documents}"
        )
    if rejected := figures.get("documents_rejected"):
        console.print(f"{place}: {rejected:,} documents are longer than a row ({length} tokens) and were left out")
    if cut := figures.get("documents_cut"):
        said = f"{place}: {cut:,} of {documents:,} documents are longer than a row ({length} tokens) and were cut"
        if lost := figures.get("pictures_cut_off"):
            lost = f"{lost:,} of {figures['pictures']:,} pictures lost the text beside them"
            said = f"warning: {said}; {lost}; give a longer sequence_length"
        console.print(said)
    if documents == 0:
        some = skipped or rejected
        raise ConfigError(f"{place}: has no documents" + (f" that fit a row of {length} tokens" if some else ""))
    if figures["weight"] == 0:
        raise ConfigError(
            f"{place}.loss = {figures['source']['loss']!r}: nothing in this source is learnt from with it"
        )


def _draw(
    sources: Sequence[PoolSource], counts: Sequence[PackedCounts]
) -> Iterator[tuple[int, TokenizedDocument, bool]]:
    """Documents with the number of their source, and whether it is used again."""
    reading, epochs = [source.open() for source in sources], [1] * len(sources)
    while True:
        behind = min(range(len(sources)), key=lambda number: counts[number].tokens / sources[number].weight)
        document = next(reading[behind], None)
        if document is not None:
            yield behind, document, epochs[behind] > 1
        elif epochs[behind] < sources[behind].epochs:
            epochs[behind] += 1
            reading[behind] = sources[behind].open()
        else:
            return


def _write(records: Iterator[bytes], folder: Path, name: str) -> dict[str, Any]:
    """Writes files of at most `ROWS_PER_FILE` rows, each named by a hash of its rows."""
    from array_record.python.array_record_module import ArrayRecordWriter

    files, file_rows, digest = [], [], hashlib.sha256()
    for first in records:
        tmp = folder / f".{name}-{len(files):05d}.{os.getpid()}.part"
        own_digest, rows = hashlib.sha256(), 0
        try:
            with explain_disk_errors(tmp), in_use(tmp):
                # Not compressed: rows are read many times, and decompressing them takes longer than all else.
                writer = ArrayRecordWriter(str(tmp), "group_size:1,uncompressed")
                for record in itertools.chain([first], itertools.islice(records, ROWS_PER_FILE - 1)):
                    writer.write(record)
                    digest.update(record)
                    own_digest.update(record)
                    rows += 1
                writer.close()
                flush_to_disk(tmp)
                files.append(f"{name}-{len(files):05d}-{own_digest.hexdigest()[:16]}.arrayrecord")
                file_rows.append(rows)
                os.replace(tmp, folder / files[-1])
        finally:
            tmp.unlink(missing_ok=True)
    return {"files": files, "file_rows": file_rows, "rows": sum(file_rows), "sha256": digest.hexdigest()}
