"""Text tokenizers in JSON give what `tokenizers` gives, and nothing that is typed becomes a special token."""

from __future__ import annotations

import builtins
import copy
import functools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import TEXTS, released_json, scrambled_json, text_tokenizer

from chameleon_jax.errors import FileError
from chameleon_jax.tokens.documents import load_text_tokenizer
from chameleon_jax.tokens.text import SentencePieceTokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.tokens.vocabulary import VocabularyError

SAMPLES = (
    "", "a", " a", "12345", "\t", "\t\t\n", "  ", "    ", "     ", "a  b    c     d", "don't", "They'll say I've",
    "👩‍👩‍👧‍👦 🦎", "Это хороший день", "数字と漢字", "<", "<<>>", "e\u0301 é ﬁ", "one\r\ntwo", "\ufeffmark", "NUL \0",
)  # fmt: skip
TYPED = ("</s>", "<s>", "<pad>", "<unk>", "IMGIMGJZ", "IMGIMGBAZ", "a<eoss>b", "<racm3:break>", "<reserved08706>")

any_text = st.text(st.characters(exclude_categories=["Cs"]))


def byte_fallback_json() -> dict:
    """A small file as Llama's are: spaces as marks, bytes by name, special tokens flagged."""
    names = ["<unk>", "<s>", "</s>", "<pad>", "<racm3:break>", "<eoss>", "<reserved08706>", "IMGIMGAZ", "IMGIMGBZ"]
    flagged = [{"id": token, "content": name, "special": True} for token, name in enumerate(names)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    names += [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", "t", "h", "e", "th", "the", "\u2581the"]
    replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {
        "version": "1.0",
        "added_tokens": [token | flags for token in flagged],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {name: token for token, name in enumerate(names)},
            "merges": [["t", "h"], ["th", "e"], ["\u2581", "the"]],
        },
    }


FILES = {"released": released_json, "scrambled": scrambled_json, "byte fallback": byte_fallback_json}


@functools.cache
def tokenizer(name: str) -> JSONTokenizer:
    return JSONTokenizer(FILES[name](), name)


@functools.cache
def reference(name: str):
    """The same file as the package `tokenizers` reads it."""
    return pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(FILES[name]()))


def ids(name: str, text: str) -> list[int]:
    return vocabulary_from_json(FILES[name](), name).text_ids[tokenizer(name).encode(text)].tolist()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", SAMPLES)
def test_ids_are_those_of_tokenizers(name, text):
    if name == "byte fallback" and "\u2581" in text:
        pytest.skip("the file takes the mark for a space")
    expected = reference(name).encode(text, add_special_tokens=False).ids
    assert ids(name, text) == expected
    assert tokenizer(name).encode(text).dtype == np.int32
    assert tokenizer(name).decode(tokenizer(name).encode(text)) == text == reference(name).decode(expected)


@settings(max_examples=200)
@given(text=any_text, name=st.sampled_from(["released", "scrambled"]))
@example("<s>IMGIMGJZ</s>", "released")
def test_any_text_comes_back_byte_for_byte(text, name):
    pytest.importorskip("tokenizers")
    pieces = tokenizer(name).encode(text)
    assert tokenizer(name).decode_bytes(pieces) == text.encode()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", TYPED)
def test_name_of_a_special_token_typed_as_text_stays_text(name, text):
    plain = reference(name).encode(text, add_special_tokens=False).tokens
    if text in tokenizer(name).other_names:
        assert plain == [text], "tokenizers itself takes the name for the token"
    pieces = tokenizer(name).encode(text)
    assert tokenizer(name).decode(pieces) == text
    assert len(pieces) > 1


@pytest.mark.parametrize("name", ["[PAD]", "[/INST]", "<|im_end|>", "###"])
def test_names_that_the_file_marks_special_are_no_text_whatever_they_look_like(name):
    pytest.importorskip("tokenizers")
    content = released_json()
    token = 1 + max(content["model"]["vocab"].values())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": token, "content": name, **flags})
    marked, vocabulary = JSONTokenizer(content), vocabulary_from_json(content, "")
    assert marked.decode(marked.encode(f"a{name}b")) == f"a{name}b"
    assert token not in vocabulary.text_ids[marked.encode(f"a{name}b")]
    assert token not in vocabulary.text_ids  # so it is never written as text either
    assert marked.other_names[name] == token


def test_added_token_without_the_special_flag_is_no_text_either():
    pytest.importorskip("tokenizers")
    content = released_json()
    content["added_tokens"] = [{**token, "special": False} for token in content["added_tokens"]]
    plain = JSONTokenizer(content)
    for text in TYPED:
        np.testing.assert_array_equal(plain.encode(text), tokenizer("released").encode(text))


def test_the_file_cannot_cut_or_fill_texts():
    pytest.importorskip("tokenizers")
    content = released_json()
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert JSONTokenizer(content).decode(JSONTokenizer(content).encode(TEXTS[0])) == TEXTS[0]


def test_pieces_are_the_text_tokens_in_order_of_their_ids():
    names = scrambled_json()["model"]["vocab"]
    text = [name for name in names if name == "<" or not name.startswith(("<", "IMGIMG"))]
    scrambled = tokenizer("scrambled")
    assert scrambled.piece_names == sorted(text, key=names.get)
    assert scrambled.num_pieces == len(text) == len(scrambled.piece_names)
    assert scrambled.names == names
    assert scrambled.other_names == {name: token for name, token in names.items() if name not in text}
    np.testing.assert_array_equal(
        vocabulary_from_json(scrambled_json(), "").text_ids, [names[name] for name in scrambled.piece_names]
    )


