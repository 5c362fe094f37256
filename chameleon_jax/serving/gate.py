"""What a request passes before the application sees it: who asks, how many at once, a body that is all there."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from chameleon_jax.config import ConfigError, LimitsConfig
from chameleon_jax.errors import FileError, printable
from chameleon_jax.runtime.reading import read_bytes
from chameleon_jax.serving import page
from chameleon_jax.serving.errors import RETRY_SECONDS, RequestError, busy, failed, too_large
from chameleon_jax.serving.metrics import Metrics

log = logging.getLogger("chameleon_jax.serving")

VARIABLE = "CHAMELEON_KEYS"
SHORTEST_KEY = 16
FREE = ("/health", "/health/live", "/health/ready", *page.FILES)
"""Addresses that ask for no key."""
DISCARDED = 64 << 20
"""Bytes of a refused body that are still taken, as clients read no answer before they have sent theirs."""


def read_keys(file: str) -> tuple[str, ...]:
    """The keys in a file, one a line, and those in the environment.

    Raises:
      FileError: if the file cannot be read, or holds none.
      ConfigError: for keys that are easily guessed.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    if file:
        try:
            lines = read_bytes(file, 1 << 20).decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise FileError(f"{file}: keys are printable ASCII, one a line") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise FileError(f"{file}: holds no key; write one a line, such as `openssl rand -hex 24` makes")
        keys += found
    for number, key in enumerate(keys, start=1):
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"key {number}: must be {SHORTEST_KEY} or more printable ASCII characters without spaces, such as "
                "`openssl rand -hex 24` makes"
            )
    return tuple(dict.fromkeys(keys))


class Clients:
    """How much each client has under way."""

    def __init__(self, most: int):
        self._most, self._held = most, collections.Counter[str]()

    @contextlib.contextmanager
    def hold(self, client: str, count: int) -> Iterator[None]:
        """Counts `count` more for a client while the block runs. Raises `RequestError` if that is too much."""
        if self._held[client] + count > self._most:
            raise RequestError(
                429, f"{self._most} answers are under way for this client already; try again when one has ended",
                "rate_limit_exceeded", retry_after=RETRY_SECONDS,
            )  # fmt: skip
        self._held[client] += count
        try:
            yield
        finally:
            self._held[client] -= count
            if not self._held[client]:
                del self._held[client]

    def __len__(self) -> int:
        """Clients that have anything under way."""
        return len(self._held)


class Gate:
    """ASGI middleware that refuses requests by key, origin, number and size, and hands on the others with their body.

    Args:
      keys: one of which each request must have; none: nobody is asked.
      own_hosts: names by which this server may be called; None: any. A web page that was made to call it by another
        name, or from another origin, is refused.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        keys: Sequence[str],
        own_hosts: Sequence[str] | None,
        origins: Sequence[str],
        limits: LimitsConfig,
        clients: Clients,
        metrics: Metrics,
    ):
        self._app, self._limits, self._clients, self._metrics = app, limits, clients, metrics
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._own_hosts, self._origins = own_hosts, origins
        self._admitted = self._bytes = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def count(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.under_way.inc()
        try:
            await self._pass(scope, receive, count)
        except asyncio.CancelledError:  # the time to drain is over, and uvicorn ends what is left
            if not status:
                await respond(busy("the server is shutting down", "shutting_down"), count)
        except Exception:
            if status:  # nothing else can be said any more
                raise
            log.exception("a request failed")
            await respond(failed(), count)
        finally:
            self._metrics.under_way.dec()
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.responded(route, status)
            client, path = (scope.get("client") or ("?", 0))[0], printable(scope["path"])
            log.info("%s %s %s %d %.3f s", client, scope["method"], path, status, time.monotonic() - began)

    async def _pass(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        receive = _Incoming(receive)
        with contextlib.ExitStack() as held:
            try:
                if scope["path"] not in FREE:
                    client = self._client(scope)
                    scope.setdefault("state", {})["client"] = client
                    if self._admitted >= self._limits.requests:
                        raise busy(f"{self._limits.requests} requests are under way; try again later")
                    held.enter_context(self._clients.hold(client, 1))
                    held.enter_context(self._admit())
                body = await self._body(scope, receive, held)
            except RequestError as error:
                if not receive.whole:
                    await self._discard(receive)
                return await respond(error, send)
            except _Gone:
                return
            await self._app(scope, _with_body(body, receive), send)

    @contextlib.contextmanager
    def _admit(self) -> Iterator[None]:
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def _client(self, scope: dict[str, Any]) -> str:
        """Who asks: the fingerprint of the key, or the address."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._keys:
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            given = hashlib.sha256(key.strip().encode("latin-1")).digest()
            known = [hmac.compare_digest(given, key) for key in self._keys]  # all of them, so that time tells nothing
            if scheme.lower() != "bearer" or not any(known):
                raise RequestError(
                    401, "no valid key: send one as the header Authorization: Bearer KEY", "invalid_api_key"
                )
            return f"key {given.hex()[:16]}"
        if self._own_hosts is not None:
            host, origin = headers.get(b"host", ""), headers.get(b"origin")
            if host and _name_of(host) not in self._own_hosts:
                raise RequestError(
                    403, f"this server is not {printable(host)!r}; call it by {self._own_hosts[0]}, or give it keys",
                    "host_not_allowed",
                )  # fmt: skip
            if origin and origin not in self._origins and urlsplit(origin).netloc != host:
                raise RequestError(
                    403, f"web pages of {printable(origin)!r} may not use this server; allow them with --origins",
                    "origin_not_allowed",
                )  # fmt: skip
        return (scope.get("client") or ("?", 0))[0]

    async def _body(self, scope: dict[str, Any], receive: _Incoming, held: contextlib.ExitStack) -> bytes:
        """The whole body, which counts among those under way until `held` is closed."""
        most = self._limits.body_bytes
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > most:
            raise too_large(f"the body has {int(lengths[0][:20]):,} bytes: at most {most:,} are read")
        body = bytearray()
        held.callback(lambda: self._forget(len(body)))
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    if len(body) + len(part) > most:
                        raise too_large(f"the body has more than {most:,} bytes")
                    if self._bytes + len(part) > self._limits.bodies_bytes:
                        raise busy("the bodies of all requests together are too large; try again later")
                    body += part
                    self._bytes += len(part)
                    if receive.whole:
                        return bytes(body)
        except TimeoutError:
            raise RequestError(
                408, f"the body did not arrive within {self._limits.body_seconds:g} seconds", "timeout"
            ) from None

    def _forget(self, size: int) -> None:
        self._bytes -= size

    async def _discard(self, receive: _Incoming) -> None:
        """Takes what a client still sends of a body, within limits."""
        taken = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(2.0, self._limits.body_seconds)):
                while taken < DISCARDED:
                    taken += len((await receive()).get("body", b""))
                    if receive.whole:
                        return


class _Gone(Exception):
    """The client has left."""


class _Incoming:
    """The messages of a request, and whether its body is whole, or the client gone."""

    def __init__(self, receive: Callable):
        self._receive, self.whole = receive, False

    async def __call__(self) -> dict[str, Any]:
        message = await self._receive()
        self.whole = not message.get("more_body")
        return message


def _name_of(host: str) -> str:
    """The name in a header Host, without the port."""
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0].lower()


def _with_body(body: bytes, receive: Callable) -> Callable:
    given = False

    async def again() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def respond(error: RequestError, send: Callable) -> None:
    """Sends an error as a response of its own."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
