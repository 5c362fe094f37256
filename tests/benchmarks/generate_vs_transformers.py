"""Text by our engine beside that by `generate` of transformers' Chameleon in PyTorch, on a CPU.

Same sizes (configs/bench/generate/cpu_25m.yaml or another), random weights, greedy: 128 tokens after prompts of 128.
Each side runs in a process of its own with as many threads as there are cores; they take their turns one at a time, so
that what else the machine does meets all of them. PyTorch's threads wait for one another, so other work on the machine
slows it far more than us, unless each side has one core (`taskset -c 0`). Prints JSON. Not a test: pytest does not
collect it.

`prefill` is the reading of all prompts, with the first token on the side of transformers; `decode` the other tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from chameleon_jax.config import BenchGenerateConfig, EngineConfig, read_config, to_dict  # noqa: E402

OURS = ("float32", "bfloat16", "int8")
THEIRS = ("eager, dynamic cache", "eager, static cache", "compiled, static cache")
SIDES = (*OURS, *(f"transformers {how}" for how in THEIRS))

Turn = Callable[[int], dict[str, float]]
"""Writes with so many rows at once: seconds of prefill, of decode, and tokens that were decoded."""


def our_turn(config: BenchGenerateConfig, weights: str) -> Turn:
    import dataclasses
    import functools

    import jax

    from chameleon_jax.bench.generate import make_engine, make_model, memory_bandwidth, step_bytes
    from chameleon_jax.config import GenerationConfig, SamplingConfig
    from chameleon_jax.generation.prefill import Lanes

    settings = EngineConfig(weights="as_is" if weights == "float32" else weights)
    model = make_model(dataclasses.replace(config, engine=settings), memory_bandwidth())
    options = GenerationConfig(mode="text", max_new_tokens=config.new_tokens, text=SamplingConfig(temperature=0))
    engine = functools.cache(lambda rows: make_engine(model, rows))
    rng = np.random.default_rng(0)

    def turn(rows: int) -> dict[str, float]:
        words = rng.choice(model.vocabulary.text_ids, (rows, config.prompt - 1))
        prompts = [np.array([model.vocabulary.bos, *each], np.int32) for each in words]
        dtype = "bfloat16" if weights == "bfloat16" else "float32"
        lanes = Lanes(config.model, model.weights.layers, rows, (engine(rows).context_length,), dtype)
        lanes.read(0, 0, prompts[0][::-1])
        jax.block_until_ready(lanes.caches)
        began = time.perf_counter()
        for row, prompt in enumerate(prompts):
            lanes.read(0, row, prompt)
        jax.block_until_ready(lanes.caches)
        prefill = time.perf_counter() - began
        del lanes
        before = engine(rows).statistics.steps
        handles = [engine(rows).submit(prompt, options) for prompt in prompts]
        results = [handle.result() for handle in handles]
        firsts = [len(next(iter(handle)).ids) for handle in handles]
        decode = max(each.seconds for each in results) - max(each.seconds_to_first for each in results)
        steps = engine(rows).statistics.steps - before - max(firsts)
        moved = step_bytes(model, model.weights.text, [config.prompt + config.new_tokens / 2] * rows)
        return {
            "prefill": prefill, "decode": decode, "tokens": sum(len(each.ids) for each in results) - sum(firsts),
            "of_bandwidth": moved * steps / decode / memory_bandwidth(3),
        }  # fmt: skip

    return turn


def their_turn(config: BenchGenerateConfig, how: str) -> Turn:
    import torch
    from text_by_transformers import random_model

    model = random_model(config, "cpu").float()
    if how.startswith("compiled"):
        model.forward = torch.compile(model.forward)
    cache = "static" if "static" in how else "dynamic"

    def seconds(ids: Any, new: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=1,
                max_new_tokens=new, min_new_tokens=new, cache_implementation=cache,
            )  # fmt: skip
        assert written.shape[1] == config.prompt + new
        return time.perf_counter() - began

    def turn(rows: int) -> dict[str, float]:
        ids = torch.randint(16, config.model.vocab_size, (rows, config.prompt))
        prefill = seconds(ids, 1)
        decode = seconds(ids, config.new_tokens) - prefill
        return {"prefill": prefill, "decode": decode, "tokens": rows * (config.new_tokens - 1)}

    return turn


def serve(side: str, config: BenchGenerateConfig) -> None:
    """One side: a line of standard input is the number of rows of a turn."""
    turn = our_turn(config, side) if side in OURS else their_turn(config, side.removeprefix("transformers "))
    for line in sys.stdin:
        processor = time.process_time()
        found = turn(int(line))
        print("turn", json.dumps({**found, "processor": time.process_time() - processor}), flush=True)


class Side:
    def __init__(self, name: str, path: str, threads: int):
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, __file__, path, "--side", name], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def turn(self, rows: int) -> dict[str, float]:
        self.process.stdin.write(f"{rows}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("turn "):
                return json.loads(line.removeprefix("turn "))
        raise SystemExit(f"a side ended with status {self.process.wait()}")


def compare(sides: dict[str, Side], config: BenchGenerateConfig, rows: int, turns: int) -> dict[str, Any]:
    for side in sides.values():
        side.turn(rows)  # compiles
    found = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(side.turn(rows))
    rates = {
        "prefill": {name: [rows * config.prompt / turn["prefill"] for turn in each] for name, each in found.items()},
        "decode": {name: [turn["tokens"] / turn["decode"] for turn in each] for name, each in found.items()},
    }
    report: dict[str, Any] = {"rows": rows}
    for what, of_sides in rates.items():
        medians = {name: statistics.median(each) for name, each in of_sides.items()}
        theirs = {name: rate for name, rate in medians.items() if name not in OURS}
        report[what] = {"tokens_per_second": {name: round(rate, 1) for name, rate in medians.items()}}
        if theirs:
            best = max(theirs, key=theirs.get)
            report[what]["ratio_to_their_best"] = {
                name: round(statistics.median(np.divide(of_sides[name], of_sides[best])), 2)
                for name in medians if name in OURS
            }  # fmt: skip
        report[what]["turns"] = {name: [round(rate, 1) for rate in each] for name, each in of_sides.items()}
    report["processor_seconds_per_turn"] = {
        name: round(statistics.median(turn["processor"] for turn in each), 3) for name, each in found.items()
    }
    report["of_bandwidth"] = {
        name: round(statistics.median(turn["of_bandwidth"] for turn in each), 3)
        for name, each in found.items() if name in OURS
    }  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs/bench/generate/cpu_25m.yaml"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="default: all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = read_config(BenchGenerateConfig, options.config)
    if options.side:
        return serve(options.side, config)
    from chameleon_jax.bench.environment import environment
    from chameleon_jax.bench.generate import memory_bandwidth

    bandwidth, load = memory_bandwidth(), os.getloadavg()
    sides = {name: Side(name, options.config, options.threads) for name in options.sides}
    report = {
        "benchmark": "generate_vs_transformers",
        "threads": options.threads,
        "batches": [compare(sides, config, rows, options.turns) for rows in options.rows],
        "bandwidth": float(f"{bandwidth:.4g}"),
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        "config": to_dict(config),
        **environment(("torch", "transformers")),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
