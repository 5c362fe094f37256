"""The engine as an HTTP server needs it: answers for asyncio, that end when nobody wants them any more."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from chameleon_jax.config import GenerationConfig, ServeConfig, require
from chameleon_jax.errors import printable
from chameleon_jax.generating import resolved
from chameleon_jax.generation.engine import NO_TEXT, Engine
from chameleon_jax.generation.events import Event, Finished, TextPiece
from chameleon_jax.generation.handle import Chunk, Handle
from chameleon_jax.generation.stream import whole_answer
from chameleon_jax.generation.streaming import DocumentStream
from chameleon_jax.serving.errors import RequestError, busy
from chameleon_jax.serving.fetching import Fetcher
from chameleon_jax.serving.metrics import Metrics
from chameleon_jax.serving.responses import Head, TokenLogprobs
from chameleon_jax.tokens.chat import TEMPLATES, ChatTemplate

if TYPE_CHECKING:
    from chameleon_jax.chameleon import Chameleon
    from chameleon_jax.generation.answer import Answer

T = TypeVar("T")
WORKERS = 2
"""Threads that read prompts and decode pictures; each may hold a picture of the largest size."""
State = Literal["starting", "ready", "draining"]


@dataclasses.dataclass(frozen=True)
class Task:
    """What the engine is asked for: `n` answers to each of some prompts."""

    prompts: Sequence[np.ndarray]  # int32 [length] each, with all that stands around them
    config: GenerationConfig  # its mode is not 'auto'
    n: int = 1
    negative: np.ndarray = dataclasses.field(default_factory=lambda: NO_TEXT)  # see `Engine.submit`
    preview_every: int = 0


class Service:
    """A model, the engine that it answers with, and the answers under way.

    Attributes:
      model: has no parameters any more but the engine's copy.
      name: what clients call it.
      template: how turns of a conversation are joined.
      state: 'starting' until the programs are compiled.
    """

    def __init__(self, model: Chameleon, config: ServeConfig, name: str, template: str | None = None):
        """Raises `ConfigError` for a template that there is not, `CannotDraw` if pictures are to be what it writes."""
        template = template or model.chat_template or "meta"
        require(template in TEMPLATES, "template", template, f"must be one of {', '.join(TEMPLATES)}")
        self.model, self.config, self.name = model, config, name
        self.state: State = "starting"
        self.template: ChatTemplate = template
        resolved(model, config.generation)
        model.engine_config = config.engine
        rows = config.engine.rows
        longest = GenerationConfig(mode="text", max_new_tokens=model.config.context_length)
        self.engine: Engine = model.engine([1] * rows, [longest] * rows)
        self.metrics = Metrics(self.engine)
        self.fetcher = Fetcher(config.image_hosts, config.limits.body_bytes)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="chameleon serving")
        self._under_way: set[Answers] = set()
        self._closed = self._failed = False

    async def start(self) -> None:
        """Gives the engine its thread and compiles its programs, by one answer of each kind."""
        self.engine.start()
        text = GenerationConfig(mode="text", max_new_tokens=1)
        tasks = [Task([np.array([self.model.vocabulary.bos], np.int32)], text)]
        if not self.model.why_no_pictures:
            prompt = np.array([self.model.vocabulary.bos, self.model.vocabulary.begin_image], np.int32)
            tasks.append(Task([prompt], GenerationConfig(mode="image")))
        for task in tasks:
            with self.answers(task, limited=False) as answers:
                await answers.whole()
        if self.state == "starting":
            self.state = "ready"

    def head(self, model: str | None, seed: int | None) -> Head:
        """What the response to a request begins with: its seed, or else one of the server's choice.

        Raises:
          RequestError: if it is for another model, or there will be no answer.
        """
        self.check()
        if model not in (None, self.name):
            raise RequestError(
                404, f"model = {printable(model)!r}: there is no such model here; this server has {self.name!r}",
                "model_not_found", param="model",
            )  # fmt: skip
        return Head(self.name, secrets.randbelow(1 << 31) if seed is None else seed)

    @property
    def picture_size(self) -> str:
        """Width and height of the pictures that the model draws."""
        side = self.model.image_tokenizer.config.resolution
        return f"{side}x{side}"

    def preview_every(self, partial_images: int | None) -> int:
        """Codes between previews of a picture, of which there are at most `partial_images`; 0: none."""
        if not partial_images or self.model.tokenizer.image is None:
            return 0
        return self.model.tokenizer.codes_per_image // (partial_images + 1) + 1

    def shown_logprobs(self, answer: Answer, config: GenerationConfig) -> list[dict[str, Any]]:
        """Log-probabilities of the text of an answer, without what came after it up to a stop text."""
        tokens = TokenLogprobs(self.model.tokenizer)
        tokens.add(answer.ids, answer.logprobs)
        return tokens.take(answer.text if config.stop else None)

    async def in_thread(self, compute: Callable[..., T], *arguments: Any) -> T:
        """Has a worker compute something."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, compute, *arguments)

    async def fetch(self, addresses: Sequence[tuple[str, str]]) -> dict[str, bytes]:
        """What lies at some addresses, each given with its place in the request."""
        found: dict[str, bytes] = {}
        for url, place in addresses:  # one after the other, as the server is no means to load another one
            found[url] = await asyncio.to_thread(self.fetcher.fetch, url, place)
        return found

    @contextlib.contextmanager
    def answers(self, task: Task, *, limited: bool = True):
        """Asks the engine, and ends what it has not written when the block ends.

        Raises:
          RequestError: if the server ends.
          QueueFull, EngineError, PromptError, ConfigError: as `Engine.submit`.
        """
        if limited:
            self.check()
        answers = Answers(self, task, self.config.limits.seconds if limited else None)
        self._under_way.add(answers)
        try:
            yield answers
        finally:
            answers.close()
            self._under_way.discard(answers)

    @property
    def failed(self) -> bool:
        """Whether the engine has stopped by an error."""
        return self._failed or (self.engine.closed and not self._closed)

    def check(self) -> None:
        """Raises `RequestError` if there will be no answer."""
        if self.failed:
            raise busy("the engine has stopped; the server's log says why", "engine_stopped")
        if self.state == "draining":
            raise busy("the server is shutting down", "shutting_down")

    def drain(self) -> None:
        """Takes no requests any more; those under way go on."""
        self.state = "draining"

    def stop(self) -> None:
        """Ends all answers under way, and says why to those who wait."""
        self.drain()
        for answers in list(self._under_way):
            answers.fail(busy("the server is shutting down, and the answer would have taken longer", "shutting_down"))

    def close(self) -> None:
        """Ends the engine and all threads."""
        self._failed, self._closed = self.failed, True
        self.engine.close()
        self._pool.shutdown(cancel_futures=True)


