"""Whatever is drawn from the allowed tokens is text and whole pictures."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import scrambled_vocabulary

from chameleon_jax.generation.modality import IN_TEXT, Columns, advance, allowed_text, picture_fits, place_after
from chameleon_jax.tokens.vocabulary import Vocabulary

ROWS, STEPS = 8, 30


def letters(vocabulary: Vocabulary, tokens) -> str:
    """One letter a token: b begin, c code, e end, t text or end of sequence, ? what must never be written."""
    names = dict.fromkeys(vocabulary.text_ids.tolist(), "t") | dict.fromkeys(vocabulary.image_ids.tolist(), "c")
    names |= {vocabulary.eos: "t", vocabulary.begin_image: "b", vocabulary.end_image: "e"}
    return "".join(names.get(int(token), "?") for token in tokens)


@settings(max_examples=15)
@given(codes=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_random_walks_write_text_and_whole_pictures(codes, seed):
    """Begins of image and ends of turn only where a row may, no other special."""
    vocabulary, rng = scrambled_vocabulary(num_pieces=9, num_codes=5, seed=seed), np.random.default_rng(seed)
    columns = Columns.build(vocabulary, codes)
    place, tokens, flags = jnp.full(ROWS, IN_TEXT), [], []
    for _ in range(STEPS):
        may_begin, may_end_turn = jnp.asarray(rng.random((2, ROWS)) < 0.5)
        mask = np.asarray(allowed_text(columns, may_begin, may_end_turn))
        weight = mask * np.where(np.arange(mask.shape[1]) >= 10, 5, 1)  # marks as often as everything else together
        text = jnp.asarray([rng.choice(len(row), p=row / row.sum()) for row in weight])
        code = columns.image_ids[rng.integers(0, 5, ROWS)]
        code = jnp.where(place == codes, columns.end_image, code)
        token = jnp.where(place == IN_TEXT, columns.text_ids[text], code)
        begins = (np.asarray(token) == vocabulary.begin_image) & ~np.asarray(may_begin)
        turns = (np.asarray(token) == vocabulary.end_of_turn) & ~np.asarray(may_end_turn)
        assert not begins.any()
        assert not turns.any()
        place = advance(columns, place, token)
        tokens.append(np.asarray(token))
        flags.append(np.asarray(place))
    rows = np.stack(tokens, axis=1)
    assert (rows == vocabulary.begin_image).any()
    assert (rows == vocabulary.end_of_turn).any()
    for row, places in zip(rows, np.stack(flags, axis=1), strict=True):
        word = letters(vocabulary, np.where(row == vocabulary.end_of_turn, vocabulary.eos, row))
        assert re.fullmatch(rf"(t|bc{{{codes}}}e)*(bc{{0,{codes}}})?", word), word
        assert [place_after(vocabulary, row[:stop]) for stop in range(1, STEPS + 1)] == places.tolist()


def test_columns_are_all_that_is_ever_written():
    vocabulary = scrambled_vocabulary(num_pieces=7, num_codes=4, seed=1)
    columns = Columns.build(vocabulary, 2)
    last = [vocabulary.eos, vocabulary.end_of_turn, vocabulary.begin_image]
    assert columns.text_ids.tolist() == [*vocabulary.text_ids.tolist(), *last]
    assert columns.image_ids.tolist() == vocabulary.image_ids.tolist()
    flags = jnp.asarray([[False, False], [True, False], [False, True], [True, True]])
    mask = np.asarray(allowed_text(columns, may_begin=flags[:, 0], may_end_turn=flags[:, 1]))
    assert mask[:, :-2].all()
    np.testing.assert_array_equal(mask[:, -2:], flags[:, ::-1])


@pytest.mark.parametrize(("length", "fits"), [(1, True), (3069, True), (3070, False), (4095, False)])
def test_picture_is_begun_up_to_the_released_length(length, fits):
    """Vector V18: of 4096 tokens, a picture of 1024 codes may be begun after 3069 but not after 3070."""
    columns = Columns.build(Vocabulary.in_released_order(num_pieces=7, num_codes=4), codes_per_image=1024)
    assert bool(picture_fits(columns, jnp.int32(4096 - length))) == fits


@pytest.mark.parametrize(
    ("word", "place"), [("", IN_TEXT), ("tt", IN_TEXT), ("tb", 0), ("tbcc", 2), ("bcce", IN_TEXT), ("bccetbc", 1)]
)
def test_place_after_a_prompt(word, place):
    vocabulary = scrambled_vocabulary(num_pieces=7, num_codes=4, seed=2)
    ids = {
        "t": int(vocabulary.text_ids[3]),
        "b": vocabulary.begin_image,
        "c": int(vocabulary.image_ids[0]),
        "e": vocabulary.end_image,
    }
    assert place_after(vocabulary, np.asarray([vocabulary.bos, *(ids[letter] for letter in word)])) == place
