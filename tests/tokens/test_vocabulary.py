"""Ids stand where the released model has them, and nothing but the tables says where they stand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    random_picture,
    released_json,
    scrambled_json,
    scrambled_tokenizer,
    scrambled_vocabulary,
    text_tokenizer,
)

from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.tokens.vocabulary import (
    IMAGE,
    SPECIAL,
    SPECIAL_NAMES,
    TEXT,
    Vocabulary,
    VocabularyError,
    image_code,
    image_code_name,
)


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


# ----------------------------------------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0, "IMGIMGAZ"),
        (9, "IMGIMGJZ"),
        (10, "IMGIMGBAZ"),
        (25, "IMGIMGCFZ"),
        (100, "IMGIMGBAAZ"),
        (1023, "IMGIMGBACDZ"),
        (8191, "IMGIMGIBJBZ"),
    ],
)
def test_released_names_of_image_codes(code, name):
    """Spec section 2.2, vector V6."""
    assert image_code_name(code) == name
    assert image_code(name) == code


@given(code=st.integers(0, 10**9 - 1))
def test_names_of_image_codes_read_back(code):
    assert image_code(image_code_name(code)) == code


@pytest.mark.parametrize(
    "name",
    ["", "IMGIMG", "IMGIMGZ", "IMGIMGA", "IMGIMGAAZ", "IMGIMGABZ", "IMGIMGKZ", "IMGIMGaZ", "IMGIMG1Z", "imgimgAZ",
     "IMGIMGAZ ", " IMGIMGAZ", "IMGIMGAZ\n", "IMGIMGAZZ", "IMGIMG" + "B" * 5000 + "Z", "A", "<s>"],
)  # fmt: skip
def test_other_names_are_no_image_codes(name):
    assert image_code(name) is None


def small_names(num_codes: int = 12) -> dict[str, int]:
    """The released order: special tokens around the image codes, then text."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(image_code_name, range(num_codes)), "<eoss>", "<racm3:break>"]
    return {name: token for token, name in enumerate([*names, "<reserved08706>", "<reserved08707>", "!", "<", "a"])}


