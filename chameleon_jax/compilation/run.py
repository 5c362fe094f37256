"""`chameleon compile`: the full train step, compiled for devices at hand or for a pod that is not there."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pickle
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from chameleon_jax.batch import Batch, row_dtype
from chameleon_jax.compilation.collectives import read_collectives
from chameleon_jax.compilation.estimate import (
    advice,
    bytes_per_device,
    collectives_report,
    memory_report,
    roofline,
    step_traffic_bound,
    width_advice,
)
from chameleon_jax.compilation.table import lines
from chameleon_jax.compilation.topologies import describe_topology
from chameleon_jax.config import CompileOptions, ConfigError, TrainConfig, require
from chameleon_jax.errors import ChameleonError
from chameleon_jax.runtime.accelerators import Accelerator, find_accelerator
from chameleon_jax.runtime.files import new_file
from chameleon_jax.runtime.folders import Kind, check_file
from chameleon_jax.runtime.progress import console
from chameleon_jax.sharding import batch_sharding, check_length, check_mesh, make_mesh, replicated_arrays
from chameleon_jax.training.state import TrainState, abstract_state
from chameleon_jax.training.step import make_evaluation_step, make_train_step
from chameleon_jax.training.transformer import TransformerTask, flops_per_token, step_compiler_options

EXECUTABLE = Kind("an executable saved by `chameleon compile`", lambda path: b"PyTreeDef" in path.read_bytes())


def compile_command(config: TrainConfig, how: CompileOptions) -> dict[str, Any]:
    """Compiles and prints the report."""
    return compile_and_report(how, functools.partial(compile_train_step, config), lines)


def compile_and_report(
    how: CompileOptions,
    compile_for: Callable[[list[Any]], tuple[jax.stages.Compiled, dict[str, Any]]],
    lines_of: Callable[[dict[str, Any]], Iterable[str]],
) -> dict[str, Any]:
    """Compiles for the devices of `how`, prints the report, and saves the executable where that is asked for."""
    if how.save:
        check_file(how.save, EXECUTABLE)
    devices = describe_topology(how.topology, how.slices) if how.topology else jax.devices()
    compiled, report = compile_for(devices)
    report = {"topology": how.topology, "slices": how.slices, **report}
    if how.save:
        save(compiled, how.save)
        report["saved"] = how.save
    print(json.dumps(report, indent=2) if how.json else "\n".join(lines_of(report)))
    return {}


def abstract_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> Batch:
    """Shapes, dtypes and shardings of the batches that `config` trains on."""
    if config.sequence_length is None:
        raise ConfigError("sequence_length: missing; must be a whole number, the tokens of a row (4096 in the paper)")
    check_mesh(config, mesh)
    check_length(config, mesh, config.sequence_length)
    dtypes, shape = row_dtype(config.sequence_length), (config.batch_size, config.sequence_length)
    sharding = batch_sharding(mesh)
    return Batch(*(jax.ShapeDtypeStruct(shape, dtypes[name].base, sharding=sharding) for name in Batch._fields))


def compile_train_step(config: TrainConfig, devices: list[Any]) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Compiles the train step and the evaluation step of `config` for `devices`, which need not exist.

    Returns:
      the executable of the train step, and what is known of both: see `docs/compiled_for_pods.md`. Bytes and seconds
      are of one device and one step.

    Raises:
      ConfigError: if the config lacks `sequence_length` or `model.vocab_size`, or does not fit the mesh.
      ChameleonError: if XLA finds that a step does not fit into the memory of a device.
    """
    needed = "must be a number, there is no prepared data here that says it (65536 in the paper)"
    require(config.model.vocab_size is not None, "model.vocab_size", None, needed)
    mesh = make_mesh(config.mesh, devices)
    batch = abstract_batch(config, mesh)
    # Which ids are image codes the prepared data knows, and it is no matter of size; but without any, XLA would leave
    # out the gradient of an image head. These are the released model's.
    ids = np.arange(config.model.vocab_size)
    task = TransformerTask(config, (ids >= 4) & (ids < 8196))
    state = abstract_state(task, mesh)
    accelerator = find_accelerator(devices[0])
    console.print(f"compile for {len(devices)} x {devices[0].device_kind}; a large model takes minutes")
    began = time.monotonic()
    try:
        compiled = _compile(make_train_step(task, mesh), state, batch)
        seconds = time.monotonic() - began
        evaluation = _compile(make_evaluation_step(task, mesh), state.params, batch)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _too_large(error, config, mesh, state) from error
    report = _report(config, mesh, compiled, evaluation, state, batch, accelerator)
    options = step_compiler_options(config, mesh)
    return compiled, {**report, "compile_seconds": round(seconds, 1), "compiler_options": options}