class Answers:
    """The answers to a task, while they are written."""

    def __init__(self, service: Service, task: Task, seconds: float | None):
        """Args:
        seconds: the longest that they may take together.
        """
        self._service, self._task, self._loop = service, task, asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event | Chunk | Exception]] = asyncio.Queue()
        self._handles: list[Handle] = []
        self._pumps: list[asyncio.Task] = []
        self._left = self._unfinished = len(task.prompts) * task.n
        self._timer: asyncio.TimerHandle | None = None
        try:
            for prompt in task.prompts:
                for sample in range(task.n):
                    self._begin(prompt, sample)
        except BaseException:
            self.close()
            raise
        if seconds is not None:
            late = RequestError(504, f"no whole answer within {seconds:g} seconds", "timeout")
            self._timer = self._loop.call_later(seconds, self.fail, late)

    def _begin(self, prompt: np.ndarray, sample: int) -> None:
        task, changed = self._task, asyncio.Event()

        def tell() -> None:  # in the engine's thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(changed.set)

        handle = self._service.engine.submit(
            prompt, task.config, sample=sample, wait=False, negative=task.negative, on_change=tell
        )
        self._handles.append(handle)
        document = DocumentStream(
            self._service.model.tokenizer, prompt, task.config.stop, preview_every=task.preview_every
        )
        pump = self._pump(len(self._handles) - 1, handle, document, changed)
        self._pumps.append(self._loop.create_task(pump))

    async def _pump(self, index: int, handle: Handle, document: DocumentStream, changed: asyncio.Event) -> None:
        """Makes events of a handle's tokens as they come, however slowly anybody takes them: a stop text frees the row
        at once."""
        chunks: list[Chunk] = []
        try:
            ended = False
            while not ended:
                await changed.wait()
                changed.clear()
                ended = handle.done  # before the chunks are taken, of which there are no more then
                for chunk in handle.chunks(len(chunks)):
                    chunks.append(chunk)
                    self._put(index, chunk, *await self._events_of(chunk, document))
                    if document.stopped:
                        handle.cancel("stop")
                        ended = True
                        break
            if not document.stopped:
                handle.raise_error()
            self._put(index, *document.finish())
            answer = whole_answer(handle, document, [chunk.logprobs for chunk in chunks])
            self._unfinished -= 1
            self._service.metrics.wrote(answer)
            self._put(index, Finished(answer))
        except Exception as error:
            self._put(index, error)
        finally:
            handle.cancel()

    async def _events_of(self, chunk: Chunk, document: DocumentStream) -> list[Event]:
        decodes = self._task.preview_every or (chunk.ids == self._service.model.vocabulary.end_image).any()
        if not decodes:
            return _joined(document.feed(chunk.ids))
        return await self._service.in_thread(lambda: _joined(document.feed(chunk.ids)))

    def _put(self, index: int, *events: Event | Chunk | Exception) -> None:
        for event in events:
            self._events.put_nowait((index, event))

    def fail(self, error: Exception) -> None:
        """Ends all of them; whoever listens gets the error."""
        self._end()
        self._put(0, error)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event | Chunk]]:
        """Events of all answers as they come, with the number of the answer: the tokens of each chunk, then what they
        mean. Raises what ended an answer before it was whole."""
        while self._left:
            index, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            self._left -= isinstance(event, Finished)
            yield index, event

    async def whole(self) -> list[Any]:
        """The whole answers, in order."""
        found = {index: event.answer async for index, event in self if isinstance(event, Finished)}
        return [found[index] for index in sorted(found)]

    def close(self) -> None:
        """Ends what is not written yet, and frees its rows."""
        if self._timer is not None:
            self._timer.cancel()
        self._end()
        self._service.metrics.left(self._unfinished)

    def _end(self) -> None:
        for handle, pump in zip(self._handles, self._pumps, strict=False):
            handle.cancel()
            pump.cancel()


def _joined(events: Iterable[Event]) -> list[Event]:
    """The same with the pieces of each text as one: they come at the same time, and each would be sent by itself."""
    found: list[Event] = []
    for event in events:
        if found and isinstance(event, TextPiece) and isinstance(found[-1], TextPiece):
            found[-1] = TextPiece(found[-1].text + event.text)
        else:
            found.append(event)
    return found
