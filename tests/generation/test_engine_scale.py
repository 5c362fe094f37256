"""What may not grow: compilations, memory, copies of the cache. Counted by XLA and by counters, not by a clock."""

from __future__ import annotations

import contextlib
import functools
import gc
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import scrambled_vocabulary, transformer_for, transformer_params

from chameleon_jax.config import EngineConfig, GenerationConfig, SamplingConfig
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.prefill import BUCKETS, extend_chunk
from chameleon_jax.generation.programs import decode, make_weights
from chameleon_jax.generation.rows import Rows
from chameleon_jax.models.decoding import Cache
from chameleon_jax.weights.checkpoint import abstract_params

CODES = 4
VOCABULARY = scrambled_vocabulary(num_pieces=25, num_codes=12, seed=3)
MODEL = transformer_for(VOCABULARY)


def new_engine() -> Engine:
    params = transformer_params(MODEL, seed=4)
    params["output"] = params["output"].at[:, VOCABULARY.begin_image].multiply(4.0)
    weights = make_weights(params, MODEL, Columns.build(VOCABULARY, CODES), dtype="float32")
    return Engine(MODEL, weights, VOCABULARY, CODES, context_length=300, settings=EngineConfig(rows=4, queue=300))


def random_requests(count: int, seed: int):
    """Prompts of up to 280 tokens, some with pictures, and options of every kind."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        prompt = [VOCABULARY.bos, *rng.choice(VOCABULARY.text_ids, rng.choice([0, 3, 20, 70, 200, 270]))]
        if rng.random() < 0.3 and len(prompt) < 250:
            picture = VOCABULARY.begin_image, *rng.choice(VOCABULARY.image_ids, CODES), VOCABULARY.end_image
            prompt[1:1] = picture
        mode = rng.choice(["text", "interleaved", "image"])
        if mode == "image":
            prompt.append(VOCABULARY.begin_image)
        sampling = SamplingConfig(
            temperature=float(rng.choice([0, 0.5, 2])),
            top_p=float(rng.uniform(0.5, 1)),
            top_k=int(rng.integers(0, 9)),
            min_p=float(rng.choice([0, 0.05])),
        )
        yield (
            np.array(prompt, np.int32),
            GenerationConfig(
                mode=str(mode),
                form=str(rng.choice(["completion", "chat"])),
                max_new_tokens=int(rng.integers(1, 9)),
                text=sampling,
                image=sampling,
                text_guidance=float(rng.choice([1, 3])),
                image_guidance=float(rng.choice([1, 1.2])),
                repetition_penalty=float(rng.choice([1, 1.2])),
                seed=int(rng.integers(2**40)),
            ),
        )


def answer(engine: Engine, count: int, seed: int) -> list[weakref.ref]:
    handles = [engine.submit(prompt, options) for prompt, options in random_requests(count, seed)]
    for handle in handles:
        handle.result()
    return [weakref.ref(handle) for handle in handles]


@contextlib.contextmanager
def counted_compilations():
    events = []

    def listen(event: str, *_, **__) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def warm_engine():
    """An engine after 200 requests, and how many programs were compiled for them."""
    engine = new_engine()
    with counted_compilations() as compiled:
        answer(engine, 200, seed=0)
    return engine, len(compiled)


def test_two_hundred_requests_of_every_kind_share_a_dozen_programs(warm_engine):
    engine, compiled = warm_engine
    assert compiled <= 12
    with counted_compilations() as more:
        answer(engine, 100, seed=1)
    assert not more


@pytest.mark.slow
def test_a_thousand_requests_leave_nothing_behind(warm_engine):
    engine, _ = warm_engine
    answer(engine, 20, seed=2)
    gc.collect()
    arrays = len(jax.live_arrays())
    tracemalloc.start()
    answer(engine, 200, seed=3)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    handles = [handle for seed in range(4, 8) for handle in answer(engine, 200, seed)]
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not any(handle() for handle in handles)
    assert len(jax.live_arrays()) <= arrays
    assert after - before < 200 * len(handles)  # the weak references themselves


ROWS, SLOTS = 4, 2048


@functools.cache
def abstract_inputs(pieces: int):
    """The engine's inputs as shapes, with a vocabulary of so many text pieces and 8,192 codes."""
    vocabulary = scrambled_vocabulary(pieces, 8192)
    columns = Columns.build(vocabulary, 1024)
    config = transformer_for(vocabulary, d_model=64, num_layers=8, mlp_dim=128)
    weights = jax.eval_shape(
        functools.partial(make_weights, config=config, columns=columns, dtype="float32"), abstract_params(config)
    )
    cache = jax.eval_shape(functools.partial(Cache.empty, config, ROWS, SLOTS, "float32"))
    return config, weights, columns, cache


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_caches_are_written_in_place():
    config, weights, columns, cache = abstract_inputs(1000)
    rows = Rows.empty(ROWS, len(columns.text_ids), 1)
    lowered = decode.lower(
        config, weights, columns, rows, (cache,) * 3, jnp.int32(8), jnp.bool_(False), max_steps=8, window=1
    )
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * nbytes(cache)
    assert memory.temp_size_in_bytes < 3 * nbytes(cache) / 4  # less than those of two of the eight layers


def test_memory_of_prefill_does_not_depend_on_the_vocabulary():
    temporaries = []
    for pieces in (1000, 50_000):
        config, weights, _, cache = abstract_inputs(pieces)
        chunk = jnp.zeros(BUCKETS[-1], jnp.int32)
        lowered = extend_chunk.lower(weights.layers, config, chunk, jnp.int32(0), jnp.int32(0), cache)
        temporaries.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert temporaries[0] == temporaries[1]
