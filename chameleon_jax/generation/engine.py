"""The engine: requests of any kind share the rows of one batch, join and leave it at any time, and stream their tokens.

Ids in, ids out. What a request gets depends on its prompt, options and seed alone, not on what runs beside it.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from chameleon_jax.config import DType, EngineConfig, GenerationConfig, TransformerConfig
from chameleon_jax.generation import rows as on_device
from chameleon_jax.generation.guidance import NO_TEXT, contexts
from chameleon_jax.generation.handle import REASONS, Chunk, EngineError, Handle, QueueFull, Reason
from chameleon_jax.generation.memory import explained
from chameleon_jax.generation.modality import IN_TEXT, Columns
from chameleon_jax.generation.options import check_negative, make_request
from chameleon_jax.generation.prefill import Lanes
from chameleon_jax.generation.programs import State, Weights, Written, decode
from chameleon_jax.generation.rows import Rows
from chameleon_jax.tokens.vocabulary import Vocabulary

PICTURE_STEPS = 4
"""How many times more steps a call takes where all rows are in pictures: nothing ends there for long, and no request
that comes meanwhile could have a row."""


@dataclasses.dataclass
class Statistics:
    """What an engine has done so far."""

    requests: int = 0
    tokens: int = 0
    calls: int = 0
    """Of `decode`."""
    steps: int = 0
    """Of all rows together; the lanes were read so often."""
    busy_row_steps: int = 0
    """Steps in which a row had something to read, summed over rows."""
    row_steps_while_waiting: int = 0
    """Steps of calls that began while a request waited for a row, times the rows."""
    busy_while_waiting: int = 0
    prompt_tokens: int = 0
    prompt_tokens_reused: int = 0
    """Tokens of prompts that a lane had read for an earlier request."""


class Engine:
    """Continues documents, as many at a time as it has rows.

    Without `start`, whoever waits for a handle drives it; `start` (or `with engine:`) gives it a thread of its own.

    Attributes:
      statistics: what it has done so far.

    Args:
      config: architecture of `params`.
      weights: what `make_weights` made of them.
      codes_per_image: codes of a picture.
      context_length: most tokens of prompt and answer together. All lanes have so many slots.
      rows: requests that run at once; `settings.rows` by default.
      settings: queue, and how it decodes.
      dtype: of the computation, and of the cache unless `settings` say otherwise.
    """

    def __init__(
        self,
        config: TransformerConfig,
        weights: Weights,
        vocabulary: Vocabulary,
        codes_per_image: int,
        *,
        context_length: int,
        rows: int | None = None,
        settings: EngineConfig = EngineConfig(),  # noqa: B008  frozen
        dtype: DType = "float32",
    ):
        self.config, self.weights, self.settings, self.rows = config, weights, settings, rows or settings.rows
        self.context_length, self.codes_per_image = context_length, codes_per_image
        self.vocabulary = vocabulary
        self.statistics = Statistics()
        self._columns = Columns.build(vocabulary, codes_per_image)
        self._text_ids = np.asarray(self._columns.text_ids)
        self._rows = Rows.empty(self.rows, len(self._columns.text_ids), settings.window)
        slots = (context_length, context_length, codes_per_image + 3)  # the third lane has read the begin of sequence
        cache = "int8" if settings.cache == "int8" else dtype
        self._lanes = Lanes(config, weights.layers, self.rows, slots, cache)
        self._replicated = _replicated(weights.layers.norm.sharding)
        self._replicate = jax.jit(lambda arrays: arrays, out_shardings=self._replicated)
        self._place = np.full(self.rows, IN_TEXT)
        self._guided = [0] * self.rows
        self._handles: list[Handle | None] = [None] * self.rows
        self._queue: collections.deque[Handle] = collections.deque()
        self._changed = threading.Condition(threading.RLock())
        self._driving = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._dtype = dtype

    # ------------------------------------------------------------------------------------------------------------------
    # Requests
    # ------------------------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: np.ndarray,
        options: GenerationConfig,
        *,
        sample: int = 0,
        wait: bool = True,
        negative: np.ndarray = NO_TEXT,
        on_change: Callable[[], None] | None = None,
    ) -> Handle:
        """Asks for a continuation; returns at once unless `settings.queue` requests wait already.

        Args:
          prompt: int32 [n], with the begin of sequence. In mode 'image' it ends with the begin of image.
          options: its mode is not 'auto'. The length of the context is the engine's.
          sample: which of the samples of this seed.
          wait: wait for room in the queue.
          negative: int32 [n], text that pictures are guided away from, without the begin of sequence. The prompt then
            holds no picture, and mode is 'image'.
          on_change: called whenever the handle has more chunks, and at the end, with the engine's lock held: it must
            return at once.

        Raises:
          PromptError, ConfigError: if the prompt cannot be continued as asked.
          QueueFull: if there is no room in the queue and `wait` is False.
          EngineError: if the engine is closed.
        """
        prompt = np.asarray(prompt, np.int32)
        context = min(options.context_length or self.context_length, self.context_length)
        request = make_request(prompt, options, self.vocabulary, self._text_ids, self.codes_per_image, context)
        if len(negative):
            check_negative(prompt, negative, options, self.vocabulary, self.codes_per_image, context)
        handle = Handle(self, prompt, request, options, sample, np.asarray(negative, np.int32), on_change)
        full = lambda: len(self._queue) >= self.settings.queue  # noqa: E731
        while True:
            if wait:
                self.run_until(lambda: not full())
            with self._changed:
                if self._closed:
                    raise EngineError("the engine is closed")
                if not full():
                    self._queue.append(handle)
                    self.statistics.requests += 1
                    self._changed.notify_all()
                    return handle
                if not wait:
                    raise QueueFull(f"{len(self._queue)} requests wait already; try again later")

    def end(self, handle: Handle, reason: Reason) -> None:
        """Ends a request wherever it is; see `Handle.cancel`."""
        with self._changed:
            if handle.done:
                return
            if handle in self._queue:
                self._queue.remove(handle)
            # A row that runs is stopped before the next call.
            handle.end(reason)
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------------------------
    # Who drives
    # ------------------------------------------------------------------------------------------------------------------

    def run_until(self, ready: Callable[[], bool]) -> None:
        """Returns once `ready()`; works meanwhile, unless another thread does."""
        while True:
            with self._changed:
                if ready() or self._closed:
                    return
            if self._driving.acquire(blocking=False):
                try:
                    self._step()
                finally:
                    self._driving.release()
                    with self._changed:
                        self._changed.notify_all()
            else:
                with self._changed:
                    if not (ready() or self._closed):
                        self._changed.wait(0.05)

    @property
    def closed(self) -> bool:
        """Whether it takes no requests any more: it was closed, or an error or Ctrl-C ended its work."""
        return self._closed

    def start(self) -> Engine:
        """Gives the engine a thread of its own, which works as long as there are requests."""
        with self._changed:
            if self._closed:
                raise EngineError("the engine is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="chameleon engine", daemon=True)
                self._thread.start()
        return self

    def _work(self) -> None:
        with self._driving:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._busy)
                    if self._closed:
                        return
                try:
                    self._step()
                except Exception:
                    return  # whoever waits for an answer is told
                with self._changed:
                    self._changed.notify_all()

    def close(self) -> None:
        """Ends all requests and the thread. A second time it does nothing."""
        with self._changed:
            self._closed = True
            for handle in [*self._queue, *filter(None, self._handles)]:
                if not handle.done:
                    handle.end(None, EngineError("the engine was closed"))
            self._queue.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------------------
    # Work
    # ------------------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Rows that are taken."""
        return sum(handle is not None for handle in self._handles)

    @property
    def _busy(self) -> bool:
        return bool(self._queue) or any(self._handles)

    def _step(self) -> None:
        """Gives free rows to requests, then writes the next tokens of all."""
        try:
            self._admit()
            if any(handle is not None for handle in self._handles):
                self._decode()
        except BaseException as error:
            # The buffers were donated: nothing that runs can go on.
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(self._lanes.caches))
            reason = explained(error, self.config, self.rows, self.context_length, self._dtype, held)
            self._lanes.caches.clear()
            with self._changed:
                for handle in [*self._queue, *filter(None, self._handles)]:
                    if not handle.done:
                        handle.end(None, reason)
                self._queue.clear()
                self._closed = True
                self._changed.notify_all()
            if reason is not error:
                raise reason from error
            raise

    def _admit(self) -> None:
        """Gives free rows to requests, also to those that come while the prompts of others are read."""
        with self._changed:
            for row, handle in enumerate(self._handles):
                if handle is not None and handle.done:  # cancelled
                    self._rows = _stop(self._rows, np.int32(row))
                    self._handles[row] = None
        while starting := self._assign():
            for row, handle in starting:
                reused = self._lanes.read(0, row, handle.prompt[:-1])
                self.statistics.prompt_tokens += len(handle.prompt) - 1
                self.statistics.prompt_tokens_reused += reused
                self._rows = _put(self._rows, np.int32(row), handle.request, np.int32(handle.sample))
                self._place[row] = handle.request.place
                if handle.request.place != IN_TEXT:
                    self._guide(row, handle)

    def _assign(self) -> list[tuple[int, Handle]]:
        """The requests that get a free row now."""
        with self._changed:
            free = [row for row, handle in enumerate(self._handles) if handle is None]
            starting = []
            while free and self._queue:
                handle = self._queue.popleft()
                row = self._lanes.best_row(handle.prompt, free)
                free.remove(row)
                self._handles[row] = handle
                handle.start(row)
                starting.append((row, handle))
            return starting

    def _guide(self, row: int, handle: Handle) -> None:
        """Gives a row that begins a picture, or stands in one, its lanes of guidance."""
        options = handle.options
        _, prompts, scales = contexts(
            handle.ids, options.text_guidance, options.image_guidance, self.vocabulary, handle.negative
        )
        lengths = np.zeros(2, np.int32)
        for lane, prompt in enumerate(prompts):
            self._lanes.read(1 + lane, row, prompt[:-1])
            lengths[lane] = len(prompt) - 1
        self._guided[row] = len(prompts)
        self._rows = _give_lanes(
            self._rows, np.int32(row), np.int32(len(prompts)), lengths, np.array(scales, np.float32)
        )

    def _decode(self) -> None:
        """One call of `decode`, and what it wrote to whom."""
        settings, running = self.settings, [row for row, handle in enumerate(self._handles) if handle is not None]
        drawing = [row for row in running if self._place[row] != IN_TEXT]
        lanes = 1 + max((self._guided[row] for row in drawing), default=0)
        long = len(drawing) == self.rows
        steps = settings.steps * (PICTURE_STEPS if long else 1)
        waiting = bool(self._queue)
        self._rows, caches, *outputs = decode(
            self.config,
            self.weights,
            self._columns,
            self._rows,
            tuple(self._lanes.caches[:lanes]),
            np.int32(steps),
            np.bool_(waiting or long),
            max_steps=settings.steps * PICTURE_STEPS,
            window=settings.window if drawing else 1,
            logits_sharding=self._replicated,
        )
        self._lanes.caches[:lanes] = caches
        written, state = jax.device_get(self._replicate(outputs) if self._replicated else outputs)
        self._count(written, state, waiting)
        self._place = np.array(state.place)
        with self._changed:
            for row in running:
                handle, count = self._handles[row], written.count[row]
                if handle.done:  # cancelled meanwhile; its row is freed before the next call
                    continue
                handle.steps += int(written.steps[row])
                if count:
                    handle.put(Chunk(written.tokens[row, :count].copy(), written.logprobs[row, :count].copy()))
                if not state.running[row]:
                    handle.end(REASONS[state.reason[row]])
                    self._handles[row] = None
        for row in running:
            handle = self._handles[row]
            if state.waiting[row] and handle is not None and not handle.done:  # one that is done may lack its tokens
                self._guide(row, handle)

    def _count(self, written: Written, state: State, waiting: bool) -> None:
        statistics, busy, all_rows = self.statistics, int(written.steps.sum()), int(state.steps) * self.rows
        statistics.calls += 1
        statistics.tokens += int(written.count.sum())
        statistics.steps += int(state.steps)
        statistics.busy_row_steps += busy
        if waiting:
            statistics.row_steps_while_waiting += all_rows
            statistics.busy_while_waiting += busy


_put = jax.jit(on_device.put, donate_argnums=0)
_give_lanes = jax.jit(on_device.give_lanes, donate_argnums=0)
_stop = jax.jit(on_device.stop, donate_argnums=0)


def _replicated(sharding: jax.sharding.Sharding) -> NamedSharding | None:
    """Of arrays that are whole on every device of a mesh, so that every process can read them. None: one device."""
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec())
