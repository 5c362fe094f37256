"""`POST /v1/images/generations` and `/v1/images/edits`: pictures of a text."""

from __future__ import annotations

import collections
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from chameleon_jax.generating import encode_prompts, resolved
from chameleon_jax.generation.engine import NO_TEXT
from chameleon_jax.generation.events import Finished, PictureDone, PictureProgress
from chameleon_jax.serving.chat import check_pictures
from chameleon_jax.serving.errors import RequestError, invalid
from chameleon_jax.serving.exchange import respond, service_of, write_down
from chameleon_jax.serving.requests import ContentReader, count_of, image_options_of
from chameleon_jax.serving.responses import (
    Head,
    PictureFile,
    image_event,
    image_usage,
    images_response,
    server_sent,
    usage_of,
)
from chameleon_jax.serving.service import Answers, Service, Task
from chameleon_jax.serving.wire import ImageRequest, explain

router = APIRouter()


@router.post("/v1/images/generations", response_model=None)
async def generations(body: ImageRequest, request: Request) -> Response:
    """Pictures of a text, as base64."""
    service = service_of(request)
    head = service.head(body.model, body.seed)
    write_down(service, request.state.client, body.model_dump())
    task = await service.in_thread(image_task, service, body, [], head.seed)
    return await _draw(request, body, head, task)


async def _draw(request: Request, body: ImageRequest, head: Head, task: Task) -> Response:
    service = service_of(request)
    file, size = PictureFile(body.output_format or "png", body.output_compression), service.picture_size

    def whole(answers: list[Any]) -> dict[str, Any]:
        pictures = [answer.pictures[0] for answer in answers]
        return images_response(head, pictures, size, file, usage_of(answers, task.n))

    return await respond(
        request,
        task,
        whole,
        (lambda answers: image_events(service, head, task, size, file, answers)) if body.stream else None,
    )


def image_task(service: Service, body: ImageRequest, files: Sequence[bytes], seed: int) -> Task:
    """What the engine has to do.

    Args:
      files: pictures that stand before the text.
    """
    model, limits = service.model, service.config.limits
    config = resolved(model, image_options_of(body, service.config.generation, seed))
    if body.size not in (None, "auto", service.picture_size):
        raise invalid(f"size = {body.size!r}: this model draws {service.picture_size}", "size")
    n = count_of(body.n, 1, limits)
    reader = ContentReader(model.tokenizer, limits, lambda url, place: b"")
    document = [reader.file(data, f"image.{number}") for number, data in enumerate(files)]
    document += reader.document(body.prompt, "prompt")
    check_pictures(service, document, config.context_length)
    negative = NO_TEXT
    if body.negative_prompt:
        negative = model.encode(reader.document(body.negative_prompt, "negative_prompt"))
    (prompt,) = encode_prompts(model, [document], [config])
    previews = service.preview_every(body.partial_images if body.stream else 0)
    return Task([prompt], config, n, np.asarray(negative, np.int32), previews)


async def image_events(
    service: Service, head: Head, task: Task, size: str, file: PictureFile, answers: Answers
) -> AsyncIterator[bytes]:
    """Previews of all pictures, and the pictures."""
    previews: collections.Counter[int] = collections.Counter()
    drawn: dict[int, dict[str, Any]] = {}
    async for index, event in answers:
        if isinstance(event, PictureProgress) and event.preview is not None:
            sent = await service.in_thread(
                lambda index=index, event=event: image_event(
                    head, index, event.preview, size, file, partial=previews[index]
                )
            )
            previews[index] += 1
            yield server_sent(sent, sent["type"])
        elif isinstance(event, PictureDone):
            drawn[index] = await service.in_thread(image_event, head, index, event.picture, size, file)
        elif isinstance(event, Finished):
            usage = image_usage(usage_of([event.answer], 1))
            yield server_sent({**drawn[index], "usage": usage}, drawn[index]["type"])


@router.post("/v1/images/edits", response_model=None)
async def edits(request: Request) -> Response:
    """Pictures changed as a text says, by models that were trained to."""
    service = service_of(request)
    if not service.config.edits:
        raise RequestError(
            422, f"{service.name} is not known to change pictures; if it was trained to, start the server with --edits",
            "cannot_edit",
        )  # fmt: skip
    async with request.form(
        max_files=service.config.limits.pictures, max_fields=len(ImageRequest.model_fields)
    ) as form:
        files = [
            await file.read() for name in ("image", "image[]") for file in form.getlist(name) if _is_file(file, name)
        ]
        fields = {name: value for name, value in form.multi_items() if name not in ("image", "image[]")}
    if not files:
        raise invalid("image: is missing; send pictures as files of a form", "image")
    try:
        body = ImageRequest.model_validate({name: _value(name, value) for name, value in fields.items()})
    except ValidationError as error:
        raise explain(error.errors(), fields, list(ImageRequest.model_fields)) from None
    head = service.head(body.model, body.seed)
    write_down(service, request.state.client, {**body.model_dump(), "images": len(files)})
    task = await service.in_thread(image_task, service, body, files, head.seed)
    return await _draw(request, body, head, task)


def _is_file(value: Any, name: str) -> bool:
    if isinstance(value, str):
        raise invalid(f"{name}: must be a file of the form", name)
    return True


def _value(name: str, value: Any) -> Any:
    """A field of a form as JSON would have it."""
    if not isinstance(value, str):
        raise invalid(f"{name}: must be text; only image is a file", name, "unsupported")
    field = ImageRequest.model_fields.get(name)
    if field is None or "str" in str(field.annotation) or "Literal" in str(field.annotation):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
