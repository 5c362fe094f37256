"""Speed of the generation engine with random weights: prefill, text, pictures, and what a step spends its time on.

`bench_generate` needs nothing but jax, flax and numpy, so that it runs on any machine with an accelerator.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.bench.environment import environment
from chameleon_jax.bench.train import device_memory
from chameleon_jax.config import BenchGenerateConfig, DType, GenerationConfig, TransformerConfig, to_dict
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.guidance import guide
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.prefill import Lanes
from chameleon_jax.generation.programs import Weights, make_weights
from chameleon_jax.generation.sampling import Sampling, draw
from chameleon_jax.models.decoding import Head, readout
from chameleon_jax.runtime.accelerators import find_accelerator
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.checkpoint import abstract_params

TURNS = 16
"""How often a part of a step is repeated to be timed."""


class Model(NamedTuple):
    """What generates, whatever its weights say."""

    config: BenchGenerateConfig
    weights: Weights
    vocabulary: Vocabulary
    bandwidth: float
    """Bytes a second that the device's memory moved in this run."""


def make_model(config: BenchGenerateConfig, bandwidth: float) -> Model:
    """A model of random weights in the layout of the engine."""
    model, execution, settings = config.model, config.execution, config.engine
    codes = max(model.vocab_size // 8, 1)  # as 8,192 of 65,536 in the paper
    vocabulary = Vocabulary.in_released_order(model.vocab_size - codes - 6, codes)
    params = random_params(model, execution.param_dtype, config.seed)
    weights = make_weights(
        params, model, Columns.build(vocabulary, config.codes_per_image),
        dtype="bfloat16" if settings.weights == "bfloat16" else execution.compute_dtype,
        quantization="int8" if settings.weights == "int8" else None,
    )  # fmt: skip
    del params
    return Model(config, jax.block_until_ready(weights), vocabulary, bandwidth)


def random_params(config: TransformerConfig, dtype: DType, seed: int = 0) -> Any:
    """Parameters as a fresh Transformer has them, made on the device in their own dtype."""

    def make(key: Array) -> Any:
        paths, tree = jax.tree_util.tree_flatten_with_path(abstract_params(config, dtype))
        return tree.unflatten(
            jnp.ones(leaf.shape, leaf.dtype)
            if path[-1].key == "scale"
            else config.init_std * jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
            for number, (path, leaf) in enumerate(paths)
        )

    return jax.block_until_ready(jax.jit(make)(jax.random.key(seed)))


def memory_bandwidth(repeats: int = 10) -> float:
    """Bytes a second of one device that reads and writes an array far larger than its caches: the fastest of some."""
    size = 2**26 if jax.default_backend() == "cpu" else 2**29
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = add(jnp.zeros(size, jnp.float32)).block_until_ready()
    nbytes, seconds = 2 * x.nbytes, []
    for _ in range(repeats):
        began = time.perf_counter()
        x = add(x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return nbytes / min(seconds)


def bandwidths(model: Model) -> dict[str, float | None]:
    """The bandwidth that was measured, and the maker's."""
    accelerator = find_accelerator(jax.devices()[0])
    return {
        "bandwidth": float(f"{model.bandwidth:.4g}"),
        "bandwidth_of_maker": None if accelerator is None else accelerator.memory_bandwidth,
    }


def make_engine(model: Model, rows: int, window: int = 1) -> Engine:
    """An engine with as many slots as text and pictures of this bench need."""
    config = model.config
    context = config.prompt + max(config.new_tokens, config.codes_per_image + 3)
    return Engine(
        config.model, model.weights, model.vocabulary, config.codes_per_image, context_length=-(-context // 256) * 256,
        rows=rows, settings=dataclasses.replace(config.engine, window=window), dtype=config.execution.compute_dtype,
    )  # fmt: skip


def measure_prefill(model: Model) -> dict[str, Any]:
    """Seconds in which one prompt is read."""
    config, rng = model.config, np.random.default_rng(model.config.seed)
    slots = make_engine(model, 1).context_length
    lanes = Lanes(config.model, model.weights.layers, 1, (slots,), config.execution.compute_dtype)
    seconds = []
    for _ in range(1 + config.repeats):
        prompt = _prompts(model, 1, rng)[0]
        began = time.perf_counter()
        lanes.read(0, 0, prompt)
        jax.block_until_ready(lanes.caches)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    return {
        "tokens": config.prompt,
        "seconds_to_read": round(median, 5),
        "tokens_per_second": round(config.prompt / median, 1),
    }


def measure_text(model: Model, rows: int) -> dict[str, Any]:
    """Tokens a second of `rows` requests at once, after their first tokens, and from when they were asked."""
    config = model.config
    options = GenerationConfig(mode="text", max_new_tokens=config.new_tokens, seed=config.seed)
    runs, first_run = _runs(model, make_engine(model, rows), rows, options)
    seconds = statistics.median(run.seconds_after_first / run.steps_after_first for run in runs)
    moved = step_bytes(model, model.weights.text, [config.prompt + config.new_tokens / 2] * rows)
    return {
        "rows": rows,
        "tokens_per_second": _spread([run.tokens_after_first / run.seconds_after_first for run in runs]),
        "tokens_per_second_with_prompts": _spread([run.tokens / run.seconds for run in runs]),
        "milliseconds_per_step": round(1000 * seconds, 4),
        "bytes_per_step": round(moved),
        "of_bandwidth": round(moved / seconds / model.bandwidth, 3),
        "seconds_to_first": round(statistics.median(run.seconds_to_first for run in runs), 4),
        "seconds_of_first_run": round(first_run, 2),
    }


def measure_pictures(model: Model, rows: int, window: int = 1) -> dict[str, Any]:
    """Seconds in which `rows` pictures are drawn at once, with guidance, from the prompt to the last code."""
    config = model.config
    guidance = {"text_guidance": config.text_guidance, "image_guidance": 1.0}  # no pictures in the prompts
    options = GenerationConfig(mode="image", seed=config.seed, **guidance)
    runs, first_run = _runs(model, make_engine(model, rows, window), rows, options)
    seconds = statistics.median(run.seconds for run in runs)
    steps = statistics.median(run.steps for run in runs)
    half = config.codes_per_image / 2
    lengths = [config.prompt + half, *([2 + half] if config.text_guidance != 1 else [])] * rows
    moved = step_bytes(model, model.weights.image, lengths)
    return {
        "rows": rows,
        "window": window,
        "lanes": len(lengths),
        "seconds_to_draw": _spread([run.seconds for run in runs]),
        "steps": steps,
        "codes_per_second": round(rows * config.codes_per_image / seconds, 1),
        "milliseconds_per_step": round(1000 * seconds / steps, 4),
        "bytes_per_step": round(moved),
        "of_bandwidth": round(moved * steps / seconds / model.bandwidth, 3),
        "seconds_of_first_run": round(first_run, 2),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    rounded = [float(f"{value:.5g}") for value in values]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "all": rounded}


class _Run(NamedTuple):
    seconds: float
    seconds_to_first: float
    tokens: int
    steps: int
    seconds_after_first: float
    tokens_after_first: int
    steps_after_first: int


def _runs(model: Model, engine: Engine, rows: int, options: GenerationConfig) -> tuple[list[_Run], float]:
    """Runs with prompts of their own, and the seconds of one before them, which compiles."""
    rng, runs = np.random.default_rng(model.config.seed), []
    for _ in range(1 + model.config.repeats):
        prompts = _prompts(model, rows, rng, begins_picture=options.mode == "image")
        before = engine.statistics.steps
        handles = [engine.submit(prompt, options, sample=sample) for sample, prompt in enumerate(prompts)]
        results = [handle.result() for handle in handles]
        firsts = [len(next(iter(handle)).ids) for handle in handles]
        seconds, to_first = (max(getattr(each, name) for each in results) for name in ("seconds", "seconds_to_first"))
        steps, tokens = engine.statistics.steps - before, sum(len(each.ids) for each in results)
        runs.append(
            _Run(seconds, to_first, tokens, steps, seconds - to_first, tokens - sum(firsts), steps - max(firsts))
        )
    return runs[1:], runs[0].seconds


def _prompts(model: Model, rows: int, rng: np.random.Generator, begins_picture: bool = False) -> list[np.ndarray]:
    vocabulary, end = model.vocabulary, [model.vocabulary.begin_image] if begins_picture else []
    words = rng.choice(vocabulary.text_ids, (rows, model.config.prompt - 1 - len(end)))
    return [np.array([vocabulary.bos, *each, *end], np.int32) for each in words]


def step_bytes(model: Model, head: Head, lengths: Sequence[float]) -> float:
    """Bytes that a step cannot do without: all weights once, and keys and values of lanes that hold so many tokens."""
    config, layers = model.config.model, model.weights.layers
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((layers.layers, layers.norm, head)))
    dtype = jnp.int8 if model.config.engine.cache == "int8" else model.config.execution.compute_dtype
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    return weights + sum(lengths) * token


def measure_parts(model: Model, rows: int, step_milliseconds: float, *, picture: bool) -> dict[str, float]:
    """Milliseconds of the parts of a step; what is left of it is put down to the layers."""
    config, weights = model.config, model.weights
    head = weights.image if picture else weights.text
    options = GenerationConfig().image if picture else GenerationConfig().text
    sampling = Sampling(
        *(jnp.full(rows, value, jnp.float32) for value in (options.temperature, options.top_p, options.min_p)),
        top_k=jnp.full(rows, options.top_k, jnp.int32),
    )
    lanes = rows * (2 if picture and config.text_guidance != 1 else 1)
    hidden = jax.random.normal(jax.random.key(1), (lanes, config.model.d_model), config.execution.compute_dtype)
    logits = jax.jit(readout)(head, hidden)
    keys = jax.random.split(jax.random.key(2), rows)
    parts = {
        "head": _seconds(lambda x, head, hidden: readout(head, hidden + x.astype(hidden.dtype)), head, hidden),
        "drawing": _seconds(lambda x, *rest: draw(rest[0], rest[1] + x, rest[2])[1], keys, logits[:rows], sampling),
    }
    if lanes > rows:
        scales, ones = jnp.full((rows, 2), config.text_guidance), jnp.ones(rows, jnp.int32)
        parts["guidance"] = _seconds(
            lambda x, logits, scales, ones: guide(logits[:rows] + x, logits[rows:], None, scales, ones),
            logits, scales, ones,
        )  # fmt: skip
    milliseconds = {name: round(1000 * seconds, 4) for name, seconds in parts.items()}
    return {"layers": round(step_milliseconds - sum(milliseconds.values()), 4), **milliseconds}


def _seconds(work: Callable[..., Array], *arguments: Any) -> float:
    """Seconds of `work(x, *arguments)`, repeated on the device, where each turn needs the one before."""

    @jax.jit
    def turns(*arguments: Any) -> Array:
        return jax.lax.fori_loop(
            0, TURNS, lambda _, x: 1e-30 * jnp.max(work(x, *arguments)).astype(jnp.float32), jnp.float32(0)
        )

    turns(*arguments).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        turns(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return min(seconds) / TURNS


def bench_generate(config: BenchGenerateConfig) -> dict[str, Any]:
    """Measures; returns what `chameleon bench generate` prints."""
    model = make_model(config, memory_bandwidth())
    text = [measure_text(model, rows) for rows in config.rows]
    for each in text:
        each["parts"] = measure_parts(model, each["rows"], each["milliseconds_per_step"], picture=False)
    pictures = []
    for window in sorted({1, config.engine.window}) if config.codes_per_image else ():
        for rows in config.rows:
            found = measure_pictures(model, rows, window)
            if window == 1:
                found["parts"] = measure_parts(model, rows, found["milliseconds_per_step"], picture=True)
            pictures.append(found)
    return {
        "bench": "generate",
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config.model))),
        "prefill": measure_prefill(model),
        "text": text,
        "pictures": pictures,
        **bandwidths(model),
        "memory": device_memory(),
        "config": to_dict(config),
        **environment(),
    }
