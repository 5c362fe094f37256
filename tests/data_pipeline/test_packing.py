"""Packing loses nothing, cuts no picture, mixes no documents and keeps each token's weight, whatever the documents."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import scrambled_vocabulary

from chameleon_jax.batch import Batch
from data_pipeline.packing import OPEN_ROWS, Piece, cut, pack, places_to_cut

VOCABULARY = scrambled_vocabulary(num_pieces=30, num_codes=9, seed=5)
CODES = 4
BOS, EOS, PAD = VOCABULARY.bos, VOCABULARY.eos, VOCABULARY.pad
BEGIN, END = VOCABULARY.begin_image, VOCABULARY.end_image

pieces_of_text = st.lists(st.sampled_from(VOCABULARY.text_ids.tolist()), max_size=25)
pictures = st.lists(st.sampled_from(VOCABULARY.image_ids.tolist()), min_size=CODES, max_size=CODES).map(
    lambda codes: [BEGIN, *codes, END]
)
documents = st.lists(st.one_of(pieces_of_text, pictures), max_size=7).map(lambda parts: list(itertools.chain(*parts)))
lengths = st.integers(CODES + 2, 30)


def document(ids: list[int]) -> Piece:
    """With end of sequence and, so that it is seen where they go, a weight for each token: zeros among them."""
    ids = np.asarray([*ids, EOS], np.int32)
    return Piece(ids, (np.arange(len(ids)) % 5 / 4).astype(np.float32))


def block_ends(ids: np.ndarray) -> np.ndarray:
    """True after the last token of each picture, False inside one: where a document may be cut."""
    inside = np.cumsum(ids == BEGIN) - np.cumsum(ids == END)
    return inside == 0


def pieces_of_row(row: np.ndarray) -> list[Piece]:
    """The pieces that a row holds, taken from its arrays alone, with all promises about them checked."""
    inputs, targets, weights, positions, segments = (row[name] for name in Batch._fields)
    used = int((segments > 0).sum())
    assert (segments[used:] == 0).all()
    assert (inputs[used:] == PAD).all()
    assert (targets[used:] == PAD).all()
    assert (weights[used:] == 0).all()
    count = segments.max()
    assert count >= 1
    assert (np.diff(segments[:used]) >= 0).all()
    pieces = []
    for number in range(1, count + 1):
        here = segments == number
        np.testing.assert_array_equal(positions[here], np.arange(here.sum()))
        np.testing.assert_array_equal(inputs[here][1:], targets[here][:-1])
        assert inputs[here][0] == BOS
        pieces.append(Piece(np.append(inputs[here], targets[here][-1]), np.append(np.float32(0), weights[here])))
    return pieces


@settings(max_examples=100)
@given(ids=documents, length=lengths)
def test_cut_pieces_make_the_document_again(ids, length):
    whole = document(ids)
    pieces = cut(whole, length, VOCABULARY)
    for piece, weights in pieces:
        assert (piece.dtype, weights.dtype) == (np.int32, np.float32)
        assert (piece[0], weights[0]) == (BOS, 0)
        assert 2 <= len(piece) == len(weights) <= length + 1
        assert block_ends(piece)[-1]
    np.testing.assert_array_equal(np.concatenate([piece.ids[1:] for piece in pieces]), [*ids, EOS])
    np.testing.assert_array_equal(np.concatenate([piece.weights[1:] for piece in pieces]), whole.weights)


@settings(max_examples=100)
@given(ids=st.lists(st.sampled_from(VOCABULARY.text_ids.tolist()), max_size=90), length=lengths)
def test_pieces_of_text_are_as_long_as_they_can_be(ids, length):
    *full, last = cut(document(ids), length, VOCABULARY)
    assert all(len(piece.ids) == length + 1 for piece in full)
    assert len(last.ids) <= length + 1


captions = st.lists(st.sampled_from(VOCABULARY.text_ids.tolist()), min_size=1, max_size=40)


@settings(max_examples=100)
@given(
    pairs=st.lists(st.tuples(captions, pictures), min_size=1, max_size=6), length=lengths, picture_first=st.booleans()
)
def test_picture_stays_with_its_caption_where_both_fit_and_with_a_part_of_it_where_any_does(
    pairs, length, picture_first
):
    ids = [token for caption, picture in pairs for part in ((picture, caption) if picture_first else (caption, picture))
           for token in part]  # fmt: skip
    pieces = cut(document(ids), length, VOCABULARY)
    beside = -1 if not picture_first else CODES + 2
    found = []
    for piece, _ in pieces:
        text = np.isin(piece, VOCABULARY.text_ids)
        found += [bool(text[1:-1].size and text[min(place + beside, len(piece) - 1)])
                  for place in np.flatnonzero(piece == BEGIN)]  # fmt: skip
    _, lost = places_to_cut(document(ids).ids, length, VOCABULARY)
    assert lost == len(pairs) - sum(found)
    if length > CODES + 2:
        assert all(found)
    whole = [len(caption) + CODES + 3 <= length for caption, _ in pairs]
    if all(whole):
        assert all(block_starts_a_pair(piece.ids, picture_first) for piece in pieces)


def block_starts_a_pair(piece: np.ndarray, picture_first: bool) -> bool:
    """Whether a piece begins where a pair does: with a picture, or with text that a picture follows."""
    return bool(piece[1] == BEGIN) == picture_first or piece[1] == EOS


def test_cut_off_pictures_are_counted():
    text, picture = VOCABULARY.text_ids[:3].tolist(), [BEGIN, *VOCABULARY.image_ids[:CODES].tolist(), END]
    room = CODES + 2
    for ids, length, lost in (
        ([*text, *picture], room, 1),  # nothing fits beside it
        ([*text, *picture], room + 1, 0),  # one piece of text does
        ([*picture, *text], room, 1),
        ([*picture, *text, *picture, *text], room, 2),
        ([*text, *picture, *picture], room, 2),  # two pictures of one caption
        ([*picture, *picture], room, 0),  # there was no text
        (text * 9, room, 0),
        ([*text, *picture, *text], len(text) + room, 0),  # the rest is no caption of the picture
        ([*text, *picture], 50, 0),
    ):
        assert places_to_cut(document(ids).ids, length, VOCABULARY)[1] == lost, (ids, length)


@settings(max_examples=100)
@given(corpus=st.lists(documents, min_size=1, max_size=12), length=lengths)
def test_every_token_is_predicted_exactly_once(corpus, length):
    def hashable(piece: Piece) -> tuple:
        return tuple(piece.ids.tolist()), tuple(piece.weights.tolist())

    pieces = [piece for ids in corpus for piece in cut(document(ids), length, VOCABULARY)]
    rows = list(pack(pieces, length, VOCABULARY))
    packed = [piece for row in rows for piece in pieces_of_row(row)]
    assert Counter(map(hashable, packed)) == Counter(map(hashable, pieces))
    predicted = sum(int((row["segment_ids"] > 0).sum()) for row in rows)
    assert predicted == sum(len(ids) + 1 for ids in corpus)
    for row in rows:
        assert row["inputs"].shape == (length,)
        for piece in pieces_of_row(row):
            assert block_ends(piece.ids)[-1]


def test_rows_are_well_filled():
    rng = np.random.default_rng(0)
    length = 64
    corpus = [rng.choice(VOCABULARY.text_ids, rng.integers(1, 60)) for _ in range(600)]
    pieces = [piece for ids in corpus for piece in cut(document(ids), length, VOCABULARY)]
    rows = list(pack(pieces, length, VOCABULARY))
    assert np.mean([(row["segment_ids"] > 0).mean() for row in rows]) > 0.95


def test_packing_reads_no_further_ahead_than_its_open_rows():
    length, read = 10, 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Piece(np.array([BOS, *VOCABULARY.text_ids[:8], EOS], np.int32), np.ones(10, np.float32))

    next(pack(endless(), length, VOCABULARY))
    assert read == OPEN_ROWS + 1


def test_picture_longer_than_a_row_is_an_error():
    picture = document([BEGIN, *VOCABULARY.image_ids[:CODES], END])
    assert len(cut(picture, CODES + 2, VOCABULARY)) == 2  # the picture, and end of sequence by itself
    with pytest.raises(ValueError, match="picture of 6 tokens does not fit a row of 5"):
        cut(picture, CODES + 1, VOCABULARY)


def test_nothing_is_packed_from_nothing():
    assert list(pack([], 8, VOCABULARY)) == []
    (piece,) = cut(document([]), 8, VOCABULARY)
    assert piece.ids.tolist() == [BOS, EOS]
