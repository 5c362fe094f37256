"""The demos from start to end, as a person starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from chameleon_jax.bench.gpu.record import Record
from chameleon_jax.config import find_configs
from chameleon_jax.errors import ChameleonError


def demo(record: Record) -> None:
    """The stage: `chameleon demo` into the folder `demo` beside the record. A stage of it that is done is kept."""
    record.check("demo", lambda: _demo(record, "demo", record.recipes))


def showcase(record: Record) -> None:
    """The same of `chameleon demo pictures` into the folder `showcase`, by the recipes for GPUs."""
    record.check("showcase", lambda: _demo(record, "demo pictures", str(find_configs() / "showcase_gpu")))


def _demo(record: Record, command: str, recipes: str) -> dict[str, Any]:
    output = record.path.parent / record.path.stem
    options = ("--output", str(output), *(("--recipes", recipes) if recipes else ()))
    # What it says goes where this process writes.
    result = subprocess.run([sys.executable, "-m", "chameleon_jax", *command.split(), *options], check=False)
    if result.returncode:
        raise ChameleonError(f"chameleon {command} ended with status {result.returncode}; what it said stands above")
    return {"metrics": json.loads((output / "metrics.json").read_text(encoding="utf-8"))}
