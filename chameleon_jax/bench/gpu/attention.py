"""Attention on this GPU: every backend beside plain attention in float32, and whole train steps beside the CPU's."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from chameleon_jax.bench.gpu.record import Record
from chameleon_jax.bench.train import image_ids, random_batch, train_config
from chameleon_jax.config import BenchTrainConfig, ExecutionConfig, MeshConfig, OptimizerConfig, TransformerConfig
from chameleon_jax.models.attention import backend_for
from chameleon_jax.sharding import batch_sharding, constraints_on, make_mesh
from chameleon_jax.training.attention_check import AT_LEAST, TIMES_PLAIN, check_attention, deviations, too_far
from chameleon_jax.training.state import init_state, state_shardings
from chameleon_jax.training.step import make_train_step
from chameleon_jax.training.transformer import TransformerTask


class Case(NamedTuple):
    """A packed row, attended forward and backward in bfloat16 with heads of 128."""

    backend: str
    heads: int
    kv_heads: int
    length: int
    remat: str
    kernels: tuple[int, int]
    """Calls of cuDNN's forward and backward kernels that must be in the program."""


KERNEL_CASES = (
    Case("cudnn", 8, 8, 2048, "none", (1, 1)),
    Case("cudnn", 8, 2, 2048, "save_attention", (1, 1)),
    Case("cudnn", 8, 2, 1000, "save_projections", (1, 1)),
    Case("cudnn", 32, 32, 4096, "full", (2, 1)),  # the 7B's heads
)
PLAIN_CASES = (
    Case("blockwise", 8, 2, 2048, "full", (0, 0)),
    Case("xla", 8, 2, 1000, "none", (0, 0)),
)

FLOAT32_ROUNDING = 1e-4
"""Most that a gradient or a metric of a float32 step may differ from the CPU's, as a part of the largest in its array.
On a CPU, another order of attention's sums makes 2.4e-6; a GPU has its own order everywhere, and its own exponentials.
Products in TF32 (2^-11 each), a wrong mask or a lost row make more."""


def attention(record: Record) -> None:
    """The stage: cuDNN, train steps, what `auto` chooses and the library's own check of it, then the other backends."""
    kernels, plain = KERNEL_CASES, PLAIN_CASES
    if record.rehearsal:
        kernels, plain = (), [case._replace(length=128) for case in PLAIN_CASES[:1]]
    _compare_backends(record, kernels)
    record.check("float32 step as on the CPU", functools.partial(compare_step, "float32"), about=45)
    if not record.rehearsal:  # the same code, compiled anew
        record.check("bfloat16 step as on the CPU", functools.partial(compare_step, "bfloat16"), about=15)
    record.check("the check of training", functools.partial(own_check, 128 if record.rehearsal else 2048), about=8)
    _compare_backends(record, plain)


def _compare_backends(record: Record, cases: Sequence[Case]) -> None:
    for case in cases:
        name = f"{case.backend}, {case.heads}/{case.kv_heads} heads, {case.length} tokens, remat {case.remat}"
        record.check(name, functools.partial(compare_backend, case), about=20)


def count_kernels(program: str) -> tuple[int, int]:
    """Calls of cuDNN's forward and backward attention in the text of a program, StableHLO or HLO."""
    backward = len(re.findall(r'__cudnn\$fmha\w*Backward["(]', program))
    return len(re.findall(r'__cudnn\$fmha\w*["(]', program)) - backward, backward


def compare_backend(case: Case) -> dict[str, Any]:
    """How far values and gradients are from plain attention in float32, beside plain attention in bfloat16."""
    config, execution = _heads(case.heads, case.kv_heads), ExecutionConfig(compute_dtype="bfloat16", remat=case.remat)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh), constraints_on(mesh):
        compare = jax.jit(functools.partial(deviations, config, execution, case.backend, 1, case.length))
        compiled = compare.lower(jax.random.key(0)).compile()
        found, plain = map(np.asarray, compiled(jax.random.key(0)))
    kernels = count_kernels(compiled.as_text())
    problem = too_far(found, plain, execution.compute_dtype)
    if kernels != case.kernels:
        problem = problem or f"cuDNN's kernels, forward and backward: {kernels}, expected {case.kernels}"
    return {
        "deviation": [float(f"{x:.3g}") for x in found],
        "deviation_of_plain": [float(f"{x:.3g}") for x in plain],
        "cudnn_kernels": kernels,
        "problem": problem,
    }


