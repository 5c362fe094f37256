"""`chameleon serve` as a child process, and a client of it that sees every byte."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEADERS = {"content-type": "application/json"}


class Server:
    """A server that was started; its `log` is a file.

    Attributes:
      seconds_to_load: until its engine has its weights and the address is printed.
      seconds_to_ready: until `/health/ready` says so.
    """

    def __init__(self, model: str, *options: str, cache: str = ""):
        """Args:
        cache: folder of compiled programs; by default that of the commands.
        """
        self.model, self._file = model, tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115
        words = [sys.executable, "-m", "chameleon_jax", "serve", model, "--port", "0", *options]
        words += ["--compilation-cache", cache] if cache else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        began = time.perf_counter()
        self.process = subprocess.Popen(words, env=environment, stdout=self._file, stderr=self._file)
        address = self._until(lambda: re.search(r" at http://([\d.]+):(\d+)/v1 \((\d+) rows", self.log))
        self.seconds_to_load = time.perf_counter() - began
        self.host, self.port, self.rows = address[1], int(address[2]), int(address[3])
        self._until(lambda: re.search(r" ready$", self.log, re.M))
        self.seconds_to_ready = time.perf_counter() - began

    def _until(self, found: Callable[[], Any]) -> Any:
        while True:
            if result := found():
                return result
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with status {self.process.returncode}:\n{self.log}")
            time.sleep(0.01)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    @property
    def log(self) -> str:
        return Path(self._file.name).read_text(errors="replace")

    def memory(self) -> dict[str, float]:
        """MiB: now, and the most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        names = {"now": "VmRSS", "most": "VmHWM"}
        return {name: int(re.search(rf"{key}:\s+(\d+)", status)[1]) // 1024 for name, key in names.items()}

    def forget_most_memory(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def metrics(self) -> dict[str, float]:
        """Figures by name and labels."""
        text = (await self.ask("GET", "/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name.removeprefix("chameleon_"): float(value) for name, _, value in lines}

    async def until_idle(self, seconds: float = 60.0) -> dict[str, float]:
        """The metrics, once rows and queue are empty."""
        end = time.perf_counter() + seconds
        while True:
            found = await self.metrics()
            busy = {name: found[name] for name in ("rows_taken", "queue") if found[name]}
            if found["requests_under_way"] > 1:  # this one is one
                busy["requests_under_way"] = found["requests_under_way"]
            if not busy or time.perf_counter() > end:
                return {**found, "idle": not busy}
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------------------------------------------------------------
    # Requests
    # ------------------------------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] = HEADERS) -> Response:
        """A whole response. A body that is not bytes is sent as JSON."""
        async with self.exchange(request(method, path, body, headers)) as response:
            response.body = b"".join([part async for part in response.parts])
            return response

    @contextlib.asynccontextmanager
    async def exchange(self, data: bytes, *, ends: bool = False) -> AsyncIterator[Response]:
        """Sends bytes on a connection of their own; it is closed, whatever of the response is left, at the end.

        Args:
          ends: say that nothing follows, after which the server need not answer.
        """
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
        try:
            with contextlib.suppress(ConnectionError):  # a server that refuses may close before it has read all
                writer.write(data)
                await writer.drain()
                if ends:
                    writer.write_eof()
            status, headers = await _head(reader)
            yield Response(status, headers, _parts(reader, headers))
        finally:
            writer.transport.abort()


@dataclasses.dataclass
class Response:
    status: int
    headers: dict[str, str]
    parts: AsyncIterator[bytes]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream; the last one is `{"done": True}` or has an error."""
        rest = b""
        async for part in self.parts:
            *blocks, rest = (rest + part).split(b"\n\n")
            for block in blocks:
                for line in block.split(b"\n"):
                    if line == b"data: [DONE]":
                        yield {"done": True}
                    elif line.startswith(b"data: "):
                        yield json.loads(line[6:])


def request(method: str, path: str, body: Any = b"", headers: Mapping[str, str] = HEADERS) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = {"host": "127.0.0.1", "connection": "close", "content-length": str(len(data)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in own.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + data


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    while True:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        status = int(first.split()[1])
        if status >= 200:  # no "continue"
            return status, dict(line.lower().split(": ", 1) for line in lines if ": " in line)


async def _parts(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size + 2))[:-2]
    else:
        while part := await reader.read(1 << 16):
            yield part


# ----------------------------------------------------------------------------------------------------------------------
# Answers
# ----------------------------------------------------------------------------------------------------------------------

Part = str | bytes
"""Text, or the pixels of a picture."""


def pixels_of(data: str) -> bytes:
    """Size and pixels of a picture as a data URL or base64."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(data.rpartition(",")[2]))).convert("RGB")
    return repr(image.size).encode() + image.tobytes()


def whole_of(path: str, body: dict[str, Any]) -> list[Part]:
    """What an unstreamed response of one answer says."""
    if path.endswith("generations"):
        return [pixels_of(body["data"][0]["b64_json"])]
    (choice,) = body["choices"]
    content = choice["message"]["content"] if path.startswith("/v1/chat") else choice.get("content", choice["text"])
    if isinstance(content, str):
        return [content] if content else []
    return [part["text"] if part["type"] == "text" else pixels_of(part["image_url"]["url"]) for part in content]


def streamed_of(path: str, events: Sequence[dict[str, Any]]) -> list[Part]:
    """What the events of a stream of one answer say together."""
    found: list[Part] = []
    for event in events:
        if event.get("type") == "image_generation.completed":
            found.append(pixels_of(event["b64_json"]))
        for choice in event.get("choices", ()):
            delta = choice["delta"] if path.startswith("/v1/chat") else choice
            text = delta.get("content") if path.startswith("/v1/chat") else delta["text"]
            if text and found and isinstance(found[-1], str):
                found[-1] += text
            elif text:
                found.append(text)
            found += [pixels_of(image["image_url"]["url"]) for image in delta.get("images", ())]
    return found


def is_token(event: dict[str, Any]) -> bool:
    """Whether an event of a stream tells of what was written."""
    if event.get("type", "").startswith("image_generation."):
        return True
    for choice in event.get("choices", ()):
        delta = choice.get("delta", choice)
        if delta.get("content") or delta.get("text") or "partial_image" in delta or "images" in delta:
            return True
    return False
