"""Hostile files by the thousand: each is opened in a worker process, under limits of memory and time.

A fuzzer is a module beside this file with two functions:

    write_case(seed: int, folder: Path) -> Path    writes what the seed stands for into an empty folder, and returns
                                                   the file that an error has to name
    read_case(path: Path) -> None                  opens it as the library does

and ends in `if __name__ == "__main__": harness.main(__file__)`. A case is well if `read_case` returns, or refuses with
a `ChameleonError` of one line that names the file, within the limits, and nothing is executed. Run by hand:

    python tests/fuzz/pictures.py --cases 10000            a line of JSON; exit status 1 if a case is not well
    python tests/fuzz/pictures.py --first 8317 --cases 1   one case again
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

MEMORY = 1536 << 20
"""Bytes that a worker may have resident while it opens one case, Python and the library included."""
SECONDS = 20
"""Time of a processor that a case may take. How long it took on the clock depends on what else the machine does."""
HUNG = 120
"""Seconds on the clock after which a worker that says nothing is ended: it waits for something."""
MAPPED = 3 * MEMORY
"""Bytes after which the system refuses a worker more, so that a bomb harms nobody while it is measured."""

EXECUTING = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn")
CONNECTING = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request")
"""Events of Python's audit hooks that opening a file never has a reason for."""


def run(fuzzer: str | Path, cases: int, first: int = 0, workers: int = 2, keep: Path | None = None) -> dict[str, Any]:
    """Opens the cases with seeds `first`, `first` + 1, …

    Args:
      fuzzer: file of the module.
      keep: folder to leave the files of failed cases in.

    Returns:
      counts by outcome, the largest memory in MiB and the longest time in seconds, and the cases that were not well.
    """
    seeds = [list(range(first + place, first + cases, workers)) for place in range(workers)]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        results = [each for part in pool.map(lambda part: _run_part(fuzzer, part, keep), seeds) for each in part]
    outcomes = collections.Counter(result["outcome"] for result in results)
    return {
        "fuzzer": Path(fuzzer).stem,
        "cases": cases,
        **dict(sorted(outcomes.items())),
        "peak_mib": max((result["peak_mib"] for result in results), default=0),
        "slowest_seconds": max((result["seconds"] for result in results), default=0),
        "not_well": [result for result in results if result["outcome"] not in ("read", "refused")],
    }


def _run_part(fuzzer: str | Path, seeds: list[int], keep: Path | None) -> list[dict[str, Any]]:
    """Opens some cases one after another in one worker; one that dies or hangs is replaced."""
    results = []
    worker = None
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        try:
            for seed in seeds:
                if worker is None or worker.poll() is not None:
                    worker = _start(fuzzer)
                folder = Path(root) / str(seed)
                folder.mkdir()
                results.append({"seed": seed, **_run_case(worker, seed, folder)})
                if keep and results[-1]["outcome"] not in ("read", "refused"):
                    # `cp` keeps the holes of files that claim to be gigabytes.
                    kept = Path(keep, str(seed))
                    kept.mkdir(parents=True, exist_ok=True)
                    subprocess.run(["cp", "-r", "--sparse=always", f"{folder}/.", str(kept)], check=True)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            if worker is not None:
                worker.kill()
                worker.wait()
    return results


def _run_case(worker: subprocess.Popen, seed: int, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    with contextlib.suppress(BrokenPipeError):  # its end shows in what it does not say
        worker.stdin.write(json.dumps([seed, str(folder)]) + "\n")
        worker.stdin.flush()
    spoke, _, _ = select.select([worker.stdout], [], [], HUNG)
    line = worker.stdout.readline() if spoke else ""
    if line:
        return json.loads(line)
    worker.kill()
    status = worker.wait()
    outcome, message = ("crashed", f"ended with status {status}") if spoke else ("hung", f"silent for {HUNG} s")
    return {"outcome": outcome, "message": message, "peak_mib": 0, "seconds": round(time.monotonic() - began, 1)}


def _start(fuzzer: str | Path) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, str(fuzzer)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def _work(fuzzer: str) -> None:
    """What a worker does: a line with seed and folder in, a line with the result out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints goes elsewhere
    spec = importlib.util.spec_from_file_location(Path(fuzzer).stem, fuzzer)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    resource.setrlimit(resource.RLIMIT_DATA, (MAPPED, MAPPED))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    events: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event in EXECUTING or event in CONNECTING:
            events.append(event)

    sys.addaudithook(watch)
    for line in sys.stdin:
        seed, folder = json.loads(line)
        path = module.write_case(seed, Path(folder))
        events.clear()
        _forget_peak()
        began = time.process_time()
        outcome, message = _judge(module, path)
        seconds, peak = time.process_time() - began, _peak()
        if events:
            outcome, message = "executed", ", ".join(sorted(set(events)))
        elif peak > MEMORY:
            outcome = "memory"
        elif seconds > SECONDS:
            outcome = "slow"
        print(
            json.dumps({"outcome": outcome, "message": message, "peak_mib": peak >> 20, "seconds": round(seconds, 2)}),
            file=answers,
            flush=True,
        )


def _judge(module: Any, path: Path) -> tuple[str, str]:
    from chameleon_jax.errors import ChameleonError

    try:
        module.read_case(path)
    except ChameleonError as error:
        message = str(error)
        if str(path) not in message:
            return "unnamed", message
        return ("refused" if message.isprintable() else "unprintable"), message
    except BaseException:  # also what derives from nothing else, such as a panic of a Rust library
        lines = traceback.format_exc(limit=-3).splitlines()
        return "traceback", " | ".join(lines)[-1000:].encode(errors="backslashreplace").decode()
    return "read", ""


def _forget_peak() -> None:
    """Starts the measurement of peak memory anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def main(fuzzer: str | Path) -> None:
    """The command line of a fuzzer."""
    parser = argparse.ArgumentParser(description=f"Opens hostile files: {Path(fuzzer).stem}.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="folder for the files of cases that are not well")
    arguments = parser.parse_args()
    figures = run(fuzzer, arguments.cases, arguments.first, min(arguments.workers, arguments.cases), arguments.keep)
    print(json.dumps(figures, indent=2))
    sys.exit(bool(figures["not_well"]))


if __name__ == "__main__":
    _work(sys.argv[1])
