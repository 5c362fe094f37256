"""Answers depend on nothing but the request; nobody's leaving, slowness or signals hold a row."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest
from running import CONFIG, GENERATION, alone, running
from test_chat_completions import DOCUMENT, SAID, gathered, picture_of, read
from test_gate import CHAT, post
from tiny_models import transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import EngineConfig, LimitsConfig
from chameleon_jax.serving.run import _run, listening
from chameleon_jax.serving.service import Service
from chameleon_jax.tokens.documents import DocumentTokenizer

ROOT = Path(__file__).parents[2]


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def idle(server) -> bool:
    engine = server.service.engine
    return not (engine.running or engine.waiting or len(server.clients))


def ask(client, number: int) -> list:
    """One of many kinds of requests, whole or streamed."""
    seed, kind = number // 4, number % 4
    if kind == 0:
        found = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": SAID}], seed=seed, n=2
        )
        return [read(choice.message.content) for choice in found.choices]
    if kind == 1:
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"Once {seed}"}], seed=seed, stream=True
        )
        return gathered(stream)[0]
    if kind == 2:
        return [choice.text for choice in client.completions.create(model="tiny", prompt="One", seed=seed, n=2).choices]
    return [each.b64_json for each in client.images.generate(model="tiny", prompt="A", extra_body={"seed": seed}).data]


def test_answers_beside_others_are_those_alone(client, server):
    numbers = list(range(24))
    alone = [ask(client, number) for number in numbers]
    random.Random(1).shuffle(numbers)
    with ThreadPoolExecutor(8) as pool:
        together = dict(zip(numbers, pool.map(lambda number: ask(client, number), numbers), strict=True))
    assert [together[number] for number in sorted(numbers)] == alone
    until(lambda: idle(server))


@pytest.fixture(scope="module")
def endless(model):
    """A server whose answers take long, of one row."""
    config = dataclasses.replace(
        CONFIG, engine=EngineConfig(rows=1, queue=8, steps=1), limits=LimitsConfig(new_tokens=200, per_client=8),
        generation=dataclasses.replace(GENERATION, max_new_tokens=200, mode="text", max_images=None),
    )  # fmt: skip
    with running(model, config) as server:
        yield server


def test_client_that_leaves_frees_its_row(endless):
    engine = endless.service.engine
    for stream in (True, False):
        for _ in range(3):
            body = json.dumps({**CHAT, "max_tokens": 200, "n": 4, "stream": stream}).encode()
            with socket.create_connection(endless.address) as connection:
                connection.sendall(post("/v1/chat/completions", body))
                until(lambda: engine.running)
                if stream:
                    assert b"200 OK" in connection.recv(1000)
            until(lambda: idle(endless))
    with endless.client() as client:  # and somebody else has it
        assert client.chat.completions.create(model="tiny", messages=CHAT["messages"], max_tokens=2).choices


def test_slow_reader_holds_no_row(endless):
    engine = endless.service.engine
    body = json.dumps({**CHAT, "max_tokens": 200, "n": 4, "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(endless.address)
        connection.sendall(post("/v1/chat/completions", body))
        until(lambda: engine.running)
        until(lambda: not engine.running and not engine.waiting)


def test_what_the_server_says_of_itself(server, client):
    before = httpx2.get(f"{server.url}/metrics").text
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": SAID}], seed=1)
    after = httpx2.get(f"{server.url}/metrics").text

    def value(text: str, name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    for name in (
        'chameleon_requests_total{path="/v1/chat/completions",status="200"}', "chameleon_engine_tokens_total",
        "chameleon_time_to_first_token_seconds_count", "chameleon_answer_seconds_count", "chameleon_answers_total",
        'chameleon_pictures_total{direction="read"}', 'chameleon_tokens_total{kind="text"}',
    ):  # fmt: skip
        assert value(after, name) > value(before, name), name
    assert value(after, "chameleon_rows ") == 4
    assert value(after, "chameleon_queue ") == 0
    assert value(after, "chameleon_requests_under_way ") == 1
    (model,) = client.models.list().data
    assert (model.id, model.owned_by, model.context_length) == ("tiny", "chameleon_jax", 256)
    assert (model.input_modalities, model.output_modalities) == (["text", "image"], ["text", "image"])
    assert model.image == {"size": "16x16", "codes": 4}
    assert client.models.retrieve("tiny") == model
    assert httpx2.get(f"{server.url}/health").json() == {"live": True, "ready": True, "state": "ready"}
    paths = httpx2.get(f"{server.url}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/tokenize"} <= set(paths)


def test_logs_hold_no_prompt_unless_asked(model, caplog):
    for log in ("requests", "prompts"):
        caplog.clear()
        caplog.set_level("DEBUG")
        with running(model, dataclasses.replace(CONFIG, log=log)) as server, server.client() as client:
            said = [{"role": "user", "content": [{"type": "text", "text": "My secret wish"}, SAID[1]]}]
            client.chat.completions.create(model="tiny", messages=said, max_tokens=2)
            with contextlib.suppress(openai.BadRequestError):
                client.chat.completions.create(model="tiny", messages=said, temperature="My secret wish")
        logged = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("chameleon"))
        assert ("My secret wish" in logged) == (log == "prompts")
        assert "base64" not in logged
        assert "POST /v1/chat/completions 200" in logged


def test_tokens_of_an_answer_are_limited(tmp_path, endless):
    with endless.client() as client:
        found = client.completions.create(model="tiny", prompt="Once", max_tokens=100_000, seed=3)
        assert found.usage.completion_tokens <= 200
        assert found.choices[0].finish_reason in ("length", "stop")


def test_client_behind_a_proxy_is_known_if_the_proxy_is(model):
    limits = LimitsConfig(per_client=1)
    for proxies, status in (((), 429), (("127.0.0.1",), 200)):
        config = dataclasses.replace(CONFIG, limits=limits, proxies=proxies)
        with running(model, config) as server, socket.create_connection(server.address) as waiting:
            waiting.sendall(post("/v1/tokenize", b"{" * 100)[:-50])
            until(lambda server=server: len(server.clients))
            answer = httpx2.get(f"{server.url}/v1/models", headers={"X-Forwarded-For": "203.0.113.7"})
            assert answer.status_code == status


def test_server_may_be_told_how_to_answer(model):
    config = dataclasses.replace(CONFIG, system="first_turn", pictures_in="images")
    with running(model, config) as server, server.client() as client:
        said = [{"role": "system", "content": "Look: "}, {"role": "user", "content": SAID}]
        asked = {"model": "tiny", "seed": 1, "modalities": ["image"]}
        found = client.chat.completions.create(messages=said, **asked).choices[0].message
        wanted = model.chat().say(
            ["Look: ", *DOCUMENT], dataclasses.replace(GENERATION, mode="image", max_images=None, seed=1)
        )
        assert (found.content, len(found.images)) == ("", 1)
        assert picture_of(found.images[0]["image_url"]["url"]) == wanted[0].tobytes()
        late = [*said, {"role": "assistant", "content": "a"}, said[0], said[1]]
        with pytest.raises(openai.BadRequestError, match="must come first"):
            client.chat.completions.create(messages=late, **asked)


def test_model_of_text_alone_is_served(model):
    tokenizer = DocumentTokenizer.join(model.tokenizer.text, None)
    config = transformer_for(tokenizer.vocabulary, context_length=256)
    with running(Chameleon(config, transformer_params(config), tokenizer)) as server, server.client() as client:
        (known,) = client.models.list().data
        assert (known.input_modalities, known.output_modalities, known.image) == (["text"], ["text"], None)
        found = client.chat.completions.create(model="tiny", messages=CHAT["messages"], stream=True, max_tokens=4)
        assert gathered(found)[0][0]
        for call in (
            lambda: client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": SAID}]),
            lambda: client.images.generate(model="tiny", prompt="A"),
        ):
            with pytest.raises(openai.UnprocessableEntityError, match=r"reads no pictures|has no image tokenizer"):
                call()


def test_engine_that_stops_is_said(model):
    with running(model) as server, server.client() as client:
        server.service.engine.close()
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=CHAT["messages"])
        assert (caught.value.status_code, caught.value.code) == (503, "engine_stopped")
        assert httpx2.get(f"{server.url}/health/live").status_code == 503


def test_answers_under_way_are_finished_and_those_too_long_are_told_why(endless, model):
    config = dataclasses.replace(endless.service.config, drain_seconds=1.0)
    with running(model, config) as server, server.client() as client, ThreadPoolExecutor(2) as pool:
        asked = {"model": "tiny", "messages": CHAT["messages"], "seed": 1}
        whole = client.chat.completions.create(**asked).choices[0].message.content
        answer = pool.submit(client.chat.completions.create, **asked)
        until(lambda: server.service.engine.running)
        server.loop.call_soon_threadsafe(server.service.drain)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**asked)
        assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
        assert httpx2.get(f"{server.url}/health/ready").status_code == 503
        assert httpx2.get(f"{server.url}/health/live").status_code == 200
        assert answer.result().choices[0].message.content == whole
    with running(model, config) as server, server.client() as client, ThreadPoolExecutor(2) as pool:
        asked = {"model": "tiny", "messages": CHAT["messages"], "seed": 1, "n": 8}
        stream = client.chat.completions.create(**asked, stream=True)
        next(stream)
        server.loop.call_soon_threadsafe(server.service.stop)
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "little"
    model.save(path)
    return path


@contextlib.contextmanager
def command(folder, *options: str, **environment: str):
    """`chameleon serve` in a process of its own, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "chameleon_jax", "serve", str(folder), "--port", str(port), *options]
    process = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, process.communicate()[1]
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{url}/health/ready").status_code == 200
        return False

    try:
        until(ready, 300)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def test_command_serves_until_sigterm_and_exits_with_0(folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("only-key-0123456789\n")
    with command(
        folder, "--keys", str(keys), "--name", "known", "--engine.rows", "2", "--generation.max-new-tokens", "200"
    ) as (
        process,
        url,
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="only-key-0123456789", max_retries=0)
        asked = {"model": "known", "messages": CHAT["messages"], "seed": 1, "modalities": ["text"], "stream": True}
        stream = client.chat.completions.create(**asked)
        next(stream)
        process.send_signal(signal.SIGTERM)
        assert gathered(stream)[1][0] in ("stop", "length")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "POST /v1/chat/completions 200" in err
        assert "Once" not in out + err
        assert "Traceback" not in err


def run_here(model, config, work) -> tuple[int, Service]:
    """Serves from this thread, as the command does, while another one works with it. Returns the signal that came."""
    with listening("127.0.0.1", 0) as listener:
        service = Service(alone(model), config, "tiny")
        url = "http://{}:{}/v1".format(*listener.getsockname())

        def begin() -> None:
            until(lambda: service.state == "ready", 300)
            work(service, openai.OpenAI(base_url=url, api_key="none", max_retries=0))

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(begin)
            came = asyncio.run(_run(service, (), listener))
            done.result()
    return came, service


def test_sigterm_says_why_it_ends_answers_that_take_too_long(model, endless):
    def work(service, client) -> None:
        stream = client.chat.completions.create(model="tiny", messages=CHAT["messages"], seed=1, stream=True, n=8)
        next(stream)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)

    config = dataclasses.replace(endless.service.config, drain_seconds=0.0)
    came, service = run_here(model, config, work)
    assert came == signal.SIGTERM
    assert not service.failed


