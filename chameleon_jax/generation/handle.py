"""What a caller holds of a request: its answer as it is written, and how it ended."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from chameleon_jax.config import GenerationConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.memory import OutOfMemory
from chameleon_jax.generation.rows import Request

if TYPE_CHECKING:
    from chameleon_jax.generation.engine import Engine

Reason = Literal["stop", "length", "context", "cancelled"]
REASONS: tuple[Reason | None, ...] = (None, "stop", "length", "context")


class EngineError(ChameleonError):
    """A request that the engine cannot take now, or could not finish."""


class QueueFull(EngineError):
    """As many requests wait for a row as may."""


class Chunk(NamedTuple):
    """The next tokens of an answer."""

    ids: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # float32 [n]; before temperature and filters; 0 where there is no choice


@dataclasses.dataclass(frozen=True)
class Result:
    """A whole answer."""

    ids: np.ndarray
    """int32 [n], with the token at which it stopped."""
    logprobs: np.ndarray
    """float32 [n]; see `Chunk`."""
    reason: Reason
    """'stop': a stop id, or the end of the only picture; 'length': as many text tokens as asked for; 'context': no room
    is left; 'cancelled'."""
    seconds_waiting: float
    """From `submit` to a free row."""
    seconds_to_first: float
    """From `submit` to the first tokens."""
    seconds: float
    """From `submit` to the last token."""
    steps: int
    """How often its lanes were read. Fewer than tokens where Jacobi decoding saved some."""


class Handle:
    """An answer that is being written. Iterating gives its chunks as they come; any number of threads may wait."""

    def __init__(
        self,
        engine: Engine,
        prompt: np.ndarray,
        request: Request,
        options: GenerationConfig,
        sample: int,
        negative: np.ndarray,
        on_change: Callable[[], None] | None,
    ):
        self.prompt, self.request, self.options, self.sample = prompt, request, options, sample
        self.negative, self._on_change = negative, on_change
        self.reason: Reason | None = None
        self.error: BaseException | None = None
        self.row: int | None = None
        self.steps = 0
        self._engine, self._chunks = engine, []
        self._submitted = time.monotonic()
        self._started = self._first = self._ended = 0.0

    @property
    def done(self) -> bool:
        return self.reason is not None or self.error is not None

    @property
    def ids(self) -> np.ndarray:
        """int32 [n]: the prompt and what is written so far."""
        return np.concatenate([self.prompt, *(chunk.ids for chunk in self._chunks)])

    def chunks(self, start: int = 0) -> list[Chunk]:
        """The chunks that are there, without the first `start`. Does not wait; see `on_change` of `Engine.submit`."""
        return self._chunks[start:]

    def __iter__(self) -> Iterator[Chunk]:
        given = 0
        while True:
            self._engine.run_until(lambda given=given: self.done or len(self._chunks) > given)
            while given < len(self._chunks):
                yield self._chunks[given]
                given += 1
            self.raise_error()
            if self.done and given == len(self._chunks):
                return

    def raise_error(self) -> None:
        """Raises `EngineError` or `OutOfMemory` if the engine was closed, or failed, before the answer was whole."""
        if isinstance(self.error, OutOfMemory):
            raise self.error
        if self.error is not None:
            raise EngineError(f"the engine stopped before the answer was whole: {self.error}") from self.error

    def result(self) -> Result:
        """Waits for the whole answer.

        Raises:
          EngineError: if the engine was closed, or failed, before.
        """
        chunks = list(self)
        return Result(
            np.concatenate([np.zeros(0, np.int32), *(chunk.ids for chunk in chunks)]),
            np.concatenate([np.zeros(0, np.float32), *(chunk.logprobs for chunk in chunks)]),
            self.reason,
            self._started - self._submitted,
            self._first - self._submitted,
            self._ended - self._submitted,
            self.steps,
        )

    def cancel(self, reason: Reason = "cancelled") -> None:
        """Ends the answer where it is. Does nothing if it has ended."""
        self._engine.end(self, reason)

    def put(self, chunk: Chunk) -> None:
        """Called by the engine."""
        self._first = self._first or time.monotonic()
        self._chunks.append(chunk)
        self._tell()

    def start(self, row: int) -> None:
        """Called by the engine."""
        self.row, self._started = row, time.monotonic()

    def end(self, reason: Reason | None, error: BaseException | None = None) -> None:
        """Called by the engine."""
        self.reason, self.error, self.row, self._ended = reason, error, None, time.monotonic()
        self._tell()

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change()
