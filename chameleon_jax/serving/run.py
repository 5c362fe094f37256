"""`chameleon serve`: a model behind HTTP, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import uvicorn

from chameleon_jax.chameleon import load
from chameleon_jax.config import ConfigError, ServeConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.handle import EngineError
from chameleon_jax.runtime.progress import console
from chameleon_jax.serving.app import make_app
from chameleon_jax.serving.gate import log, read_keys
from chameleon_jax.serving.service import Service


def serve(config: ServeConfig, *, model: str, adapters: str, template: str) -> dict[str, Any]:
    """Serves a model until SIGTERM or Ctrl-C, after which answers under way are finished.

    Raises:
      ConfigError: if the address is taken, or would serve strangers.
      EngineError: if the engine stops by itself.
    """
    keys = read_keys(config.keys)
    check_reach(config, keys)
    name = config.name or PurePosixPath(model.rstrip("/").partition("@")[0]).name or "chameleon"
    with listening(config.host, config.port) as listener:  # before the model is loaded in vain
        opened = load(model, adapters=adapters or None)
        opened.engine_config = config.engine
        opened.drop_params()
        service = Service(opened, config, name, template or None)
        _log_to_stderr(config)
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        rows = service.engine.rows
        console.print(f"{name} at http://{host}:{port}/v1 ({rows} rows; Ctrl-C ends)", soft_wrap=True)
        stopped_by = asyncio.run(_run(service, keys, listener))
    if service.failed:
        raise EngineError("the engine has stopped; the log above says why")
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    return {}


def check_reach(config: ServeConfig, keys: Sequence[str]) -> None:
    """Raises `ConfigError` if other machines could use the server without a key."""
    if keys or config.open or is_loopback(config.host):
        return
    raise ConfigError(
        f"host = {config.host!r}: whoever reaches this machine could use the model. Give --keys FILE "
        "(or CHAMELEON_KEYS), or say --open if that is meant"
    )


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address, which nobody else can take from now on. Raises `ConfigError` if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"host = {host!r}: is no address of this machine: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"port = {port}: cannot listen at {host}: {error.strerror}; choose another with --port"
            ) from None
        yield listener


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `_run`; uvicorn would end the process by the signal once it has finished."""
        yield


def make_server(service: Service, keys: Sequence[str] = ()) -> uvicorn.Server:
    """A server of the application; `serve(sockets=…)` runs it until `should_exit`."""
    config = service.config
    return _Server(uvicorn.Config(
        make_app(service, keys), http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=bool(config.proxies), forwarded_allow_ips=list(config.proxies),
        limit_concurrency=8 * config.limits.requests, timeout_graceful_shutdown=int(config.drain_seconds) + 5,
    ))  # fmt: skip


async def _run(service: Service, keys: Sequence[str], listener: socket.socket) -> int:
    """Serves until a signal comes or the engine stops. Returns the number of the signal; 0: none."""
    server, loop, came = make_server(service, keys), asyncio.get_running_loop(), []

    def end(number: int) -> None:
        came.append(number)
        starting = service.state == "starting"
        service.drain()
        server.should_exit = True
        if len(came) > 1 or starting:
            service.stop()
            server.force_exit = len(came) > 1
        else:
            loop.call_later(service.config.drain_seconds, service.stop)
            log.info("shutting down; answers under way: %d", service.engine.running + service.engine.waiting)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(_watch(service, server))
    try:
        await service.start()
        log.info("ready")
        await serving
    except ChameleonError as error:  # the engine cannot even begin
        log.error("%s", error)
        server.should_exit = True
        await serving
    finally:
        watching.cancel()
        service.close()
    return came[0] if came else 0


async def _watch(service: Service, server: uvicorn.Server) -> None:
    """Ends the server when the engine has stopped, so that whoever supervises it starts another one."""
    while not service.failed:
        await asyncio.sleep(0.5)
    server.should_exit = True


def _log_to_stderr(config: ServeConfig) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in (log.name, "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if config.log == "nothing" or name != log.name else logging.INFO)
