"""Whatever a body holds, the answer is an answer or one clear line, never a mistake of ours."""

from __future__ import annotations

import json

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_chat_completions import image

from chameleon_jax.serving.wire import (
    HARMLESS,
    IGNORED,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ImageRequest,
    TokenizeRequest,
)

BODIES = {
    "/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest, "/v1/images/generations": ImageRequest,
    "/v1/tokenize": TokenizeRequest, "/v1/detokenize": DetokenizeRequest,
}  # fmt: skip

texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", "</s>", "<image>", "IMGIMGA", "<reserved08706>", "\0", "\ud800", "tiny", "user", "text", "\u202e", "🐙"]
    ),
)
numbers = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31, 2**63 - 1, -(2**63), 10**30, 1e308, 1e-320, -0.0, float("nan"), float("inf")]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.just(image(1)),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": texts})}),
)
values = st.recursive(
    st.one_of(scalars, parts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
contents = st.one_of(texts, st.lists(parts, max_size=3), values)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": contents}), max_size=3
)
sound = {
    "messages": st.one_of(messages, st.just([{"role": "user", "content": "Once"}])), "prompt": contents,
    "content": contents, "model": st.just("tiny"), "max_tokens": st.integers(1, 4), "n": st.integers(0, 3),
    "tokens": st.lists(st.integers(-1, 400), max_size=9), "codes": st.lists(st.lists(st.integers(-1, 17), max_size=5)),
    "seed": st.integers(-(2**64), 2**64), "stream": st.booleans(), "temperature": numbers,
}  # fmt: skip


@st.composite
def bodies(draw, path: str):
    names = [*BODIES[path].model_fields, *sorted(HARMLESS), *sorted(IGNORED)]
    needed = [name for name in ("messages", "prompt", "content", "tokens", "max_tokens") if name in names]
    chosen = draw(st.lists(st.sampled_from(names), max_size=5, unique=True))
    body = {name: draw(sound.get(name, values)) for name in needed}
    body |= {name: draw(st.one_of(sound.get(name, values), values)) for name in chosen}
    return body | draw(st.dictionaries(texts, values, max_size=1))


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_body_makes_a_mistake(server, path, data):
    body = json.dumps(data.draw(bodies(path))).encode()
    answer = httpx2.post(server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code in (200, 400, 413, 422), answer.text
    if answer.status_code == 200:
        assert "the server made a mistake" not in answer.text
        assert len(answer.content) > 10
    else:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].isprintable()


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=200), values.map(lambda value: json.dumps(value).encode())))
def test_no_bytes_make_a_mistake(server, path, body):
    answer = httpx2.post(server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code in (200, 400, 413, 422), answer.text
