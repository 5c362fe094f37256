"""Prepared data made of tokenized documents, without sources or tokenizing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from chameleon_jax.runtime.files import write_json
from chameleon_jax.runtime.headers import with_checksum
from chameleon_jax.tokens.vocabulary import Vocabulary
from data_pipeline.pools import PoolSource, write_pool
from data_pipeline.rows import PREPARED_VERSION
from data_pipeline.tokenized import TokenizedDocument


def text(number: int, size: int, vocabulary: Vocabulary) -> TokenizedDocument:
    """Some text, all of it learnt from except for its first fifth."""
    ids = np.random.default_rng(number).choice(vocabulary.text_ids, size)
    weights = (np.arange(size + 1) >= size // 5).astype(np.float32)
    return TokenizedDocument(
        f"text:{number}", np.append(ids, vocabulary.eos), weights, np.zeros(0, int), 0, size, number
    )


def pair(number: int, size: int, codes: int, vocabulary: Vocabulary) -> TokenizedDocument:
    """A picture of `codes` codes with a caption of `size` tokens."""
    rng = np.random.default_rng(number)
    picture = [vocabulary.begin_image, *rng.choice(vocabulary.image_ids, codes), vocabulary.end_image]
    ids = np.array([*picture, *rng.choice(vocabulary.text_ids, size), vocabulary.eos])
    return TokenizedDocument(f"pair:{number}", ids, np.ones(len(ids), np.float32), np.zeros(0, int), 1, size, number)


def source(name: str, documents: Iterable[TokenizedDocument], weight: float = 1, epochs: int = 1) -> PoolSource:
    documents = list(documents)
    tokens = sum(len(document.ids) - 1 for document in documents)
    return PoolSource(name, weight, tokens, lambda: iter(documents), epochs)


def write_prepared(
    folder: Path,
    vocabulary: Vocabulary,
    length: int,
    pools: Mapping[str, list[PoolSource]],
    held_out: Mapping[str, list[PoolSource]] | None = None,
) -> Path:
    folder.mkdir(parents=True)
    header = {"format_version": PREPARED_VERSION, "sequence_length": length, "vocab_size": vocabulary.size,
              "pad": vocabulary.pad, "fingerprint": folder.name}  # fmt: skip
    for part, entries in (("sources", pools), ("held_out", held_out or {})):
        header[part] = {
            name: write_pool(f"{part}-{name}", sources, length, vocabulary, "split", folder)
            for name, sources in entries.items()
        }
    write_json(folder / "dataset.json", with_checksum(json.loads(json.dumps(header))))
    return folder
