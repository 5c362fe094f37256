"""The train step with splash compiles for TPUs, from a machine that has none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from chameleon_jax.batch import Batch
from chameleon_jax.config import MeshConfig, OptimizerConfig, StageConfig, TrainConfig, TransformerConfig
from chameleon_jax.sharding import batch_sharding, make_mesh
from chameleon_jax.training.state import abstract_state
from chameleon_jax.training.step import make_train_step

length, kv_heads = {length}, {kv_heads}
devices = list(topologies.get_topology_desc("{topology}", platform="tpu").devices)
mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence={sequence}, tensor=len(devices) // (2 * {sequence})), devices)
model = TransformerConfig(
    vocab_size=512, d_model=256, num_layers=2, num_heads=4, num_kv_heads=kv_heads, head_dim=128, mlp_dim=512,
    compute_dtype="bfloat16", remat="save_attention",
)
config = TrainConfig(
    data="none", output="", model=model, steps=8, batch_size=4, stages=(StageConfig(1.0, {{"all": 1.0}}),),
    optimizer=OptimizerConfig(warmup_steps=1), loss_chunk=256,
)
shape = lambda dtype: jax.ShapeDtypeStruct((4, length), dtype, sharding=batch_sharding(mesh))
batch = Batch(*map(shape, (jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)))
step, state = make_train_step(config, np.arange(512) >= 256, mesh), abstract_state(config, mesh)
with jax.set_mesh(mesh):
    compiled = step.trace(state, batch).lower(lowering_platforms=("tpu",)).compile()
text = compiled.as_text()
for phase in ("fwd_segmented_residuals", "dkv_segmented"):
    print(phase, sum(f"splash_mha_{{phase}}" in line and "custom-call(" in line for line in text.splitlines()))
print("peak", compiled.memory_analysis().peak_memory_in_bytes)
"""


def compile_step(topology: str, length: int, sequence: int, kv_heads: int = 2) -> dict[str, int]:
    """Splash kernels per phase in the compiled step, and its peak memory per device in bytes."""
    environment = {
        **os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": "",
    }  # fmt: skip
    program = PROGRAM.format(topology=topology, length=length, sequence=sequence, kv_heads=kv_heads)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = (line.rsplit(" ", 1) for line in result.stdout.splitlines())
    return {name: int(value) for name, value in lines}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for TPUs")
def test_a_step_with_cut_rows_compiles_and_keeps_what_its_forward_kernel_computed():
    found = compile_step("v5e:2x4", length=1024, sequence=2)
    # One scanned layer each way: 'save_attention' spares the backward pass a second forward kernel.
    assert found["fwd_segmented_residuals"] == 1
    assert found["dkv_segmented"] == 1
    assert 0 < found["peak"] < 16 * 2**30