def _heads(heads: int, kv_heads: int) -> TransformerConfig:
    return TransformerConfig(num_heads=heads, num_kv_heads=kv_heads, head_dim=128)


def own_check(length: int) -> dict[str, Any]:
    """What `attention: auto` means here, and whether `chameleon train` would keep it."""
    device, config = jax.devices()[0], _heads(8, 2)
    execution = ExecutionConfig(compute_dtype="bfloat16", remat="save_attention")
    kept = check_attention(config, execution, device, length) is execution
    chosen = backend_for(config, execution, device, length)
    return {"auto": chosen, "problem": None if kept else f"{chosen!r} was left for another backend"}


def compare_step(dtype: str) -> dict[str, Any]:
    """Metrics and Adam's moments after one train step from the same parameters, on the GPU and on the CPU.

    The first moments are the gradients. Parameters are left out: Adam's quotient turns rounding into whole steps where
    a gradient is almost 0. In float32, with products at full precision, the two differ by `FLOAT32_ROUNDING` at most.
    In bfloat16 both are compared with the CPU's float32: the GPU may be as many times farther from it as the attention
    check allows.
    """
    gpu, cpu = jax.devices()[0], jax.devices("cpu")[0]
    name, found = _deviation(_one_step(dtype, gpu), _one_step("float32", cpu))
    usual = 0.0 if dtype == "float32" else _deviation(_one_step(dtype, cpu), _one_step("float32", cpu))[1]
    allowed = FLOAT32_ROUNDING if dtype == "float32" else TIMES_PLAIN * usual + AT_LEAST
    return {
        "deviation": float(f"{found:.3g}"),
        "of": name,
        "deviation_of_cpu": float(f"{usual:.3g}"),
        "allowed": float(f"{allowed:.3g}"),
        "problem": None if found <= allowed else f"{name} deviates by {found:.2g} of its size, not {allowed:.1g}",
    }


STEP = BenchTrainConfig(
    TransformerConfig(
        vocab_size=512, d_model=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, mlp_dim=512
    ),
    batch_size=2, length=256, documents=3, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
)  # fmt: skip


@functools.cache
def _params() -> Any:
    """Parameters to begin with, as NumPy arrays."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        state = init_state(TransformerTask(train_config(STEP)), make_mesh(MeshConfig(), [cpu]))
        return jax.tree.map(np.array, state.params)


@functools.cache
def _one_step(dtype: str, device: Any) -> Any:
    """State of the optimizer and metrics after one train step, as NumPy arrays."""
    config = dataclasses.replace(STEP, execution=ExecutionConfig(compute_dtype=dtype))
    run, mesh = train_config(config), make_mesh(MeshConfig(), [device])
    with jax.default_device(device), jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
        task = TransformerTask(run, image_ids(config.model.vocab_size))
        state = init_state(task, mesh, jax.device_put(_params(), state_shardings(task, mesh).params))
        batch = jax.device_put(random_batch(config), batch_sharding(mesh))
        step = make_train_step(task, mesh)
        state, metrics = step(state, batch)
        return jax.tree.map(np.array, {"optimizer": state.opt_state, "metrics": metrics})


def _deviation(found: Any, expected: Any) -> tuple[str, float]:
    """The array that differs most, and by how much: the largest difference over its largest number."""

    def of_array(x: np.ndarray, right: np.ndarray) -> float:
        size = np.max(np.abs(right))
        return float(np.max(np.abs(x - right)) / size) if size and right.dtype.kind == "f" else 0.0

    found, expected = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (found, expected))
    by_path = {jax.tree_util.keystr(path): of_array(found[path], right) for path, right in expected.items()}
    name = max(by_path, key=lambda path: np.nan_to_num(by_path[path], nan=np.inf))
    return name, by_path[name]
