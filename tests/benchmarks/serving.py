"""`chameleon serve MODEL` under load, beside the engine alone, restarted, and under attack.

It starts servers of its own on loopback and prints JSON. Parts:

- `load`: 200 clients, 2,000 requests of all kinds, of which 10 % leave in the middle and 5 % are malformed; twice.
  Every whole answer must be the one that the same request gets alone. Times to the first token are those that clients
  see, and those that the server counts; slots and memory are read before and after.
- `throughput`: tokens a second of as many endless clients as the server has rows, of twice as many, of the engine in a
  process without HTTP that is asked the same, and of `chameleon bench generate` at the same sizes; in turns.
- `restart`: seconds to ready with an empty and with a full cache of programs, and of loading alone; SIGTERM under load.
- `hostile`: 10,000 requests from `hostile_requests.py`.
- `slow`: clients that do not read, and bodies that never end, beside a normal request.

Not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import io
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from hostile_requests import Hostile  # noqa: E402
from served import HEADERS, Part, Server, is_token, request, streamed_of, whole_of  # noqa: E402

CHAT, TEXT, IMAGES = "/v1/chat/completions", "/v1/completions", "/v1/images/generations"
ONE_CLIENT = ("--limits.per-client", "1000000", "--limits.requests", "1024", "--engine.queue", "1024")
"""All clients here have one address."""
PROMPTS = ("A handwritten seven.", "Four and three are", "Draw a red circle.", "How many shapes are there?")


def picture(number: int) -> str:
    """A data URL of noise."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(seconds, q)), 3) for q in (50, 90, 99)} if len(seconds) else {}


# ----------------------------------------------------------------------------------------------------------------------
# Load
# ----------------------------------------------------------------------------------------------------------------------


def asked(number: int) -> tuple[str, dict[str, Any]]:
    """One of many different requests, without a stream."""
    prompt, kind, seed = PROMPTS[number % len(PROMPTS)], number // len(PROMPTS) % 4, {"seed": number}
    if kind == 0:
        return CHAT, {"messages": [{"role": "user", "content": prompt}], "max_tokens": 24, **seed}
    if kind == 1:
        parts = [{"type": "image_url", "image_url": {"url": picture(number)}}, {"type": "text", "text": prompt}]
        return CHAT, {"messages": [{"role": "user", "content": parts}], "max_tokens": 24, **seed}
    if kind == 2:
        return TEXT, {"prompt": prompt, "max_tokens": 24, **seed}
    return IMAGES, {"prompt": prompt, **seed}


MALFORMED: tuple[tuple[bytes, dict[str, str]], ...] = (
    (b"{", {}), (b'{"messages": 3}', {}), (b'{"messages": [{"role": "user", "content": "x"}], "n": 1000000000}', {}),
    (b'{"messages": [{"role": "user", "content": "x"}], "seed": -1e400}', {}), (b"\xff\xfe", {}), (b"", {}),
    (b'{"messages": [{"role": "user", "content": "x"}], "model": "another"}', {}),
    (b'{"messages": [{"role": "user", "content": "x"}]}', {"content-type": "text/plain"}),
    (b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}', {}),
)  # fmt: skip


