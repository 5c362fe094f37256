"""What needs no server: pictures and where they come from, names of the API, and errors."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import threading
import typing

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.image_generate_params import ImageGenerateParamsBase as ImageParams
from PIL import Image
from tiny_models import image_tokenizer, random_picture

from chameleon_jax.serving.errors import RequestError
from chameleon_jax.serving.fetching import Fetcher, is_public
from chameleon_jax.serving.pictures import content_of, from_base64, square_of, to_base64, to_url
from chameleon_jax.serving.wire import HARMLESS, IGNORED, ChatRequest, CompletionRequest, ImageRequest


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ChatRequest, ChatParams), (CompletionRequest, CompletionParams), (ImageRequest, ImageParams)]
)
def test_every_name_of_the_official_client_is_understood_ignored_or_refused(ours, theirs):
    names = set(typing.get_type_hints(theirs))
    assert names <= set(ours.model_fields) | IGNORED | set(HARMLESS)
    assert not IGNORED & set(HARMLESS)


def refuse(url: str, place: str) -> bytes:
    raise AssertionError("nothing is fetched")


def test_data_urls_of_every_spelling_are_read():
    png = base64.b64decode(to_base64(random_picture(1)))
    plain = base64.b64encode(png).decode()
    for url in (
        f"data:image/png;base64,{plain}", f"data:;base64,{plain}", f"data:image/png;charset=utf-8;base64,{plain}",
        f"data:image/svg+xml;base64,{plain}", f"data:image/png;base64,{base64.urlsafe_b64encode(png).decode()}",
        f"data:image/png;base64,{plain.rstrip('=')}", f"data:image/png;base64,{plain[:40]}\r\n{plain[40:]}",
    ):  # fmt: skip
        assert content_of(url, "here", refuse) == png
    for url in (
        "",
        "data:",
        "data:image/png;base64",
        f"{plain}",
        "data:image/png;base65,AA",
        "javascript:1",
        "//host/a",
    ):
        with pytest.raises(RequestError) as caught:
            content_of(url, "here", refuse)
        assert (caught.value.status, caught.value.param) == (400, "here")
    for text in ("é", "A", "AAAAA", "A=AA", "\0"):
        with pytest.raises(RequestError, match="no base64"):
            from_base64(text, "here")


def test_pictures_are_as_the_tokenizer_would_have_them():
    tokenizer = image_tokenizer()
    for size, mode in (((16, 16), "RGB"), ((40, 22), "L"), ((100, 30), "RGBA"), ((5, 7), "P")):
        picture = random_picture(3, size, mode)
        file = io.BytesIO()
        picture.save(file, "PNG")
        square = square_of(file.getvalue(), "here", tokenizer, 1 << 20)
        assert square.size == (16, 16)
        read = Image.open(io.BytesIO(file.getvalue()))
        assert tokenizer.tokenize([square]).tolist() == tokenizer.tokenize([read]).tolist()
        with pytest.raises(RequestError, match=f"{size[0]} x {size[1]} pixels; up to 34") as caught:
            square_of(file.getvalue(), "here", tokenizer, 34)
        assert caught.value.status == 413
    assert content_of(to_url(random_picture(3)), "here", refuse)[:4] == b"\x89PNG"


# ----------------------------------------------------------------------------------------------------------------------
# Addresses
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "::127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_of_private_networks(address):
    assert not is_public(address)


PNG = base64.b64decode(to_base64(random_picture(1)))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        port = self.server.server_port
        places = {
            "/moved": "/picture", "/away": f"http://other.test:{port}/picture", "/inside": "http://metadata.test/picture",
            "/file": "file:///etc/passwd", "/loop": "/loop",
        }  # fmt: skip
        if self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
            self.end_headers()
        elif self.path == "/picture?a=b" or self.path == "/picture":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PNG)
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b"x" * 10_000)
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


NAMES = {"pictures.test": "127.0.0.1", "other.test": "127.0.0.1", "metadata.test": "169.254.169.254"}


def test_pictures_are_fetched_from_listed_hosts_alone(web):
    """Names mean addresses of this machine here, and only the one of a cloud's metadata counts as private."""
    resolved = []

    def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return [NAMES[host]]

    allowed = lambda address: address == "127.0.0.1"  # noqa: E731
    fetcher = Fetcher(("Pictures.test.", "metadata.test"), 100_000, resolve=resolve, allowed=allowed)
    port = web.server_port
    for path in ("/picture", "/picture?a=b", "/moved"):
        assert fetcher.fetch(f"http://pictures.test:{port}{path}", "here") == PNG
    assert web.asked[0] == ("/picture", f"pictures.test:{port}")
    for url, status, said in (
        (f"http://other.test:{port}/picture", 400, "not fetched from 'other.test'"),
        (f"http://pictures.test:{port}/away", 400, "not fetched from 'other.test'"),
        (f"http://pictures.test:{port}/inside", 400, "'metadata.test' is no public address"),
        (f"http://pictures.test:{port}/file", 400, "not fetched from"),
        (f"http://pictures.test:{port}/loop", 422, "more than 3 redirections"),
        (f"http://pictures.test:{port}/gone", 422, "status 404"),
        (f"http://pictures.test:{port}/large", 413, "more than 100,000 bytes"),
        (f"http://me@pictures.test:{port}/picture", 400, "not fetched from"),
        (f"https://pictures.test:{port}/picture", 422, "no picture from 'pictures.test'"),
        ("http://pictures.test:99999/", 400, "is no address"),
        ("http://[::1/", 400, "is no address"),
        ("http:///", 400, "not fetched from ''"),
        (f"http://pictures.test:{port}/a b\r\nX: y", 400, "not fetched from"),
        (f"http://pictures.test:{port}/ü", 400, "is no address"),
    ):
        before = len(web.asked)
        with pytest.raises(RequestError) as caught:
            fetcher.fetch(url, "here")
        assert (caught.value.status, caught.value.param) == (status, "here"), url
        assert said in str(caught.value)
        if status == 400 and "/away" not in url and "/inside" not in url and "/file" not in url:
            assert len(web.asked) == before  # nobody was asked
    with pytest.raises(RequestError, match="does not fetch pictures"):
        Fetcher((), 1).fetch("http://pictures.test/", "here")
    with pytest.raises(RequestError, match="no public address"):  # as it is outside of tests
        Fetcher(("pictures.test",), 1, resolve=resolve).fetch(f"http://pictures.test:{port}/picture", "here")


def test_connection_goes_to_the_address_that_was_checked(web):
    """A name that means a public address when it is checked and another one a moment later."""
    answers = iter(["127.0.0.1", "169.254.169.254"])
    fetcher = Fetcher(
        ("rebound.test",), 100_000, resolve=lambda host, port: [next(answers)], allowed=lambda each: each == "127.0.0.1"
    )
    assert fetcher.fetch(f"http://rebound.test:{web.server_port}/picture", "here") == PNG
