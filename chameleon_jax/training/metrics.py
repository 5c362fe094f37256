"""Metrics as JSON lines: one object a line, appended as training goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chameleon_jax.cloud import as_path
from chameleon_jax.files import append_text, write_text


def per_modality(sums: dict[str, Any]) -> dict[str, float]:
    """Means in nats per token from the sums of `losses.weighted_loss`; a modality that did not occur is left out."""
    metrics = {}
    for name, key in (("loss", ""), ("text_loss", "text_"), ("image_loss", "image_")):
        weight = float(sums[f"{key}weight_sum"])
        if weight > 0:
            metrics[name] = float(sums[f"{key}loss_sum"]) / weight
    return metrics


class MetricsFile:
    """`metrics.jsonl` of a run; `at_step` is the checkpoint the run continues from.

    Lines of later steps are dropped at the start: they belong to work that was lost and is now done again.
    """

    def __init__(self, path: str | Path, at_step: int):
        self.path = as_path(path)
        kept = [line for line in read_metrics(self.path) if line["step"] <= at_step] if self.path.exists() else []
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, **values: Any) -> None:
        append_text(self.path, json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a last line cut short by a crash is left out."""
    lines = []
    for line in as_path(path).read_bytes().decode("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
