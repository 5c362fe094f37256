"""The offline job: writes Documents as packed rows into ArrayRecord files, with all that training needs beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.config import ConfigError, ImageTokenizerConfig, to_dict
from chameleon_jax.runtime.files import write_json
from chameleon_jax.runtime.folders import Kind, new_folder, read_marker
from chameleon_jax.runtime.headers import FORMAT_VERSION, with_checksum
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import TOKENIZER_FILES, DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from data_pipeline.config import PrepareCommand
from data_pipeline.packing import pack
from data_pipeline.sources.source import FORMER_KEYS, SourceConfig, settings_of
from data_pipeline.tokenize import Counts, tokenized_pieces

ROWS_PER_FILE = 65536
PREPARED = Kind(
    "prepared data",
    lambda folder: {"format_version", "fingerprint", "sources"} <= read_marker(folder / "dataset.json").keys(),
    (
        "dataset.json",
        "sources-*.arrayrecord",
        "held_out-*.arrayrecord",
        *(f"tokenizer/{pattern}" for pattern in TOKENIZER_FILES),
    ),
)


def _write_rows(rows: Iterator[np.ndarray], folder: Path, name: str) -> tuple[list[str], int, str]:
    """Writes shards of at most `ROWS_PER_FILE` rows; returns their names, the number of rows and a hash of them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    files, total, digest = [], 0, hashlib.sha256()
    while shard := list(itertools.islice(rows, ROWS_PER_FILE)):
        files.append(f"{name}-{len(files):05d}.arrayrecord")
        writer = ArrayRecordWriter(str(folder / files[-1]), "group_size:1")
        for row in shard:
            record = row.tobytes()
            digest.update(record)
            writer.write(record)
        writer.close()
        total += len(shard)
    return files, total, digest.hexdigest()


def _hash(tokenizer: ImageTokenizer | None) -> str | None:
    if tokenizer is None:
        return None
    sizes, plain = to_dict(tokenizer.config), to_dict(ImageTokenizerConfig())
    for key in ("attn_resolutions", "attn_type"):  # newer keys, omitted to keep the fingerprint as it was
        if sizes[key] == plain[key]:
            del sizes[key]
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for leaf in jax.tree.leaves(tokenizer.params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _fingerprint(header: dict[str, Any]) -> str:
    """Identifies the rows and what they were made from. Data that a newer version prepares again has the same one, so
    that runs can be resumed."""

    def with_former_keys(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: {**entry, "source": {**FORMER_KEYS, **entry["source"]}} for name, entry in entries.items()}

    header = {**header, **{part: with_former_keys(header[part]) for part in ("sources", "held_out")}}
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _figures(counts: Counts) -> dict[str, Any]:
    """Counts for dataset.json. Newer ones are omitted where they are 0, to keep the fingerprint as it was."""
    newer = ("documents_cut", "pictures_cut_off")
    return {name: value for name, value in dataclasses.asdict(counts).items() if value or name not in newer}


def _check_counts(place: str, source: SourceConfig, counts: Counts, length: int) -> None:
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


def prepare(command: PrepareCommand, tokenizer: DocumentTokenizer) -> dict[str, Any]:
    """Tokenizes and packs all sources into `command.output`, which appears only once it is complete.

    Args:
      tokenizer: the tokenizer that the command names; it is saved beside the rows.

    Returns:
      the contents of dataset.json.

    Raises:
      ConfigError: if one picture does not fit a row, or a source has nothing to train on.
      DocumentError: if a document is invalid, or needs a part that the tokenizer lacks.
    """
    vocabulary, length = tokenizer.need("vocabulary"), command.sequence_length
    if tokenizer.image is not None and length < tokenizer.image_block:
        raise ConfigError(
            f"sequence_length = {length}: must be at least {tokenizer.image_block}, the tokens of one picture "
            f"({tokenizer.codes_per_image} codes, begin and end)"
        )
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "sequence_length": length,
        "vocab_size": vocabulary.size,
        "sources": {},
        "held_out": {},
    }
    with new_folder(command.output, PREPARED) as folder:
        tokenizer.save(folder / "tokenizer")
        for part, sources in (("sources", command.sources), ("held_out", command.held_out)):
            for source in sources:
                counts = Counts()
                pieces = tokenized_pieces(source, command.datasets, tokenizer, length, counts)
                files, rows, digest = _write_rows(pack(pieces, length, vocabulary), folder, f"{part}-{source.name}")
                _check_counts(f"{part}.{source.name}", source, counts, length)
                header[part][source.name] = {
                    "files": files, "rows": rows, "sha256": digest, **_figures(counts),
                    "source": settings_of(source),
                }  # fmt: skip
        header["tokenizer"] = {
            "text": hashlib.sha256(tokenizer.text.model).hexdigest() if tokenizer.text else None,
            "image": _hash(tokenizer.image),
        }
        header["fingerprint"] = _fingerprint(header)
        write_json(folder / "dataset.json", with_checksum(json.loads(json.dumps(header))))
    return header
