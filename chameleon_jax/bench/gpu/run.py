"""Starts stages, each in a process of its own, and keeps what they write."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chameleon_jax.bench.gpu.stages import PACKAGE, STAGES, Stage, find_stage

ROOT = Path(__file__).parents[3]
LAST_LINES = 30
"""Lines of a process that crashed that its record keeps."""
SLOWER = 10
"""How many times its limit a rehearsal may take: the processor may be busy with other things."""


def run_stages(
    names: Sequence[str],
    output: Path,
    *,
    budget: float | None = None,
    again: bool = False,
    rehearse: bool = False,
    recipes: str = "",
    only: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Runs stages one after another and returns their records, by name.

    Each writes `<output>/<name>.json` and what it says to `<output>/<name>.log`. One that has passed is not run again,
    but for single checks.
    One that crashes, or takes more than its limit, has failed, and the next one begins.

    Args:
      names: stages to run; all if empty.
      budget: seconds for all of them; a stage that would not fit is left out.
      again: run those that have passed, too.
      rehearse: on the CPU, with tiny sizes.
      recipes: folder with recipes for the demo; a rehearsal leaves the demo out without one.
      only: names of the checks to run, `*` standing for anything; all checks if empty.
    """
    output.mkdir(parents=True, exist_ok=True)
    began, records = time.monotonic(), {}
    for stage in [find_stage(name) for name in names] or STAGES:
        path = output / f"{stage.name}.json"
        before = _read(path)
        whole = not only and "only" not in before
        if before.get("status") == "passed" and before.get("rehearsal") == rehearse and whole and not again:
            print(f"✓ {stage.name}: has passed ({path}); --again runs it again", flush=True)
            records[stage.name] = before
            continue
        left = float("inf") if budget is None else budget - (time.monotonic() - began)
        reason = _reason_to_skip(stage, left, rehearse, recipes)
        if reason:
            print(f"- {stage.name}: left out, {reason}", flush=True)
            records[stage.name] = before or {"stage": stage.name, "status": "skipped", "problem": reason}
            if not before:
                path.write_text(json.dumps(records[stage.name], indent=2) + "\n", encoding="utf-8")
            continue
        limit = min(stage.limit * (SLOWER if rehearse else 1), left)
        print(f"▶ {stage.name}: {stage.title}; {limit:.0f} s at most", flush=True)
        options = {"rehearsal": rehearse, "recipes": recipes, "only": list(only)}
        record = records[stage.name] = _run(stage, path, limit, options)
        sign = "✓" if record["status"] == "passed" else "✗"
        problem = f": {record['problem']}" if "problem" in record else ""
        print(f"{sign} {stage.name}: {record['status']} after {record['seconds']:.0f} s{problem}", flush=True)
    return records


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _reason_to_skip(stage: Stage, left: float, rehearse: bool, recipes: str) -> str | None:
    missing = stage.missing()
    if missing:
        return f"needs {', '.join(missing)}: bring wheels (make gpu-needs WHEELS=folder) and give --wheels folder"
    if rehearse and stage.name == "demo" and not recipes:
        return "its rehearsal needs --recipes, a folder of small ones"
    if rehearse and stage.name == "showcase":
        return "`chameleon demo pictures` needs no GPU to be tried"
    if left < stage.about and not rehearse:
        return f"takes about {stage.about:.0f} s, {max(left, 0):.0f} s of the budget are left"
    return None


def _run(stage: Stage, path: Path, limit: float, options: dict[str, Any]) -> dict[str, Any]:
    """Runs a stage in a process of its own; returns what it wrote, and how the process ended if it ended badly."""
    path.unlink(missing_ok=True)
    # A stage leaves out checks that no longer fit, and so ends by itself before it is ended.
    command = [sys.executable, "-m", f"{PACKAGE}.stages", stage.name, str(path), str(0.95 * limit), json.dumps(options)]
    rehearse = options["rehearsal"]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu" if rehearse else "cuda,cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "PYTHONUNBUFFERED": "1",
    }
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.94")
    if rehearse:  # the stages share programs
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(path.parent / "cache"))
    began, last = time.monotonic(), deque(maxlen=LAST_LINES)
    with path.with_suffix(".log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip

        def follow() -> None:
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                log.write(line)
                last.append(line.rstrip())

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        problem = None
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            problem = f"took more than {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # whatever it started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(timeout=5)
    record = _read(path) or {"stage": stage.name, "rehearsal": rehearse, "checks": []}
    if problem is None and record.get("status") not in ("passed", "failed", "incomplete"):
        problem = f"its process was ended by signal {-status}" if status < 0 else f"its process ended with {status}"
        record["last_lines"] = list(last)
    if problem:
        record |= {"status": "failed", "problem": "; ".join(filter(None, (record.get("problem"), problem)))}
    record["seconds"] = round(time.monotonic() - began, 1)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def use_wheels(folder: Path, into: Path) -> None:
    """Puts the packages in a folder of wheels behind `sys.path`, without those that are installed."""
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    sys.path.append(str(into.resolve()))
