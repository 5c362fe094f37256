"""Kernels inside the whole train step, the check that runs before it, and the memory that long rows take."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.batch import Batch
from chameleon_jax.config import ConfigError, ExecutionConfig, MeshConfig, TransformerConfig
from chameleon_jax.errors import TrainingError
from chameleon_jax.models import attention, attention_kernels
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training import attention_check
from chameleon_jax.training.attention_check import check_attention, documents
from chameleon_jax.training.state import abstract_state, init_state
from chameleon_jax.training.step import make_train_step
from chameleon_jax.training.transformer import TransformerTask

ROOT = Path(__file__).parents[2]
MESHES = {
    "fsdp 2, sequence 2, tensor 2": MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
    "data 2, sequence 4": MeshConfig(data=2, sequence=4),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def packed_batch(rows: int, length: int) -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 32, (rows, length + 1)).astype(np.int32)
    segments = documents(rows, length)
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    places = np.arange(length)[None]
    positions = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    weights = ((segments > 0) & (positions > 0)).astype(np.float32)
    return Batch(ids[:, :-1], ids[:, 1:], weights, positions.astype(np.int32), segments)


def one_step(tiny, config, mesh):
    step = make_train_step(tiny.task(config), mesh)
    with jax.set_mesh(mesh):
        return step(init_state(TransformerTask(config), mesh), packed_batch(4, 512))


@pytest.fixture(scope="module")
def on_one_device(tiny):
    config = tiny.config(execution__attention="xla", batch_size=4)
    return one_step(tiny, config, make_mesh(MeshConfig(data=1), jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_splash_on_every_mesh_gives_the_step_of_plain_attention_on_one_device(tiny, on_one_device, monkeypatch, name):
    monkeypatch.setattr(attention_kernels, "SPLASH_BLOCK", 128)  # of four, each device's part has its own mask
    expected_state, expected = on_one_device
    config = tiny.config(execution__attention="splash", execution__remat="save_attention", batch_size=4)
    state, metrics = one_step(tiny, config, make_mesh(MESHES[name]))
    for key in expected:
        np.testing.assert_allclose(metrics[key], expected[key], rtol=2e-5, atol=1e-6, err_msg=key)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: compare(np.asarray(a), np.asarray(b)), state.params, expected_state.params)


def test_a_step_refuses_a_kernel_that_its_devices_lack(tiny):
    config, mesh = tiny.config(execution__attention="cudnn"), make_mesh(MeshConfig())
    step = make_train_step(tiny.task(config), mesh)
    with pytest.raises(ConfigError, match=r"execution.attention = 'cudnn': .*Hopper"):
        step.lower(abstract_state(tiny.task(config), mesh), tiny.batch(0))


def temporary_bytes(tiny, attention: str, length: int) -> int:
    """Memory of a step beside its arguments and results."""
    config = tiny.config(execution__attention=attention, model__num_layers=1, batch_size=1, loss_chunk=128)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step = make_train_step(tiny.task(config), mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), packed_batch(1, length))
    return (
        step.lower(abstract_state(TransformerTask(config), mesh), batch).compile().memory_analysis().temp_size_in_bytes
    )


@pytest.mark.slow
def test_memory_of_blockwise_attention_is_linear_in_the_length_and_that_of_xla_is_not(tiny):
    blockwise = [temporary_bytes(tiny, "blockwise", length) for length in (512, 1024, 2048)]
    for shorter, longer in itertools.pairwise(blockwise):
        assert longer < 2.1 * shorter
    assert temporary_bytes(tiny, "xla", 1024) > 3.5 * temporary_bytes(tiny, "xla", 512)


# ----------------------------------------------------------------------------------------------------------------------
# The check
# ----------------------------------------------------------------------------------------------------------------------

MODEL = TransformerConfig(num_heads=4, num_kv_heads=2, head_dim=16)
SPLASH = ExecutionConfig(compute_dtype="bfloat16", attention="splash")


@pytest.fixture
def short_rows(monkeypatch):
    monkeypatch.setattr(attention_check, "LENGTH", 128)


def test_a_right_kernel_passes_on_a_mesh(short_rows):
    """On one device see models/test_attention_backends.py."""
    check_attention(MODEL, SPLASH, make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2)))


def leaks(q, k, v, mask):
    """Forgets about documents, as a kernel without segments does."""
    one = jnp.ones_like(mask.query_segments)
    return attention_kernels.attend_xla(q, k, v, mask._replace(query_segments=one, key_segments=one))


def lets_one_token_through(q, k, v, mask):
    """The first token of the second document belongs to the first."""
    segments = mask.query_segments.at[:, 64].set(1)
    return attention_kernels.attend_xla(q, k, v, mask._replace(query_segments=segments, key_segments=segments))


@jax.custom_vjp
def wrong_only_in_gradients(q, k, v, mask):
    return attention_kernels.attend_xla(q, k, v, mask)


def _forward(q, k, v, mask):
    return wrong_only_in_gradients(q, k, v, mask), (q, k, v, mask)


def _backward(saved, above):
    return *jax.vjp(lambda *qkv: leaks(*qkv, saved[3]), *saved[:3])[1](above), None


wrong_only_in_gradients.defvjp(_forward, _backward)


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        (leaks, "values"),
        (lets_one_token_through, "values"),
        (wrong_only_in_gradients, "gradient of q"),
        (lambda q, k, v, mask: q * jnp.nan, "values"),
    ],
)
def test_a_wrong_kernel_is_found_out(monkeypatch, short_rows, kernel, what):
    monkeypatch.setattr(attention, "attend_splash", kernel)
    with pytest.raises(TrainingError, match=rf"'splash' on cpu: its {what} deviate .*execution.attention = 'blockwise"):
        check_attention(MODEL, SPLASH, jax.devices()[0])


@pytest.mark.parametrize("attention", ["auto", "xla", "blockwise"])
def test_plain_attention_needs_no_check(monkeypatch, attention):
    monkeypatch.setattr(attention_check, "deviations", None)  # would be called
    execution = dataclasses.replace(SPLASH, attention=attention)
    assert check_attention(MODEL, execution, jax.devices()[0]) is execution


def test_the_check_runs_what_the_run_will(monkeypatch):
    """Length, heads, dtype and what is kept for the backward pass."""
    asked = []

    def told(q, k, v, mask):
        asked.append((q.shape, k.shape, q.dtype.name))
        return attention_kernels.attend_xla(q, k, v, mask)

    monkeypatch.setattr(attention, "attend_splash", told)
    execution = dataclasses.replace(SPLASH, remat="save_attention")
    for where, rows in ((make_mesh(MeshConfig(data=4, sequence=2)), 4), (jax.devices()[0], 1)):
        asked.clear()
        assert check_attention(MODEL, execution, where, 256) is execution
        assert set(asked) == {((rows, 256, 4, 16), (rows, 256, 2, 16), "bfloat16")}


def automatic(monkeypatch) -> ExecutionConfig:
    """'auto' chooses splash, as it does on a TPU."""
    monkeypatch.setattr(attention_check, "backend_for", lambda *args: "splash")
    return dataclasses.replace(SPLASH, attention="auto")


def breaks(q, k, v, mask):
    raise NotImplementedError("this chip has no such instruction")


@pytest.mark.parametrize(
    ("kernel", "reason"), [(leaks, "its values deviate by"), (breaks, "fails (this chip has no such instruction)")]
)
def test_training_goes_on_without_a_kernel_that_auto_chose_and_that_is_wrong(monkeypatch, capsys, kernel, reason):
    monkeypatch.setattr(attention, "attend_splash", kernel)
    execution = automatic(monkeypatch)
    found = check_attention(MODEL, execution, jax.devices()[0], 128)
    assert found == dataclasses.replace(execution, attention="blockwise")
    said = " ".join(capsys.readouterr().err.split())
    assert reason in said
    assert "Continuing with 'blockwise'" in said


def test_blockwise_that_is_wrong_too_leaves_plain_attention(monkeypatch):
    monkeypatch.setattr(attention, "attend_splash", leaks)
    monkeypatch.setattr(attention, "attend_blockwise", leaks)
    assert check_attention(MODEL, automatic(monkeypatch), jax.devices()[0], 128).attention == "xla"


def test_the_check_of_long_rows_never_holds_all_scores():
    length = 16384
    compare = functools.partial(attention_check.deviations, MODEL, SPLASH, "blockwise", 1, length)
    compiled = jax.jit(compare).lower(jax.random.key(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < length * length * 4 / 2  # half of those of one head


def hopper_is_here() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return bool(answer) and float(answer[0]) >= 9.0


@pytest.mark.skipif(not hopper_is_here(), reason="needs an NVIDIA GPU of the Hopper generation or newer")
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_cudnn_computes_what_plain_attention_does(kv_heads):
    program = (
        "import jax; from chameleon_jax.config import ExecutionConfig, TransformerConfig\n"
        "from chameleon_jax.training.attention_check import check_attention\n"
        f"check_attention(TransformerConfig(num_heads=8, num_kv_heads={kv_heads}, head_dim=128),\n"
        "    ExecutionConfig(compute_dtype='bfloat16', attention='cudnn'), jax.devices('cuda')[0])"
    )
    environment = {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": ""}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
