"""Runs units in several processes of this machine.

Each worker process opens the tokenizer once and computes on one core, so that as many of them run as there are cores.
On an accelerator the workers read, decode and resize pictures, and this process computes their codes. To keep pictures,
threads do instead: nearly all of the work is Pillow's, which threads do at the same time, and they begin at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chameleon_jax.errors import ChameleonError
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from data_pipeline.counts import Counts
from data_pipeline.tokenize import EncodeSquares, remember_codes
from data_pipeline.units import Unit, UnitFailed, run

if TYPE_CHECKING:
    from data_pipeline.config import PrepareCommand

Report = Callable[[Unit, Counts], None]
Outcome = tuple[Unit, Counts | UnitFailed]

ONE_CORE = {"NPROC": "1", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Variables by which XLA, OpenMP and the package `tokenizers` start no threads of their own."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_units(
    units: Sequence[Unit], command: PrepareCommand, tokenizer: DocumentTokenizer | None, report: Report
) -> Iterator[Outcome]:
    """Runs units, in any order, in `command.processes` processes; yields each when it is done or has failed.

    Args:
      tokenizer: None to keep pictures; threads then run the units.
      report: called with the counts of a unit along the way.

    Raises:
      ChameleonError: for what would make all units fail, such as a full disk.
    """
    processes = min(command.processes or cores(), len(units))
    if tokenizer is None:
        yield from _run_in_threads(units, command, report, processes)
        return
    # A kind of source that a script defines is known in that script's process alone.
    importable = all(type(unit.source).__module__ != "__main__" for unit in units)
    if processes > 1 and importable:
        yield from _run_in_workers(units, command, tokenizer, report, processes)
        return
    encode = encoder(tokenizer)
    encode = encode and remember_codes(encode)
    for unit in units:
        try:
            yield unit, run(unit, command, tokenizer, encode, lambda counts, unit=unit: report(unit, counts))
        except UnitFailed as error:
            yield unit, error


class _Stop(Exception):
    """Ends the units that other threads run."""


def _run_in_threads(units: Sequence[Unit], command: PrepareCommand, report: Report, threads: int) -> Iterator[Outcome]:
    stopping = threading.Event()

    def run_one(unit: Unit) -> Outcome:
        def report_or_stop(counts: Counts) -> None:
            if stopping.is_set():
                raise _Stop
            report(unit, counts)

        try:
            return unit, run(unit, command, None, report=report_or_stop)
        except UnitFailed as error:
            return unit, error

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in as_completed([pool.submit(run_one, unit) for unit in units]):
                yield done.result()
        finally:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)


def encoder(tokenizer: DocumentTokenizer | None) -> EncodeSquares | None:
    """A function that computes codes on whichever device is free. Several threads may call it. None: no picture can be
    encoded."""
    if tokenizer is None or tokenizer.image is None:
        return None
    image, free = tokenizer.image, queue.SimpleQueue()
    if jax.default_backend() == "cpu":
        return image.encode_squares
    for device in jax.local_devices():
        on_device = ImageTokenizer(image.config, jax.device_put(image.params, device), image.preprocessing)
        for _ in range(2):  # while one batch is computed, the next is copied there
            free.put(on_device)

    def encode(squares: np.ndarray) -> np.ndarray:
        on_device = free.get()
        try:
            return on_device.encode_squares(squares)
        finally:
            free.put(on_device)

    return encode


def _run_in_workers(
    units: Sequence[Unit], command: PrepareCommand, tokenizer: DocumentTokenizer, report: Report, processes: int
) -> Iterator[Outcome]:
    waiting = list(reversed(units))
    running: dict[Connection, tuple[Unit, subprocess.Popen]] = {}
    on_cpu = jax.default_backend() == "cpu" or tokenizer.image is None
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chameleon-"))
        tokenizer.save(os.path.join(folder, "tokenizer"))
        encode = None if on_cpu else encoder(tokenizer)
        threads = None if on_cpu else stack.enter_context(ThreadPoolExecutor(2 * len(jax.local_devices())))
        for _ in range(processes):
            connection, process = stack.enter_context(_worker())
            connection.send((command, os.path.join(folder, "tokenizer"), on_cpu))
            running[connection] = (waiting.pop(), process)
            connection.send(running[connection][0])
        while running:
            for connection in wait(list(running)):
                unit, process = running[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, ConnectionError):
                    status = process.wait()
                    raise ChameleonError(
                        f"{unit.place}: {unit.name}: a worker process ended with status {status}"
                        + (": is there too little memory? Try fewer --processes" if status == -signal.SIGKILL else "")
                    ) from None
                if kind == "encode":
                    threads.submit(_answer, connection, encode, value)
                elif kind == "counts":
                    report(unit, value)
                elif kind == "error":
                    raise value
                else:
                    if waiting:
                        running[connection] = (waiting.pop(), process)
                        connection.send(running[connection][0])
                    else:
                        del running[connection]
                        connection.close()
                    yield unit, value


def _answer(connection: Connection, encode: EncodeSquares, squares: np.ndarray) -> None:
    try:
        connection.send(encode(squares))
    except Exception as error:  # the worker raises it, and this process learns of it there
        with contextlib.suppress(OSError):
            connection.send(error)


@contextlib.contextmanager
def _worker() -> Iterator[tuple[Connection, subprocess.Popen]]:
    """A process that runs `_work`; it is killed at the end, if it still runs."""
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    environment = {**os.environ, **ONE_CORE, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    if cache := jax.config.jax_compilation_cache_dir:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-c", "from data_pipeline.processes import _work; _work()", str(theirs.fileno())]
    process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    connection = Connection(ours.detach())
    try:
        yield connection, process
    finally:
        if not connection.closed:  # else it ends by itself
            process.kill()
            connection.close()
        process.wait()


def _work() -> None:
    """What a worker process does: runs one unit after another, until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    console.quiet = True
    connection = Connection(int(sys.argv[1]))
    command, folder, on_cpu = connection.recv()
    tokenizer = DocumentTokenizer.load(folder)

    def encode(squares: np.ndarray) -> np.ndarray:
        connection.send(("encode", squares))
        codes = connection.recv()
        if isinstance(codes, Exception):
            raise codes
        return codes

    if tokenizer.image is not None:
        encode = remember_codes(tokenizer.image.encode_squares if on_cpu else encode)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            unit = connection.recv()
            report = lambda counts: connection.send(("counts", counts))  # noqa: E731
            try:
                result: tuple[str, Any] = ("done", run(unit, command, tokenizer, encode, report))
            except UnitFailed as error:
                result = ("failed", error)
            except ConnectionError:
                raise
            except Exception as error:
                result = ("error", _portable(error))
            connection.send(result)


def _portable(error: Exception) -> Exception:
    """An error as it can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return ChameleonError(f"{type(error).__name__}: {error}")


def _die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
