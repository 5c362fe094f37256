"""The HTTP application: OpenAI's addresses over a `Service`, behind a `Gate`."""

from __future__ import annotations

import math
import pkgutil
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from chameleon_jax.errors import ChameleonError
from chameleon_jax.models.transformer import parameter_shapes
from chameleon_jax.serving import chat, completions, images, page, tokenizing
from chameleon_jax.serving.errors import RequestError, failed, of_http
from chameleon_jax.serving.exchange import as_request_error
from chameleon_jax.serving.gate import Clients, Gate
from chameleon_jax.serving.metrics import CONTENT_TYPE
from chameleon_jax.serving.service import Service
from chameleon_jax.serving.wire import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ImageRequest,
    TokenizeRequest,
    explain,
)

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_BODIES = {
    "/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest, "/v1/images/generations": ImageRequest,
    "/v1/tokenize": TokenizeRequest, "/v1/detokenize": DetokenizeRequest,
}  # fmt: skip


def make_app(service: Service, keys: Sequence[str] = ()) -> FastAPI:
    """The application, whose `state.service` answers.

    Args:
      keys: of clients; none: all are served, from this machine alone unless `service.config.open`.
    """
    config = service.config
    version = pkgutil.resolve_name("chameleon_jax:__version__")
    app = FastAPI(title="chameleon_jax", version=version, summary=f"The model {service.name}")
    app.state.service, app.state.clients = service, Clients(config.limits.per_client)
    app.state.created = int(time.time())
    own_hosts = None if keys or config.open else tuple(dict.fromkeys((config.host, *LOOPBACK_NAMES)))
    app.add_middleware(
        Gate, keys=keys, own_hosts=own_hosts, origins=config.origins, limits=config.limits, clients=app.state.clients,
        metrics=service.metrics,
    )  # fmt: skip
    if config.origins:  # outside, as a browser asks for permission without a key
        app.add_middleware(
            CORSMiddleware, allow_origins=config.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for module in (chat, completions, images, tokenizing, page):
        app.include_router(module.router)
    app.add_api_route("/v1/models", _models)
    app.add_api_route("/v1/models/{name:path}", _model)
    for path in ("/health", "/health/live", "/health/ready"):
        app.add_api_route(path, _health)
    app.add_api_route("/metrics", _metrics)
    return app


# ----------------------------------------------------------------------------------------------------------------------
# What the server says of itself
# ----------------------------------------------------------------------------------------------------------------------


async def _models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_described(request)]}


async def _model(name: str, request: Request) -> dict[str, Any]:
    request.app.state.service.head(name, 0)
    return _described(request)


def _described(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    model = service.model
    reads = [*(["text"] if model.tokenizer.text else []), *(["image"] if model.tokenizer.image else [])]
    draws = not model.why_no_pictures
    image = {"size": service.picture_size, "codes": model.tokenizer.codes_per_image} if model.tokenizer.image else None
    default = service.config.generation
    return {
        "id": service.name, "object": "model", "created": request.app.state.created, "owned_by": "chameleon_jax",
        "context_length": model.config.context_length, "input_modalities": reads,
        "output_modalities": ["text", *(["image"] if draws else [])], "image": image,
        "parameters": sum(math.prod(shape) for shape in parameter_shapes(model.config).values()),
        "conversations": model.chat_template is not None, "examples": service.config.examples,
        "defaults": {
            "temperature": default.text.temperature, "top_p": default.text.top_p, "max_tokens": default.max_new_tokens,
            "image_temperature": default.image.temperature, "guidance": default.text_guidance,
        },
    }  # fmt: skip


async def _health(request: Request) -> JSONResponse:
    """Live while the engine runs; ready while new requests are taken."""
    service: Service = request.app.state.service
    live, ready = not service.failed, service.state == "ready" and not service.failed
    fine = live if request.url.path.endswith("live") else ready
    return JSONResponse({"live": live, "ready": ready, "state": service.state}, 200 if fine else 503)


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.service.metrics.text(), media_type=CONTENT_TYPE)


# ----------------------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------------------


def _respond(error: RequestError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return _respond(as_request_error(error))


async def _on_invalid_body(request: Request, error: RequestValidationError) -> JSONResponse:
    fields = _BODIES.get(request.url.path)
    return _respond(explain(error.errors(), error.body, list(fields.model_fields) if fields else ()))


async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
    response = _respond(of_http(error.status_code, error.detail, request.method, request.url.path))
    response.headers.update(error.headers or {})
    return response


async def _on_mistake(request: Request, error: Exception) -> JSONResponse:
    return _respond(failed())  # Starlette raises it again, so that it is logged


_HANDLERS = {
    ChameleonError: _on_error,
    RequestValidationError: _on_invalid_body,
    HTTPException: _on_http_error,
    Exception: _on_mistake,
}