class Load:
    """Requests in an order of its own, and what became of them."""

    def __init__(self, server: Server, alone: Sequence[list[Part]], seed: int):
        self._server, self._alone, self._random = server, alone, random.Random(seed)
        self.statuses: collections.Counter[str] = collections.Counter()
        self.first: dict[str, list[float]] = {CHAT: [], TEXT: [], IMAGES: []}
        self.seconds: list[float] = []
        self.wrong: list[int] = []
        self.kinds: collections.Counter[str] = collections.Counter()

    async def run(self, requests: int, clients: int) -> float:
        """Seconds until all are answered."""
        turns = iter(range(requests))

        async def client() -> None:
            for _ in turns:
                await self._one()

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - began

    async def _one(self) -> None:
        kind = self._random.random()
        if kind < 0.05:
            self.kinds["malformed"] += 1
            body, headers = self._random.choice(MALFORMED)
            answer = await self._server.ask("POST", CHAT, body, {**HEADERS, **headers})
            self.statuses[f"malformed {answer.status}"] += 1
            assert answer.json()["error"]["message"], answer.body
            return
        number, streams = self._random.randrange(len(self._alone)), self._random.random() < 0.5
        path, body = asked(number)
        if streams:
            body |= {"stream": True, "partial_images": 2}
        if kind < 0.15:
            self.kinds["cancelled"] += 1
            return await self._leave(path, body)
        self.kinds["streamed" if streams else "whole"] += 1
        began = time.perf_counter()
        async with self._server.exchange(request("POST", path, body)) as response:
            self.statuses[f"sound {response.status}"] += 1
            if response.status != 200:
                return
            events, first = [], 0.0
            if not streams:
                response.body = b"".join([part async for part in response.parts])
            else:
                async for event in response.events():
                    events.append(event)
                    first = first or is_token(event) * (time.perf_counter() - began)
        self.seconds.append(time.perf_counter() - began)
        if first:
            self.first[path].append(first)
        found = streamed_of(path, events) if streams else whole_of(path, response.json())
        if found != self._alone[number]:
            self.wrong.append(number)

    async def _leave(self, path: str, body: dict[str, Any]) -> None:
        """Asks, and goes away in the middle of a stream, or while the whole answer is awaited."""

        async def listen() -> None:
            async with self._server.exchange(request("POST", path, body)) as response:
                async for event in response.events():
                    if is_token(event):
                        return

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if body.get("stream") else self._random.uniform(0, 4)):
                await listen()


async def load(model: str, requests: int, clients: int, rounds: int, distinct: int) -> dict[str, Any]:
    with Server(model, *ONE_CLIENT) as server:
        responses = [(path, await server.ask("POST", path, body)) for path, body in map(asked, range(distinct))]
        alone = [whole_of(path, response.json()) for path, response in responses]
        report: dict[str, Any] = {
            "rows": server.rows, "clients": clients, "requests": requests, "different_requests": distinct,
            "answers_with_pictures": sum(any(isinstance(part, bytes) for part in each) for each in alone),
            "memory_before": server.memory(), "rounds": [],
        }  # fmt: skip
        for number in range(rounds):
            before, work, processor = await server.until_idle(), Load(server, alone, number), server.processor_seconds()
            server.forget_most_memory()
            seconds = await work.run(requests, clients)
            processor = server.processor_seconds() - processor
            after = await server.until_idle()
            told = {name: after[name] - before.get(name, 0) for name in after if name != "idle"}
            report["rounds"].append({
                "kinds": dict(work.kinds), "statuses": dict(sorted(work.statuses.items())), "wrong": len(work.wrong),
                "seconds": round(seconds, 1), "processor_seconds_of_the_server": round(processor, 1),
                "tokens_per_second": round(told["engine_tokens_total"] / seconds, 1),
                "requests_per_second": round(requests / seconds, 1),
                "seconds_to_first": {path: percentiles(each) for path, each in work.first.items()},
                "seconds_to_first_of_all": percentiles([*itertools.chain(*work.first.values())]),
                "seconds_to_first_by_the_server": buckets(told, "time_to_first_token_seconds"),
                "seconds_to_whole": percentiles(work.seconds),
                "rows_taken_after": after["rows_taken"], "queue_after": after["queue"],
                "requests_under_way_after": after["requests_under_way"] - 1, "memory": server.memory(),
            })  # fmt: skip
        report["tracebacks"] = server.log.count("Traceback")
        return report


def buckets(told: dict[str, float], name: str) -> dict[str, str]:
    """Between which bounds of a histogram percentiles lie."""
    bounds = {
        label[:-2].rpartition('"')[2]: value for label, value in told.items() if label.startswith(f"{name}_bucket")
    }
    total, found = told[f"{name}_count"], {}
    for q in (50, 90, 99):
        below = [bound for bound, count in bounds.items() if count < q / 100 * total]
        upper = next(bound for bound, count in bounds.items() if count >= q / 100 * total)
        found[f"p{q}"] = f"{below[-1] if below else 0} to {upper}"
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Throughput
# ----------------------------------------------------------------------------------------------------------------------


def prompt_ids(number: int, length: int, vocabulary: dict[str, Any]) -> list[int]:
    """Begin of sequence and random words: as `chameleon bench generate` asks."""
    words = np.random.default_rng(number).choice(vocabulary["text"], length - 1).tolist()
    return [vocabulary["bos"], *words]


