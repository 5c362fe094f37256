"""Generation by the 7B with random weights: text, pictures under guidance, and the share of the memory's bandwidth."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.bench.generate import (
    bandwidths,
    make_model,
    measure_parts,
    measure_pictures,
    measure_prefill,
    measure_text,
    memory_bandwidth,
)
from chameleon_jax.bench.gpu.record import Record
from chameleon_jax.bench.train import device_memory
from chameleon_jax.config import BenchGenerateConfig, ImageTokenizerConfig, find_configs, read_config
from chameleon_jax.models.vq import VQModel, abstract_params

TINY = {
    "model.vocab_size": 64, "model.d_model": 16, "model.num_layers": 2, "model.num_heads": 2, "model.num_kv_heads": 2,
    "model.head_dim": 8, "model.mlp_dim": 32, "codes_per_image": 4, "new_tokens": 12,
}  # fmt: skip
TINY_PICTURES = ImageTokenizerConfig(
    resolution=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=4, code_dim=4,
    num_codes=16, norm_groups=4,
)  # fmt: skip


def generate(record: Record) -> None:
    """The stage: what tells most comes first, as every check compiles its own programs."""
    changes = {"repeats": 1} | (TINY if record.rehearsal else {})
    config = read_config(BenchGenerateConfig, find_configs() / "bench" / "generate" / "7b.yaml", changes)
    model = make_model(config, memory_bandwidth())
    record.update(**bandwidths(model))
    window, many = (2, 2) if record.rehearsal else (16, 16)

    text = record.check("text", functools.partial(measure_text, model, 1), about=40)
    picture = record.check("picture with guidance", functools.partial(measure_pictures, model, 1), about=45)
    record.update(memory=device_memory())
    if not record.rehearsal:  # the same code, compiled anew
        record.check("text, 8 rows", functools.partial(measure_text, model, 8), about=40)
        pictures = functools.partial(measure_pictures, model, many)
        record.check(f"{many} pictures with guidance", pictures, about=60)
    jacobi = functools.partial(measure_pictures, model, 1, window)
    record.check(f"picture with guidance, {window} codes at a time", jacobi, about=60)
    for name, found, is_picture in (("text", text, False), ("a picture", picture, True)):
        if found is not None:
            parts = functools.partial(measure_parts, model, 1, found["milliseconds_per_step"], picture=is_picture)
            record.check(f"parts of a step of {name}, in ms", parts, about=10)
    record.check("prompt", functools.partial(measure_prefill, model), about=10)
    record.check("codes to pixels", functools.partial(draw, TINY_PICTURES if record.rehearsal else None), about=15)
    if not record.rehearsal and record.chosen("text, int8"):
        bandwidth = model.bandwidth
        del model
        settings = dataclasses.replace(config.engine, weights="int8")
        model = make_model(dataclasses.replace(config, engine=settings), bandwidth)
        record.check("text, int8", functools.partial(measure_text, model, 1), about=40)


def draw(config: ImageTokenizerConfig | None = None) -> dict[str, Any]:
    """Decodes the codes of a picture by an image tokenizer, of the released sizes by default, whatever its weights."""
    config = config or ImageTokenizerConfig()
    codes = jnp.zeros((1, config.codes_per_image), jnp.int32)
    model = VQModel(config)
    params = jax.tree.map(lambda leaf: jax.device_put(np.full(leaf.shape, 0.01, leaf.dtype)), abstract_params(config))
    decode = jax.jit(lambda params, codes: model.apply({"params": params}, codes, method="decode"))
    began = time.perf_counter()
    decode(params, codes).block_until_ready()
    first = time.perf_counter() - began
    began = time.perf_counter()
    drawn = np.asarray(decode(params, codes))
    seconds = time.perf_counter() - began
    problem = None if np.isfinite(drawn).all() else "the picture is not finite"
    return {"seconds_the_first_time": round(first, 2), "seconds_to_draw": round(seconds, 4), "problem": problem}
