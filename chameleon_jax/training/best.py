"""The best evaluation of a run, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from chameleon_jax.config import CheckpointConfig, ConfigError, require


class Best:
    """Tracks the lowest value so far of the held-out loss that `checkpoint.best` names.

    It depends only on the evaluations in metrics.jsonl, so that a resumed run decides like an uninterrupted one.

    Attributes:
      step: step of the lowest value; None before the first evaluation, or if `checkpoint.best` is not set.
      value: the lowest value, in nats per token.
      evaluations_since: number of evaluations after `step`.
    """

    def __init__(self, config: CheckpointConfig, sources: Collection[str], lines: Iterable[Mapping[str, Any]]):
        """Args:
        sources: names of the held-out sources.
        lines: lines of metrics.jsonl so far.

        Raises:
          ConfigError: if there is no such source.
        """
        self.name, self.patience = config.best, config.patience
        self.step: int | None = None
        self.value = math.inf
        self.evaluations_since = 0
        if self.name:
            known = ", ".join(sources) or "none"
            require(self.name.split(".")[1] in sources, "checkpoint.best", self.name, f"sources held out: {known}")
        for line in lines:
            if "held_out" in line:
                self.update(line["step"], line["held_out"])

    def update(self, step: int, held_out: Mapping[str, Mapping[str, float]]) -> bool:
        """Records the held-out losses after `step`; returns whether they are the best so far.

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
            self.evaluations_since += 1
            return False
        self.step, self.value, self.evaluations_since = step, value, 0
        return True

    @property
    def should_stop(self) -> bool:
        """Whether there was no improvement for `checkpoint.patience` evaluations."""
        return 0 < self.patience <= self.evaluations_since
