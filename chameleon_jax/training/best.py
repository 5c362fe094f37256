"""The best evaluation of a run, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from chameleon_jax.config import CheckpointConfig, ConfigError, require


class Best:
    """The lowest value so far of the held-out loss that `checkpoint.best` names.

    All of it follows from the evaluations in metrics.jsonl, so that a run that goes on decides as if it had never
    stopped.

    Attributes:
      step: where the value was reached; None before the first evaluation, or where no loss is named.
      value: in nats per token.
    """

    def __init__(self, config: CheckpointConfig, sources: Collection[str], lines: Iterable[Mapping[str, Any]]):
        """`sources` are the names of those held out; `lines` are those of metrics.jsonl so far.

        Raises:
          ConfigError: if there is no such source.
        """
        self.name, self.patience = config.best, config.patience
        self.step: int | None = None
        self.value = math.inf
        self.since = 0  # evaluations
        if self.name:
            known = ", ".join(sources) or "none"
            require(self.name.split(".")[1] in sources, "checkpoint.best", self.name, f"sources held out: {known}")
        for line in lines:
            if "held_out" in line:
                self.take(line["step"], line["held_out"])

    def take(self, step: int, held_out: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether these losses after `step` are the best yet.

        Raises:
          ConfigError: if the loss was not measured.
        """
        if not self.name:
            return False
        _, source, loss = self.name.split(".")
        value = held_out.get(source, {}).get(loss)
        if value is None:
            raise ConfigError(f"checkpoint.best = {self.name!r}: held_out.{source} has no such tokens to measure it on")
        if not value < self.value:
            self.since += 1
            return False
        self.step, self.value, self.since = step, value, 0
        return True

    @property
    def given_up(self) -> bool:
        """Whether the run shall end early."""
        return 0 < self.patience <= self.since
