"""How fast checkpoints are converted, beside copying the same files, and what loading one costs in memory."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from chameleon_jax.bench.environment import environment
from chameleon_jax.config import BenchCommand, TransformerConfig, to_dict
from chameleon_jax.weights.checkpoint import Checkpoint
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint
from chameleon_jax.weights.huggingface_writing import write_huggingface
from chameleon_jax.weights.layout import Entry

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _Noise:
    """Random weights of any size, made as they are written."""

    dtype, nbytes = BFLOAT16, 0

    def __init__(self):
        self._random = np.random.default_rng(0)
        self._values = (self._random.standard_normal(1 << 22, np.float32) * 0.02).astype(BFLOAT16)

    def __contains__(self, leaf: str) -> bool:
        return True

    def fetch(self, entry: Entry, dtype: np.dtype) -> np.ndarray:
        # Heads of QK-norm share a row, as in every released file.
        shape = entry.stored[-1:] if "attention/" in entry.leaf and "_norm/" in entry.leaf else entry.stored
        values = np.roll(np.resize(self._values, int(np.prod(shape))), self._random.integers(1 << 16))
        return np.broadcast_to(values.reshape(shape), entry.stored)


def make_checkpoint(folder: Path, config: TransformerConfig) -> None:
    """Writes random bfloat16 weights in Hugging Face's layout, without tokenizers."""
    folder.mkdir(parents=True)
    nothing = dict(image_config=None, image_weights=None, vocabulary=None, text=None)
    noise = Checkpoint(folder, "huggingface", "noise", config, _Noise(), **nothing)
    write_huggingface(noise, folder, BFLOAT16, lambda size: None)


def _timed(work: Callable[[Path], None], target: Path) -> float:
    """Seconds until `work` has written the folder and the disk has it."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    began = time.perf_counter()
    work(target)
    os.sync()
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def bench_weights(command: BenchCommand) -> dict[str, Any]:
    """Copies, converts and loads a synthetic checkpoint, one after the other. Returns the figures."""
    Path(command.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="weights-", dir=command.folder))
    source, target = folder / "source", folder / "target"
    jax.devices()  # not to be timed
    try:
        make_checkpoint(source, command.model)
        checkpoint = open_checkpoint(source)
        work: dict[str, Callable[[Path], None]] = {"copy": lambda path: shutil.copytree(source, path)}
        for name in ("huggingface", "meta", "chameleon"):
            work[name] = lambda path, name=name: write_checkpoint(checkpoint, path, name)
        seconds: dict[str, list[float]] = {}
        for name, convert in work.items():
            # Not in turns: the first of its kind, left out, pays for memory that nobody has touched yet, which on a
            # virtual machine costs several times the work.
            seconds[name] = [_timed(convert, target) for _ in range(1 + command.repeats)][1:]
        median = {name: statistics.median(values) for name, values in seconds.items()}
        return {
            "bench": "weights",
            "gigabytes": round(checkpoint.weights.nbytes / 1e9, 3),
            "copy_seconds": round(median["copy"], 3),
            "convert": {
                name: {
                    "seconds": round(median[name], 3),
                    "all_seconds": [round(value, 3) for value in seconds[name]],
                    "speed_of_copying": round(median["copy"] / median[name], 3),
                }
                for name in ("huggingface", "meta", "chameleon")
            },
            "load": {dtype: _load_elsewhere(source, dtype) for dtype in ("bfloat16", "float32")},
            "config": to_dict(command),
            **environment(),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _load_elsewhere(folder: Path, dtype: str) -> dict[str, float]:
    """Loads a checkpoint in a process of its own, so that its peak of memory is its own."""
    program = [sys.executable, "-m", "chameleon_jax.bench.weights", str(folder), dtype]
    return json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _load_here(folder: str, dtype: str) -> dict[str, float]:
    checkpoint = open_checkpoint(folder)
    jax.block_until_ready(jax.numpy.zeros(1))
    before = _resident("VmRSS")
    began = time.perf_counter()
    params = checkpoint.load_params(None, dtype, lambda size: None)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**30
    return {
        "seconds": round(seconds, 3),
        "arrays_gib": round(arrays, 3),
        "host_memory_beyond_arrays_gib": round(_resident("VmHWM") - before - arrays, 3),
    }


def _resident(key: str) -> float:
    """Memory of this process in GiB: 'VmRSS' now, 'VmHWM' at its peak. On a CPU the arrays are part of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 2**20


if __name__ == "__main__":
    print(json.dumps(_load_here(*sys.argv[1:])))
