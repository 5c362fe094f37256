"""`chameleon bench train` of the presets for one GPU, with a profile."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

from chameleon_jax.bench.gpu.record import Record, unless_too_large
from chameleon_jax.bench.gpu.trace import summarise
from chameleon_jax.bench.train import bench_train
from chameleon_jax.config import BenchTrainConfig, find_configs, read_config

STEPS = 3
"""Steps of a repeat, and of the profile."""
TINY = {  # one program for all, which is compiled once
    "model.vocab_size": 64, "model.d_model": 16, "model.num_layers": 2, "model.num_heads": 2, "model.num_kv_heads": 2,
    "model.head_dim": 8, "model.mlp_dim": 32, "execution.remat": "full", "execution.param_dtype": "float32",
    "optimizer.moment_dtype": "float32", "dropout": 0.0, "length": 64, "batch_size": 2, "loss_chunk": 32, "warmup": 1,
    "repeats": 1,
}  # fmt: skip


def train_1b(record: Record) -> None:
    """The stage: preset `1b`."""
    _measure(record, "1b")


def train_7b(record: Record) -> None:
    """The stage: preset `7b_80gb`, then without remat, with as many rows as may fit."""
    _measure(record, "7b_80gb")
    for rows in (1,) if record.rehearsal else (1, 2):
        changes = {"execution.remat": "none", "batch_size": rows}
        measure = functools.partial(unless_too_large, functools.partial(_try, record, changes))
        record.check(f"7b_80gb, remat none, rows {rows}", measure, about=60)


def _measure(record: Record, preset: str) -> None:
    """Figures of the preset among those of the stage, and where the time goes."""

    def measured(profile: str = "") -> dict[str, Any]:
        figures = bench_train(_config(record, preset), profile=profile)
        record.update(**figures)
        return {"tokens_per_second": figures["tokens_per_second"]["median"], "mfu": figures["mfu"]}

    def profiled() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
            figures = measured(folder)
            record.update(profile=summarise(folder, STEPS))
        return figures

    if record.check(preset, profiled) is None and "tokens_per_second" not in record.values:
        record.check(f"{preset}, without a profile", measured, about=60)


def _try(record: Record, changes: dict[str, Any]) -> dict[str, Any]:
    """Speed and memory with some changes."""
    figures = bench_train(_config(record, "7b_80gb", changes))
    return {
        "tokens_per_second": figures["tokens_per_second"]["median"],
        "mfu": figures["mfu"],
        "memory": figures["memory"],
    }


def _config(record: Record, preset: str, changes: dict[str, Any] | None = None) -> BenchTrainConfig:
    overrides = (changes or {}) | {"steps": STEPS, "repeats": 3} | (TINY if record.rehearsal else {})
    return read_config(BenchTrainConfig, find_configs() / "bench" / f"{preset}.yaml", overrides)
