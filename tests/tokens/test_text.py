"""Any text comes back byte for byte, and nothing that is typed becomes a special token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tiny_models import TEXTS, text_tokenizer

from chameleon_jax.config import TextTokenizerConfig
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.text import SentencePieceTokenizer, train_text_tokenizer

any_text = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=300)
@given(text=any_text)
@example("")
@example(" ")
@example("  leading, doubled  and trailing  ")
@example("\u2581")
@example("a\u2581b \u2581 \u2581\u2581 ")
@example("NUL \0 in the middle\0")
@example("one\r\ntwo\rthree\n\n\tfour\x0bfive\u2028six")
@example("👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff")
@example("e\u0301 is not é, ﬁ is not fi, Ａ is not A")
@example("\ufeffmark")
@example("<0x41><unk></s>")
def test_any_text_comes_back_byte_for_byte(text):
    tokenizer = text_tokenizer()
    pieces = tokenizer.encode(text)
    assert pieces.dtype == np.int32
    assert pieces.ndim == 1
    assert tokenizer.decode_bytes(pieces) == text.encode()
    assert tokenizer.decode(pieces) == text


@pytest.mark.parametrize(
    "text",
    ["<s>", "</s>", "<pad>", "<unk>", "<0x0A>", "<racm3:break>", "<eoss>", "<reserved08706>", "IMGIMGAZ", "⟨image⟩"],
)
def test_name_of_a_special_token_typed_as_text_stays_text(text):
    tokenizer = text_tokenizer()
    pieces = tokenizer.encode(text)
    assert 0 not in pieces, "piece 0 is SentencePiece's <unk>"
    assert len(pieces) > 1
    assert tokenizer.decode_bytes(pieces) == text.encode()


def test_no_text_needs_the_unknown_piece():
    assert not (text_tokenizer().encode("数字 ← unseen: \u4e01\u0b95🦎\x00") == 0).any()


def test_digits_are_split():
    tokenizer = text_tokenizer()
    pieces = tokenizer.encode("1984+2701=4685")
    digits = [piece for piece in pieces if any(byte in b"0123456789" for byte in tokenizer.decode_bytes([piece]))]
    assert len(digits) == 12
    for piece in range(tokenizer.num_pieces):
        content = tokenizer.decode_bytes([piece])
        assert sum(byte in b"0123456789" for byte in content) <= 1, content


def test_words_of_the_training_text_are_few_pieces():
    text = "The quick brown fox jumps over the lazy dog."
    assert len(text_tokenizer().encode(text)) < len(text) / 2


def test_new_and_known_words_are_encoded_as_by_sentencepiece():
    model = text_tokenizer().model
    tokenizer, sentencepiece = SentencePieceTokenizer(model), SentencePieceProcessor(model_proto=model)
    texts = [
        "the quick fox",
        "the quick red fox  ",
        "",
        "\n\n  fox_27(quick)\n",
        *(f"the {n} f{n}x" for n in range(40)),
    ]
    for _ in range(2):
        for text, pieces in zip(texts, tokenizer.encode_many(texts), strict=True):
            assert pieces.tolist() == sentencepiece.encode(text), text
    mark = "\u2581"
    assert tokenizer.decode(tokenizer.encode(f"{mark}fox the{mark} {mark}")) == f"{mark}fox the{mark} {mark}"


def test_lone_surrogates_are_refused_with_their_place():
    for text, place in (("\ud800", 0), ("abc\udfffd", 3), ("\u2581\udc80", 1)):
        with pytest.raises(ValueError, match=f"lone surrogate at character {place}"):
            text_tokenizer().encode(text)


def test_bytes_that_are_not_utf8_become_the_replacement_character():
    tokenizer = text_tokenizer()
    pieces = tokenizer.encode("🦎")
    assert len(pieces) == 4
    assert tokenizer.decode_bytes(pieces[:3]) == "🦎".encode()[:3]
    assert tokenizer.decode(pieces[:3]) == "\ufffd"
    assert tokenizer.decode(pieces[[3, 0, 1, 2, 3]]) == "\ufffd🦎"


def test_training_twice_gives_the_same_bytes():
    config = TextTokenizerConfig(vocab_size=360)
    assert train_text_tokenizer(config, TEXTS).model == train_text_tokenizer(config, iter(TEXTS)).model


def test_training_on_a_sample_of_the_lines_gives_the_same_bytes():
    lines = [f"line {number} of many: {TEXTS[number % 5]}" for number in range(200)]
    config = TextTokenizerConfig(vocab_size=360, max_lines=150)
    assert train_text_tokenizer(config, lines).model == train_text_tokenizer(config, lines).model


def test_too_little_text_for_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="vocab_size = 5000"):
        train_text_tokenizer(TextTokenizerConfig(vocab_size=5000), ["two words"])


@pytest.mark.parametrize("texts", [[], [""], [" \n\n "]])
def test_no_text_at_all_is_an_error(texts):
    with pytest.raises(ValueError, match="vocab_size = 360"):
        train_text_tokenizer(TextTokenizerConfig(vocab_size=360), texts)


def test_line_longer_than_the_trainer_reads_is_not_lost():
    """SentencePiece leaves out lines that are too long without a word; the text of one must still be learnt from."""
    rare = "xylophone zebra quartz "
    tokenizer = train_text_tokenizer(TextTokenizerConfig(vocab_size=360), [*TEXTS, rare * 4000])
    assert len(tokenizer.encode("xylophone")) <= 2


def test_saved_model_reads_back(tmp_path):
    (tmp_path / "text.model").write_bytes(text_tokenizer().model)
    loaded = SentencePieceTokenizer.load(tmp_path / "text.model")
    assert loaded.num_pieces == text_tokenizer().num_pieces == 360
    np.testing.assert_array_equal(loaded.encode(TEXTS[4]), text_tokenizer().encode(TEXTS[4]))


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut short", "a folder"])
def test_unusable_model_file_is_named(tmp_path, damage):
    path = tmp_path / "text.model"
    model = text_tokenizer().model
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "garbage": b"not a model" * 50, "cut short": model[: len(model) // 2]}[damage])
    with pytest.raises(FileError, match=r"text\.model: "):
        SentencePieceTokenizer.load(path)


def test_model_without_byte_fallback_is_refused():
    import io

    import sentencepiece

    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=output, model_type="bpe", vocab_size=120, minloglevel=2
    )
    with pytest.raises(ValueError, match="byte fallback"):
        SentencePieceTokenizer(output.getvalue())
