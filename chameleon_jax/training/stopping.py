"""Requests to stop: Ctrl-C, and the SIGTERM that schedulers send before they preempt a machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax

from chameleon_jax.errors import Stopped
from chameleon_jax.runtime.progress import console


class StopRequest:
    """Context manager that handles Ctrl-C (SIGINT) and SIGTERM.

    The first signal requests a stop, and prints immediately what the stop is waiting for; a second Ctrl-C ends the
    process. A thread receives the signals, as Python's handlers would wait for the main thread, which may be compiling
    for minutes.

    With several processes, JAX's preemption service handles SIGTERM and makes all processes agree on the step after
    which they stop; Ctrl-C in one process is forwarded to it as a SIGTERM.
    """

    def __init__(self):
        self._asked_by: int | None = None
        self._waits_for = "the current work"
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread can install signal handlers
        numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        thread = threading.Thread(target=self._listen, args=(reading,), name="stop requests", daemon=True)
        thread.start()
        self._restore.callback(thread.join)
        self._restore.callback(writing.close)  # ends the thread
        self._restore.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False))
        for number in numbers:
            # The thread only receives signals that have a Python handler, even one that does nothing.
            before = signal.signal(number, lambda number, frame: None)
            self._restore.callback(signal.signal, number, before or signal.SIG_DFL)
        return self

    def __exit__(self, *exception) -> None:
        self._restore.close()

    def _listen(self, reading: socket.socket) -> None:
        with reading:
            while byte := reading.recv(1):
                if byte[0] in (signal.SIGINT, signal.SIGTERM):
                    self._handle(byte[0])

    def _handle(self, number: int) -> None:
        if number == signal.SIGINT and self._asked_by == signal.SIGINT:
            console.show_cursor(True)
            print("\nchameleon: stopped at once; the last checkpoint is kept", file=sys.stderr, flush=True)
            os._exit(130)
        self._asked_by = self._asked_by or number
        if number == signal.SIGINT:
            self._asked_by = number
            print(
                f"\nchameleon: stopping after {self._waits_for}; everything is saved. Ctrl-C again stops at once.",
                file=sys.stderr,
                flush=True,
            )
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """If a stop is requested within this context, the message says that it waits for `what`."""
        before, self._waits_for = self._waits_for, what
        yield
        self._waits_for = before

    def came(self, step: int) -> bool:
        """Whether the run should stop after `step`; the same in all processes. Must be called once per step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked_by is not None

    def check(self, step: int, steps: int) -> None:
        """Raises `Stopped` if a stop was requested before the first step; several processes agree only after it."""
        if self._asked_by is not None and jax.process_count() == 1:
            raise self.stopped(step, steps)

    def stopped(self, step: int, steps: int) -> Stopped:
        """The exception to raise once the state after `step` is saved."""
        by_hand = self._asked_by == signal.SIGINT
        return Stopped(
            f"stopped after step {step:,} of {steps:,} by {'Ctrl-C' if by_hand else 'SIGTERM'}; everything is saved, "
            "and the same command resumes from there",
            # The statuses of processes ended by these signals; schedulers restart after 143.
            status=130 if by_hand else 143,
        )
