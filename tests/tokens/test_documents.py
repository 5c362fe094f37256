"""Documents become ids and come back; ids that are no document are told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    image_tokenizer,
    random_picture,
    released_json,
    scrambled_json,
    scrambled_tokenizer,
    scrambled_vocabulary,
    text_tokenizer,
)

from chameleon_jax.config import PreprocessingConfig
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.documents import (
    DocumentTokenizer,
    load_image_tokenizer,
    read_image_config,
    save_image_tokenizer,
)
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.tokens.vocabulary import Vocabulary, VocabularyError

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


@pytest.mark.parametrize("ids", [[-1], [10**9], [10**30], [1.5], ["a"], [[1, 2]], 7, None])
def test_ids_that_are_none_are_refused(ids):
    with pytest.raises(DocumentError, match=r"outside the vocabulary|must be whole numbers"):
        TOKENIZER.decode(ids)


@pytest.mark.parametrize("segment", [3, None, b"bytes", ["nested"], np.zeros((2, 2, 3))])
def test_segment_of_another_kind_is_named(segment):
    with pytest.raises(DocumentError, match=type(segment).__name__):
        TOKENIZER.encode(["text", segment])


def test_prompts_begin_the_sequence_and_chats_end_the_turn():
    """Spec section 2.4."""
    document = ["What is ", random_picture(4), "?"]
    ids = TOKENIZER.encode(document).tolist()
    completion, chat = (TOKENIZER.encode_prompt(document, form) for form in ("completion", "chat"))
    assert completion.dtype == chat.dtype == np.int32
    assert completion.tolist() == TOKENIZER.encode_prompt(document).tolist() == [VOCABULARY.bos, *ids]
    assert chat.tolist() == [VOCABULARY.bos, *ids, VOCABULARY.end_of_turn]
    assert TOKENIZER.encode_prompt([]).tolist() == [VOCABULARY.bos]


def test_text_that_cannot_be_encoded_is_shown():
    with pytest.raises(DocumentError, match="lone surrogate at character 4"):
        TOKENIZER.encode(["fine", "not \ud800"])


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory) -> Path:
    TOKENIZER.save(folder := tmp_path_factory.mktemp("saved") / "tokenizer")
    return folder


@pytest.fixture
def folder(saved_once, tmp_path) -> Path:
    """The saved tokenizer, to damage."""
    return shutil.copytree(saved_once, tmp_path / "tokenizer")


def test_saved_tokenizer_reads_back(folder):
    loaded = DocumentTokenizer.load(folder)
    assert loaded.vocabulary.to_dict() == VOCABULARY.to_dict()
    assert loaded.text.model == TOKENIZER.text.model
    assert loaded.image.config == TOKENIZER.image.config
    jax.tree.map(np.testing.assert_array_equal, loaded.image.params, TOKENIZER.image.params)
    document = ["A ", random_picture(5), " and 42."]
    np.testing.assert_array_equal(loaded.encode(document), TOKENIZER.encode(document))


@pytest.mark.parametrize("missing", ["vocabulary.json", "text.model", "image/config.json", "image/params"])
def test_missing_part_is_named(folder, missing):
    (folder / missing).rename(folder.parent / "elsewhere")
    with pytest.raises(FileError, match=missing):
        DocumentTokenizer.load(folder)


@pytest.mark.parametrize("name", ["vocabulary.json", "image/config.json"])
def test_newer_format_is_refused(folder, name):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1000, "sha256": None}))
    with pytest.raises(FileError, match=f"{name}: format_version 1000 is newer"):
        DocumentTokenizer.load(folder)


@pytest.mark.parametrize(("name", "key"), [("vocabulary.json", "text_ids"), ("image/config.json", "model")])
def test_incomplete_header_is_named(folder, name, key):
    path = folder / name
    values = json.loads(path.read_text())
    del values[key], values["sha256"]
    path.write_text(json.dumps(values))
    with pytest.raises((FileError, ValueError), match=name):
        DocumentTokenizer.load(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Released tokenizers, and parts that are missing
# ----------------------------------------------------------------------------------------------------------------------


def test_tokenizer_of_a_released_kind_reads_back(tmp_path):
    text, vocabulary = JSONTokenizer(scrambled_json()), vocabulary_from_json(scrambled_json(), "file")
    DocumentTokenizer(text, image_tokenizer(), vocabulary).save(tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer" / "text.model").exists()
    loaded = DocumentTokenizer.load(tmp_path / "tokenizer")
    assert loaded.text.model == text.model
    assert loaded.vocabulary.to_dict() == vocabulary.to_dict()
    pieces = [text.piece_names.index(name) for name in ("The", "Ġquick")]
    codes = vocabulary.image_ids[[3, 1, 4, 1]]
    ids = [*vocabulary.text_ids[pieces], vocabulary.begin_image, *codes, vocabulary.end_image]
    decoded = loaded.decode(ids)
    assert decoded[0] == "The quick"
    assert decoded[1].size == (16, 16)


def without(part: str, **options) -> DocumentTokenizer:
    parts = {"text": TOKENIZER.text, "image": TOKENIZER.image, part: None}
    return DocumentTokenizer(**parts, vocabulary=VOCABULARY, **options)


def saved_and_loaded(tokenizer: DocumentTokenizer, folder) -> DocumentTokenizer:
    tokenizer.save(folder)
    return DocumentTokenizer.load(folder)


@pytest.mark.parametrize("saved", [False, True])
def test_missing_text_tokenizer_is_told_when_it_is_needed(tmp_path, saved):
    tokenizer = without("text", missing={"text": "no text_tokenizer.json in some/folder", "image": "not so"})
    if saved:
        tokenizer = saved_and_loaded(tokenizer, tmp_path / "tokenizer")
    assert tokenizer.text is None
    assert tokenizer.missing == {"text": "no text_tokenizer.json in some/folder"}
    picture = random_picture(0)
    np.testing.assert_array_equal(tokenizer.encode([picture]), TOKENIZER.encode([picture]))
    assert tokenizer.decode(TOKENIZER.encode([picture]))[0].size == (16, 16)
    message = "no text tokenizer: no text_tokenizer.json in some/folder"
    with pytest.raises(DocumentError, match=message):
        tokenizer.encode([picture, "hello"])
    with pytest.raises(DocumentError, match=message):
        tokenizer.decode(TEXT)


@pytest.mark.parametrize("saved", [False, True])
def test_missing_image_tokenizer_is_told_when_it_is_needed(tmp_path, saved):
    tokenizer = without("image", codes_per_image=4)
    if saved:
        tokenizer = saved_and_loaded(tokenizer, tmp_path / "tokenizer")
    assert tokenizer.image is None
    assert tokenizer.image_block == 6
    np.testing.assert_array_equal(tokenizer.encode(["hello"]), TEXT)
    assert tokenizer.decode(TEXT) == ["hello"]
    with pytest.raises(DocumentError, match="no image tokenizer: none was given"):
        tokenizer.encode(["hello", random_picture(0)])
    with pytest.raises(DocumentError, match="no image tokenizer: none was given"):
        tokenizer.decode([BEGIN, *CODES, END])
    with pytest.raises(DocumentError, match="has 2 codes; it needs 4"):
        tokenizer.decode([BEGIN, *CODES[:2], END])


def test_size_of_pictures_that_nobody_knows_is_told(tmp_path):
    tokenizer = saved_and_loaded(without("image", missing={"image": "no vqgan.ckpt"}), tmp_path / "tokenizer")
    with pytest.raises(DocumentError, match=r"no image tokenizer: no vqgan\.ckpt"):
        assert tokenizer.image_block
    assert tokenizer.decode(TEXT) == ["hello"]


def test_image_tokenizer_is_not_read_unless_asked_for(folder):
    (folder / "image").rename(folder.parent / "elsewhere")
    tokenizer = DocumentTokenizer.load(folder, with_image=False)
    assert tokenizer.decode(TEXT) == ["hello"]
    with pytest.raises(DocumentError, match="no image tokenizer: it was not asked for"):
        tokenizer.encode([random_picture(0)])


def test_image_tokenizer_without_decoder_reads_back(tmp_path):
    """With its way of preparing pictures, which decides about their codes."""
    whole, preprocessing = image_tokenizer(), PreprocessingConfig(style="huggingface", fit="pad", pad_colour=(1, 2, 3))
    params = {name: part for name, part in whole.params.items() if name != "decoder"}
    save_image_tokenizer(ImageTokenizer(whole.config, params, preprocessing), tmp_path / "image")
    loaded = load_image_tokenizer(tmp_path / "image")
    assert not loaded.can_decode
    assert loaded.preprocessing == preprocessing
    assert (loaded.config, preprocessing, False) == read_image_config(tmp_path / "image")[:3]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_image_tokenizer_saved_before_decoders_could_be_missing(tmp_path):
    save_image_tokenizer(image_tokenizer(), tmp_path / "image")
    path = tmp_path / "image" / "config.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({key: header[key] for key in ("format_version", "model")}))
    loaded = load_image_tokenizer(tmp_path / "image")
    assert loaded.can_decode
    assert loaded.preprocessing == PreprocessingConfig()


def test_part_that_was_there_when_saved_is_not_left_out(tmp_path):
    without("image").save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "text.model").unlink()
    with pytest.raises(FileError, match=r"text\.model: no such text tokenizer; train one with"):
        DocumentTokenizer.load(tmp_path / "tokenizer")


@pytest.mark.parametrize(
    "change",
    [
        {"text_ids": VOCABULARY.text_ids[:-1].tolist()},
        {"image_ids": VOCABULARY.image_ids[:-1].tolist()},
        {"bos": VOCABULARY.eos},
        {"missing": ["image"]},
        {"codes_per_image": "4"},
    ],
)
def test_damaged_vocabulary_is_not_loaded(folder, change):
    path = folder / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change | {"sha256": None}))
    with pytest.raises(FileError, match=r"vocabulary\.json: incomplete or damaged"):
        DocumentTokenizer.load(folder)


def test_vocabulary_for_other_tokenizers_is_refused():
    with pytest.raises(VocabularyError, match="has 100 text pieces but the text tokenizer 360"):
        DocumentTokenizer(TOKENIZER.text, TOKENIZER.image, Vocabulary.in_released_order(100, 16))
    with pytest.raises(VocabularyError, match="has 8 image codes but the image tokenizer 16"):
        DocumentTokenizer(TOKENIZER.text, TOKENIZER.image, scrambled_vocabulary(360, 8))


def test_tokenizer_saved_when_marked_names_were_text_still_opens(tmp_path):
    pytest.importorskip("tokenizers")
    content = released_json()
    token = 1 + max(content["model"]["vocab"].values())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": token, "content": "[PAD]", **flags})
    vocabulary = vocabulary_from_json(content, "")
    DocumentTokenizer(JSONTokenizer(content), None, vocabulary).save(tmp_path)
    header = json.loads((tmp_path / "vocabulary.json").read_text())
    header["text_ids"].append(token)
    del header["sha256"]
    (tmp_path / "vocabulary.json").write_text(json.dumps(header))
    np.testing.assert_array_equal(DocumentTokenizer.load(tmp_path).vocabulary.text_ids, vocabulary.text_ids)


def test_text_that_would_take_gigabytes_is_refused():
    with pytest.raises(DocumentError, match=r"^'aaa.*a text of 4,194,305 characters; up to 4,194,304 are encoded"):
        TOKENIZER.encode("a" * (4 * 2**20 + 1))
