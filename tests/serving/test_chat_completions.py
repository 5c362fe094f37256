"""The official client talks with a model: what it gets is what the library gives."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import openai
import pytest
from PIL import Image
from running import GENERATION, HOT
from tiny_models import random_picture

from chameleon_jax.config import GenerationConfig
from chameleon_jax.serving.pictures import to_url
from chameleon_jax.tokens.chat import Turn


def image(number: int) -> dict:
    return {"type": "image_url", "image_url": {"url": to_url(random_picture(number))}}


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def picture_of(url: str) -> bytes:
    assert url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).tobytes()


def read(content) -> list:
    """A message's content as text and pixels."""
    if isinstance(content, str):
        return [content] if content else []
    return [part["text"] if part["type"] == "text" else picture_of(part["image_url"]["url"]) for part in content]


def frozen(answer) -> list:
    return [part if isinstance(part, str) else part.tobytes() for part in answer]


SAID = [text("A handwritten "), image(1), text(" three: ")]
DOCUMENT = ["A handwritten ", random_picture(1), " three: "]


def expected(model, config: GenerationConfig = GENERATION, turns=(), document=DOCUMENT):
    return model.chat(config, turns=turns).say(document)


def test_answer_is_that_of_the_library_with_its_pictures_in_order(client, model):
    drew = 0
    for seed in range(4):
        answer = expected(model, dataclasses.replace(GENERATION, seed=seed))
        found = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": SAID}], seed=seed)
        (choice,) = found.choices
        assert read(choice.message.content) == frozen(answer)
        assert choice.finish_reason == ("stop" if answer.reason == "stop" else "length")
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(answer.prompt_ids), len(answer.ids))
        assert found.usage.completion_tokens_details.text_tokens == answer.text_tokens
        assert found.seed == seed
        drew += len(answer.pictures)
    assert drew


def test_seed_that_was_not_given_is_told_and_gives_the_same_again(client):
    said = [{"role": "user", "content": "Once"}]
    found = client.chat.completions.create(model="tiny", messages=said, n=2)
    again = client.chat.completions.create(model="tiny", messages=said, n=2, seed=found.seed)
    assert [choice.message.content for choice in found.choices] == [choice.message.content for choice in again.choices]
    assert found.choices[0].message.content != found.choices[1].message.content


def gathered(stream) -> tuple[list[list], list[str | None], list, int]:
    """Contents of all answers, why they ended, usage, and how many chunks had a preview."""
    contents: dict[int, list] = {}
    reasons, usage, previews = {}, None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content = contents.setdefault(choice.index, [])
            if choice.delta.content:
                if not content or isinstance(content[-1], bytes):
                    content.append("")
                content[-1] += choice.delta.content
            for each in getattr(choice.delta, "images", []):
                content.append(picture_of(each["image_url"]["url"]))
            previews += "image_url" in getattr(choice.delta, "partial_image", {})
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    return (
        [contents[index] for index in sorted(contents)],
        [reasons[index] for index in sorted(reasons)],
        usage,
        previews,
    )


def test_stream_is_the_whole_answer_with_previews_of_pictures(client):
    drew = 0
    for seed in range(3):
        asked = {"model": "tiny", "messages": [{"role": "user", "content": SAID}], "seed": seed, "n": 2}
        whole = client.chat.completions.create(**asked)
        stream = client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}, extra_body={"partial_images": 1}
        )
        contents, reasons, usage, previews = gathered(stream)
        assert contents == [read(choice.message.content) for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]
        assert usage == whole.usage
        drew += sum(isinstance(part, bytes) for content in contents for part in content)
        assert previews <= drew
    assert drew


def test_conversation_goes_on_with_pictures_of_either_side(client, model):
    turns = [Turn("user", DOCUMENT), Turn("assistant", ["It is ", random_picture(2)])]
    config = dataclasses.replace(GENERATION, seed=5)
    for answer in ([text("It is "), image(2)], "It is "):
        images = {} if isinstance(answer, list) else {"images": [image(2)]}
        messages = [
            {"role": "user", "content": SAID},
            {"role": "assistant", "content": answer, **images},
            {"role": "user", "content": "And now?"},
        ]
        found = client.chat.completions.create(model="tiny", messages=messages, seed=5)
        assert read(found.choices[0].message.content) == frozen(expected(model, config, turns, ["And now?"]))


