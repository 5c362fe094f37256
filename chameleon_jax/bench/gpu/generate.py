"""Writing with random weights of the 7B in bfloat16: text, and a picture under guidance."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.bench.gpu.record import Record
from chameleon_jax.bench.train import device_memory
from chameleon_jax.config import ExecutionConfig, GenerationConfig, ImageTokenizerConfig, TransformerConfig
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.programs import make_weights
from chameleon_jax.models.decoding import Cache
from chameleon_jax.models.flops import matmul_parameters
from chameleon_jax.models.vq import VQModel
from chameleon_jax.runtime.accelerators import find_accelerator
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.checkpoint import abstract_params

PROMPT = 16
"""Tokens of the prompt."""
EXECUTION = ExecutionConfig(param_dtype="bfloat16", compute_dtype="bfloat16")
TINY = TransformerConfig(
    vocab_size=64, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32
)  # fmt: skip
TINY_PICTURES = ImageTokenizerConfig(
    resolution=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=4, code_dim=4,
    num_codes=16, norm_groups=4,
)  # fmt: skip


def generate(record: Record) -> None:
    """The stage: tokens a second, seconds a picture, and the bytes of weights and cache that are read a second."""
    model, pictures, tokens = TransformerConfig(), ImageTokenizerConfig(), 256  # the 7B
    if record.rehearsal:
        model, pictures, tokens = TINY, TINY_PICTURES, 4
    params = random_params(model)
    text = GenerationConfig(mode="text", max_new_tokens=tokens)
    record.check("text", functools.partial(write, model, params, pictures, text, 1), about=20)
    picture = GenerationConfig(mode="image")
    record.check("picture with guidance", functools.partial(write, model, params, pictures, picture, 1), about=30)
    record.update(memory=device_memory())
    record.check("codes to pixels", functools.partial(draw, pictures), about=15)
    if not record.rehearsal:  # the same code, compiled anew
        record.check("text, 8 rows", functools.partial(write, model, params, pictures, text, 8), about=25)


def random_params(config: TransformerConfig) -> Any:
    """Parameters as a fresh model has them, made on the device in their own dtype."""

    def make(key: Array) -> Any:
        paths, tree = jax.tree_util.tree_flatten_with_path(abstract_params(config, EXECUTION.param_dtype))
        return tree.unflatten(
            jnp.ones(leaf.shape, leaf.dtype)
            if path[-1].key == "scale"
            else config.init_std * jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
            for number, (path, leaf) in enumerate(paths)
        )

    return jax.block_until_ready(jax.jit(make)(jax.random.key(0)))


def write(
    model: TransformerConfig, params: Any, pictures: ImageTokenizerConfig, config: GenerationConfig, rows: int
) -> dict[str, Any]:
    """Continues `rows` prompts at once, twice, and times the second."""
    vocabulary = Vocabulary.in_released_order(model.vocab_size - pictures.num_codes - 6, pictures.num_codes)
    columns = Columns.build(vocabulary, pictures.codes_per_image)
    weights = make_weights(params, model, columns, dtype=EXECUTION.compute_dtype)
    steps = pictures.codes_per_image + 1 if config.mode == "image" else config.max_new_tokens
    engine = Engine(
        model, weights, vocabulary, pictures.codes_per_image, context_length=PROMPT + steps, rows=rows,
        dtype=EXECUTION.compute_dtype,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    end = [vocabulary.begin_image] if config.mode == "image" else []
    words = rng.choice(vocabulary.text_ids, (rows, PROMPT - 1 - len(end)))
    seconds = []
    for _ in range(2):  # the first time it compiles
        began = time.perf_counter()
        handles = [engine.submit(np.array([vocabulary.bos, *row, *end]), config) for row in words]
        results = [handle.result() for handle in handles]
        seconds.append(time.perf_counter() - began)

    tokens = sum(len(result.ids) for result in results)
    lanes = 1 + int(config.mode == "image")  # without earlier pictures, one context serves for both scales
    cache = jax.eval_shape(lambda: Cache.empty(model, lanes * rows, PROMPT + steps, EXECUTION.compute_dtype))
    moved = 2 * matmul_parameters(model) + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    figures = {
        "rows": rows,
        "rows_with_guidance": lanes * rows,
        "tokens": tokens // rows,
        "seconds_to_compile": round(seconds[0] - seconds[1], 1),
        "seconds_to_write": round(seconds[1], 3),
        "tokens_per_second": round(tokens / seconds[1], 1),
        "milliseconds_per_token": round(1000 * seconds[1] * rows / tokens, 3),
        "bytes_per_token": moved,
        "bytes_per_second": round(moved * tokens / rows / seconds[1]),
    }
    accelerator = find_accelerator(jax.devices()[0])
    if accelerator is not None:
        figures["of_memory_bandwidth"] = round(figures["bytes_per_second"] / accelerator.memory_bandwidth, 3)
    kind = [*vocabulary.image_ids, vocabulary.end_image] if config.mode == "image" else columns.text_ids
    wrong = sum(int((~np.isin(result.ids, kind)).sum()) for result in results)
    return figures | {"problem": f"{wrong} tokens are not of mode {config.mode}" if wrong else None}


def draw(config: ImageTokenizerConfig) -> dict[str, Any]:
    """Decodes the codes of one picture by an image tokenizer of the released sizes, whatever its weights."""
    codes = jnp.zeros((1, config.codes_per_image), jnp.int32)
    model = VQModel(config)
    pixels = jax.ShapeDtypeStruct((1, config.resolution, config.resolution, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    params = jax.tree.map(lambda leaf: jax.device_put(np.full(leaf.shape, 0.01, leaf.dtype)), shapes)
    decode = jax.jit(lambda params, codes: model.apply(params, codes, method="decode"))
    began = time.perf_counter()
    decode(params, codes).block_until_ready()
    first = time.perf_counter() - began
    began = time.perf_counter()
    drawn = np.asarray(decode(params, codes))
    seconds = time.perf_counter() - began
    problem = None if np.isfinite(drawn).all() else "the picture is not finite"
    return {"seconds_the_first_time": round(first, 2), "seconds_to_draw": round(seconds, 4), "problem": problem}
