"""The demo from start to end, as a person starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from chameleon_jax.bench.gpu.record import Record
from chameleon_jax.errors import ChameleonError


def demo(record: Record) -> None:
    """The stage: `chameleon demo` into the folder `demo` beside the record. A stage of it that is done is kept."""
    record.check("demo", lambda: _demo(record))


def _demo(record: Record) -> dict[str, Any]:
    output = record.path.parent / "demo"
    recipes = ("--recipes", record.recipes) if record.recipes else ()
    command = [sys.executable, "-m", "chameleon_jax", "demo", "--output", str(output), *recipes]
    result = subprocess.run(command, check=False)  # what it says goes where this process writes
    if result.returncode:
        raise ChameleonError(f"chameleon demo ended with status {result.returncode}; what it said stands above")
    return {"metrics": json.loads((output / "metrics.json").read_text(encoding="utf-8"))}
