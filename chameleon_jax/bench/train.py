"""Tokens a second, TFLOP/s and MFU of the full train step: forward, backward, optimizer.

`bench_train` needs nothing but jax, flax, optax and numpy, so that it runs on any machine with an accelerator.
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.batch import Batch
from chameleon_jax.bench.environment import environment
from chameleon_jax.config import BenchTrainConfig, StageConfig, TrainConfig, to_dict
from chameleon_jax.errors import ChameleonError
from chameleon_jax.models.flops import train_flops_per_token
from chameleon_jax.runtime.accelerators import find_accelerator
from chameleon_jax.runtime.host_memory import keep_freed_memory
from chameleon_jax.sharding import check_length, check_mesh, make_mesh
from chameleon_jax.training.state import TrainState, init_state
from chameleon_jax.training.step import make_train_step
from chameleon_jax.training.task import Params, Task
from chameleon_jax.training.transformer import TransformerTask, step_compiler_options


class Repetition(Protocol):
    """How often steps are measured."""

    warmup: int
    steps: int
    repeats: int


def train_config(config: BenchTrainConfig) -> TrainConfig:
    """The training run whose step is measured."""
    steps = config.warmup + (config.repeats + 1) * config.steps
    return TrainConfig(
        data="", output="", model=config.model, execution=config.execution, lora=config.lora, dropout=config.dropout,
        batch_size=config.batch_size,
        steps=max(steps, config.optimizer.warmup_steps), stages=(StageConfig(1.0, {"random": 1.0}),),
        optimizer=config.optimizer, accumulation=config.accumulation, loss_chunk=config.loss_chunk,
        mesh=config.mesh, compiler_options=config.compiler_options, seed=config.seed,
    )  # fmt: skip


def image_ids(vocab_size: int) -> np.ndarray:
    """Bool `[vocab_size]`: the last eighth of the ids stands for image codes, as 8,192 of 65,536 do in the paper."""
    return np.arange(vocab_size) >= vocab_size - max(vocab_size // 8, 1)


def random_batch(config: BenchTrainConfig) -> Batch:
    """Packed rows of random ids: documents of equal length, in turns of text and image codes, then padding."""
    rng = np.random.default_rng(config.seed)
    shape, tokens = (config.batch_size, config.length + 1), config.length - int(config.length * config.padding)
    first_image = int(np.argmax(image_ids(config.model.vocab_size)))
    starts = np.arange(config.documents + 1) * tokens // config.documents
    segments = np.searchsorted(starts, np.arange(config.length + 1), side="right")
    positions = np.arange(config.length + 1) - starts[segments - 1]
    text = rng.integers(0, max(first_image, 1), shape)
    ids = np.where(segments % 2 == 0, rng.integers(first_image, config.model.vocab_size, shape), text)
    segments = np.where(segments > config.documents, 0, segments)
    counts = (segments[:-1] == segments[1:]) & (segments[:-1] > 0)

    def rows(values: np.ndarray, dtype: type) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(values, (config.batch_size, config.length)), dtype)

    return Batch(
        rows(ids[:, :-1], np.int32), rows(ids[:, 1:], np.int32), rows(counts, np.float32),
        rows(positions[:-1], np.int32), rows(segments[:-1], np.int32),
    )  # fmt: skip


def matmul_flops(dtype: str, size: int, repeats: int = 5) -> float:
    """FLOP/s of one device in the product of two square matrices, the fastest of some."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def peak_flops(dtype: str) -> tuple[float, str]:
    """FLOP/s that all devices could do, and where the figure is from."""
    devices = jax.devices()
    accelerator = find_accelerator(devices[0])
    if accelerator is not None:
        source = f"the maker's, dense bfloat16: {len(devices)} x {accelerator.name}"
        return accelerator.bf16_flops * len(devices), source
    on_cpu = devices[0].platform == "cpu"
    size, count = (2048, 1) if on_cpu else (8192, len(devices))  # all CPU "devices" share the same cores
    source = f"measured in this run: {dtype} product of {size} x {size} matrices, the fastest of 5"
    return matmul_flops(dtype, size) * count, source if count == 1 else f"{source}, times {count} devices"