def test_body_that_never_ends_is_refused_at_the_end_without_a_traceback(model, caplog):
    got = []

    def work(service, client) -> None:
        url = client.base_url
        with socket.create_connection((url.host, url.port)) as connection:
            connection.sendall(post("/v1/chat/completions", json.dumps(CHAT).encode())[:-20])
            until(lambda: "requests_under_way 2.0" in httpx2.get(url.join("/metrics")).text)
            os.kill(os.getpid(), signal.SIGTERM)
            while part := connection.recv(4096):
                got.append(part)

    config = dataclasses.replace(CONFIG, drain_seconds=0.0, limits=LimitsConfig(body_seconds=600.0))
    came, _ = run_here(model, config, work)
    assert came == signal.SIGTERM
    assert b"".join(got).startswith(b"HTTP/1.1 503")
    assert b'"code": "shutting_down"' in b"".join(got)
    assert not [record for record in caplog.records if record.exc_info]


def test_server_ends_with_its_engine(model):
    came, service = run_here(model, CONFIG, lambda service, client: service.engine.close())
    assert came == 0
    assert service.failed  # the command ends with status 1


def test_mistakes_of_the_command_are_one_line(folder, tmp_path, capsys):
    from chameleon_jax.console.cli import main

    for words, status, said in (
        (["--host", "0.0.0.0"], 2, "host = '0.0.0.0': whoever reaches this machine could use the model"),
        (["--keys", str(tmp_path / "gone")], 1, "no such file"),
        (["--port", "99999"], 2, "port = 99999: must be from 0 to 65,535"),
        (["--port", "1", "--host", "192.0.2.1", "--open"], 2, "port = 1: cannot listen at 192.0.2.1"),
        (["--port", "0", "--template", "alpaca"], 2, "template = 'alpaca': must be one of meta, lumina"),
        (["--limits.n", "1"], 2, "limits.n"),
    ):
        assert main(["serve", str(folder), *words]) == status
        found = capsys.readouterr().err
        assert said in found.splitlines()[-1]
        assert "Traceback" not in found


