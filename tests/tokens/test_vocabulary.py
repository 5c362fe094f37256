"""Ids stand where the released model has them, and nothing but the tables says where they stand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_picture, scrambled_tokenizer, scrambled_vocabulary

from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, SPECIAL, TEXT, Vocabulary


def check_tables(vocabulary: Vocabulary, num_pieces: int, num_codes: int) -> None:
    """Both tables are one-to-one, their inverses undo them, and every id has exactly one kind."""
    specials = [vocabulary.bos, vocabulary.pad, vocabulary.eos]
    specials += [vocabulary.begin_image, vocabulary.end_image, vocabulary.end_of_turn]
    assert len(vocabulary.text_ids) == num_pieces
    assert len(vocabulary.image_ids) == num_codes
    used = [*specials, *vocabulary.text_ids.tolist(), *vocabulary.image_ids.tolist()]
    assert len(set(used)) == len(used)
    assert vocabulary.size == max(used) + 1
    kinds = dict.fromkeys(vocabulary.text_ids.tolist(), TEXT) | dict.fromkeys(vocabulary.image_ids.tolist(), IMAGE)
    assert vocabulary.modality.tolist() == [kinds.get(token, SPECIAL) for token in range(vocabulary.size)]
    np.testing.assert_array_equal(vocabulary.piece_of_id[vocabulary.text_ids], np.arange(num_pieces))
    np.testing.assert_array_equal(vocabulary.code_of_id[vocabulary.image_ids], np.arange(num_codes))
    assert (vocabulary.piece_of_id >= 0).sum() == num_pieces
    assert (vocabulary.code_of_id >= 0).sum() == num_codes


def test_released_order():
    vocabulary = Vocabulary.in_released_order(num_pieces=100, num_codes=8192)
    assert (vocabulary.bos, vocabulary.pad, vocabulary.eos) == (0, 1, 2)
    np.testing.assert_array_equal(vocabulary.image_ids, np.arange(4, 8196))
    assert (vocabulary.end_image, vocabulary.begin_image, vocabulary.end_of_turn) == (8196, 8197, 8198)
    assert vocabulary.text_ids[0] == 3
    np.testing.assert_array_equal(vocabulary.text_ids[1:], np.arange(8199, 8199 + 99))
    assert vocabulary.size == 8199 + 99


@given(num_pieces=st.integers(2, 300), num_codes=st.integers(1, 300))
def test_released_order_in_any_size_has_no_gaps(num_pieces, num_codes):
    vocabulary = Vocabulary.in_released_order(num_pieces, num_codes)
    check_tables(vocabulary, num_pieces, num_codes)
    assert vocabulary.size == 6 + num_pieces + num_codes


@given(num_pieces=st.integers(1, 50), num_codes=st.integers(1, 50), seed=st.integers(0, 1000))
def test_scrambled_tables_are_just_as_good(num_pieces, num_codes, seed):
    check_tables(scrambled_vocabulary(num_pieces, num_codes, seed), num_pieces, num_codes)


@given(seed=st.integers(0, 1000))
def test_written_vocabulary_reads_back(seed):
    vocabulary = scrambled_vocabulary(20, 10, seed)
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again.to_dict() == vocabulary.to_dict()
    assert again.text_ids.dtype == again.image_ids.dtype == np.int32


@pytest.mark.parametrize("document", [["a b", random_picture(1), "", "c"], [random_picture(2)], ["only text"]])
def test_documents_do_not_care_where_ids_stand(document):
    """The same document under both vocabularies: other ids, but the same pieces, codes and marks."""
    scrambled = scrambled_tokenizer()
    released = DocumentTokenizer.join(scrambled.text, scrambled.image)

    def meaning(tokenizer: DocumentTokenizer) -> list:
        words = tokenizer.vocabulary
        names = {words.begin_image: "begin", words.end_image: "end"}
        names |= {int(token): f"text {piece}" for piece, token in enumerate(words.text_ids)}
        names |= {int(token): f"code {code}" for code, token in enumerate(words.image_ids)}
        return [names[int(token)] for token in tokenizer.encode(document)]

    assert meaning(scrambled) == meaning(released)
    decoded, expected = (tokenizer.decode(tokenizer.encode(document)) for tokenizer in (scrambled, released))
    assert [type(segment) for segment in decoded] == [type(segment) for segment in expected]
    for segment, other in zip(decoded, expected, strict=True):
        assert segment == other if isinstance(segment, str) else segment.tobytes() == other.tobytes()
