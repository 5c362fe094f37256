"""An answer as a stream of events, made of the tokens that the engine gives."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from chameleon_jax.generation.answer import Answer
from chameleon_jax.generation.events import Event, Finished
from chameleon_jax.generation.handle import EngineError, Handle
from chameleon_jax.generation.streaming import DocumentStream


class Stream(Iterator[Event]):
    """The events of an answer that is being written, in order; the last one is `Finished`.

    `cancel` ends the answer, of which the stream then tells the rest; `close` ends both.
    """

    def __init__(self, handle: Handle, document: DocumentStream):
        self._handle, self._document = handle, document
        self._logprobs: list[np.ndarray] = []
        self._callbacks: list[Callable[[Answer], None]] = []
        self._answer: Answer | None = None
        self._events = self._write()

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self) -> None:
        """Ends the answer where it is. Any thread may do so."""
        self._handle.cancel()

    def close(self) -> None:
        """Ends the answer and the stream."""
        self._handle.cancel()
        self._events.close()

    def answer(self) -> Answer:
        """Waits for the end and gives the whole answer. Events that nobody has taken yet are gone.

        Raises:
          EngineError: if the stream was closed before.
        """
        collections.deque(self, maxlen=0)
        if self._answer is None:
            raise EngineError("the stream was closed before the answer was whole")
        return self._answer

    def on_finish(self, callback: Callable[[Answer], None]) -> None:
        """Has `callback` called with the whole answer, before the stream tells of it."""
        self._callbacks.append(callback)

    def _write(self) -> Iterator[Event]:
        document = self._document
        try:
            for chunk in self._handle:
                self._logprobs.append(chunk.logprobs)
                yield from document.feed(chunk.ids)
                if document.stopped:
                    self._handle.cancel("stop")
                    break
            yield from document.finish()
            self._answer = whole_answer(self._handle, document, self._logprobs)
            for callback in self._callbacks:
                callback(self._answer)
            yield Finished(self._answer)
        finally:
            self._handle.cancel()


def whole_answer(handle: Handle, document: DocumentStream, logprobs: Sequence[np.ndarray]) -> Answer:
    """The answer of a handle that has ended.

    Args:
      document: after `finish`.
      logprobs: float32, of the chunks that `document` was fed with.
    """
    result = handle.result()
    answer = Answer(document.document)
    answer.reason = "stop" if document.stopped else result.reason
    answer.prompt_ids, answer.ids = handle.prompt, np.asarray(document.ids, np.int32)
    answer.logprobs = np.concatenate([np.zeros(0, np.float32), *logprobs])[: len(answer.ids)]
    answer.text_tokens = document.text_tokens
    answer.seconds_to_first, answer.seconds = result.seconds_to_first, result.seconds
    return answer


def collect(streams: Sequence[Stream]) -> list[Answer]:
    """The whole answers of streams."""
    try:
        return [stream.answer() for stream in streams]
    finally:  # the others end too if one fails
        for stream in streams:
            stream.close()