@pytest.mark.slow
def test_many_requests_leave_nothing_behind(model):
    """Some hundred requests of every kind, a third of which are given up or malformed."""
    random_numbers = random.Random(0)
    with running(model) as server, server.client() as client:

        def one(number: int) -> None:
            kind = number % 10
            if kind == 8:
                body = json.dumps({**CHAT, "max_tokens": 60, "stream": number % 3 == 0, "n": 2}).encode()
                with socket.create_connection(server.address) as connection:
                    connection.sendall(post("/v1/chat/completions", body)[: None if number % 2 else -20])
                    time.sleep(random_numbers.random() / 50)
            elif kind == 9:
                with contextlib.suppress(openai.BadRequestError):
                    client.completions.create(model="tiny", prompt=[number, -1])
            else:
                with contextlib.suppress(openai.RateLimitError):
                    ask(client, number)

        def counts() -> tuple[int, int]:
            gc.collect()
            return threading.active_count(), len(os.listdir("/proc/self/fd"))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(40)))
            until(lambda: idle(server))
            before = counts()
            list(pool.map(one, range(400)))
            until(lambda: idle(server))
            until(lambda: counts()[0] <= before[0] and counts()[1] <= before[1] + 4, 30)
        assert not server.service._under_way
        assert not server.server.server_state.tasks
