"""Exported tokenizers give the same ids in `tokenizers` and in transformers."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import (
    IMAGE_TOKENIZER,
    TEXTS,
    random_picture,
    released_json,
    scrambled_json,
    scrambled_vocabulary,
    text_tokenizer,
)

from chameleon_jax.config import TextTokenizerConfig
from chameleon_jax.tokens.export import processor_files, tokenizer_config, tokenizer_json
from chameleon_jax.tokens.image import to_pixels
from chameleon_jax.tokens.text import TextTokenizer, train_text_tokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.tokens.vocabulary import Vocabulary, VocabularyError

# Characters whose runs and mixtures the trained pieces care about, and some that they do not know.
mixed_text = st.text(
    st.sampled_from(list("aab  the quick1209\n\t.é数🦎\u2581\u0301\0")) | st.characters(exclude_categories=["Cs"])
)


@functools.cache
def repetitive_text_tokenizer() -> TextTokenizer:
    """Its pieces are runs and repetitions, where the order of merges matters most."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ab  "), 60)) for _ in range(300)]
    return train_text_tokenizer(TextTokenizerConfig(vocab_size=450), [*texts, "aaaa    bbbb" * 20])


SOURCES = ("sentencepiece", "repetitive", "released", "scrambled")


@functools.cache
def source(name: str) -> tuple[TextTokenizer, Vocabulary]:
    if name in ("released", "scrambled"):
        content = released_json() if name == "released" else scrambled_json()
        return JSONTokenizer(content, name), vocabulary_from_json(content, name)
    text = text_tokenizer() if name == "sentencepiece" else repetitive_text_tokenizer()
    return text, scrambled_vocabulary(text.num_pieces, 16)


def content(name: str, style: str) -> dict:
    return json.loads(json.dumps(tokenizer_json(*source(name), style=style)))


@functools.cache
def exported(name: str, style: str = "meta"):
    return pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(content(name, style)))


@functools.cache
def loaded_back(name: str) -> tuple[TextTokenizer, Vocabulary]:
    return JSONTokenizer(content(name, "meta"), name), vocabulary_from_json(content(name, "meta"), name)


