"""The offline job: Documents to packed rows in ArrayRecord files, with everything training needs beside them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.config import ConfigError, PrepareCommand, SourceConfig, to_dict
from chameleon_jax.files import FORMAT_VERSION, new_folder, write_json
from chameleon_jax.progress import progress_bar
from chameleon_jax.tokens.documents import DocumentTokenizer, load_image_tokenizer, load_text_tokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT
from data_pipeline.packing import cut, pack
from data_pipeline.sources import open_source

DOCUMENTS_AT_A_TIME = 512
ROWS_PER_FILE = 65536


class _Counts:
    """What went by: documents, bytes of text, tokens of each modality."""

    def __init__(self):
        self.documents = self.pictures = self.text_bytes = self.text_tokens = self.image_tokens = self.tokens = 0

    def add(self, document, ids: np.ndarray, tokenizer: DocumentTokenizer) -> None:
        modality = tokenizer.vocabulary.modality[ids]
        self.documents += 1
        self.pictures += sum(not isinstance(segment, str) for segment in document)
        self.text_bytes += sum(len(segment.encode()) for segment in document if isinstance(segment, str))
        self.text_tokens += int((modality == TEXT).sum())
        self.image_tokens += int((modality == IMAGE).sum())
        self.tokens += len(ids)


def tokenized_pieces(
    source: SourceConfig, datasets: str, tokenizer: DocumentTokenizer, length: int, counts: _Counts | None = None
) -> Iterator[np.ndarray]:
    """Pieces of at most `length` + 1 ids, begin and end of sequence included, of all documents of a source."""
    counts = counts or _Counts()
    documents = open_source(source, datasets)
    with progress_bar(f"prepare {source.name}", source.count or None) as bar:
        while chunk := list(itertools.islice(documents, DOCUMENTS_AT_A_TIME)):
            for document, ids in zip(chunk, tokenizer.encode_many(chunk), strict=True):
                counts.add(document, ids, tokenizer)
                yield from cut(ids, length, tokenizer.vocabulary)
            bar.update(counts.documents, tokens=f"{counts.tokens:,}")


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


def _hash(tokenizer: ImageTokenizer) -> str:
    digest = hashlib.sha256(json.dumps(to_dict(tokenizer.config)).encode())
    for leaf in jax.tree.leaves(tokenizer.params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def prepare(command: PrepareCommand) -> dict[str, Any]:
    """Tokenizes and packs all sources into `command.output`, which appears only when it is complete.

    Returns:
      the contents of dataset.json.

    Raises:
      ConfigError: if one picture does not fit a row, or a source has no documents.
    """
    tokenizer = DocumentTokenizer.join(
        load_text_tokenizer(command.text_tokenizer), load_image_tokenizer(command.image_tokenizer)
    )
    length = command.sequence_length
    if length < tokenizer.image_block:
        raise ConfigError(
            f"sequence_length = {length}: must be at least {tokenizer.image_block}, the tokens of one picture "
            f"({tokenizer.image.config.codes_per_image} codes, begin and end)"
        )
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "sequence_length": length,
        "vocab_size": tokenizer.vocabulary.size,
        "sources": {},
        "held_out": {},
    }
    with new_folder(command.output) as folder:
        tokenizer.save(folder / "tokenizer")
        for part, sources in (("sources", command.sources), ("held_out", command.held_out)):
            for source in sources:
                counts = _Counts()
                rows = pack(
                    tokenized_pieces(source, command.datasets, tokenizer, length, counts), length, tokenizer.vocabulary
                )
                files, total, digest = _write_rows(rows, folder, f"{part}-{source.name}")
                if total == 0:
                    raise ConfigError(f"{part}.{source.name}: has no documents")
                header[part][source.name] = {
                    "files": files, "rows": total, "sha256": digest, **vars(counts), "source": to_dict(source)
                }  # fmt: skip
        header["tokenizer"] = {
            "text": hashlib.sha256(tokenizer.text.model).hexdigest(),
            "image": _hash(tokenizer.image),
        }
        header["fingerprint"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
        write_json(folder / "dataset.json", header)
    return header
