"""`POST /v1/chat/completions`: a conversation of texts and pictures, and the model's next turn."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chameleon_jax.document import Document
from chameleon_jax.generating import check_prompt, resolved
from chameleon_jax.generation.events import Finished, TextPiece
from chameleon_jax.generation.handle import Chunk
from chameleon_jax.serving.errors import invalid
from chameleon_jax.serving.exchange import respond, service_of, write_down
from chameleon_jax.serving.requests import ContentReader, addresses_in, count_of, options_of, turns_of
from chameleon_jax.serving.responses import (
    Head,
    TokenLogprobs,
    chat_chunk,
    chat_completion,
    delta_of,
    finish_reason,
    has_picture,
    server_sent,
    usage_chunk,
    usage_of,
)
from chameleon_jax.serving.service import Answers, Service, Task
from chameleon_jax.serving.wire import ChatRequest
from chameleon_jax.tokens.chat import encode_turns

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def chat(body: ChatRequest, request: Request) -> Response:
    """The next turn of a conversation. Pictures come and go as data URLs."""
    service = service_of(request)
    head = service.head(body.model, body.seed)
    write_down(service, request.state.client, body.model_dump())
    fetched = await service.fetch(list(addresses_in(body.messages)))
    task = await service.in_thread(chat_task, service, body, fetched, head.seed)

    def whole(answers: list[Any]) -> dict[str, Any]:
        logprobs = [None] * len(answers)
        if body.logprobs:
            logprobs = [_logprobs(service.shown_logprobs(answer, task.config)) for answer in answers]
        usage = usage_of(answers, task.n)
        return chat_completion(head, answers, body.pictures_in or service.config.pictures_in, usage, logprobs)

    return await respond(
        request, task, whole, (lambda answers: chat_events(service, body, head, task, answers)) if body.stream else None
    )


def chat_task(service: Service, body: ChatRequest, fetched: Mapping[str, bytes], seed: int) -> Task:
    """What the engine has to do; reads the pictures, in a worker's thread."""
    model, limits = service.model, service.config.limits
    config = options_of(body, service.config.generation, limits, seed)
    config = resolved(model, dataclasses.replace(config, form="chat"))
    n = count_of(body.n, 1, limits)
    reader = ContentReader(model.tokenizer, limits, lambda url, place: fetched[url])
    turns = turns_of(body.messages, reader, service.config.system)
    check_pictures(service, [segment for turn in turns for segment in turn.document], config.context_length)
    prompt = check_prompt(model, encode_turns(model.tokenizer, turns, service.template), config)
    return Task([prompt], config, n, preview_every=service.preview_every(body.partial_images if body.stream else 0))


def check_pictures(service: Service, document: Document, context_length: int) -> None:
    """Refuses more pictures than fit before any is encoded; counts them."""
    pictures = sum(not isinstance(segment, str) for segment in document)
    if not pictures:
        return
    block = service.model.tokenizer.image_block
    if pictures * block >= context_length:
        raise invalid(
            f"{pictures} pictures take {pictures * block:,} tokens, and prompt and answer have {context_length:,} "
            "(context_length); send fewer",
            "messages",
            "context_length_exceeded",
        )
    service.metrics.read(pictures)


async def chat_events(
    service: Service, body: ChatRequest, head: Head, task: Task, answers: Answers
) -> AsyncIterator[bytes]:
    """Deltas of all answers as they come."""
    shown = [TokenLogprobs(service.model.tokenizer) for _ in range(task.n)]
    finished = []
    for index in range(task.n):
        yield server_sent(chat_chunk(head, index, {"role": "assistant", "content": ""}))
    async for index, event in answers:
        logprobs = None
        if isinstance(event, Chunk):
            if body.logprobs:
                shown[index].add(event.ids, event.logprobs)
            continue
        if isinstance(event, Finished):
            finished.append(event.answer)
            rest = [] if task.config.stop else shown[index].take()
            logprobs = _logprobs(rest) if rest else None
            yield server_sent(chat_chunk(head, index, {}, finish=finish_reason(event.answer), logprobs=logprobs))
            continue
        delta = await service.in_thread(delta_of, event) if has_picture(event) else delta_of(event)
        if isinstance(event, TextPiece) and body.logprobs:
            logprobs = _logprobs(shown[index].take(event.text))
        if delta is not None:
            yield server_sent(chat_chunk(head, index, delta, logprobs=logprobs))
    if body.stream_options and body.stream_options.include_usage:
        usage = usage_of(finished, task.n)
        yield server_sent(usage_chunk(head, "chat.completion.chunk", "chatcmpl", usage))
    yield server_sent("[DONE]")


def _logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": entries, "refusal": None}