def wanted(number: int, drawing: bool, lengths: argparse.Namespace, vocabulary: dict[str, Any]) -> dict[str, Any]:
    """A completion of ids, of text or of exactly one picture."""
    ids = prompt_ids(number, lengths.prompt - drawing, vocabulary)
    if drawing:
        return {"prompt": [*ids, vocabulary["begin_image"]], "modalities": ["image"], "seed": number,
                "text_guidance": 3.0, "image_guidance": 1.0}  # fmt: skip
    return {"prompt": ids, "modalities": ["text"], "seed": number, "max_tokens": lengths.new_tokens}


class Endless:
    """Clients of a server each of which asks again at once, until they are told to end."""

    def __init__(self, server: Server, drawing: bool, streams: bool, lengths: argparse.Namespace, vocabulary: dict):
        self._server, self._drawing, self._streams = server, drawing, streams
        self._lengths, self._vocabulary, self._numbers = lengths, vocabulary, itertools.count()

    async def rate(self, clients: int) -> dict[str, float]:
        """Tokens written a second, once all clients have had an answer."""
        answered = [0] * clients

        async def client(own: int) -> None:
            while True:
                body = wanted(next(self._numbers), self._drawing, self._lengths, self._vocabulary)
                body["stream"] = self._streams
                answer = await self._server.ask("POST", TEXT, body)
                assert answer.status == 200, answer.body
                answered[own] += 1

        running = [asyncio.create_task(client(own)) for own in range(clients)]
        try:
            while not all(answered):
                await asyncio.sleep(0.05)
                for each in running:
                    if each.done():
                        each.result()
            before, began, processor = (
                await self._server.metrics(),
                time.perf_counter(),
                self._server.processor_seconds(),
            )
            await asyncio.sleep(self._lengths.seconds)
            after, seconds = await self._server.metrics(), time.perf_counter() - began
            processor = self._server.processor_seconds() - processor
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        await self._server.until_idle()
        told = {name: after[name] - before.get(name, 0) for name in after}
        return {
            "tokens_per_second": round(told["engine_tokens_total"] / seconds, 1),
            "rows_busy": round(told["engine_busy_row_steps_total"] / told["engine_steps_total"] / self._server.rows, 3),
            "processor_seconds_per_second": round(processor / seconds, 2),
        }