def test_pictures_may_come_beside_the_text(client, model):
    answer = next(
        answer for seed in range(9) if (answer := expected(model, dataclasses.replace(GENERATION, seed=seed))).pictures
    )
    seed = next(
        seed
        for seed in range(9)
        if frozen(expected(model, dataclasses.replace(GENERATION, seed=seed))) == frozen(answer)
    )
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": SAID}], seed=seed, extra_body={"pictures_in": "images"}
    )
    message = found.choices[0].message
    assert message.content == answer.text
    assert [picture_of(each["image_url"]["url"]) for each in message.images] == frozen(answer.pictures)


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        ({"temperature": 0.0, "modalities": ["text"]}, {"mode": "text", "text": {"temperature": 0.0}}),
        ({"top_p": 0.4, "max_tokens": 5, "top_k": 3, "min_p": 0.01},
         {"max_new_tokens": 5, "text": {"top_p": 0.4, "top_k": 3, "min_p": 0.01}}),
        ({"max_completion_tokens": 3, "max_tokens": 9}, {"max_new_tokens": 3}),
        ({"modalities": ["image"], "image": {"temperature": 0.0}, "guidance_scale": 5.0},
         {"mode": "image", "image": {"temperature": 0.0}, "text_guidance": 5.0}),
        ({"modalities": ["text", "image"], "max_images": 1, "image_guidance": 1.0, "text_guidance": 1.0},
         {"mode": "interleaved", "max_images": 1, "image_guidance": 1.0, "text_guidance": 1.0}),
        ({"repetition_penalty": 1.7, "stop": ["e", "zz"]}, {"repetition_penalty": 1.7, "stop": ("e", "zz")}),
        ({"stop": "a"}, {"stop": ("a",)}),
    ],
)  # fmt: skip
def test_options_are_those_of_the_library(client, model, asked, changes):
    nested = {name: dataclasses.replace(HOT, **changes[name]) for name in ("text", "image") if name in changes}
    fresh = {"max_images": None} if "mode" in changes else {}
    config = dataclasses.replace(GENERATION, **{**fresh, **changes, **nested, "seed": 3})
    answer = expected(model, config)
    own = {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop"}
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": SAID}], seed=3,
        **{name: value for name, value in asked.items() if name in own},
        extra_body={name: value for name, value in asked.items() if name not in own},
    )  # fmt: skip
    assert read(found.choices[0].message.content) == frozen(answer)


