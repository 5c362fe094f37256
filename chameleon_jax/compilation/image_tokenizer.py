"""`chameleon compile image-tokenizer`: its train step, compiled for devices at hand or for some that are not there."""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from chameleon_jax.batch import Pictures
from chameleon_jax.compilation.collectives import read_collectives
from chameleon_jax.compilation.estimate import collectives_report, memory_report
from chameleon_jax.compilation.run import compile_and_report, lower_and_compile, what_it_needs
from chameleon_jax.compilation.table import image_tokenizer_lines
from chameleon_jax.config import CompileOptions, ImageTokenizerTrainConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.runtime.accelerators import find_accelerator
from chameleon_jax.runtime.progress import console
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training.image_tokenizer_task import ImageTokenizerTask
from chameleon_jax.training.state import abstract_state
from chameleon_jax.training.step import make_train_step

if TYPE_CHECKING:
    from data_pipeline.config import ImageTokenizerCommand


def compile_image_tokenizer(command: ImageTokenizerCommand, how: CompileOptions) -> dict[str, Any]:
    """Compiles and prints the report."""
    return compile_and_report(how, functools.partial(compile_step, command.tokenizer), image_tokenizer_lines)


def compile_step(config: ImageTokenizerTrainConfig, devices: list[Any]) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Compiles the train step. No file that the config names is read.

    Returns:
      the executable, and what is known of it. Bytes are of one device, collectives of one step.

    Raises:
      ConfigError: if the config does not fit the mesh.
      ChameleonError: if XLA finds that the step does not fit into the memory of a device.
    """
    mesh = make_mesh(config.mesh, devices)
    task, side = ImageTokenizerTask(config), config.model.resolution
    task.check_mesh(mesh)
    state, sharding = abstract_state(task, mesh), task.batch_shardings(mesh)
    batch = Pictures(
        jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8, sharding=sharding),
        jax.ShapeDtypeStruct((config.batch_size,), jnp.float32, sharding=sharding),
    )
    console.print(f"compile for {len(devices)} x {devices[0].device_kind}; the released size takes minutes")
    began = time.monotonic()
    try:
        compiled = lower_and_compile(make_train_step(task, mesh).trace(state, batch), mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ChameleonError(f"does not fit: {what_it_needs(error)} a device. Try {_advice(config)}") from error
    seconds = time.monotonic() - began
    accelerator = find_accelerator(devices[0])
    moved = read_collectives(compiled.as_text(), mesh.size)
    trees = {"parameters": state.params, "optimizer_state": state.opt_state, "batch": batch}
    work = task.work(batch)
    return compiled, {
        "device": accelerator.name if accelerator else devices[0].device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params["model"])),
        "batch_size": config.batch_size,
        "resolution": side,
        "accumulation": config.accumulation,
        "pictures_per_device_and_part": config.batch_size
        // (mesh.shape["data"] * mesh.shape["fsdp"])
        // config.accumulation,
        "compile_seconds": round(seconds, 1),
        "memory": memory_report(compiled, trees, accelerator and accelerator.memory),
        "collectives": collectives_report(moved.collectives),
        "loops_of_unknown_length": moved.unknown_loops,
        "model_flops_per_device": work.flops / mesh.size,
    }


def _advice(config: ImageTokenizerTrainConfig) -> str:
    """What to try for a step that does not fit."""
    wanted = {"compute_dtype": "bfloat16", "remat": "blocks"}
    ways = [
        f"--tokenizer.execution.{key} {value}"
        for key, value in wanted.items()
        if getattr(config.execution, key) != value
    ]
    return "; ".join([*ways, "more chips, or more --tokenizer.accumulation"])
