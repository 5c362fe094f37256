"""Turns packed rows back into text and pictures that a person can read."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, SPECIAL_NAMES, TEXT, Vocabulary


class Span(NamedTuple):
    """Consecutive tokens of a document that have the same weight in the loss."""

    content: str | np.ndarray  # text, or the ids of a picture's codes
    weight: float


def unpack(row: np.ndarray, tokenizer: DocumentTokenizer) -> list[list[Span]]:
    """The documents of a row (`batch.row_dtype`). Special tokens become their names, such as ⟨end of turn⟩.

    The weight of a picture is that of its codes. Any ids are accepted: those in the wrong place are shown as numbers.

    Raises:
      DocumentError: if there is no text tokenizer.
    """
    documents = []
    for segment in range(1, row["segment_ids"].max() + 1):
        here = row["segment_ids"] == segment
        ids = np.concatenate([row["inputs"][here][:1], row["targets"][here]])
        weights = np.concatenate([[0], row["loss_weights"][here]])
        documents.append(_spans(ids, weights, tokenizer))
    return documents


def _spans(ids: np.ndarray, weights: np.ndarray, tokenizer: DocumentTokenizer) -> list[Span]:
    vocabulary, spans, place = tokenizer.vocabulary, [], 0
    modality = vocabulary.modality[ids]
    while place < len(ids):
        stop = place + 1
        if ids[place] == vocabulary.begin_image and (codes := _run(modality[stop:] == IMAGE)):
            stop += codes
            spans.append(Span(ids[place + 1 : stop], float(weights[place + 1])))
            stop += np.count_nonzero(ids[stop : stop + 1] == vocabulary.end_image)
        elif modality[place] == TEXT:
            stop = place + _run((modality[place:] == TEXT) & (weights[place:] == weights[place]))
            pieces = vocabulary.piece_of_id[ids[place:stop]]
            spans.append(Span(tokenizer.need("text").decode(pieces), float(weights[place])))
        else:
            spans.append(Span(_name(int(ids[place]), vocabulary), float(weights[place])))
        place = stop
    return spans


def _run(true: np.ndarray) -> int:
    """The number of leading elements that are true."""
    return sum(1 for _ in itertools.takewhile(bool, true))


def _name(token: int, vocabulary: Vocabulary) -> str:
    roles = {getattr(vocabulary, role): role for role in SPECIAL_NAMES}
    return f"⟨{roles[token].replace('_', ' ')}⟩" if token in roles else f"⟨id {token}⟩"