def ids(text: str, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> list[int]:
    return vocabulary.text_ids[tokenizer.encode(text)].tolist()


@settings(max_examples=600)
@given(text=mixed_text, name=st.sampled_from(SOURCES))
@example("   x  aaaa    aaaaaaa   ", "repetitive")
@example("a\u2581b \u2581 \u2581\u2581 ", "sentencepiece")
@example("<0x41><s>", "sentencepiece")
def test_any_text_has_the_same_ids(text, name):
    backend = exported(name)
    backend.encode_special_tokens = True
    expected = ids(text, *source(name))
    assert backend.encode(text).ids == expected
    assert backend.decode(expected) == text
    assert ids(text, *loaded_back(name)) == expected


@pytest.mark.parametrize("alphabet", ["ab ", "a ", "x1\n  "])
def test_runs_merge_from_the_left_as_in_sentencepiece(alphabet):
    rng = np.random.default_rng(0)
    for name in ("sentencepiece", "repetitive"):
        for _ in range(500):
            text = "".join(rng.choice(list(alphabet), rng.integers(1, 60)))
            assert exported(name).encode(text).ids == ids(text, *source(name)), text


@pytest.mark.parametrize("name", SOURCES)
def test_tokens_have_the_ids_of_the_vocabulary(name):
    text, vocabulary = source(name)
    names = vocabulary.names(text)
    assert exported(name, "huggingface").get_vocab(with_added_tokens=True) == names
    for special in ("<s>", "</s>", "<image>", "IMGIMGBFZ", "<racm3:break>"):
        assert exported(name, "huggingface").encode(special, add_special_tokens=False).ids == [names[special]]


@pytest.mark.parametrize("name", SOURCES)
def test_styles_differ_in_the_placeholder_and_the_beginning(name):
    text, vocabulary = source(name)
    placeholder = vocabulary.names(text)["<image>"]
    for style, here, not_here in (
        ("huggingface", "<image>", "<reserved08707>"),
        ("meta", "<reserved08707>", "<image>"),
    ):
        assert exported(name, style).token_to_id(here) == placeholder
        assert exported(name, style).token_to_id(not_here) is None
        assert not_here not in json.dumps(content(name, style))
    plain = exported(name, "meta").encode("a b").ids
    assert exported(name, "huggingface").encode("a b").ids == [vocabulary.bos, *plain]
    assert exported(name, "huggingface").encode("a b", "a b").ids == [vocabulary.bos, *plain] * 2


@pytest.mark.parametrize("name", SOURCES)
def test_loaded_back_has_the_same_vocabulary(name):
    """But for the piece that no text has: it is now the placeholder."""
    _, vocabulary = source(name)
    again = vocabulary_from_json(content(name, "huggingface"), name)
    unknown = name in ("sentencepiece", "repetitive")
    expected = vocabulary.to_dict() | {"text_ids": sorted(vocabulary.text_ids[unknown:].tolist())}
    assert again.to_dict() == expected


@pytest.mark.parametrize("name", ["released", "scrambled"])
def test_styles_of_a_released_file_lead_to_each_other(name):
    text, vocabulary = source(name)
    assert tokenizer_json(text, vocabulary, style="meta") == text.json
    other = JSONTokenizer(content(name, "huggingface"), "tokenizer.json")
    assert tokenizer_json(other, vocabulary, style="huggingface") == other.json
    assert tokenizer_json(other, vocabulary, style="meta") == text.json


def test_placeholder_added_to_a_released_file_is_used():
    """Some conversions add `<image>` instead of renaming a reserved token."""
    plain = released_json()
    plain["added_tokens"].append({**plain["added_tokens"][0], "content": "<image>", "id": 900})
    text, vocabulary = JSONTokenizer(plain), vocabulary_from_json(plain, "file")
    assert vocabulary.names(text)["<image>"] == 900
    assert tokenizer_json(text, vocabulary, style="huggingface")["added_tokens"] == plain["added_tokens"]
    assert tokenizer_json(text, vocabulary, style="meta") == plain


def test_file_without_a_placeholder_is_refused():
    plain = released_json()
    del plain["model"]["vocab"]["<reserved08707>"]
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] != "<reserved08707>"]
    text, vocabulary = JSONTokenizer(plain), vocabulary_from_json(plain, "file")
    with pytest.raises(VocabularyError, match="needs a token '<image>'"):
        tokenizer_json(text, vocabulary, style="huggingface")
    assert tokenizer_json(text, vocabulary, style="meta") == plain


def test_vocabulary_of_another_tokenizer_is_refused():
    with pytest.raises(VocabularyError, match="would be the name of two tokens"):
        tokenizer_json(source("released")[0], source("scrambled")[1], style="meta")


@pytest.mark.torch
@pytest.mark.parametrize("name", SOURCES)
def test_transformers_reads_the_folder(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    text, vocabulary = source(name)
    files = {"tokenizer.json": content(name, "huggingface"), "tokenizer_config.json": tokenizer_config(4096)}
    files |= processor_files(IMAGE_TOKENIZER.codes_per_image, IMAGE_TOKENIZER.resolution)
    for file, value in files.items():
        (tmp_path / file).write_text(json.dumps(value))

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    special = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id]
    assert special == [vocabulary.bos, vocabulary.pad, vocabulary.eos, vocabulary.end_of_turn]
    assert tokenizer.model_max_length == 4096
    for sample in TEXTS:
        expected = [vocabulary.bos, *ids(sample, text, vocabulary)]
        assert tokenizer(sample).input_ids == expected
        assert tokenizer.decode(expected, skip_special_tokens=True) == sample

    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, transformers.ChameleonProcessor)
    picture = random_picture(0, (30, 20))
    inputs = processor(text="Is <image> it?", images=picture, return_tensors="np")
    block = [vocabulary.begin_image, *[vocabulary.names(text)["<image>"]] * 4, vocabulary.end_image]
    around = [ids(part, text, vocabulary) for part in ("Is ", " it?")]
    assert inputs["input_ids"][0].tolist() == [
        vocabulary.bos, *around[0], *block, *around[1], vocabulary.end_of_turn
    ]  # fmt: skip
    np.testing.assert_allclose(inputs["pixel_values"][0].transpose(1, 2, 0), to_pixels(picture, 16), atol=1e-6)
