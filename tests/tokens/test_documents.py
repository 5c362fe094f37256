"""Documents become ids and come back; ids that are no document are told apart."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import image_tokenizer, random_picture, scrambled_tokenizer, text_tokenizer

from chameleon_jax.document import DocumentError
from chameleon_jax.files import FileError
from chameleon_jax.tokens.documents import DocumentTokenizer

TOKENIZER = scrambled_tokenizer()
VOCABULARY = TOKENIZER.vocabulary
BEGIN, END = VOCABULARY.begin_image, VOCABULARY.end_image
TEXT = VOCABULARY.text_ids[TOKENIZER.text.encode("hello")].tolist()
CODES = VOCABULARY.image_ids[[3, 1, 4, 1]].tolist()

segments = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(0, 30))


def with_pictures(document: list) -> list:
    return [random_picture(segment) if isinstance(segment, int) else segment for segment in document]


def test_picture_is_begin_codes_end():
    picture = random_picture(0)
    (codes,) = image_tokenizer().tokenize([picture])
    ids = TOKENIZER.encode([picture])
    assert ids.dtype == np.int32
    assert ids.tolist() == [BEGIN, *VOCABULARY.image_ids[codes].tolist(), END]
    assert TOKENIZER.image_block == len(ids) == 6


def test_segments_are_encoded_by_themselves():
    """Text around a seam is not joined, even where joining would give fewer pieces."""
    halves = ["The quick bro", "wn fox"]
    pieces = np.concatenate([text_tokenizer().encode(half) for half in halves])
    assert len(pieces) > len(text_tokenizer().encode("".join(halves)))
    np.testing.assert_array_equal(TOKENIZER.encode(halves), VOCABULARY.text_ids[pieces])


@settings(max_examples=30)
@given(document=st.lists(segments, max_size=6))
def test_documents_come_back(document):
    """Text word for word, neighbouring texts joined; pictures as their codes draw them."""
    expected: list = []
    for segment in with_pictures(document):
        if not isinstance(segment, str):
            expected += image_tokenizer().detokenize(image_tokenizer().tokenize([segment]))
        elif segment and expected and isinstance(expected[-1], str):
            expected[-1] += segment
        elif segment:
            expected.append(segment)
    decoded = TOKENIZER.decode(TOKENIZER.encode(with_pictures(document)))
    assert len(decoded) == len(expected)
    for segment, other in zip(decoded, expected, strict=True):
        if isinstance(other, str):
            assert segment == other
        else:
            difference = np.abs(np.asarray(segment, int) - np.asarray(other, int))
            assert difference.max() <= 1  # truncated to 8 bits after sums in another order


def test_many_documents_at_once_are_each_as_alone():
    documents = [["a", random_picture(1)], [], [random_picture(2), random_picture(3), "b"], ["c"]]
    for together, document in zip(TOKENIZER.encode_many(documents), documents, strict=True):
        np.testing.assert_array_equal(together, TOKENIZER.encode(document))


def test_specials_leave_no_trace():
    ids = [VOCABULARY.bos, *TEXT, BEGIN, *CODES, END, VOCABULARY.end_of_turn, *TEXT, VOCABULARY.eos, VOCABULARY.pad]
    decoded = TOKENIZER.decode(ids)
    assert [decoded[0], decoded[2]] == ["hello", "hello"]
    assert decoded[1].size == (16, 16)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([BEGIN, *CODES], "cut short after 4 of 4 codes"),
        ([BEGIN], "cut short after 0 of 4 codes"),
        ([*TEXT[:1], BEGIN, *CODES[:2], END], "ends at place 4 has 2 codes; it needs 4"),
        ([BEGIN, *CODES, CODES[0], END], "has 5 codes; it needs 4"),
        ([BEGIN, *CODES[:2], TEXT[0], *CODES[:2], END], "ends at place 3 has 2 codes"),
        ([BEGIN, *CODES[:2], BEGIN, *CODES, END], "ends at place 3 has 2 codes"),
        ([BEGIN, *CODES, VOCABULARY.eos], "end-of-image token"),
        ([CODES[0]], "image token at place 0 outside a picture"),
        ([*TEXT[:1], END], "image token at place 1 outside a picture"),
        ([BEGIN, *CODES, END, END], "image token at place 6 outside a picture"),
        ([*TEXT[:1], VOCABULARY.size], f"id {VOCABULARY.size} at place 1 is outside the vocabulary"),
        ([-1], "id -1 at place 0 is outside the vocabulary"),
    ],
)
def test_ids_that_are_no_document_are_refused(ids, message):
    with pytest.raises(DocumentError, match=message):
        TOKENIZER.decode(ids)


@pytest.mark.parametrize("segment", [3, None, b"bytes", ["nested"], np.zeros((2, 2, 3))])
def test_segment_of_another_kind_is_named(segment):
    with pytest.raises(DocumentError, match=type(segment).__name__):
        TOKENIZER.encode(["text", segment])


def test_text_that_cannot_be_encoded_is_shown():
    with pytest.raises(DocumentError, match="lone surrogate at character 4"):
        TOKENIZER.encode(["fine", "not \ud800"])


def test_saved_tokenizer_reads_back(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")
    loaded = DocumentTokenizer.load(tmp_path / "tokenizer")
    assert loaded.vocabulary.to_dict() == VOCABULARY.to_dict()
    assert loaded.text.model == TOKENIZER.text.model
    assert loaded.image.config == TOKENIZER.image.config
    jax.tree.map(np.testing.assert_array_equal, loaded.image.params, TOKENIZER.image.params)
    document = ["A ", random_picture(5), " and 42."]
    np.testing.assert_array_equal(loaded.encode(document), TOKENIZER.encode(document))


@pytest.mark.parametrize("missing", ["vocabulary.json", "text.model", "image/config.json", "image/params"])
def test_missing_part_is_named(tmp_path, missing):
    TOKENIZER.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileError, match=missing):
        DocumentTokenizer.load(tmp_path / "tokenizer")


@pytest.mark.parametrize("name", ["vocabulary.json", "image/config.json"])
def test_newer_format_is_refused(tmp_path, name):
    TOKENIZER.save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1000}))
    with pytest.raises(FileError, match=f"{name}: format_version 1000 is newer"):
        DocumentTokenizer.load(tmp_path / "tokenizer")


@pytest.mark.parametrize(("name", "key"), [("vocabulary.json", "text_ids"), ("image/config.json", "model")])
def test_incomplete_header_is_named(tmp_path, name, key):
    TOKENIZER.save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / name
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    with pytest.raises((FileError, ValueError), match=name):
        DocumentTokenizer.load(tmp_path / "tokenizer")
