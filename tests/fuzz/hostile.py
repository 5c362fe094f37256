"""Mutations that the fuzzers of files with a grammar share: bytes, values of JSON and YAML, and what is no file."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

WORDS = (b"\0", b"\xff", b"\x7f", b"\0\0\0\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 8, b"\xff" * 8, b"\x7f" * 8)
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**60, 2**63, 10**12, 10**30, 10**39)
VALUES = (
    *NUMBERS, 0.5, -0.5, 1e-300, 1e30, 1e300, None, True, False, "", "x", "\x1b[31m", "../../etc/passwd", "a" * 5000,
    [], {}, [1], ["x"], [[]], {"x": 1}, [0] * 5000, {"type": "x"}, "\u202e", "nan", "Infinity",
)  # fmt: skip
TEXTS = (
    "NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 2000 + "]" * 2000, '"\\ud800"', "{" * 3000,
    '{"a": 1, "a": 2}', "0x" + "f" * 3000, "1" + ":1" * 2000, "!!python/object/apply:os.system [x]", "&a [*a]", "*b",
)  # fmt: skip
"""What stands where a value should, in the text of a file."""


def mutated_bytes(content: bytes, rng: random.Random, most: int = 8) -> bytes:
    """A few bytes changed, cut out, repeated or put in."""
    content = bytearray(content)
    for _ in range(rng.randint(1, most)):
        if not content:
            break
        place, size = rng.randrange(len(content)), rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(6):
            case 0 | 1:
                content[place] = rng.randrange(256)
            case 2:
                content[place : place + size] = rng.choice(WORDS)
            case 3:
                del content[place : place + size]
            case 4:
                content[place:place] = content[place : place + size] * rng.choice((1, 2, 100))
            case 5:
                content[place : place + 8] = rng.choice(NUMBERS[:15]).to_bytes(9, "little", signed=True)[:8]
    if rng.random() < 0.2:
        del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of everything inside nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in ((*path, key), *places(item, (*path, key)))]


def mutated_value(value: Any, rng: random.Random, most: int = 3) -> Any:
    """Some values inside `value` replaced, removed, moved or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        found = places(value)
        if not found:
            return rng.choice(VALUES)
        *parents, key = rng.choice(found)
        target = value
        for name in parents:
            target = target[name]
        match rng.randrange(6):
            case 0:
                del target[key]
            case 1 if isinstance(target, dict):
                target[str(rng.choice(VALUES))[:100]] = target[key]
            case 2:
                target[key] = [target[key]] * rng.choice((1, 2, 1000))
            case 3 if type(target[key]) is int:
                target[key] += rng.choice((-1, 1, 2, 8))
            case _:
                target[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """The text of a mutated value, at times no longer JSON."""
    marker = "a value of the text"
    hostile = rng.random() < 0.25
    if hostile and places(value):
        value = copy.deepcopy(value)
        *parents, key = rng.choice(places(value))
        target = value
        for name in parents:
            target = target[name]
        target[key] = marker
    elif rng.random() < 0.9:
        value = mutated_value(value, rng)
    text = json.dumps(value)
    if hostile:
        text = text.replace(json.dumps(marker), rng.choice(TEXTS))
    content = text.encode(errors="surrogatepass")
    return mutated_bytes(content, rng) if rng.random() < 0.2 else content


def no_file(path: Path, rng: random.Random) -> None:
    """Puts in the place of a file what is none, or none of its size."""
    kind = rng.randrange(6)
    if kind == 5:
        os.truncate(path, rng.choice((1 << 32, 1 << 40)))  # sparse
        return
    path.unlink()
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/proc/self/mem", "/dev/stdin", path.name)))
    elif kind == 3:
        path.write_bytes(b"")


def copied(source: Path, folder: Path) -> Path:
    """A copy of a folder inside another."""
    return Path(shutil.copytree(source, folder / source.name))
