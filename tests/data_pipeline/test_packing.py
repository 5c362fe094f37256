"""Packing loses nothing, cuts no picture, mixes no documents and keeps each token's weight, whatever the documents."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import scrambled_vocabulary

from data_pipeline.packing import OPEN_ROWS, Packer, fit, pack, places_to_cut
from data_pipeline.rows import Piece
from data_pipeline.tokenized import TokenizedDocument

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


def document(ids: list[int], turn_ends: tuple[int, ...] = ()) -> TokenizedDocument:
    """With end of sequence and, so that it is seen where they go, a weight for each token: zeros among them."""
    ids = np.asarray([*ids, EOS], np.int32)
    weights = (np.arange(len(ids)) % 5 / 4).astype(np.float32)
    return TokenizedDocument("", ids, weights, np.asarray(turn_ends, np.int32), 0, 0, 0)


def cut(whole: TokenizedDocument, length: int) -> list[Piece]:
    return fit(whole, length, VOCABULARY).pieces


def block_ends(ids: np.ndarray) -> np.ndarray:
    """True after the last token of each picture, False inside one: where a document may be cut."""
    inside = np.cumsum(ids == BEGIN) - np.cumsum(ids == END)
    return inside == 0


@settings(max_examples=100)
@given(ids=documents, length=lengths)
def test_cut_pieces_make_the_document_again(ids, length):
    whole = document(ids)
    pieces = cut(whole, length)
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
    *full, last = cut(document(ids), length)
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
    pieces = cut(document(ids), length)
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


def hashable(piece: Piece) -> tuple:
    return tuple(piece.ids.tolist()), tuple(piece.weights.tolist())


@settings(max_examples=100)
@given(corpus=st.lists(documents, min_size=1, max_size=12), length=lengths)
def test_every_piece_is_in_exactly_one_row(corpus, length):
    pieces = [piece for ids in corpus for piece in cut(document(ids), length)]
    rows = list(pack(pieces, length))
    assert Counter(hashable(piece) for row in rows for piece in row) == Counter(map(hashable, pieces))
    for row in rows:
        assert sum(len(piece.ids) - 1 for piece in row) <= length
        assert all(block_ends(piece.ids)[-1] for piece in row)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 80))
def test_texts_cut_to_fill_rows_lose_no_token_and_short_ones_stay_whole(seed, length):
    """Each token of a document has an id of its own here, so that it is seen where it went."""
    rng, packer = np.random.default_rng(seed), Packer(length, open_rows=4)
    rows, given, first = [], {}, 0
    for number in range(rng.integers(1, 40)):
        size, text = int(rng.integers(1, 3 * length)), bool(rng.random() < 0.6)
        size = size if text else min(size, length)
        ids = np.append(-1, np.arange(first, first + size)).astype(np.int32)
        first += size
        given[number] = (ids[1:], text)
        rows += packer.add(Piece(ids, np.append(0, ids[1:] / 7).astype(np.float32)), may_be_cut=text)
    rows += packer.finish()
    parts = [piece for row in rows for piece in row]
    assert all(sum(len(piece.ids) - 1 for piece in row) <= length for row in rows)
    assert all(piece.ids[0] == -1 and piece.weights[0] == 0 for piece in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate([piece.ids[1:] for piece in parts])), np.arange(first))
    for piece in parts:
        np.testing.assert_array_equal(np.diff(piece.ids[1:]), 1)
        np.testing.assert_array_equal(piece.weights[1:], (piece.ids[1:] / 7).astype(np.float32))
    starts = {int(piece.ids[1]): len(piece.ids) - 1 for piece in parts}
    for ids, text in given.values():
        if not text or len(ids) < length // 4:
            assert starts[int(ids[0])] == len(ids)
        of_document = [size for start, size in starts.items() if ids[0] <= start <= ids[-1]]
        assert len(of_document) == 1 or min(of_document) >= length // 32


def test_conversations_lose_turns_that_do_not_fit_and_end_with_end_of_sequence():
    text = VOCABULARY.text_ids[:4].tolist()
    separator = VOCABULARY.end_of_turn
    chat = document([*text, separator, *text, separator, *text], turn_ends=(5, 10, 15))
    for length, kept in ((14, 2), (15, 3), (9, 1), (5, 1)):
        fitted = fit(chat, length, VOCABULARY)
        (piece,) = fitted.pieces
        assert fitted.turns_dropped == 3 - kept
        assert piece.ids.tolist() == [BOS, *chat.ids[: 5 * kept - 1], EOS]
        np.testing.assert_array_equal(piece.weights, [0, *chat.weights[: 5 * kept]])
    fitted = fit(chat, 4, VOCABULARY)
    assert (fitted.pieces, fitted.turns_dropped) == ([], 3)
    assert fitted.reason == "its first turn takes more than the 4 tokens of a row"


def test_documents_longer_than_a_row_are_rejected_if_asked_to():
    text = document(VOCABULARY.text_ids[:9].tolist())
    assert len(fit(text, 10, VOCABULARY, "reject").pieces) == 1
    fitted = fit(text, 9, VOCABULARY, "reject", fill=True)
    assert (fitted.pieces, fitted.reason) == ([], "it takes 10 tokens, more than the 9 of a row")


def test_rows_are_well_filled():
    rng, length = np.random.default_rng(0), 64
    pieces = [Piece(np.zeros(size + 1, np.int32), np.zeros(size + 1)) for size in rng.integers(1, 60, 600)]
    rows = list(pack(pieces, length))
    assert np.mean([sum(len(piece.ids) - 1 for piece in row) / length for row in rows]) > 0.95


def test_packing_reads_no_further_ahead_than_its_open_rows():
    length, read = 10, 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Piece(np.array([BOS, *VOCABULARY.text_ids[:8], EOS], np.int32), np.ones(10, np.float32))

    next(pack(endless(), length))
    assert read == OPEN_ROWS + 1


def test_picture_longer_than_a_row_is_an_error():
    picture = document([BEGIN, *VOCABULARY.image_ids[:CODES], END])
    assert len(cut(picture, CODES + 2)) == 2  # the picture, and end of sequence by itself
    with pytest.raises(ValueError, match="picture of 6 tokens does not fit a row of 5"):
        cut(picture, CODES + 1)


def test_nothing_is_packed_from_nothing():
    assert list(pack([], 8)) == []
    (piece,) = cut(document([]), 8)
    assert piece.ids.tolist() == [BOS, EOS]
