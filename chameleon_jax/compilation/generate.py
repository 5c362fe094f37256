"""`chameleon compile generate`: drawing with guidance, compiled for devices at hand or for some that are not there."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from chameleon_jax.compilation.collectives import read_collectives
from chameleon_jax.compilation.estimate import bytes_per_device, collectives_report, memory_report
from chameleon_jax.compilation.run import compile_and_report, lower_and_compile, what_it_needs
from chameleon_jax.compilation.table import generate_lines
from chameleon_jax.config import BenchGenerateConfig, CompileOptions, MeshConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.engine import PICTURE_STEPS
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.programs import Weights, decode, make_weights
from chameleon_jax.generation.rows import Rows
from chameleon_jax.models.decoding import (
    Cache,
    DecodeWeights,
    cache_sharding,
    head_padding,
    head_shardings,
    layer_shardings,
)
from chameleon_jax.runtime.accelerators import find_accelerator
from chameleon_jax.runtime.progress import console
from chameleon_jax.sharding import make_mesh, replicated
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.checkpoint import abstract_params


def compile_generate_command(config: BenchGenerateConfig, how: CompileOptions) -> dict[str, Any]:
    """Compiles and prints the report."""
    return compile_and_report(how, functools.partial(compile_decode, config), generate_lines)


def compile_decode(config: BenchGenerateConfig, devices: list[Any]) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Compiles the program with which `max(config.rows)` rows draw at once, each with the whole context.

    Weights and caches are divided over all devices by the mesh axis `tensor`.

    Returns:
      the executable, and what is known of it. Bytes are of one device, collectives of one step.

    Raises:
      ConversionError: if so many devices do not divide the weights evenly.
      ChameleonError: if XLA finds that it does not fit into the memory of a device.
    """
    mesh = make_mesh(MeshConfig(data=1, tensor=len(devices)), devices)
    weights, columns = abstract_weights(config, mesh)
    rows = max(config.rows)
    lanes = 1 if config.text_guidance == 1 else 2  # a row, no pictures in the prompts
    model, settings = config.model, config.engine
    cache = _placed(
        jax.eval_shape(functools.partial(Cache.empty, model, rows, model.context_length, cache_dtype(config))),
        cache_sharding(weights.layers) or replicated(mesh),
    )
    state = Rows.empty(rows, len(columns.text_ids), settings.window)
    state, columns, *numbers = (
        _placed(tree, replicated(mesh)) for tree in (state, columns, np.int32(settings.steps), np.bool_(False))
    )
    caches = (cache,) * lanes
    steps = settings.steps * PICTURE_STEPS
    console.print(f"compile for {len(devices)} x {devices[0].device_kind}; a large model takes minutes")
    began = time.monotonic()
    traced = decode.trace(
        model, weights, columns, state, caches, *numbers, max_steps=steps, window=settings.window,
        logits_sharding=replicated(mesh) if mesh.size > 1 else None,
    )  # fmt: skip
    try:
        compiled = lower_and_compile(traced, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ChameleonError(
            f"does not fit: {what_it_needs(error)} a device. Try more chips; fewer --rows; --engine.weights int8; "
            "--engine.cache int8"
        ) from error
    seconds = time.monotonic() - began
    accelerator = find_accelerator(devices[0])
    moved = read_collectives(compiled.as_text(), mesh.size)  # the loop over steps counts as one of them
    trees = {"weights": weights, "cache": caches, "rows": (state, columns)}
    read = bytes_per_device(weights._replace(text=None)) + bytes_per_device(caches)
    return compiled, {
        "device": accelerator.name if accelerator else devices[0].device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model))),
        "rows": rows,
        "lanes_per_row": lanes,
        "slots": model.context_length,
        "window": settings.window,
        "compile_seconds": round(seconds, 1),
        "memory": memory_report(compiled, trees, accelerator and accelerator.memory),
        "collectives": collectives_report(moved.collectives),
        "step_seconds_at_least": accelerator and read / accelerator.memory_bandwidth,
    }


def cache_dtype(config: BenchGenerateConfig) -> str:
    if config.engine.cache == "int8":
        return "int8"
    return "bfloat16" if config.engine.weights == "bfloat16" else config.execution.compute_dtype


def abstract_weights(config: BenchGenerateConfig, mesh: Mesh) -> tuple[Weights, Columns]:
    """Shapes, dtypes and shardings of the engine's weights on a mesh."""
    model, settings = config.model, config.engine
    codes = max(model.vocab_size // 8, 1)  # as 8,192 of 65,536 in the paper
    columns = Columns.build(Vocabulary.in_released_order(model.vocab_size - codes - 6, codes), config.codes_per_image)
    quantization = "int8" if settings.weights == "int8" else None
    dtype = "bfloat16" if settings.weights == "bfloat16" else config.execution.compute_dtype
    params = abstract_params(model, config.execution.param_dtype, mesh)
    even = lambda ids: jnp.pad(ids, (0, head_padding(params["output"], len(ids))))  # noqa: E731
    padded = columns._replace(text_ids=even(columns.text_ids), image_ids=even(columns.image_ids))
    make = functools.partial(make_weights, config=model, columns=padded, dtype=dtype, quantization=quantization)
    weights = jax.eval_shape(make, abstract_params(model, config.execution.param_dtype))
    if mesh.size == 1:
        return _placed(weights, replicated(mesh)), columns
    layer = layer_shardings(params["layers"], model, quantization)
    shardings = Weights(
        DecodeWeights(params["embed"].sharding, (layer,) * model.num_layers, params["norm"]["scale"].sharding),
        *(head_shardings(params["output"], quantization),) * 2,
    )
    return jax.tree.map(_placed, weights, shardings), columns


def _placed(tree: Any, sharding: Any) -> Any:
    """Shapes and dtypes of arrays, all of them with this sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