def bench_train(config: BenchTrainConfig, *, profile: str = "") -> dict[str, Any]:
    """Measures; returns what `chameleon bench train` prints.

    Args:
      profile: folder for a `jax.profiler` trace of one more repeat; empty: none.

    Raises:
      ConfigError: if batch or model do not fit the devices.
      ChameleonError: if the loss is not a number.
    """
    run, mesh = train_config(config), make_mesh(config.mesh)
    check_mesh(run, mesh)
    check_length(run, mesh, config.length)
    task = TransformerTask(run, image_ids(config.model.vocab_size))
    seconds, measured = measure_steps(task, mesh, random_batch(config), config, profile=profile)
    return {
        "bench": "train",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(task.abstract_params())),
        **speed(config, seconds, *peak_flops(config.execution.compute_dtype)),
        **measured,
        "compiler_options": step_compiler_options(config, mesh),
        "config": to_dict(config),
        **environment(),
    }


def measure_steps(
    task: Task, mesh: jax.sharding.Mesh, batch: Any, repetition: Repetition, params: Params | None = None, *,
    profile: str = "",
) -> tuple[list[float], dict[str, Any]]:  # fmt: skip
    """Trains on one batch, again and again.

    Args:
      batch: in the memory of the host.
      repetition: with `warmup`, `steps` and `repeats`.
      params: the first parameters, which are given up; None: random ones.
      profile: folder for a trace of one more repeat; empty: none.

    Returns:
      the seconds of each repeat, and seconds of the first step, losses and memory.

    Raises:
      ChameleonError: if the loss is not a number.
    """
    if jax.default_backend() == "cpu":
        keep_freed_memory()  # as chameleon train does
    step = make_train_step(task, mesh)
    with jax.set_mesh(mesh):
        state = init_state(task, mesh, params)
        batch = jax.device_put(batch, task.batch_shardings(mesh))

        def repeat(state: TrainState, steps: int) -> tuple[float, TrainState, Array]:
            began = time.perf_counter()
            for _ in range(steps):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            return time.perf_counter() - began, state, metrics["total_loss"]

        jax.block_until_ready(state)
        first_step, state, first_loss = repeat(state, 1)
        if repetition.warmup > 1:
            _, state, _ = repeat(state, repetition.warmup - 1)
        seconds = []
        for _ in range(repetition.repeats):
            taken, state, last_loss = repeat(state, repetition.steps)
            seconds.append(taken)
        memory = device_memory()
        if profile:
            with jax.profiler.trace(profile):
                repeat(state, repetition.steps)
    losses = {"first": float(first_loss), "last": float(last_loss)}
    if not all(map(math.isfinite, losses.values())):
        raise ChameleonError(f"loss = {losses}: must be a number; lower the learning rate")
    return seconds, {"first_step_seconds": round(first_step, 3), "loss": losses, "memory": memory}


def speed(config: BenchTrainConfig, seconds: list[float], peak: float, source: str) -> dict[str, Any]:
    """Rates that follow from the seconds of each repeat. All places of the rows count as tokens, padding too."""
    flops, tokens = train_flops_per_token(config.model, config.length), config.batch_size * config.length
    step = statistics.median(seconds) / config.steps
    return {
        "tokens_per_second": rates(config.steps * tokens, seconds),
        "step_seconds": round(step, 5),
        "flops_per_token": flops,
        **utilisation(flops * tokens / step, peak, source),
    }


def rates(amount: float, seconds: list[float]) -> dict[str, Any]:
    """What is done in a second, if each repeat does `amount`."""
    found = [amount / each for each in seconds]
    return {
        # Not the median of the rates: of an even number of repeats that is another figure than the seconds give.
        "median": round(amount / statistics.median(seconds), 1),
        "min": round(min(found), 1), "max": round(max(found), 1),
        "all": [round(rate, 1) for rate in found],
    }  # fmt: skip


def utilisation(flops_per_second: float, peak: float, source: str) -> dict[str, Any]:
    """Model FLOP/s, alone and as a share of what the devices could do (MFU)."""
    return {
        "tflops_per_second": float(f"{flops_per_second / 1e12:.5g}"),
        "mfu": float(f"{flops_per_second / peak:.4g}"),
        "peak_flops": peak,
        "peak_flops_source": source,
    }


def device_memory() -> dict[str, float | None]:
    """GiB at their peak: on the fullest device (null where the backend does not say) and of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "device_peak_gib": round(max(peaks) / 2**30, 3) if peaks else None,
        "host_peak_gib": round(host / 2**30, 3),
    }
