"""Who may ask, and how much: keys, hosts, origins, bodies, numbers, and errors of HTTP itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time

import httpx2
import openai
import pytest
from running import CONFIG, LimitsConfig, running

from chameleon_jax.config import ConfigError, ServeConfig
from chameleon_jax.errors import FileError
from chameleon_jax.serving.gate import read_keys
from chameleon_jax.serving.run import check_reach, listening

KEYS = ("first-key-0123456789", "second-key-0123456789")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 4, "modalities": ["text"]}


def raw(server, request: bytes, *, wait: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """What a server answers to some bytes: status, headers, body."""
    with socket.create_connection(server.address, timeout=wait) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        content = b""
        while b"\r\n\r\n" not in content or not complete(content):
            if not (part := connection.recv(65536)):
                break
            content += part
    head, _, body = content.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return (
        int(status.split()[1]),
        {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)},
        body,
    )


def complete(content: bytes) -> bool:
    head, _, body = content.partition(b"\r\n\r\n")
    length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return bool(length) and len(body) >= int(length[0])


def post(path: str, body: bytes, *headers: str, version: str = "1.1", host: str = "127.0.0.1") -> bytes:
    lines = [
        f"POST {path} HTTP/{version}", f"Host: {host}", f"Content-Length: {len(body)}",
        *(headers or ("Content-Type: application/json",)),
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error_of(body: bytes) -> dict:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_only_keys_open_the_server(model):
    with running(model, keys=KEYS) as server:
        for key in KEYS:
            with server.client(api_key=key) as client:
                assert client.models.list().data[0].id == "tiny"
        for key in ("wrong-key-0123456789", KEYS[0][:-1], KEYS[0] + "x"):
            with server.client(api_key=key) as client, pytest.raises(openai.AuthenticationError) as caught:
                client.chat.completions.create(**{**CHAT, "modalities": None})
            assert caught.value.code == "invalid_api_key"
        for headers in ({}, {"Authorization": KEYS[0]}, {"Authorization": f"Basic {KEYS[0]}"}):
            for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere"):
                answer = httpx2.get(server.url + path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/health", "/health/live", "/health/ready"):
            assert httpx2.get(server.url + path).status_code == 200


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEYS[0]}\n\n  {KEYS[1]}  \n")
    assert read_keys(str(file)) == KEYS
    monkeypatch.setenv("CHAMELEON_KEYS", f"another-key-0123456789, {KEYS[0]}")
    assert read_keys(str(file)) == ("another-key-0123456789", *KEYS)
    assert read_keys("") == ("another-key-0123456789", KEYS[0])
    monkeypatch.delenv("CHAMELEON_KEYS")
    for content, kind, said in (
        (b"# none\n", FileError, "holds no key"), (b"short\n", ConfigError, "key 1: must be 16 or more"),
        ("schlüssel-schlüssel\n".encode(), FileError, "printable ASCII"),
        (b"two words in it here\n", ConfigError, "key 1: must be 16 or more"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(kind, match=said):
            read_keys(str(file))
    with pytest.raises(FileError, match="no such file"):
        read_keys(str(tmp_path / "gone"))


def test_other_machines_are_not_served_without_keys_unless_that_is_said():
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_reach(ServeConfig(host=host), ())
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ConfigError, match="whoever reaches this machine could use the model"):
            check_reach(ServeConfig(host=host), ())
        check_reach(ServeConfig(host=host), KEYS)
        check_reach(ServeConfig(host=host, open=True), ())


def test_port_in_use_is_one_line():
    with listening("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"port = {port}: cannot listen at 127.0.0.1: Address already in use"),
            listening("127.0.0.1", port),
        ):
            pass
    with pytest.raises(ConfigError, match="is no address of this machine"), listening("no.such.host.invalid", 1):
        pass


def test_web_pages_of_others_are_refused(server):
    body = json.dumps(CHAT).encode()
    for host, origin, status in (
        ("127.0.0.1", None, 200), ("localhost:8000", None, 200), ("rebound.example.org", None, 403),
        ("127.0.0.1", "http://127.0.0.1", 200), ("127.0.0.1", "https://example.org", 403), ("127.0.0.1", "null", 403),
    ):  # fmt: skip
        headers = ["Content-Type: application/json", *([f"Origin: {origin}"] if origin else [])]
        found, _, answer = raw(server, post("/v1/chat/completions", body, *headers, host=host))
        assert found == status, (host, origin)
        if status == 403:
            error_of(answer)


def test_pages_that_are_allowed_may_use_the_server(model):
    with running(model, dataclasses.replace(CONFIG, origins=("https://example.org",)), KEYS) as server:
        asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        answer = httpx2.options(f"{server.url}/v1/chat/completions", headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        other = httpx2.options(f"{server.url}/v1/chat/completions", headers={**asked, "Origin": "https://other.org"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/tiny", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-4", 404, "model_not_found"),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404, "model_not_found"),
    ],
)
def test_addresses_that_are_not_there(server, method, path, status, code):
    answer = httpx2.request(method, server.url + path)
    assert answer.status_code == status
    assert error_of(answer.content)["code"] == code


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", (), 400, "the body is missing"),
        (b"{", (), 400, "the body is no JSON"),
        (b"[]", (), 400, "must be a valid dictionary"),
        (b"null", (), 400, "must be a valid dictionary"),
        (b"[" * 100_000, (), 400, ""),
        (b'{"n": ' + b"9" * 10_000 + b"}", (), 400, ""),
        (b'{"temperature": NaN, "messages": [{"role": "user", "content": "a"}]}', (), 400, "temperature = nan"),
        (b'{"temperature": 1e999, "messages": [{"role": "user", "content": "a"}]}', (), 400, "temperature = inf"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', (), 400, "lone surrogate"),
        (b'{"\\ud800": 1, "messages": [{"role": "user", "content": "a"}]}', (), 400, "unicode string"),
        (b"\xff\xfe", (), 400, ""),
        (b'{"messages": []}', ("Content-Type: text/plain",), 415, "Content-Type: application/json"),
        (b"a=b", ("Content-Type: application/x-www-form-urlencoded",), 415, "Content-Type: application/json"),
        (b"{}", ("Content-Type: application/json", "Connection: Upgrade", "Upgrade: websocket"), 400,
         "messages: is missing"),
    ],
)  # fmt: skip
def test_bodies_that_are_none(server, body, headers, status, said):
    found, _, answer = raw(server, post("/v1/chat/completions", body, *headers))
    assert found == status, answer
    assert said in error_of(answer)["message"]


def test_old_http_is_answered(server):
    assert raw(server, post("/v1/chat/completions", json.dumps(CHAT).encode(), version="1.0"))[0] == 200
    assert raw(server, b"GET /health HTTP/1.0\r\n\r\n")[0] == 200


@pytest.fixture(scope="module")
def tight(model):
    limits = LimitsConfig(body_bytes=10_000, body_seconds=0.5, per_client=3, requests=4, seconds=60.0, new_tokens=100)
    with running(model, dataclasses.replace(CONFIG, limits=limits)) as server:
        yield server


def test_bodies_above_the_limit_are_refused_by_their_length_or_as_they_come(tight):
    status, _, answer = raw(tight, post("/v1/chat/completions", b"x" * 3_000_000))
    assert status == 413
    assert error_of(answer)["message"] == "the body has 3,000,000 bytes: at most 10,000 are read"
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += (b"2000\r\n" + b"x" * 0x2000 + b"\r\n") * 40 + b"0\r\n\r\n"
    status, _, answer = raw(tight, chunked)
    assert status == 413
    assert error_of(answer)["message"] == "the body has more than 10,000 bytes"


def test_body_that_does_not_arrive_holds_nothing(tight):
    status, _, answer = raw(tight, post("/v1/chat/completions", b"{" + b" " * 100)[:-50])
    assert status == 408
    assert "did not arrive within 0.5 seconds" in error_of(answer)["message"]
    assert not tight.service.engine.running
    for _ in range(30):  # those who leave in the middle are forgotten at once
        with socket.create_connection(tight.address) as connection:
            connection.sendall(post("/v1/chat/completions", b"{" * 100)[:-50])
    with tight.client() as client:
        assert client.chat.completions.create(model="tiny", messages=CHAT["messages"], max_tokens=3).choices


def test_client_may_have_so_many_answers_under_way(tight):
    with tight.client() as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=CHAT["messages"], n=4)
        assert caught.value.response.headers["retry-after"] == "5"
        assert caught.value.code == "rate_limit_exceeded"
        assert client.chat.completions.create(model="tiny", messages=CHAT["messages"], n=3).choices


def test_requests_in_all_are_limited(tight):
    waiting = []
    for _ in range(3):  # each waits for its body
        waiting.append(socket.create_connection(tight.address))
        waiting[-1].sendall(post("/v1/tokenize", b"{" * 100)[:-50])
    time.sleep(0.1)
    answer = httpx2.get(f"{tight.url}/v1/models")
    assert answer.status_code == 429  # of this client's three
    for each in waiting:
        each.close()


def test_bodies_of_all_are_limited_together(model):
    limits = LimitsConfig(body_bytes=10_000, bodies_bytes=15_000)
    with running(model, dataclasses.replace(CONFIG, limits=limits)) as server:
        with socket.create_connection(server.address) as waiting:
            waiting.sendall(post("/v1/tokenize", b" " * 10_000)[:-50])
            time.sleep(0.3)
            status, headers, answer = raw(server, post("/v1/tokenize", b" " * 8_000))
            assert (status, error_of(answer)["code"], headers["retry-after"]) == (503, "overloaded", "5")
        for _ in range(5):  # nothing is counted of those that have left or been answered
            assert raw(server, post("/v1/tokenize", b" " * 8_000))[0] == 400


def test_full_queue_and_full_server_say_when_to_try_again(model):
    engine = dataclasses.replace(CONFIG.engine, rows=1, queue=1)
    limits = LimitsConfig(per_client=64, requests=2, samples=8)
    with running(model, dataclasses.replace(CONFIG, engine=engine, limits=limits)) as server, server.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=CHAT["messages"], n=8)
        assert (caught.value.status_code, caught.value.code) == (503, "queue_full")
        assert caught.value.response.headers["retry-after"] == "5"
        assert not server.service.engine.waiting  # none of the eight stays
        waiting = [socket.create_connection(server.address) for _ in range(2)]
        for each in waiting:
            each.sendall(post("/v1/tokenize", b"{" * 100)[:-50])
        time.sleep(0.2)
        answer = httpx2.get(f"{server.url}/v1/models")
        assert (answer.status_code, error_of(answer.content)["code"]) == (503, "overloaded")
        answer = httpx2.get(f"{server.url}/health/live")
        assert answer.status_code == 200, answer.text
        for each in waiting:
            each.close()


def test_answer_that_takes_too_long_ends(model):
    limits = LimitsConfig(seconds=0.02, new_tokens=100_000)
    generation = dataclasses.replace(CONFIG.generation, max_new_tokens=100_000, mode="text", max_images=None)
    with running(model, dataclasses.replace(CONFIG, limits=limits, generation=generation)) as server:
        with server.client() as client:
            said = {"model": "tiny", "messages": CHAT["messages"], "n": 8}
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(**said)
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
            with pytest.raises(openai.APIError, match="no whole answer within"):
                list(client.chat.completions.create(**said, stream=True))
        for _ in range(200):
            if not server.service.engine.running:
                break
            time.sleep(0.02)
        assert not server.service.engine.running
