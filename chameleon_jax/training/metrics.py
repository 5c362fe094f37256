"""Metrics as JSON lines, one object per line, appended during training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from chameleon_jax.errors import FileError, printable
from chameleon_jax.runtime.cloud import as_path, is_cloud
from chameleon_jax.runtime.files import append_text, new_file
from chameleon_jax.runtime.progress import console


class MetricsFile:
    """`metrics.jsonl` of a run that resumes from the checkpoint of step `at_step`.

    Lines of later steps are removed, as these steps are repeated. Lines that cannot be parsed are moved to
    `metrics.jsonl.damaged`.
    """

    def __init__(self, path: str | Path, at_step: int):
        self.path = as_path(path)
        lines, broken = _lines(self.path) if self.path.exists() else ([], [])
        if broken:
            damaged = self.path.with_name(f"{self.path.name}.damaged")
            texts = [line.decode("utf-8", "backslashreplace") for line in broken]
            append_text(damaged, "".join(f"{text}\n" for text in texts))
            first = printable(texts[0], 60)
            console.print(
                f"{self.path}: {len(broken)} damaged lines moved to {damaged.name}: {first} …", style="yellow"
            )
        kept = [text for text, values in lines if values["step"] <= at_step]
        with new_file(self.path) as file:
            file.write_bytes(b"".join(text + b"\n" for text in kept))

    def write(self, step: int, **values: Any) -> None:
        append_line(self.path, {"step": step, **values})


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Appends a line of JSON to a file, on a new line even if a crash left the last one incomplete."""
    append_text(path, ("\n" if _is_incomplete(path) else "") + json.dumps(values) + "\n")


def _is_incomplete(path: Path) -> bool:
    """Whether the last line of a file is incomplete, which is impossible in a bucket."""
    if is_cloud(path) or not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, each with a whole number as "step". Other lines are skipped.

    Raises:
      FileError: if there is no such file, or it cannot be read.
    """
    return [values for _, values in _lines(as_path(path))[0]]


def _lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[bytes]]:
    """The valid lines of a file with their values, and the damaged lines."""
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    lines, broken = [], []
    for text in filter(None, map(bytes.strip, (*whole, last))):
        values = _parse(text)
        if values is not None:
            lines.append((text, values))
        elif text != last.strip():  # an incomplete last line is that of a crash, not damage
            broken.append(text)
    return lines, broken


def _parse(text: bytes) -> dict[str, Any] | None:
    """The values of a line; None if it is not a line of metrics."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    return values if all(isinstance(values.get(key, {}), dict) for key in ("speed", "held_out")) else None