def _compile(step: Any, *arguments: Any) -> jax.stages.Compiled:
    """The jitted `step` for the devices on which its arguments lie."""
    return lower_and_compile(step.trace(*arguments), jax.tree.leaves(arguments)[0].sharding.mesh)


def lower_and_compile(traced: jax.stages.Traced, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """The program for the devices of a mesh, which need not exist."""
    platform = mesh.devices.flat[0].platform
    return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).compile()


def _report(
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    compiled: jax.stages.Compiled,
    evaluation: jax.stages.Compiled,
    state: TrainState,
    batch: Batch,
    accelerator: Accelerator | None,
) -> dict[str, Any]:
    length = config.sequence_length
    capacity = accelerator and accelerator.memory
    trees = {"parameters": state.params, "optimizer_state": state.opt_state, "batch": batch}
    memory = memory_report(compiled, trees, capacity)
    evaluation_memory = memory_report(evaluation, trees, capacity, beside="optimizer_state")
    moved = read_collectives(compiled.as_text(), mesh.size)
    flops = config.batch_size * length * flops_per_token(config, length)
    traffic = step_traffic_bound(config, state.params, bytes_per_device(state), mesh)
    rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation)
    device = mesh.devices.flat[0]
    return {
        "device": accelerator.name if accelerator else device.device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "batch_size": config.batch_size,
        "sequence_length": length,
        "accumulation": config.accumulation,
        "rows_per_device_and_part": rows,
        "memory": memory,
        "evaluation_memory": evaluation_memory,
        "advice": [*_what_to_try(config, mesh, memory, evaluation_memory), *width_advice(config, mesh)],
        "replicated": [array._asdict() for array in replicated_arrays(state, mesh)],
        "collectives": collectives_report(moved.collectives),
        "loops_of_unknown_length": moved.unknown_loops,
        "model_flops": flops,
        "model_flops_per_device": flops / mesh.size,
        "memory_traffic_bound": traffic,
        "estimate": accelerator and roofline(config, length, mesh, accelerator, traffic, moved.collectives),
    }


def _what_to_try(
    config: TrainConfig, mesh: jax.sharding.Mesh, memory: dict[str, Any], evaluation_memory: dict[str, Any]
) -> list[str]:
    """Advice for the step that does not fit."""
    if memory["fits"] is False:
        return advice(config, mesh, memory)
    if evaluation_memory["fits"] is False:  # it keeps nothing for a backward pass
        execution = dataclasses.replace(config.execution, remat="full")
        return advice(dataclasses.replace(config, execution=execution), mesh, evaluation_memory)
    return []


_HBM = re.compile(r"Used ([\d.]+\w) of ([\d.]+\w) hbm")


def what_it_needs(error: Exception) -> str:
    """What XLA says of a program that it cannot place in memory."""
    found = _HBM.search(str(error))
    return f"it needs {found[1]}iB of {found[2]}iB" if found else str(error).splitlines()[0][:200]


def _too_large(error: Exception, config: TrainConfig, mesh: jax.sharding.Mesh, state: TrainState) -> ChameleonError:
    """What XLA says of a program that it cannot place in memory, in one line with what to try."""
    found = _HBM.search(str(error))
    memory = {"parameters": bytes_per_device(state.params), "optimizer_state": bytes_per_device(state.opt_state)}
    held = sum(memory.values())
    # What XLA could not place is mostly temporaries, unless the state alone is as large as the memory.
    memory["temporaries"] = float(found[1][:-1]) * 2**30 - held if found and found[1].endswith("G") else math.inf
    return ChameleonError(
        f"does not fit: {what_it_needs(error)} a device, {held / 2**30:.2f} GiB of them parameters and optimizer "
        f"state. Try {'; or '.join(advice(config, mesh, memory))}"
    )


def save(compiled: jax.stages.Compiled, path: str) -> None:
    """Writes the executable for `jax.experimental.serialize_executable.deserialize_and_load`: the pickled tuple of
    program, input and output trees. Read it only where you trust who wrote it, and with the same jax and libtpu."""
    from jax.experimental import serialize_executable

    program = serialize_executable.serialize(compiled)
    with new_file(path) as tmp:
        tmp.write_bytes(pickle.dumps(program))
