"""The records of a run as a table in Markdown, and their place in docs/benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chameleon_jax.bench.gpu.stages import STAGES


def publish(records: Mapping[str, dict[str, Any]], folder: Path) -> Path:
    """Writes `<gpu>_<stage>.json` of each stage that passed, and the table `<gpu>.md` of all; returns the table.

    Stages of which single checks ran go into the table alone. Stages that did not run keep the files of an earlier run,
    and their rows with them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gpu = next((slug(record["devices"]) for record in records.values() if "devices" in record), "unknown")
    for name, record in records.items():
        if record["status"] == "passed" and "only" not in record:
            text = json.dumps(record, indent=2) + "\n"
            (folder / f"{gpu}_{name}.json").write_text(text, encoding="utf-8")
    rows = dict(records)
    for stage in STAGES:
        earlier = folder / f"{gpu}_{stage.name}.json"
        if rows.get(stage.name, {"status": "skipped"})["status"] == "skipped" and earlier.exists():
            rows[stage.name] = {"status": "passed", **json.loads(earlier.read_text(encoding="utf-8"))}
    path = folder / f"{gpu}.md"
    path.write_text(table(rows), encoding="utf-8")
    return path


def slug(devices: str) -> str:
    """The short name of a GPU for files: '1 x NVIDIA H100 80GB HBM3 (gpu)' is 'h100', a CPU is 'cpu'."""
    kind = re.sub(r"^\d+ x | \(\w+\)$|NVIDIA |Tesla |GeForce |-.*", "", devices)
    return re.sub(r"\W+", "_", " ".join(kind.split()[:1])).lower()


def table(records: Mapping[str, dict[str, Any]]) -> str:
    """Markdown: the machine, one row a stage, and the checks of each."""
    known = [record for record in records.values() if "devices" in record]
    lines = ["# `make gpu`", ""]
    if known:
        versions = ", ".join(f"{name} {version}" for name, version in known[0]["versions"].items())
        lines += [f"{known[0]['devices']}, Python {known[0]['python']}, {versions}.", ""]
    lines += ["| stage | | seconds | |", "|---|---|---|---|"]
    for stage in STAGES:
        if stage.name in records:
            record = records[stage.name]
            lines.append(_row(stage.name, record["status"], record.get("seconds"), _figures(record)))
    for stage in STAGES:
        checks = records.get(stage.name, {}).get("checks", [])
        if len(checks) > 1:
            lines += ["", f"`{stage.name}`:", "", "| check | | seconds | |", "|---|---|---|---|"]
            lines += [_row(each["check"], _status(each), each.get("seconds"), _figures(each)) for each in checks]
    return "\n".join(lines) + "\n"


def _status(check: dict[str, Any]) -> str:
    return "failed" if "problem" in check else "left out" if "left_out" in check else "passed"


def _row(*cells: Any) -> str:
    return "| " + " | ".join("" if cell is None else str(cell).replace("|", "/") for cell in cells) + " |"


SHOWN = {
    "mfu": "MFU {:.1%}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "pictures_per_second": "{:,.1f} pictures/s",
    "milliseconds_per_step": "{} ms a step",
    "of_bandwidth": "{:.0%} of the memory's bandwidth",
    "steps": "{:,.0f} steps",
    "layers": "layers {}",
    "head": "head {}",
    "drawing": "drawing {}",
    "guidance": "guidance {}",
    "seconds_to_draw": "{} s to draw",
    "cudnn_kernels": "cuDNN kernels {}",
    "deviation": "deviation {}",
    "auto": "auto is {}",
    "problem": "{}",
    "left_out": "{}",
    "does_not_fit": "does not fit",
}


def _figures(values: dict[str, Any]) -> str:
    """The few figures of a stage or a check that a reader looks for."""
    found = []
    for name, form in SHOWN.items():
        value = values.get(name)
        if isinstance(value, dict):
            value = value.get("median")
        if isinstance(value, list):
            value = max(value) if name == "deviation" else " + ".join(map(str, value))
        if value is not None:
            found.append(form.format(value))
    memory = values.get("memory", {}).get("device_peak_gib")
    if memory:
        found.append(f"{memory:.1f} GiB")
    return ", ".join(found)
