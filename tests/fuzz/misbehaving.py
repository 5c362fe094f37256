"""A fuzzer whose every case is another fault, to see that the harness finds it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from chameleon_jax.errors import ChameleonError


class Panic(BaseException):
    """As Rust libraries raise it."""


def write_case(seed: int, folder: Path) -> Path:
    path = folder / str(seed)
    path.write_text(FAULTS[seed].__name__)
    return path


def reads(path: Path) -> None:
    path.read_text()


def refuses(path: Path) -> None:
    raise ChameleonError(f"{path}: no")


def raises(path: Path) -> None:
    raise IndexError("list index out of range")


def panics(path: Path) -> None:
    raise Panic("called `Option::unwrap()` on a `None` value")


def forgets_the_name(path: Path) -> None:
    raise ChameleonError("some file is damaged")


def takes_memory(path: Path) -> None:
    bytearray(1600 << 20)


def crashes(path: Path) -> None:
    os.abort()


def executes(path: Path) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def waits(path: Path) -> None:
    time.sleep(3600)


FAULTS = [reads, refuses, raises, panics, forgets_the_name, takes_memory, crashes, executes, waits]


def read_case(path: Path) -> None:
    FAULTS[int(path.name)](path)