def test_released_names_in_released_size():
    """The whole layout of spec section 2.1; text is all from 16384 on, `<` among it."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(image_code_name, range(8192)), "<eoss>", "<racm3:break>"]
    names += [f"<sentinel:{number}>" for number in range(512)] + [f"<reserved{n:05d}>" for n in range(8706, 16380)]
    names += [chr(ord("!") + number) for number in range(94)] + [f"text {n}" for n in range(49152 - 94)]
    vocabulary = Vocabulary.from_names({name: token for token, name in enumerate(names)}, "released")
    assert (vocabulary.bos, vocabulary.pad, vocabulary.eos) == (0, 1, 2)
    assert (vocabulary.end_image, vocabulary.begin_image, vocabulary.end_of_turn) == (8196, 8197, 8710)
    np.testing.assert_array_equal(vocabulary.image_ids, np.arange(4, 8196))
    np.testing.assert_array_equal(vocabulary.text_ids, np.arange(16384, 65536))
    assert vocabulary.text_ids.dtype == vocabulary.image_ids.dtype == np.int32
    assert vocabulary.size == 65536
    assert vocabulary.modality[16411] == TEXT
    assert names[16411] == "<"


@given(order=st.permutations(range(len(small_names()))))
def test_names_say_it_in_any_order(order):
    names = {name: order[token] for name, token in small_names().items()}
    vocabulary = Vocabulary.from_names(names, "scrambled")
    for role, name in SPECIAL_NAMES.items():
        assert getattr(vocabulary, role) == names[name]
    assert vocabulary.image_ids.tolist() == [names[image_code_name(code)] for code in range(12)]
    assert vocabulary.text_ids.tolist() == sorted(names[name] for name in ("!", "<", "a"))


def test_given_special_names_take_the_place_of_the_rule():
    names = {**small_names(), "<0x41>": 30, "[mark]": 31}
    by_rule = Vocabulary.from_names(names, "names")
    assert 30 not in by_rule.text_ids
    assert 31 in by_rule.text_ids
    given_names = Vocabulary.from_names(names, "names", special={"<s>", "[mark]", "<unk>", "<reserved08707>"})
    assert 30 in given_names.text_ids
    assert 31 not in given_names.text_ids
    assert {getattr(given_names, role) for role in SPECIAL_NAMES} == {getattr(by_rule, role) for role in SPECIAL_NAMES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"<eoss>": None}, "has no token '<eoss>', the end_image of the vocabulary"),
        ({"<reserved08706>": None}, "has no token '<reserved08706>', the end_of_turn of the vocabulary"),
        ({"IMGIMGDZ": None}, r"has 11 image codes, but none named 'IMGIMGDZ' \(code 3\)"),
        ({"IMGIMGAZ": None}, r"has 11 image codes, but none named 'IMGIMGAZ' \(code 0\)"),
        ({"IMGIMGBDZ": 40}, r"has 13 image codes, but none named 'IMGIMGBCZ' \(code 12\)"),
        (dict.fromkeys(map(image_code_name, range(12))), r"has 0 image codes, but none named 'IMGIMGAZ' \(code 0\)"),
        ({"IMGIMGAAZ": 40}, "'IMGIMGAAZ' starts like an image code but is not named like one"),
        ({"IMGIMGKZ": 40}, "'IMGIMGKZ' starts like an image code"),
        ({"b": 5}, "'IMGIMGBZ' and 'b' both have id 5"),
        ({"b": -1}, "id -1 of 'b' must be a whole number"),
        ({"b": 2.0}, "id 2.0 of 'b' must be a whole number"),
        ({"b": "2"}, "id '2' of 'b' must be a whole number"),
        ({"b": True}, "id True of 'b' must be a whole number"),
        ({"b": None, "c": 10**12}, "id 1000000000000 of 'c' must be a whole number"),
        ({"!": None, "<": None, "a": None}, "has no text tokens among its 20 tokens"),
    ],
)
def test_names_that_make_no_vocabulary_are_refused(change, message):
    names = {name: token for name, token in {**small_names(), **change}.items() if token is not None}
    with pytest.raises(VocabularyError, match=f"some file: {message}") as caught:
        Vocabulary.from_names(names, "some file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos": 1}, "id 1 stands for 2 tokens"),
        ({"text_ids": [30, 30, 31]}, "id 30 stands for 2 tokens"),
        ({"image_ids": [4, 5, 30]}, "id 30 stands for 2 tokens"),
        ({"text_ids": []}, "text_ids must be ids"),
        ({"pad": -1}, "ids -1 to 31 of the vocabulary"),
        ({"text_ids": [30, 10**12]}, "text_ids must be ids"),
        ({"text_ids": [30, 31.5]}, "text_ids must be ids"),
        ({"text_ids": [[30, 31]]}, "text_ids must be ids"),
        ({"text_ids": 30}, "text_ids must be ids"),
        ({"image_ids": ["4"]}, "image_ids must be ids"),
        ({"eos": [2]}, "eos must be an id"),
        ({"eos": None}, "eos must be an id"),
        ({"eos": True}, "eos must be an id"),
    ],
)
def test_damaged_tables_are_refused(change, message):
    values = {"bos": 0, "pad": 1, "eos": 2, "begin_image": 3, "end_image": 6, "end_of_turn": 7}
    values |= {"text_ids": [30, 31], "image_ids": [4, 5]}
    assert Vocabulary.from_dict(values).size == 32
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.from_dict({**values, **change})


@pytest.mark.parametrize("content", [released_json(), scrambled_json()], ids=["released", "scrambled"])
def test_names_of_a_released_vocabulary_are_those_of_the_file(content):
    """All of them, also those that the Vocabulary has no table for; only the placeholder is renamed."""
    expected = content["model"]["vocab"]
    names = vocabulary_from_json(content, "file").names(JSONTokenizer(content))
    assert names.pop("<image>") == expected.pop("<reserved08707>")
    assert names == expected
    again = Vocabulary.from_names(names | {"<image>": 1000}, "names")
    assert again.to_dict() == vocabulary_from_json(content, "file").to_dict()


def test_names_of_our_own_vocabulary():
    text = text_tokenizer()
    vocabulary = scrambled_vocabulary(text.num_pieces, 16)
    names = vocabulary.names(text)
    assert len(names) == len(set(names.values())) == 6 + 16 + 360
    assert names["<image>"] == vocabulary.text_ids[0]
    assert "<unk>" not in names
    assert names["<racm3:break>"] == vocabulary.begin_image
    assert names["IMGIMGBFZ"] == vocabulary.image_ids[15]
    for piece, name in list(enumerate(text.piece_names))[1:]:
        assert names[name] == vocabulary.text_ids[piece]
    assert {"<0x41>", " ", "a", "qu"} <= names.keys()


def test_names_of_another_tokenizer_are_refused():
    content = released_json()
    vocabulary = vocabulary_from_json(scrambled_json(), "file")
    with pytest.raises(VocabularyError, match="would be the name of two tokens, ids"):
        vocabulary.names(JSONTokenizer(content))
    with pytest.raises(VocabularyError, match="has ids for 427 text pieces, but the text tokenizer has 360"):
        vocabulary.names(text_tokenizer())


@pytest.mark.parametrize(
    ("name", "message"), [("<eoss>", "'<eoss>' would be the name of two"), ("IMGIMGx", "'IMGIMGx' starts like")]
)
def test_text_piece_named_like_another_token_is_refused(name, message):
    class Text:
        piece_names = ("<unk>", "a", name)
        other_names = {}

    with pytest.raises(VocabularyError, match=message):
        scrambled_vocabulary(3, 4).names(Text())
