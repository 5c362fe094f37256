"""Answers whole, streamed, in batches and in conversations are the same answers."""

from __future__ import annotations

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import random_picture, scrambled_tokenizer, transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import ConfigError, EngineConfig, GenerationConfig, SamplingConfig
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.events import Finished, PictureDone, PictureStarted, TextPiece
from chameleon_jax.generation.memory import OutOfMemory
from chameleon_jax.tokens.chat import Turn, encode_turns
from chameleon_jax.tokens.documents import DocumentTokenizer

HOT = SamplingConfig(temperature=1.5, top_p=1.0)
CONFIG = GenerationConfig(max_new_tokens=24, max_images=2, text=HOT, image=HOT, text_guidance=1.0, image_guidance=1.0)
TEXT = dataclasses.replace(CONFIG, mode="text", max_images=None)
PROMPT = ["A handwritten ", random_picture(1), " three: "]


@pytest.fixture(scope="module")
def model() -> Chameleon:
    tokenizer = scrambled_tokenizer()
    config = transformer_for(tokenizer.vocabulary, context_length=256)
    params = transformer_params(config, seed=1)
    params["output"] = params["output"].at[:, tokenizer.vocabulary.begin_image].multiply(3.0)
    return Chameleon(config, params, tokenizer)


def frozen(answer: list) -> list:
    return [part if isinstance(part, str) else part.tobytes() for part in answer]


def test_streams_tell_the_answer_that_generate_gives(model):
    for seed in range(3):
        config = dataclasses.replace(CONFIG, seed=seed)
        answer = model.generate(PROMPT, config)
        *events, finished = model.stream(PROMPT, config)
        assert isinstance(finished, Finished)
        assert frozen(finished.answer) == frozen(answer)
        np.testing.assert_array_equal(finished.answer.ids, answer.ids)
        assert "".join(event.text for event in events if isinstance(event, TextPiece)) == answer.text
        drawn = [event.picture.tobytes() for event in events if isinstance(event, PictureDone)]
        assert drawn == [picture.tobytes() for picture in answer.pictures]
        assert sum(isinstance(event, PictureStarted) for event in events) == len(drawn) <= 2
        np.testing.assert_array_equal(answer.prompt_ids, model.tokenizer.encode_prompt(PROMPT))
        assert answer.text_tokens == len(answer.ids) - 6 * len(drawn) <= 24
        assert answer.logprobs.shape == answer.ids.shape
        assert (answer.logprobs <= 0).all()
        assert 0 < answer.seconds_to_first <= answer.seconds


def test_samples_and_batches_are_the_answers_alone(model):
    samples = model.generate(PROMPT, CONFIG, n=4)
    assert len({answer.ids.tobytes() for answer in samples}) > 1
    assert frozen(samples[0]) == frozen(model.generate(PROMPT, CONFIG))
    image = dataclasses.replace(CONFIG, mode="image", max_images=1)
    configs = [TEXT, CONFIG, dataclasses.replace(CONFIG, seed=7), image]
    together = model.generate_many([PROMPT] * 4, configs)
    for answer, config in zip(together, configs, strict=True):
        assert frozen(answer) == frozen(model.generate(PROMPT, config))


def test_ids_are_continued_without_a_text_tokenizer(model):
    bare = Chameleon(
        model.config, model.params,
        DocumentTokenizer(None, model.tokenizer.image, model.vocabulary, missing={"text": "it was lost"}),
    )  # fmt: skip
    prompt = model.tokenizer.encode_prompt(PROMPT)
    expected, answer = model.generate(PROMPT, CONFIG), bare.generate(prompt_ids=prompt, config=CONFIG)
    np.testing.assert_array_equal(answer.ids, expected.ids)
    assert frozen(answer) == frozen(expected.pictures)
    (drawing,) = bare.generate(prompt_ids=prompt.tolist(), config=GenerationConfig(mode="image"))
    assert drawing.size == (16, 16)
    with pytest.raises(DocumentError, match="no text tokenizer: it was lost"):
        bare.generate(prompt_ids=prompt, config=dataclasses.replace(TEXT, stop=("x",)))


def test_stop_text_ends_an_answer_before_it(model):
    whole = model.generate(PROMPT, TEXT)
    stop = whole.text[8:11]
    answer = model.generate(PROMPT, dataclasses.replace(TEXT, stop=(stop,)))
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.reason == "stop"
    np.testing.assert_array_equal(answer.ids, whole.ids[: len(answer.ids)])
    assert len(answer.ids) < len(whole.ids)


def test_cancelled_in_the_middle_keeps_what_was_whole(model):
    stream = model.stream(PROMPT, dataclasses.replace(TEXT, max_new_tokens=200))
    first = next(stream)
    stream.cancel()
    *_, finished = stream
    assert finished.answer.reason == "cancelled"
    assert finished.answer.text.startswith(first.text)
    assert len(finished.answer.ids) < 200
    after = model.generate(PROMPT, TEXT)  # the engine goes on
    model.engine([10], [TEXT]).close()  # as an error or Ctrl-C leaves it
    assert frozen(model.generate(PROMPT, TEXT)) == frozen(after)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, DocumentError, "give a document or prompt_ids"),
        ({"document": "a", "prompt_ids": [0]}, DocumentError, "not both"),
        ({"prompt_ids": []}, DocumentError, "at least one"),
        ({"prompt_ids": [1.5]}, DocumentError, "expected whole numbers"),
        ({"prompt_ids": [10**6]}, DocumentError, "prompt_ids from 1000000 to 1000000: must be from 0 to"),
        ({"document": "a", "n": 0}, ConfigError, "n = 0: must be at least 1"),
        ({"document": "a" * 300}, DocumentError, "context_length = 256"),
        ({"document": [random_picture(1)] * 43}, DocumentError, "the prompt has 258 tokens"),
        ({"document": "a", "config": dataclasses.replace(TEXT, stop_ids=(10**6,))}, ConfigError, "stop_ids = 1000000"),
        ({"document": ["a", None]}, DocumentError, "not NoneType"),
    ],
)  # fmt: skip
def test_what_cannot_be_continued_is_refused_in_one_line(model, given, error, message):
    with pytest.raises(error, match=message) as caught:
        model.generate(**given)
    assert isinstance(caught.value, ChameleonError)
    assert "\n" not in str(caught.value)


