"""What became of every record: tables, rejected.jsonl, and the cap on what may be lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chameleon_jax.config import ConfigError
from chameleon_jax.errors import ChameleonError
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.files import new_file
from chameleon_jax.runtime.progress import console
from data_pipeline.counts import Counts
from data_pipeline.units import Unit, UnitFiles, counts_of, reason_of_failure, states

if TYPE_CHECKING:
    from data_pipeline.config import PrepareCommand


class TooManyRejected(ChameleonError):
    """More records cannot be used than the config allows."""


def counts_by_source(planned: Iterable[Unit], folder: str) -> dict[str, Counts]:
    """The counts of all units of each source, which must be done."""
    counts: dict[str, Counts] = {}
    for unit in planned:
        counts.setdefault(unit.place, Counts()).__iadd__(counts_of(unit, folder))
    return counts


def print_table(by_source: Mapping[str, Counts], keep: Literal["tokens", "pictures"] = "tokens") -> None:
    """Prints what became of the records of each source, and why some were rejected."""
    tokens = ("documents", "pictures", "text_tokens", "image_tokens")
    columns = ("read", "kept", "rejected", *(tokens if keep == "tokens" else ("pictures",)))
    rows = [("source", *(column.replace("_", " ") for column in columns))]
    rows += [(name, *(f"{getattr(counts, column):,}" for column in columns)) for name, counts in by_source.items()]
    for line in aligned(rows):
        console.print(line)
    for name, counts in by_source.items():
        for reason, times in commonest(counts, 5):
            console.print(f"{name}: rejected {times:,}: {reason}")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def commonest(counts: Counts, most: int) -> list[tuple[str, int]]:
    """The commonest reasons, with how often each was met."""
    return sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0]))[:most]


def check_rejected(by_source: Mapping[str, Counts], planned: Sequence[Unit], command: PrepareCommand) -> None:
    """Raises `TooManyRejected` if of a source more records were rejected than `command.max_rejected` allows, and
    `ConfigError` if one has no records."""
    for name, counts in by_source.items():
        if counts.read == 0:
            raise ConfigError(f"{name}: has no documents")
        if counts.rejected > command.max_rejected * counts.read:
            output = as_path(command.output) / "rejected.jsonl"
            join_rejected(planned, command.output, output)
            reasons = "; ".join(f"{times:,} x {reason}" for reason, times in commonest(counts, 3))
            first = first_rejected([unit for unit in planned if unit.place == name], command.output)
            raise TooManyRejected(
                f"{name}: {counts.rejected:,} of {counts.read:,} records cannot be used, and max_rejected = "
                f"{command.max_rejected:g}: {reasons}. The first: {first['place']}: {first['reason']}. All are in "
                f"{output}. Mend them, or raise max_rejected, and run the command again; what is done stays done"
            )


def first_rejected(planned: Iterable[Unit], folder: str) -> dict[str, str]:
    """The first line of rejected.jsonl."""
    files = (UnitFiles(folder, unit.key).rejected for unit in planned)
    with next(file for file in files if file.exists()).open("r") as lines:
        return json.loads(lines.readline())


def join_rejected(planned: Iterable[Unit], folder: str, target: Path) -> None:
    """Writes the rejected records of all units into one file, in order; none if there are none."""
    planned = [unit for unit in planned if UnitFiles(folder, unit.key).rejected.exists()]
    if not planned:
        return
    with new_file(target) as tmp, tmp.open("w", encoding="utf-8") as joined:
        for unit in planned:
            with UnitFiles(folder, unit.key).rejected.open("r") as lines:
                joined.writelines(lines)


def print_status(planned: Sequence[Unit], folder: str) -> dict[str, int]:
    """Prints the state of the units of each source. Returns totals."""
    state = states(planned, folder)
    names = ("done", "running", "failed", "waiting")
    totals = {name: sum(value == name for value in state.values()) for name in names}
    rows = [("source", *names)]
    for place in dict.fromkeys(unit.place for unit in planned):
        own = [state[unit.key] for unit in planned if unit.place == place]
        rows.append((place, *(f"{own.count(name):,}" for name in names)))
    for line in aligned(rows):
        console.print(line)
    for unit in planned:
        if state[unit.key] == "failed":
            console.print(f"failed: {reason_of_failure(unit, folder)}")
    return totals
