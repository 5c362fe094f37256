"""Continuations of texts, ids and documents by the official client."""

from __future__ import annotations

import dataclasses

import numpy as np
import openai
import pytest
from running import ENGINE, GENERATION
from test_chat_completions import SAID, frozen, read
from tiny_models import random_picture

CONFIG = dataclasses.replace(GENERATION, mode="text", max_images=None, seed=4)
ASKED = {"model": "tiny", "seed": 4, "extra_body": {"modalities": ["text"]}}


def test_prompts_of_every_form_are_continued(client, model):
    ids = [[model.vocabulary.bos, *model.encode(text).tolist()] for text in ("Once", "Twice a")]
    for prompt, prompts in (
        ("Once", ["Once"]), (["Once", "Twice a"], ["Once", "Twice a"]), (ids[0], ["Once"]), (ids, ["Once", "Twice a"]),
        ("", [""]),
    ):  # fmt: skip
        found = client.completions.create(prompt=prompt, n=2, **ASKED)
        wanted = [answer for each in prompts for answer in model.generate([each] if each else [], CONFIG, n=2)]
        assert [choice.text for choice in found.choices] == [answer.text for answer in wanted]
        assert [choice.index for choice in found.choices] == list(range(len(wanted)))
        assert found.usage.prompt_tokens == sum(len(answer.prompt_ids) for answer in wanted[::2])
        assert found.usage.completion_tokens == sum(len(answer.ids) for answer in wanted)


def test_documents_are_continued_with_pictures_of_their_own(client, model):
    config = dataclasses.replace(GENERATION, seed=1)
    wanted = model.generate(["A handwritten ", random_picture(1), " three: "], config, n=4)
    found = client.completions.create(model="tiny", seed=1, prompt=SAID, n=4)
    assert any(answer.pictures for answer in wanted)
    for choice, answer in zip(found.choices, wanted, strict=True):
        assert choice.text == answer.text
        assert read(getattr(choice, "content", choice.text)) == frozen(answer)


def test_stream_echo_and_logprobs(client, model):
    whole = client.completions.create(prompt="Once", echo=True, logprobs=0, **ASKED)
    answer = model.generate("Once", CONFIG)
    assert whole.choices[0].text == f"Once{answer.text}"
    logprobs = whole.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.text or "�" in answer.text
    np.testing.assert_allclose(logprobs.token_logprobs, answer.logprobs[: len(logprobs.tokens)], atol=1e-5)
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
    stream = client.completions.create(
        prompt="Once", echo=True, stream=True, stream_options={"include_usage": True}, **ASKED
    )
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"prompt": [5, 6]}, 400, "must begin with begin of sequence"),
        ({"prompt": [10**30]}, 400, "outside the vocabulary"),
        ({"prompt": [[-1]]}, 400, "must be from 0"),
        ({"prompt": [1] * 300}, 400, "300 ids, more than context_length = 256"),
        ({"prompt": ["a"] * 9}, 400, "n = 1 for 9 prompts: at most 8 answers"),
        ({"prompt": [1.5]}, 400, "prompt"),
        ({"prompt": "a" * 400}, 400, "context_length = 256"),
        ({"prompt": "a", "logprobs": 2}, 400, "logprobs = 2: only 0"),
        ({"prompt": "a", "logprobs": 0, "stream": True}, 400, "come with whole answers"),
        ({"prompt": "a", "best_of": 3}, 400, "best_of = 3: this server cannot do that"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix = 'b': this server cannot do that"),
    ],
)
def test_what_cannot_be_asked(client, asked, status, said):
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="tiny", **asked)
    assert caught.value.status_code == status
    assert said in caught.value.body["message"]


def test_ids_and_codes_of_documents_and_back(client, model):
    post = lambda path, body: client.post(path, body=body, cast_to=object)  # noqa: E731
    found = post("/tokenize", {"content": SAID})
    document = ["A handwritten ", random_picture(1), " three: "]
    ids = [model.vocabulary.bos, *model.encode(document).tolist()]
    assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), 256)
    assert found["codes"] == model.tokenize_images([random_picture(1)]).tolist()
    assert post("/tokenize", {"content": "a b", "add_special_tokens": False})["tokens"] == model.encode("a b").tolist()
    chat = post("/tokenize", {"messages": [{"role": "user", "content": SAID}]})
    assert chat["tokens"] == [*ids, model.vocabulary.end_of_turn]
    back = post("/detokenize", {"tokens": ids})
    assert back["prompt"] == "A handwritten  three: "
    assert read(back["content"]) == frozen(model.decode(np.array(ids)))
    drawn = post("/detokenize", {"codes": found["codes"]})
    assert read(drawn["content"]) == frozen(model.detokenize_images(np.array(found["codes"])))


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tokenize", {}, "give content or messages"),
        ("/tokenize", {"content": "a", "messages": []}, "not both"),
        ("/detokenize", {"tokens": [1], "codes": []}, "not both"),
        ("/detokenize", {"tokens": [10**30]}, "outside the vocabulary"),
        ("/detokenize", {"tokens": [-1]}, "outside the vocabulary"),
        ("/detokenize", {"codes": [[1, 2, 3]]}, "a picture has 4 codes, each from 0 to 15"),
        ("/detokenize", {"codes": [[1, 2, 3, 16]]}, "each from 0 to 15"),
        ("/detokenize", {"codes": [[]]}, "a picture has 4 codes"),
        ("/detokenize", {"tokens": [1] * 300}, "300 ids: at most 256"),
    ],
)
def test_ids_that_are_none(client, path, body, said):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(path, body=body, cast_to=object)
    assert said in caught.value.body["message"]


def test_text_of_one_call_of_the_engine_is_one_piece_of_a_stream(client):
    asked = {"model": "tiny", "prompt": "One", "seed": 1, "extra_body": {"modalities": ["text"]}}
    whole = client.completions.create(**asked)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].text
    assert len([piece for piece in pieces if piece]) <= whole.usage.completion_tokens // ENGINE.steps + 1
