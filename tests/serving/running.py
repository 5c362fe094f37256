"""A small model behind a real server, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import openai
from tiny_models import scrambled_tokenizer, transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import EngineConfig, GenerationConfig, LimitsConfig, SamplingConfig, ServeConfig
from chameleon_jax.serving.run import listening, make_server
from chameleon_jax.serving.service import Service

HOT = SamplingConfig(temperature=1.5, top_p=1.0)
GENERATION = GenerationConfig(max_new_tokens=24, max_images=2, text=HOT, image=HOT)
ENGINE = EngineConfig(rows=4, queue=64)
CONFIG = ServeConfig(
    generation=GENERATION, engine=ENGINE, limits=LimitsConfig(seconds=60.0, pixels=1 << 20), drain_seconds=5.0
)


def small_model(*, draws: bool = True, context_length: int = 256) -> Chameleon:
    """Writes noise, and pictures often."""
    tokenizer = scrambled_tokenizer()
    config = transformer_for(tokenizer.vocabulary, context_length=context_length)
    params = transformer_params(config, seed=1)
    params["output"] = params["output"].at[:, tokenizer.vocabulary.begin_image].multiply(3.0)
    return Chameleon(config, params, tokenizer, image_head_trained=draws)


def alone(model: Chameleon) -> Chameleon:
    """The same model with engines of its own, as that of a server ends with it."""
    return Chameleon(
        model.config, model.params, model.tokenizer, image_head_trained=model.image_head_trained,
        chat_template=model.chat_template,
    )  # fmt: skip


@dataclasses.dataclass
class Running:
    service: Service
    url: str
    server: Any
    loop: asyncio.AbstractEventLoop

    @property
    def clients(self) -> Any:
        return self.server.config.app.state.clients

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


@contextlib.contextmanager
def running(model: Chameleon, config: ServeConfig = CONFIG, keys: Sequence[str] = ()) -> Iterator[Running]:
    """A server on a port of its own, ready."""
    with listening("127.0.0.1", 0) as listener:
        yield from _serve(model, config, keys, listener)


def _serve(model: Chameleon, config: ServeConfig, keys: Sequence[str], listener: socket.socket) -> Iterator[Running]:
    started, found = threading.Event(), []

    async def main() -> None:
        service = Service(alone(model), config, "tiny")
        server = make_server(service, keys)
        host, port = listener.getsockname()
        found.append(Running(service, f"http://{host}:{port}", server, asyncio.get_running_loop()))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await service.start()
            while not server.started:
                await asyncio.sleep(0.01)
            started.set()
            await serving
        finally:
            service.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert started.wait(300)
        yield found[0]
    finally:
        if found:
            found[0].server.should_exit = True
        thread.join()