def test_answer_that_the_memory_cannot_hold_says_what_fits_and_the_model_goes_on(model):
    endless = dataclasses.replace(CONFIG, context_length=2**31 - 2, max_images=None)
    with pytest.raises(OutOfMemory, match=r"with 1 answers of up to 2,147,483,646 tokens.*: one of [\d,]+ fits; set"):
        model.generate(PROMPT, endless)
    with pytest.raises(OutOfMemory):  # a new engine tried
        model.generate_many([PROMPT] * 2, endless)
    assert model.generate(PROMPT, TEXT)


def test_prompt_must_begin_a_sequence_and_configs_go_with_documents(model):
    with pytest.raises(DocumentError, match="must begin with begin of sequence"):
        model.generate(prompt_ids=model.encode("fox"))
    with pytest.raises(DocumentError, match="1 configs for 2 documents"):
        model.generate_many(["a", "b"], [TEXT])


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_dropped_parameters_leave_the_weights_that_decode(model):
    mine = Chameleon(model.config, jax.tree.map(jnp.copy, model.params), model.tokenizer)
    answer, before = mine.generate(PROMPT, CONFIG), live_bytes()
    mine.drop_params()
    shared = model.params["embed"], model.params["norm"]["scale"]  # lie as the parameters do
    freed = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) - sum(leaf.nbytes for leaf in shared)
    assert before - live_bytes() == freed
    np.testing.assert_array_equal(mine.generate(PROMPT, CONFIG).ids, answer.ids)
    assert f"vocabulary {model.config.vocab_size}" in repr(mine)
    with pytest.raises(ConfigError, match="the parameters were dropped: load the model anew"):
        mine.logits(answer.ids[None])
    mine.engine_config = EngineConfig(weights="int8")
    with pytest.raises(ConfigError, match="load the model anew to change engine_config"):
        mine.generate(PROMPT, CONFIG)


# ----------------------------------------------------------------------------------------------------------------------
# Conversations
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["meta", "lumina"])
def test_a_chat_goes_on_from_what_was_said(model, template):
    chat = model.chat(TEXT, template=template)
    first = chat.say(["The quick ", random_picture(1)])
    *_, finished = chat.stream("And then?")
    vocabulary = model.vocabulary
    said = first.ids[:-1] if first.ids[-1] in (vocabulary.eos, vocabulary.end_of_turn) else first.ids
    end = {"meta": vocabulary.eos, "lumina": vocabulary.end_of_turn}[template]
    question = [*model.encode("And then?"), vocabulary.end_of_turn]
    assert finished.answer.prompt_ids.tolist() == [*first.prompt_ids, *said, end, *question]
    assert chat.turns == [
        ("user", ["The quick ", random_picture(1)]), ("assistant", first), ("user", ["And then?"]),
        ("assistant", finished.answer),
    ]  # fmt: skip
    assert "And then?" in chat._repr_html_()


def test_a_chat_begins_with_turns_that_are_given(model):
    turns = [Turn("user", ["What is this?"]), Turn("assistant", ["It is nine."])]
    answer = model.chat(TEXT, turns=turns).say("Why?")
    asked = [*turns, Turn("user", ["Why?"])]
    np.testing.assert_array_equal(answer.prompt_ids, encode_turns(model.tokenizer, asked, "meta"))
    with pytest.raises(DocumentError, match="the last must be the assistant's"):
        model.chat(turns=turns[:1])
    with pytest.raises(ConfigError, match="template = 'alpaca': must be one of meta, lumina"):
        model.chat(template="alpaca")
    with pytest.raises(DocumentError, match="the turn is empty"):
        model.chat().say([""])


def test_a_chat_holds_drawings_code_for_code_and_no_stop_text_or_half_of_a_picture(model):
    chat, vocabulary = model.chat(TEXT), model.vocabulary
    drawing = chat.say("Draw", dataclasses.replace(CONFIG, mode="image", max_images=1))
    assert [picture.size for picture in drawing] == [(16, 16)]
    answer = chat.say("And?")
    codes = [vocabulary.begin_image, *drawing.ids.tolist()]
    assert str(codes)[1:-1] in str(answer.prompt_ids.tolist())
    stop = answer.text[2:4]
    again = model.chat(TEXT)
    again.say("Draw", dataclasses.replace(CONFIG, mode="image", max_images=1))
    stopped = again.say("And?", dataclasses.replace(TEXT, stop=(stop,)))
    after = again.say("Then?").prompt_ids.tolist()
    expected = [*stopped.prompt_ids, *model.encode(stopped.text), vocabulary.eos, *model.encode("Then?")]
    assert after == [*expected, vocabulary.end_of_turn]
    closed = again.stream("Never")
    next(closed)
    closed.close()
    assert len(again.turns) == 6
