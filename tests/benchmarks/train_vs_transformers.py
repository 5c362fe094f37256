"""Our train step beside that of transformers' Chameleon in PyTorch, on a CPU.

Same sizes (configs/bench/cpu_25m.yaml), same arithmetic: plain causal rows of one document, float32, cross-entropy over
the whole vocabulary, AdamW over all parameters, gradients clipped. Each side runs in a process of its own with as many
threads as there are cores; they take their turns one at a time, so that what else the machine does meets all of them.
Prints JSON. Processor seconds (of all cores together) hardly move with the load of the machine, unlike the others.
Not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import dataclasses
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

from chameleon_jax.config import BenchTrainConfig, read_config, to_dict  # noqa: E402
from chameleon_jax.models.flops import train_flops_per_token  # noqa: E402
from chameleon_jax.training.transformer import TransformerTask  # noqa: E402

SIDES = ("chameleon_jax", "transformers eager", "transformers compiled")


def bench_config() -> BenchTrainConfig:
    config = read_config(BenchTrainConfig, ROOT / "configs/bench/cpu_25m.yaml")
    return dataclasses.replace(config, documents=1, padding=0.0)


def our_step(config: BenchTrainConfig) -> Callable[[], float]:
    import jax

    from chameleon_jax.bench.train import image_ids, random_batch, train_config
    from chameleon_jax.runtime.host_memory import keep_freed_memory
    from chameleon_jax.sharding import make_mesh
    from chameleon_jax.training.state import init_state
    from chameleon_jax.training.step import make_train_step

    keep_freed_memory()  # as `chameleon train` does
    run, mesh = train_config(config), make_mesh(config.mesh)
    state, step = (
        init_state(TransformerTask(run), mesh),
        make_train_step(TransformerTask(run, image_ids(config.model.vocab_size)), mesh),
    )
    batch = random_batch(config)

    def once() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch)
            return float(jax.block_until_ready((state, metrics))[1]["total_loss"])

    return once


def their_step(config: BenchTrainConfig, compiled: bool) -> Callable[[], float]:
    """The model of transformers. Its own loss sets the logits of image codes to the least number; taken from the hidden
    states and the output layer instead, the cross-entropy is the unmasked one of the paper."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    torch.manual_seed(0)
    sizes = config.model
    model = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=sizes.vocab_size, hidden_size=sizes.d_model, intermediate_size=sizes.mlp_dim,
            num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads, max_position_embeddings=config.length, use_cache=False,
            vocabulary_map={"<image>": 4, **{f"IMGIMG{letter}Z": 8 + i for i, letter in enumerate("ABCD")}},
            vq_config={
                "embed_dim": 8, "num_embeddings": 4, "latent_channels": 8, "resolution": 32, "base_channels": 32,
                "channel_multiplier": [1], "num_res_blocks": 1,
            },
        )
    )  # fmt: skip
    model.train()
    parameters = [*model.model.layers.parameters(), *model.model.norm.parameters(), *model.lm_head.parameters()]
    parameters += [*model.model.embed_tokens.parameters()]
    recipe = config.optimizer
    optimizer = torch.optim.AdamW(
        parameters, recipe.learning_rate, (recipe.b1, recipe.b2), recipe.eps, recipe.weight_decay
    )
    ids = np.random.default_rng(0).integers(0, sizes.vocab_size, (config.batch_size, config.length + 1))
    # No id may be the mark of a picture that is still to come.
    ids = torch.from_numpy(np.where(ids == 4, 5, ids))

    def loss_of(inputs: Any, targets: Any) -> Any:
        logits = model.lm_head(model.model(input_ids=inputs).last_hidden_state)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def once() -> float:
        loss = loss_of(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return once


def serve(side: str) -> None:
    """One side: a line of standard input is the number of steps of a turn, answered as `Side.turn` says."""
    config = bench_config()
    once = our_step(config) if side == SIDES[0] else their_step(config, side == SIDES[2])
    for line in sys.stdin:
        began, processor = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = once()
        print("turn", time.perf_counter() - began, time.process_time() - processor, loss, flush=True)


class Side:
    def __init__(self, name: str, threads: int):
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--side", name], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def turn(self, steps: int) -> tuple[float, float, float]:
        """Seconds, seconds of all cores together, and the loss of the last step."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("turn "):
                return tuple(map(float, line.split()[1:]))
        raise SystemExit(f"a side ended with status {self.process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="default: all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return serve(options.side)
    from chameleon_jax.bench.environment import environment

    config, load = bench_config(), os.getloadavg()
    sides = {name: Side(name, options.threads) for name in options.sides}
    first = {name: side.turn(1) for name, side in sides.items()}
    for side in sides.values():
        side.turn(1)
    turns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for _ in range(options.turns):
        for name, side in sides.items():
            turns[name].append(side.turn(options.steps))
    tokens, flops = (
        config.batch_size * config.length * options.steps,
        train_flops_per_token(config.model, config.length),
    )
    rates = {name: [tokens / seconds for seconds, *_ in each] for name, each in turns.items()}

    processor = {name: statistics.median(turn[1] for turn in each) / options.steps for name, each in turns.items()}
    others = [name for name in sides if name != SIDES[0]]

    def ratios(name: str) -> dict[str, float]:
        each = [ours / theirs for ours, theirs in zip(rates[SIDES[0]], rates[name], strict=True)]
        return {
            "median_of_turns": round(statistics.median(each), 3),
            "min": round(min(each), 3),
            "max": round(max(each), 3),
        }

    report = {
        "benchmark": "train_vs_transformers",
        "rows": "one document each, no padding, causal on both sides; cross-entropy over the whole vocabulary",
        "threads": options.threads,
        "tokens_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "gflops_per_second": {name: round(statistics.median(each) * flops / 1e9, 1) for name, each in rates.items()},
        "ratio_to": {name: ratios(name) for name in others},
        "turns": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
        "processor_seconds_per_step": {name: round(value, 3) for name, value in processor.items()},
        "processor_seconds_of_ours_to": {name: round(processor[SIDES[0]] / processor[name], 3) for name in others},
        "first_step_seconds": {name: round(turn[0], 2) for name, turn in first.items()},
        "loss": {name: [first[name][2], turns[name][-1][2]] for name in sides},
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        "config": to_dict(config),
        **environment(("torch", "transformers")),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
