"""Requests that nobody should send: sound ones that were damaged, and bytes that were never one."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from served import HEADERS, request

CHAT, TEXT, IMAGES = "/v1/chat/completions", "/v1/completions", "/v1/images/generations"
TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"

NUMBERS = (
    "0", "-1", "-0", "1e999", "-1e999", "NaN", "Infinity", "1e-320", "0.1e1", "9" * 400, "-" + "9" * 30,
    str(2**31), str(2**63 - 1), str(2**63), str(-(2**63)), "1e308", "1.0", "true", "null",
)  # fmt: skip
TEXTS = (
    "",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\u202e\u200b\ufeff",
    "🐙" * 50,
    "e\u0301" * 100,
    "</s>",
    "<s>",
    "<image>",
    "<reserved08706>",
    "<racm3:break>",
    "<eoss>",
    "IMGIMGA",
    "[picture 1]",
    "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "%00%s%n",
    "../../../etc/passwd",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "\x1b[31m",
    "a" * 5000,
    "\u2028\u2029",
    "ﷺ" * 200,
    "file:///etc/passwd",
    "http://127.0.0.1/",
    "http://169.254.169.254/latest",
    "data:image/png;base64,",
    "data:text/html;base64,PGI+",
    "DATA:IMAGE/PNG;BASE64,AAAA",
    "https://[::1]:22/x.png",
    "data:,",
    "user",
    "assistant",
)
NAMES = (
    "n",
    "seed",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "stop_ids",
    "stream",
    "modalities",
    "image",
    "max_images",
    "text_guidance",
    "guidance_scale",
    "image_guidance",
    "partial_images",
    "pictures_in",
    "logprobs",
    "model",
    "messages",
    "prompt",
    "content",
    "tokens",
    "codes",
    "echo",
    "stream_options",
    "repetition_penalty",
    "size",
    "tools",
    "response_format",
    "negative_prompt",
    "output_format",
    "output_compression",
    "user",
    "__proto__",
    "constructor",
    "",
)
NUMERIC = (
    "n", "seed", "max_tokens", "temperature", "top_p", "top_k", "min_p", "max_images", "text_guidance", "logprobs",
    "image_guidance", "guidance_scale", "partial_images", "repetition_penalty", "output_compression",
)  # fmt: skip
KINDS = (
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-7",
    "application/octet-stream",
    "image/png",
    "",
    "\xff",
    "a" * 2000,
)


class Number:
    """A number as it is to be spelled."""

    def __init__(self, spelled: str):
        self.spelled = spelled


def spell(value: Any) -> str:
    """JSON, which need not be sound."""
    if isinstance(value, Number):
        return value.spelled
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {spell(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spell, value)) + "]"
    return json.dumps(value)


class Hostile:
    """An endless source of requests, each with the name of its kind.

    Attributes:
      kinds: names, and what makes the bytes of a request.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._png = _png(24, 24)
        self.kinds: dict[str, Callable[[], bytes]] = {
            "values": self._values, "numbers": self._numbers, "texts": self._texts, "json": self._json,
            "base64": self._base64, "pictures": self._pictures, "content types": self._types,
            "raw bytes": self._bytes, "protocol": self._protocol, "large": self._large,
        }  # fmt: skip

    def next(self) -> tuple[str, bytes]:
        name = self._random.choices(list(self.kinds), (20, 14, 12, 12, 10, 12, 6, 6, 7, 1))[0]
        return name, self.kinds[name]()

    # ------------------------------------------------------------------------------------------------------------------
    # Sound requests
    # ------------------------------------------------------------------------------------------------------------------

    def _sound(self) -> tuple[str, dict[str, Any]]:
        chosen, random = self._random.randrange(5), self._random
        said = [{"type": "text", "text": random.choice(TEXTS) or "x"}]
        if random.random() < 0.3:
            said.append(_image_part(self._png))
        few = {"max_tokens": 2, "seed": random.randrange(100)}
        return (
            (CHAT, {"messages": [{"role": "user", "content": said}], "stream": random.random() < 0.3, **few}),
            (TEXT, {"prompt": random.choice((random.choice(TEXTS), said)), "modalities": ["text"], **few}),
            (IMAGES, {"prompt": random.choice(TEXTS), "n": 1}),
            (TOKENIZE, {"content": said}),
            (DETOKENIZE, {"tokens": [random.randrange(500) for _ in range(random.randrange(20))]}),
        )[chosen]

    # ------------------------------------------------------------------------------------------------------------------
    # Damage
    # ------------------------------------------------------------------------------------------------------------------

    def _anything(self, depth: int = 0) -> Any:
        random = self._random
        match random.randrange(8 if depth < 4 else 5):
            case 0:
                return Number(random.choice(NUMBERS))
            case 1 | 2:
                return random.choice(TEXTS)
            case 3:
                return random.choice((None, True, False, [], {}, 0, 1))
            case 4:
                return random.randrange(-3, 100)
            case 5:
                return [self._anything(depth + 1) for _ in range(random.randrange(4))]
            case 6:
                return {random.choice(NAMES): self._anything(depth + 1) for _ in range(random.randrange(4))}
        return random.choice((_image_part(self._png), {"type": "text", "text": self._anything(depth + 1)}))

    def _values(self) -> bytes:
        """Values at any place are replaced, added or left out."""
        path, body = self._sound()
        for _ in range(self._random.randrange(1, 4)):
            place, key = self._random.choice(list(_places(body)))
            if self._random.random() < 0.2 and isinstance(place, dict):
                del place[key]
            else:
                place[key] = self._anything()
            if self._random.random() < 0.5 or not body:
                body[self._random.choice(NAMES)] = self._anything()
        return request("POST", path, spell(body).encode("utf-8", "surrogatepass"))

    def _numbers(self) -> bytes:
        path, body = self._sound()
        for name in self._random.sample(NUMERIC, self._random.randrange(1, 3)):
            body[name] = Number(self._random.choice(NUMBERS))
        return request("POST", path, spell(body).encode())

    def _texts(self) -> bytes:
        """Text of all kinds as bytes of UTF-8, also of surrogates, which UTF-8 does not have."""
        text = "".join(self._random.choices(TEXTS, k=self._random.randrange(1, 5)))
        path, body = self._random.choice((
            (CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 2}),
            (TEXT, {"prompt": text, "max_tokens": 2, "stop": text[:100] or "x"}), (TOKENIZE, {"content": text}),
            (IMAGES, {"prompt": text, "negative_prompt": text[::-1]}),
        ))  # fmt: skip
        escapes = self._random.random() < 0.5
        return request("POST", path, json.dumps(body, ensure_ascii=escapes).encode("utf-8", "surrogatepass"))

    def _json(self) -> bytes:
        path, body = self._sound()
        text = bytearray(json.dumps(body).encode())
        match self._random.randrange(6):
            case 0:
                del text[self._random.randrange(len(text)) :]
            case 1:
                for _ in range(self._random.randrange(1, 6)):
                    text[self._random.randrange(len(text))] = self._random.randrange(256)
            case 2:
                text = b"[" * self._random.choice((10, 1000, 100_000))
            case 3:
                text = b'{"messages":' * self._random.choice((10, 5000)) + bytes(text)
            case 4:
                text = bytes(text).decode().encode(self._random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
            case 5:
                text = text * 2
        return request("POST", path, bytes(text))

    def _base64(self) -> bytes:
        coded = bytearray(base64.b64encode(self._png))
        for _ in range(self._random.randrange(1, 8)):
            coded[self._random.randrange(len(coded))] = self._random.choice(b"=-_ \n%*\x00aZ9+/")
        url = "data:image/png;base64," + coded[: self._random.randrange(len(coded)) or None].decode("latin-1")
        return self._with_picture(url)

    def _pictures(self) -> bytes:
        data = bytearray(self._random.choice((self._png, _jpeg(), _gif())))
        match self._random.randrange(7):
            case 0:
                del data[self._random.randrange(len(data)) :]
            case 1:
                for _ in range(self._random.randrange(1, 9)):
                    data[self._random.randrange(len(data))] = self._random.randrange(256)
            case 2:
                data = _png(30_000, 30_000, b"")
            case 3:
                data = _png(8_000, 8_000, zlib.compress(bytes(1 << 20)))
            case 4:
                data = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
            case 5:
                data = self._random.randbytes(self._random.randrange(400))
            case 6:
                data = _png(0, self._random.choice((0, 1, 2**31 - 1)))
        return self._with_picture(f"data:image/png;base64,{base64.b64encode(bytes(data)).decode()}")

    def _with_picture(self, url: str) -> bytes:
        part = {"type": "image_url", "image_url": {"url": url}}
        path, body = self._random.choice(
            (
                (CHAT, {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}),
                (TOKENIZE, {"content": [part]}),
            )
        )
        return request("POST", path, body)

    def _large(self) -> bytes:
        """Many pictures, much text, long lists."""
        part = _image_part(self._png)
        path, body = self._random.choice((
            (CHAT, {"messages": [{"role": "user", "content": [part] * 3000}]}), (TEXT, {"prompt": "word " * 200_000}),
            (TOKENIZE, {"content": "\u0301" * 390_000}), (TEXT, {"prompt": list(range(50_000))}),
            (TEXT, {"prompt": ["x"] * 20_000}), (DETOKENIZE, {"codes": [[1] * 16] * 5000}),
            (TEXT, {"prompt": "x", "stop": ["y" * 1_000_000]}), (CHAT, {"messages": [{"role": "user"}] * 20_000}),
        ))  # fmt: skip
        return request("POST", path, body)

    # ------------------------------------------------------------------------------------------------------------------
    # HTTP
    # ------------------------------------------------------------------------------------------------------------------

    def _types(self) -> bytes:
        path, body = self._sound()
        method = self._random.choice(("POST", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"))
        return request(method, path, body, {**HEADERS, "content-type": self._random.choice(KINDS)})

    def _bytes(self) -> bytes:
        """No HTTP at all."""
        noise = self._random.randbytes(self._random.randrange(1, 3000))
        return self._random.choice((noise, noise + b"\r\n\r\n", b"POST " + noise, b"\x16\x03\x01\x02\x00" + noise))

    def _protocol(self) -> bytes:
        """HTTP that says one thing and does another."""
        path, body = self._sound()
        whole = request("POST", path, body)
        head, _, rest = whole.partition(b"\r\n\r\n")
        return self._random.choice(
            (
                whole.replace(b"HTTP/1.1", b"HTTP/1.0"),
                whole.replace(b"HTTP/1.1", b"HTTP/9.9"),
                whole.replace(b"content-length: ", b"content-length: 9"),
                whole.replace(b"content-length: ", b"content-length: -"),
                whole.replace(b"content-length", b"content-length: 3\r\ncontent-length"),
                head + b"\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
                head.replace(b"content-length", b"transfer-encoding: chunked\r\nx-length") + b"\r\n\r\nZZ\r\n" + rest,
                head.replace(b"content-length", b"transfer-encoding: chunked\r\nx-length")
                + b"\r\n\r\nffffffffffffffff\r\n"
                + rest,
                request(
                    "GET",
                    "/v1/models",
                    b"",
                    {
                        "connection": "upgrade",
                        "upgrade": "websocket",
                        "sec-websocket-version": "13",
                        "sec-websocket-key": "eHh4eHh4eHh4eHh4eHh4eA==",
                    },
                ),
                request("POST", path, body, {**HEADERS, "expect": "100-continue"}),
                request("POST", path, body, {**HEADERS, "host": "evil.example"}),
                request("POST", path, body, {**HEADERS, "content-encoding": "gzip"}),
                request("GET", "/" + "a" * 20_000),
                request("GET", "/%00%ff/../../etc/passwd"),
                request("POST", path + "?" + "x=1&" * 2000, body),
                request("GET", "*"),
                request("POST", path, body, {**HEADERS, "authorization": "Bearer \xff\xfe" * 100}),
            )
        )


def _places(value: Any):
    """All places of a body as a container and a key or index."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _image_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def _png(width: int, height: int, pixels: bytes | None = None) -> bytes:
    """A PNG of grey, or one whose header says more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    if pixels is None:
        pixels = zlib.compress((b"\0" + bytes(min(width, 100))) * min(height, 100))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _jpeg() -> bytes:
    return _file("JPEG")


def _gif() -> bytes:
    return _file("GIF")


def _file(form: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (24, 24), (200, 30, 30)).save(file, form)
    return file.getvalue()