class Alone:
    """The engine in a process of its own, without HTTP: as many requests as rows are always under way."""

    def __init__(self, model: str, lengths: argparse.Namespace):
        self._process = subprocess.Popen(
            [sys.executable, __file__, model, "--side", json.dumps(vars(lengths))], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def _line(self, say: str) -> Any:
        self._process.stdin.write(f"{say}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("side "):
                return json.loads(line.removeprefix("side "))
        raise SystemExit(f"the engine alone ended with status {self._process.wait()}")

    def vocabulary(self) -> dict[str, Any]:
        return self._line("vocabulary")

    def rate(self, drawing: bool) -> dict[str, float]:
        return self._line("image" if drawing else "text")

    def bench(self, drawing: bool) -> dict[str, float]:
        return self._line("bench image" if drawing else "bench text")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def side(model: str, lengths: argparse.Namespace) -> None:
    """What `Alone` asks, a line of standard input each."""
    import threading

    import chameleon_jax
    from chameleon_jax.bench.generate import Model, measure_pictures, measure_text
    from chameleon_jax.config import BenchGenerateConfig, EngineConfig, GenerationConfig

    loaded = chameleon_jax.load(model)
    loaded.engine_config = EngineConfig()
    rows, vocabulary = loaded.engine_config.rows, loaded.vocabulary
    longest = GenerationConfig(mode="text", max_new_tokens=loaded.config.context_length)
    engine = loaded.engine([1] * rows, [longest] * rows).start()
    known = {"bos": vocabulary.bos, "begin_image": vocabulary.begin_image, "text": vocabulary.text_ids.tolist()}
    config = BenchGenerateConfig(
        loaded.config, rows=(rows,), prompt=lengths.prompt, new_tokens=lengths.new_tokens, repeats=lengths.repeats,
        codes_per_image=loaded.tokenizer.codes_per_image,
    )  # fmt: skip
    bench = Model(config, engine.weights, vocabulary, 1.0)
    numbers = itertools.count(1 << 20)

    def options_of(body: dict[str, Any]) -> GenerationConfig:
        if body["modalities"] == ["text"]:
            return GenerationConfig(mode="text", max_new_tokens=body["max_tokens"], seed=body["seed"])
        return GenerationConfig(mode="image", seed=body["seed"], text_guidance=3.0, image_guidance=1.0)

    def rate(drawing: bool) -> dict[str, float]:
        answered, ending = [0] * rows, threading.Event()

        def ask(own: int) -> None:
            while not ending.is_set():
                body = wanted(next(numbers), drawing, lengths, known)
                engine.submit(np.array(body["prompt"], np.int32), options_of(body)).result()
                answered[own] += 1

        threads = [threading.Thread(target=ask, args=(own,)) for own in range(rows)]
        for thread in threads:
            thread.start()
        while not all(answered):
            time.sleep(0.05)
        now = lambda: (engine.statistics.tokens, engine.statistics.busy_row_steps, engine.statistics.steps)  # noqa: E731
        before, began = now(), time.perf_counter()
        time.sleep(lengths.seconds)
        (tokens, busy, steps), seconds = np.subtract(now(), before).tolist(), time.perf_counter() - began
        ending.set()
        for thread in threads:
            thread.join()
        return {"tokens_per_second": round(tokens / seconds, 1), "rows_busy": round(busy / steps / rows, 3)}

    for line in map(str.strip, sys.stdin):
        if line == "vocabulary":
            found = known
        elif line.startswith("bench"):
            drawing = line == "bench image"
            measured = measure_pictures(bench, rows) if drawing else measure_text(bench, rows)
            found = {name: each["median"] for name, each in measured.items() if name.startswith("tokens_per_second")}
            found |= {"tokens_per_second": measured["codes_per_second"]} if drawing else {}
        else:
            found = rate(line == "image")
        print("side", json.dumps(found), flush=True)


async def throughput(model: str, turns: int, lengths: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, dict[str, list[Any]]] = {}
    alone = Alone(model, lengths)
    try:
        with Server(model, *ONE_CLIENT) as server:
            vocabulary = await asyncio.to_thread(alone.vocabulary)
            described = (await server.ask("GET", "/v1/models")).json()["data"][0]
            for what in ("text", "pictures")[: 1 + ("image" in described["output_modalities"])]:
                drawing, of = what == "pictures", found.setdefault(what, collections.defaultdict(list))
                for _ in range(turns):
                    for streams in (True, False):
                        ask = Endless(server, drawing, streams, lengths, vocabulary)
                        name = "server, streams" if streams else "server, whole answers"
                        of[name].append(await ask.rate(server.rows))
                    of["server, twice as many clients"].append(await ask.rate(2 * server.rows))
                    of["engine alone"].append(await asyncio.to_thread(alone.rate, drawing))
                    bench = await asyncio.to_thread(alone.bench, drawing)
                    of["bench generate"].append({"tokens_per_second": bench.pop("tokens_per_second")})
                    for rate in bench.values():
                        of["bench generate with its prompts"].append({"tokens_per_second": rate})
    finally:
        alone.close()
    report: dict[str, Any] = {"rows": server.rows, "turns": turns, "lengths": vars(lengths)}
    for what, sides in found.items():
        rates = {name: [turn["tokens_per_second"] for turn in each] for name, each in sides.items()}
        report[what] = {name: {"tokens_per_second": statistics.median(each)} for name, each in rates.items()}
        for name, other in itertools.product(
            rates, ("bench generate", "bench generate with its prompts", "engine alone")
        ):
            if other in rates and name.startswith("server"):
                report[what][name][f"of {other}"] = round(statistics.median(np.divide(rates[name], rates[other])), 3)
        for name, each in sides.items():
            report[what][name]["turns"] = each
    return report


# ----------------------------------------------------------------------------------------------------------------------
# Restart
# ----------------------------------------------------------------------------------------------------------------------

LOAD = """
import sys, chameleon_jax
from chameleon_jax.runtime.compilation_cache import keep_programs
keep_programs(sys.argv[2])
model = chameleon_jax.load(sys.argv[1])
model.drop_params()
"""


async def restart(model: str) -> dict[str, Any]:
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:

        def programs() -> int:
            return sum(path.name.endswith("-cache") for path in Path(cache).rglob("*"))

        for name, starts in (("empty_cache", 1), ("full_cache", 3)):
            before, turns = programs(), []
            for _ in range(starts):
                with Server(model, cache=cache) as server:
                    turns.append([round(server.seconds_to_load, 2), round(server.seconds_to_ready, 2)])
            report[name] = {
                "seconds_to_load": statistics.median(turn[0] for turn in turns),
                "seconds_to_ready": statistics.median(turn[1] for turn in turns),
                "programs_added": programs() - before, "turns": turns,
            }  # fmt: skip
        loads = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", LOAD, model, cache], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
            loads.append(round(time.perf_counter() - began, 2))
        report["loading_alone"] = {"seconds": statistics.median(loads), "turns": loads}
    report["sigterm"] = [await sigterm(model, 30.0), await sigterm(model, 0.0)]
    return report


async def sigterm(model: str, drain_seconds: float) -> dict[str, Any]:
    """What becomes of three times as many answers as there are rows."""
    with Server(model, *ONE_CLIENT, "--drain-seconds", str(drain_seconds)) as server:
        many = [asked(number) for number in range(3 * server.rows)]
        alone = [whole_of(path, (await server.ask("POST", path, body)).json()) for path, body in many]
        ended: collections.Counter[str] = collections.Counter()

        async def one(number: int) -> None:
            path, body = many[number]
            if number % 2:
                answer = await server.ask("POST", path, body)
                said, found = answer.json(), None if answer.status != 200 else whole_of(path, answer.json())
            else:
                async with server.exchange(request("POST", path, {**body, "stream": True})) as response:
                    events = [event async for event in response.events()]
                said, found = events[-1], streamed_of(path, events)
            if "error" in said:
                ended[said["error"]["code"]] += 1
            else:
                ended["whole" if found == alone[number] else "wrong"] += 1

        asking = [asyncio.create_task(one(number)) for number in range(len(many))]
        while not (await server.metrics())["rows_taken"]:
            await asyncio.sleep(0.01)
        began = time.perf_counter()
        server.terminate()
        await asyncio.gather(*asking)
        status = await asyncio.to_thread(server.process.wait)
        return {
            "drain_seconds": drain_seconds,
            "ended": dict(ended),
            "seconds_to_exit": round(time.perf_counter() - began, 2),
            "exit_status": status,
            "tracebacks": server.log.count("Traceback"),
        }


# ----------------------------------------------------------------------------------------------------------------------
# Hostile and slow clients
# ----------------------------------------------------------------------------------------------------------------------


async def hostile(model: str, requests: int, clients: int = 32) -> dict[str, Any]:
    source, statuses, mistakes = Hostile(0), collections.Counter(), []
    turns = iter(range(requests))
    with Server(model, *ONE_CLIENT, "--limits.body-seconds", "2") as server:
        path, body = asked(0)
        sound = await server.ask("POST", path, body)
        before = server.memory()

        async def client() -> None:
            for _ in turns:
                kind, data = source.next()
                status, said = await provoke(server, data, ends=kind == "raw bytes")
                statuses[f"{kind}: {status}"] += 1
                if status >= 500 or status < 0 or b"the server made a mistake" in said:
                    mistakes.append(
                        {"kind": kind, "status": status, "request": repr(data[:300]), "answer": repr(said[:300])}
                    )

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds, idle = time.perf_counter() - began, await server.until_idle()
        after = await server.ask("POST", path, body)
        return {
            "requests": requests,
            "clients": clients,
            "seconds": round(seconds, 1),
            "statuses": dict(sorted(statuses.items())),
            "mistakes": len(mistakes),
            "first_mistakes": mistakes[:5],
            "tracebacks": server.log.count("Traceback"),
            "memory_before": before,
            "memory_after": server.memory(),
            "rows_taken_after": idle["rows_taken"],
            "requests_under_way_after": idle["requests_under_way"] - 1,
            "sound_request_afterwards_is_the_same": whole_of(path, sound.json()) == whole_of(path, after.json()),
        }


async def provoke(server: Server, data: bytes, *, ends: bool) -> tuple[int, bytes]:
    """The status of what is answered, and what; 0: the connection was closed, -1: nothing happened in a minute.

    Args:
      ends: say that nothing follows, as such bytes may be the beginning of a request.
    """
    try:
        async with asyncio.timeout(60):
            async with server.exchange(data, ends=ends) as response:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # as of HEAD
                    async for part in response.parts:
                        response.body += part
                return response.status, response.body
    except TimeoutError:
        return -1, b""
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b""


async def slow(model: str, clients: int) -> dict[str, Any]:
    """Seconds of a normal request alone, beside half bodies, and beside these and streams that nobody reads."""
    with Server(model, *ONE_CLIENT, "--limits.body-seconds", "600") as server, contextlib.ExitStack() as held:

        async def seconds() -> float:
            times = []
            for number in range(8):
                path, body = asked(0)
                began = time.perf_counter()
                answer = await server.ask("POST", path, {**body, "seed": number})
                assert answer.status == 200, answer.body
                times.append(time.perf_counter() - began)
            return round(max(times), 3)

        async def send(data: bytes, times: int) -> None:
            for _ in range(times):
                connection = held.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.setblocking(False)
                await asyncio.get_running_loop().sock_connect(connection, (server.host, server.port))
                await asyncio.get_running_loop().sock_sendall(connection, data)

        await seconds()  # compiles
        report: dict[str, Any] = {"clients_of_each_kind": clients, "slowest_of_8_alone": await seconds()}
        body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "modalities": ["text"], "max_tokens": 200}
        await send(request("POST", CHAT, body)[:-20], clients)
        report["slowest_of_8_beside_half_bodies"] = await seconds()
        streams = {**body, "stream": True, "n": 8, "logprobs": True}
        await send(request("POST", CHAT, streams), clients)
        began = time.perf_counter()
        while (found := await server.metrics())["rows_taken"] or found["queue"]:
            await asyncio.sleep(0.05)
        report["seconds_until_unread_answers_were_written"] = round(time.perf_counter() - began, 1)
        report["requests_under_way_then"] = found["requests_under_way"] - 1
        report["slowest_of_8_beside_unread_streams"] = await seconds()
        held.close()
        after = await server.until_idle()
        report |= {"requests_under_way_after": after["requests_under_way"] - 1, "rows_taken_after": after["rows_taken"]}
        return {**report, "tracebacks": server.log.count("Traceback")}


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model with float32 parameters")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--requests", type=int, default=2000, help="of a round of load")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--different", type=int, default=96, help="different requests among them")
    parser.add_argument("--turns", type=int, default=3, help="of throughput")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement of throughput")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt of throughput")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens of an answer of throughput")
    parser.add_argument("--hostile", type=int, default=10_000, help="hostile requests")
    parser.add_argument("--slow", type=int, default=200, help="slow clients of each kind")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options.model, argparse.Namespace(**json.loads(options.side)))
    lengths = argparse.Namespace(
        prompt=options.prompt, new_tokens=options.new_tokens, seconds=options.seconds, repeats=3
    )
    parts = {
        "load": lambda: load(
            options.model, options.requests, options.clients, options.rounds, options.different
        ),
        "throughput": lambda: throughput(options.model, options.turns, lengths),
        "restart": lambda: restart(options.model),
        "hostile": lambda: hostile(options.model, options.hostile),
        "slow": lambda: slow(options.model, options.slow),
    }  # fmt: skip
    from chameleon_jax import load as load_model
    from chameleon_jax.bench.environment import environment
    from chameleon_jax.config import to_dict

    report: dict[str, Any] = {"benchmark": "serving", "load_average_before": os.getloadavg()}
    for name in options.parts:
        report[name] = asyncio.run(parts[name]())
        print(f"{name}: done", file=sys.stderr, flush=True)
    model = load_model(options.model).config
    report |= {"load_average_after": os.getloadavg(), "model": to_dict(model), **environment(("uvicorn", "fastapi"))}
    print(json.dumps(report, indent=2))


PARTS = ("load", "throughput", "restart", "hostile", "slow")

if __name__ == "__main__":
    main()
