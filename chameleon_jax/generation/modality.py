"""Which tokens may come next: text, or exactly begin of image, N codes, end of image.

Each row carries one number, its place: `IN_TEXT` outside pictures, otherwise how many codes of the current picture are
written; when all are, the picture must be closed. Legend: R rows, C text columns, N image codes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array, Bool, Int
from chameleon_jax.tokens.vocabulary import Vocabulary

IN_TEXT = -1


class Columns(NamedTuple):
    """The columns of the output layer that are ever drawn from, text and image apart. All others never occur: begin of
    sequence, padding, sentinels, reserved ids, columns past the vocabulary; end of image is not drawn but follows."""

    text_ids: Array  # int32 [C]; text pieces, then end of sequence, end of turn, begin of image
    image_ids: Array  # int32 [N]
    begin_image: Array  # int32 []
    end_image: Array  # int32 []
    codes_per_image: Array  # int32 []

    @classmethod
    def build(cls, vocabulary: Vocabulary, codes_per_image: int) -> Columns:
        last = (vocabulary.eos, vocabulary.end_of_turn, vocabulary.begin_image)
        return cls(
            jnp.asarray(np.concatenate([vocabulary.text_ids, last]), jnp.int32),
            jnp.asarray(vocabulary.image_ids, jnp.int32),
            *(jnp.int32(value) for value in (vocabulary.begin_image, vocabulary.end_image, codes_per_image)),
        )


def allowed_text(columns: Columns, may_begin: Bool[Array, "R"], may_end_turn: Bool[Array, "R"]) -> Bool[Array, "R C"]:
    """Text columns that may be drawn: pieces and end of sequence always, begin of image and end of turn where a row's
    flag says so."""
    column, C = jnp.arange(len(columns.text_ids)), len(columns.text_ids)
    turn, begin = column == C - 2, column == C - 1
    return ~(turn & ~may_end_turn[:, None]) & ~(begin & ~may_begin[:, None])


def picture_fits(columns: Columns, remaining: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a picture may be begun with `remaining` tokens still to write.

    As in the released code, one token more than its codes and two marks must be left.
    """
    return remaining > columns.codes_per_image + 2


def advance(columns: Columns, place: Int[Array, "R"], tokens: Int[Array, "R"]) -> Int[Array, "R"]:
    """The place after writing `tokens`."""
    in_picture = jnp.where(place == columns.codes_per_image, IN_TEXT, place + 1)
    in_text = jnp.where(tokens == columns.begin_image, 0, IN_TEXT)
    return jnp.where(place == IN_TEXT, in_text, in_picture)


def place_after(vocabulary: Vocabulary, ids: np.ndarray) -> int:
    """The place after reading `ids`, which may stop inside a picture."""
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    ends = np.flatnonzero(ids == vocabulary.end_image)
    if len(begins) == 0 or (len(ends) > 0 and ends[-1] > begins[-1]):
        return IN_TEXT
    return len(ids) - 1 - int(begins[-1])
