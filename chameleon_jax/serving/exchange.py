"""How a request is answered over HTTP: whole or as a stream, unless the client leaves; what it is told of errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from chameleon_jax.config import ConfigError
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generating import CannotDraw
from chameleon_jax.generation.handle import EngineError, QueueFull
from chameleon_jax.generation.memory import OutOfMemory
from chameleon_jax.generation.options import PromptError
from chameleon_jax.serving.errors import RequestError, busy, failed, invalid
from chameleon_jax.serving.gate import log
from chameleon_jax.serving.responses import server_sent
from chameleon_jax.serving.service import Answers, Service, Task
from chameleon_jax.tokens.image import NoImageDecoder

T = TypeVar("T")
PING_SECONDS = 15.0
"""A stream that has nothing to say sends a comment so often, as proxies close silent connections."""
SEND_SECONDS = 60.0
"""How long a client may take to read what it was sent last."""


def service_of(request: Request) -> Service:
    return request.app.state.service


def as_request_error(error: Exception) -> RequestError:
    """What a client is told of any error."""
    match error:
        case RequestError():
            return error
        case QueueFull():
            return busy(str(error), "queue_full")
        case OutOfMemory() | EngineError():
            log.error("%s", error)
            return busy(str(error), "engine_stopped")
        case CannotDraw() | NoImageDecoder():
            return RequestError(422, str(error), "cannot_draw", param="modalities")
        case DocumentError() | PromptError():
            too_long = "context_length" in str(error)
            return invalid(str(error), code="context_length_exceeded" if too_long else "invalid_prompt")
        case ConfigError():
            return invalid(str(error), str(error).partition(" = ")[0])
        case ChameleonError():
            return RequestError(422, str(error), "unprocessable")
    log.error("a request failed", exc_info=error)
    return failed()


class _Gone(Exception):
    """The client has left."""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves before. Raises `_Gone` then."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def respond(
    request: Request,
    task: Task,
    whole: Callable[[Sequence[Any]], dict[str, Any]],
    stream: Callable[[Answers], AsyncIterator[bytes]] | None,
) -> Response:
    """Has the engine do a task, and gives its answers.

    Args:
      whole: makes the response of whole answers; in a worker's thread.
      stream: makes the events of a stream of answers that are being written; None: no stream was asked for.
    """
    service, clients = service_of(request), request.app.state.clients
    with contextlib.ExitStack() as held:
        more = len(task.prompts) * task.n - 1  # the gate has counted one
        held.enter_context(clients.hold(request.state.client, more))
        answers = held.enter_context(service.answers(task))
        if stream is not None:
            return EventStream(stream(answers), held.pop_all())
        try:
            found = await unless_gone(request.receive, answers.whole())
        except _Gone:
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(await service.in_thread(whole, found))


class EventStream(Response):
    """Server-sent events that end when the client leaves.

    sse-starlette does this too, but ends all streams when the server is asked to end, which ours are to outlive.

    Args:
      events: the events, encoded. An error among them is sent as one, as the status is gone already.
      held: closed when the stream is at its end.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], held: contextlib.ExitStack):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held, contextlib.suppress(_Gone, TimeoutError):
            await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._parts()) as parts:
            async for part in parts:
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _parts(self) -> AsyncIterator[bytes]:
        """The events, an error that ends them, and comments while there is nothing else."""
        coming = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(self._events))
                if not (await asyncio.wait({coming}, timeout=PING_SECONDS))[0]:
                    yield b": still writing\n\n"
                    continue
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                except Exception as error:
                    yield server_sent(as_request_error(error).body())
                    return
                coming = None
                yield event
        finally:
            if coming is not None:
                coming.cancel()


def write_down(service: Service, client: str, what: dict[str, Any]) -> None:
    """Logs what was asked, if the server is told to."""
    if service.config.log == "prompts":
        log.info("%s asks %s", client, json.dumps(_without_pictures(what), ensure_ascii=True))


def _without_pictures(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_pictures(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_pictures(each) for each in value]
    if isinstance(value, str) and value.startswith("data:"):
        return f"({len(value):,} characters of data)"
    return value