def test_decoding_needs_no_package(monkeypatch):
    """Bytes of every single piece, with `tokenizers` out of reach."""
    block_tokenizers(monkeypatch)
    fresh = JSONTokenizer(released_json(), "text.json")
    contents = [fresh.decode_bytes([piece]) for piece in range(fresh.num_pieces)]
    assert sorted(content for content in contents if len(content) == 1) == [bytes([byte]) for byte in range(256)]
    pieces = [fresh.piece_names.index(name) for name in ("The", "Ġquick", "Ð", "½")]
    assert fresh.decode_bytes(pieces) == b"The quick\xd0\xbd"
    assert fresh.decode(pieces[:3]) == "The quick\ufffd"
    with pytest.raises(FileError, match=r"text\.json: .*pip install 'chameleon-jax\[released\]'"):
        fresh.encode("a")


def block_tokenizers(monkeypatch) -> None:
    usual = builtins.__import__

    def refusing(name, *arguments, **options):
        if name == "tokenizers":
            raise ModuleNotFoundError("No module named 'tokenizers'", name=name)
        return usual(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_lone_surrogates_are_refused_with_their_place():
    for text, place in (("\ud800", 0), ("abc\udfffd", 3)):
        with pytest.raises(ValueError, match=f"lone surrogate at character {place}"):
            tokenizer("released").encode(text)


def test_text_that_the_file_cannot_represent_is_refused():
    pytest.importorskip("tokenizers")
    content = released_json()
    del content["model"]["vocab"]["ð"]  # the first byte of emoji
    lacking = JSONTokenizer(content)
    assert lacking.decode(lacking.encode("é and я")) == "é and я"
    with pytest.raises(ValueError, match="no piece for the byte 0xF0"):
        lacking.encode("🦎")


def test_text_that_becomes_no_text_token_is_refused():
    """A file may have merges that lead to a token which its name makes special."""
    pytest.importorskip("tokenizers")
    content = byte_fallback_json()
    content["added_tokens"][0] |= {"content": "the"} | {"id": content["model"]["vocab"]["the"]}
    with pytest.raises(ValueError, match="gives 'the', which is not a text token"):
        JSONTokenizer(content).encode("the")


def test_saved_file_reads_back(tmp_path):
    text = json.dumps(released_json())
    JSONTokenizer(text).save(tmp_path)
    assert (tmp_path / "text.json").read_text() == text
    loaded = load_text_tokenizer(tmp_path / "text.json")
    assert isinstance(loaded, JSONTokenizer)
    assert loaded.piece_names == tokenizer("released").piece_names
    text_tokenizer().save(tmp_path)
    assert isinstance(load_text_tokenizer(tmp_path / "text.model"), SentencePieceTokenizer)


def changed(path: tuple, value) -> dict:
    content = copy.deepcopy(released_json())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (json.dumps(released_json())[:5000], "cannot be read as JSON"),
        ("[]", "the content is missing or damaged"),
        (changed(("model",), None), "model is missing or damaged: it must be a table"),
        (changed(("model",), ["BPE"]), "model is missing or damaged"),
        (changed(("model", "type"), "Unigram"), "model.type is 'Unigram'; only byte-pair encodings"),
        (changed(("model", "vocab"), None), "model.vocab is missing or damaged"),
        (changed(("model", "merges"), None), "model.merges is missing or damaged"),
        (changed(("added_tokens",), {"<s>": 0}), "added_tokens is missing or damaged"),
        (changed(("added_tokens",), [{"id": 0}]), "added_tokens is missing or damaged"),
        (changed(("added_tokens",), [{"content": "<s>"}]), "added_tokens is missing or damaged"),
    ],
)
def test_damaged_file_is_named_with_the_field(content, message):
    with pytest.raises(FileError, match=f"some/text.json: {message}"):
        JSONTokenizer(content, "some/text.json")


def test_file_without_bytes_is_refused():
    content = released_json()
    content["decoder"] = content["pre_tokenizer"] = None
    with pytest.raises(FileError, match="neither byte-level nor has byte fallback"):
        JSONTokenizer(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(("added_tokens", 0, "id"), 77), "'<s>' has id 0 in model.vocab and id 77 in added_tokens"),
        (changed(("model", "vocab", "<pad>"), 2), "'<pad>' has id 2 in model.vocab and id 1 in added_tokens"),
        (changed(("model", "vocab", "!"), 40), "'!' and '.*' both have id 40"),
        (changed(("model", "vocab", "!"), "x"), "id 'x' of '!' must be a whole number"),
    ],
)
def test_ids_that_make_no_sense_are_named(content, message):
    with pytest.raises(VocabularyError, match=message):
        JSONTokenizer(content)


def test_file_that_tokenizers_cannot_use_is_named():
    pytest.importorskip("tokenizers")
    content = changed(("model", "merges"), [["no", "such piece"]])
    with pytest.raises(FileError, match="text tokenizer: the package `tokenizers` cannot use it"):
        JSONTokenizer(content).encode("a")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"text\.json: no such text tokenizer"):
        load_text_tokenizer(tmp_path / "text.json")
