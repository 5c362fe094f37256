"""Requests to stop: the SIGTERM that schedulers send before they take a machine away."""

from __future__ import annotations

import signal
import threading

import jax


class StopRequest:
    """Listens for SIGTERM while it is used as a context manager.

    With several processes JAX's preemption service listens instead, in every one of them, and makes all agree on the
    step at which they stop.
    """

    def __init__(self):
        self._asked = False
        self._previous = None

    def __enter__(self) -> StopRequest:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, number, frame) -> None:
        self._asked = True

    def came(self, step: int) -> bool:
        """Whether the run shall stop after `step`; the same answer in all processes."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
