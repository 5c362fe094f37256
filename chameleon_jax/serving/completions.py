"""`POST /v1/completions`: documents to continue, as text, ids, or texts and pictures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chameleon_jax.generating import check_prompt, encode_prompts, resolved
from chameleon_jax.generation.events import Finished, PictureDone, PictureProgress, TextPiece
from chameleon_jax.serving.chat import check_pictures
from chameleon_jax.serving.errors import invalid
from chameleon_jax.serving.exchange import respond, service_of, write_down
from chameleon_jax.serving.requests import ContentReader, addresses_in_content, count_of, options_of
from chameleon_jax.serving.responses import (
    Head,
    delta_of,
    finish_reason,
    has_picture,
    server_sent,
    text_choice,
    text_chunk,
    text_completion,
    usage_chunk,
    usage_of,
)
from chameleon_jax.serving.service import Answers, Service, Task
from chameleon_jax.serving.wire import CompletionRequest

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continuations of a prompt, or of each of several."""
    service = service_of(request)
    head = service.head(body.model, body.seed)
    if body.logprobs:
        raise invalid(f"logprobs = {body.logprobs}: only 0, for the tokens written, as others are not kept", "logprobs")
    if body.stream and body.logprobs is not None:
        raise invalid("logprobs: come with whole answers, not with a stream", "logprobs")
    write_down(service, request.state.client, body.model_dump())
    prompts = prompts_of(body)
    fetched = await service.fetch([each for prompt in prompts for each in addresses_in_content(prompt, "prompt")])
    task = await service.in_thread(completion_task, service, body, prompts, fetched, head.seed)
    echoes = ["".join(_text(prompt)) if body.echo else "" for prompt in prompts for _ in range(task.n)]

    def whole(answers: list[Any]) -> dict[str, Any]:
        logprobs = [None] * len(answers)
        if body.logprobs is not None:
            logprobs = [service.shown_logprobs(answer, task.config) for answer in answers]
        return text_completion(head, answers, usage_of(answers, task.n), logprobs, echoes)

    return await respond(
        request,
        task,
        whole,
        (lambda answers: text_events(service, body, head, task, echoes, answers)) if body.stream else None,
    )


def prompts_of(body: CompletionRequest) -> list[Any]:
    """The prompts of a request: texts, lists of ids, lists of parts. A list may be one prompt or several."""
    prompt = body.prompt
    if isinstance(prompt, str) or not prompt or not isinstance(prompt[0], str | list):
        return [prompt]
    return list(prompt)


def completion_task(
    service: Service, body: CompletionRequest, prompts: list[Any], fetched: Mapping[str, bytes], seed: int
) -> Task:
    model, limits = service.model, service.config.limits
    config = resolved(model, options_of(body, service.config.generation, limits, seed))
    n = count_of(body.n, len(prompts), limits)
    reader = ContentReader(model.tokenizer, limits, lambda url, place: fetched[url])
    ids = []
    for prompt in prompts:
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            if len(prompt) > config.context_length:
                raise invalid(
                    f"prompt: {len(prompt):,} ids, more than context_length = {config.context_length:,}", "prompt",
                    "context_length_exceeded",
                )  # fmt: skip
            if max(map(abs, prompt)) >= 1 << 31:
                raise invalid("prompt: holds ids outside the vocabulary", "prompt")
            ids.append(check_prompt(model, prompt, config))
        else:
            document = reader.document(prompt, "prompt")
            check_pictures(service, document, config.context_length)
            ids += encode_prompts(model, [document], [config])
    return Task(ids, config, n, preview_every=service.preview_every(body.partial_images if body.stream else 0))


def _text(prompt: Any) -> list[str]:
    """The texts of a prompt; ids have none."""
    if isinstance(prompt, str):
        return [prompt]
    return [part.text for part in prompt if hasattr(part, "text")]


async def text_events(
    service: Service, body: CompletionRequest, head: Head, task: Task, echoes: list[str], answers: Answers
) -> AsyncIterator[bytes]:
    """Pieces of all answers as they come; pictures as the deltas of a chat have them, beside an empty text."""
    finished: dict[int, Any] = {}
    for index, echo in enumerate(echoes):
        if echo:
            yield server_sent(text_chunk(head, text_choice(index, echo, None)))
    async for index, event in answers:
        choice = None
        if isinstance(event, TextPiece):
            choice = text_choice(index, event.text, None)
        elif isinstance(event, PictureDone | PictureProgress):
            delta = await service.in_thread(delta_of, event) if has_picture(event) else delta_of(event)
            choice = {**text_choice(index, "", None), **delta}
        elif isinstance(event, Finished):
            finished[index] = event.answer
            choice = text_choice(index, "", finish_reason(event.answer))
        if choice is not None:
            yield server_sent(text_chunk(head, choice))
    if body.stream_options and body.stream_options.include_usage:
        usage = usage_of([finished[index] for index in sorted(finished)], task.n)
        yield server_sent(usage_chunk(head, "text_completion", "cmpl", usage))
    yield server_sent("[DONE]")