@pytest.mark.parametrize("stop", [None, ["e", "o"]])
def test_logprobs_belong_to_the_text_that_is_shown(client, model, stop):
    config = dataclasses.replace(GENERATION, mode="text", max_images=None, seed=2, stop=tuple(stop or ()))
    answer = expected(model, config)
    asked = {
        "model": "tiny", "messages": [{"role": "user", "content": SAID}], "seed": 2, "logprobs": True,
        "modalities": ["text"], "stop": stop,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    content = bytes(byte for entry in whole for byte in entry.bytes)
    without_last = bytes(byte for entry in whole[:-1] for byte in entry.bytes).decode(errors="replace")
    assert content.decode(errors="replace").startswith(answer.text)  # the last may go on into the stop text
    assert len(without_last) < len(answer.text)
    values = [entry.logprob for entry in whole]
    np.testing.assert_allclose(values, answer.logprobs[: len(values)], atol=1e-5)
    stream = client.chat.completions.create(**asked, stream=True)
    streamed = [entry for chunk in stream if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [(entry.token, entry.logprob) for entry in streamed] == [(entry.token, entry.logprob) for entry in whole]


@pytest.mark.parametrize(
    ("asked", "status", "code", "said"),
    [
        ({"model": "gpt"}, 404, "model_not_found", "model = 'gpt': there is no such model here; this server has"),
        ({"messages": []}, 400, "invalid_value", "messages = []: List should have at least 1 item"),
        ({"messages": None}, 400, "invalid_value", "messages = None: must be a valid list"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "invalid_value", "must be 'user'"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "invalid_value", "messages.0.content: is empty"),
        ({"messages": [{"role": "user"}, {"role": "assistant"}]}, 400, "invalid_value", "messages.0.content: is empty"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 400, "invalid_value",
         "messages: the last must be the user's"),
        ({"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "a"}]}, 400,
         "no_system_turn", "--system first_turn"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, 400,
         "invalid_value", "input_audio"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "invalid_value",
         "messages.0.content.0.image_url.url: is missing"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, 400, "context_length_exceeded",
         "context_length = 256"),
        ({"messages": [{"role": "user", "content": "a" * 400_001}]}, 413, "too_large", "400,000 characters"),
        ({"messages": [{"role": "user", "content": [image(1)] * 17}]}, 413, "too_large", "more than 16 pictures"),
        ({"n": 10**9}, 400, "invalid_value", "n = 1000000000: at most 8 answers"),
        ({"n": 0}, 400, "invalid_value", "n = 0: must be greater than or equal to 1"),
        ({"seed": 1 << 63}, 400, "invalid_value", "seed = 9223372036854775808: must be below 2^63"),
        ({"temperature": -1}, 400, "invalid_value", "temperature = -1"),
        ({"temperature": "hot"}, 400, "invalid_value", "temperature = 'hot': must be a valid number"),
        ({"top_p": 0}, 400, "invalid_value", "top_p = 0"),
        ({"stop": "x" * 1_000_000}, 400, "invalid_value", "stop: at most 16 texts of up to 1,000 characters"),
        ({"stop": [""]}, 400, "invalid_value", "must not hold an empty text"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens = 0"),
        ({"modalities": ["audio"]}, 400, "invalid_value", "modalities.0 = 'audio'"),
        ({"modalities": []}, 400, "invalid_value", "must name text, image or both"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "unsupported", "tools = ["),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported", "this server cannot do that"),
        ({"presence_penalty": 0.5}, 400, "unsupported", "presence_penalty = 0.5"),
        ({"top_logprobs": 2}, 400, "unsupported", "top_logprobs = 2"),
        ({"extra_body": {"temprature": 1}}, 400, "unknown_parameter",
         "temprature: there is no such key; did you mean temperature?"),
        ({"extra_body": {"stop_ids": [-1]}}, 400, "invalid_value", "stop_ids"),
        ({"extra_body": {"stop_ids": [10**30]}}, 400, "invalid_value", "stop_ids"),
        ({"extra_body": {"image_guidance": -1}}, 400, "invalid_value", "image_guidance = -1"),
        ({"extra_body": {"max_images": -1}}, 400, "invalid_value", "max_images = -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line_with_its_place(client, asked, status, code, said):
    extra = asked.get("extra_body", {})
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Once"}], **asked, "extra_body": extra}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked)
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert said in error.body["message"]
    assert "\n" not in error.body["message"]
    assert len(error.body["message"]) < 600
    assert set(error.body) == {"message", "type", "param", "code"}


PICTURES = [
    ("data:image/png;base64,@@@", 400, "the picture is no base64"),
    ("data:image/png,abc", 400, "must be data:image/png;base64"),
    ("file:///etc/passwd", 400, "must be data:image/png;base64"),
    ("https://example.org/a.png", 400, "this server does not fetch pictures"),
    ("data:image/png;base64," + base64.b64encode(b"no picture").decode(), 422, "not a picture in a format"),
    ("data:image/png;base64,", 422, "empty"),
]


@pytest.mark.parametrize(("url", "status", "said"), PICTURES)
def test_pictures_that_cannot_be_read(client, url, status, said):
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])
    assert caught.value.status_code == status
    assert said in caught.value.body["message"]
    assert caught.value.body["param"] == "messages.0.content.0.image_url.url"


def test_picture_of_many_pixels_is_refused_by_its_header(client):
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        )
    assert caught.value.status_code == 413
    assert "(900000000 pixels) exceeds limit" in caught.value.body["message"]
