"""Progress bars on a terminal, and a plain line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# File names, config values and error messages are printed verbatim: "[red]" must not become markup.
console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


class Bar:
    """A running progress display; `done` counts from 0 to `total`."""

    def __init__(self, title: str, total: int | None, start: int):
        self.title, self.total, self.start = title, total, start
        self.began = self.printed = time.monotonic()
        self.progress: Progress | None = None
        self.task = None

    def update(self, done: int, **figures: str) -> None:
        """Shows that `done` steps are done, with figures such as `loss="2.31"`."""
        text = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
        if self.progress is not None:
            self.progress.update(self.task, completed=done, figures=text)
            return
        now = time.monotonic()
        if now - self.printed < 10 and done != self.total:
            return
        self.printed = now
        amount = f"{done}" if self.total is None else f"{done}/{self.total}"
        left = ""
        if self.total is not None and self.start < done < self.total:
            left = f"  {(now - self.began) / (done - self.start) * (self.total - done):.0f} s left"
        console.print(f"{self.title}: {amount}  {text}{left}")


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, start: int = 0) -> Iterator[Bar]:
    """On a terminal a bar with the remaining time, elsewhere a line every ten seconds.

    Args:
      title: what is being done.
      total: total number of steps, or None if unknown.
      start: number of steps already done, by an earlier run.
    """
    bar = Bar(title, total, start)
    if not console.is_terminal:
        yield bar
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as bar.progress:
        bar.task = bar.progress.add_task(title, total=total, completed=start, figures="")
        yield bar


@contextlib.contextmanager
def report_elapsed(title: str, seconds: float = 10.0) -> Iterator[None]:
    """Prints the elapsed time every few seconds, for work of unknown length."""
    began, ended = time.monotonic(), threading.Event()

    def say() -> None:
        while not ended.wait(seconds):
            console.print(f"{title}: {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def bytes_bar(title: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar over `size` bytes, shown in MiB; yields a function to call with the number of bytes of each step.

    Nothing is shown for less than 256 MiB.
    """
    if size < 256 << 20:
        yield lambda done: None
        return
    total, done, shown = size >> 20, 0, 0
    with progress_bar(f"{title}, MiB", total) as bar:

        def count(more: int) -> None:
            nonlocal done, shown
            done += more
            if done >> 20 > shown and shown < total:
                shown = min(done >> 20, total)
                bar.update(shown)

        yield count
