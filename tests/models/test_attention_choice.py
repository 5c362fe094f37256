"""Which attention backend 'auto' means where, and what is said of one that cannot run there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import NamedTuple

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from chameleon_jax.config import ConfigError, ExecutionConfig, MeshConfig, TransformerConfig
from chameleon_jax.models import attention
from chameleon_jax.models.attention import backend_for, choose_backend
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.sharding import constraints_on, make_mesh
from tests.tiny_models import TRANSFORMER, transformer_params


class Device(NamedTuple):
    platform: str
    device_kind: str
    compute_capability: str = ""


TPU = Device("tpu", "TPU v5")
H100 = Device("gpu", "NVIDIA H100 80GB HBM3", "9.0")
B200 = Device("gpu", "NVIDIA B200", "10.0")
A100 = Device("gpu", "NVIDIA A100-SXM4-80GB", "8.0")
MI300 = Device("gpu", "AMD Instinct MI300X", "gfx942")
CPU = Device("cpu", "cpu")

MODEL, AUTO = TransformerConfig(), ExecutionConfig(compute_dtype="bfloat16")


def choose(device: Device, length: int, sequence: int = 1, backend="auto", dtype="bfloat16", head_dim=128) -> str:
    return choose_backend(backend, device, length, head_dim, dtype, sequence)


@pytest.fixture(autouse=True)
def new_cudnn(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)


@pytest.mark.parametrize(
    ("device", "length", "sequence", "changes", "expected"),
    [
        (TPU, 4096, 1, {}, "splash"),
        (TPU, 4096, 32, {}, "splash"),
        (TPU, 4096, 64, {}, "blockwise"),  # parts of 64
        (TPU, 128, 1, {"head_dim": 64, "dtype": "float32"}, "splash"),
        (TPU, 1000, 1, {}, "xla"),
        (H100, 4096, 1, {}, "cudnn"),
        (B200, 100, 1, {"head_dim": 64}, "cudnn"),
        (H100, 4096, 2, {}, "blockwise"),
        (H100, 4096, 1, {"dtype": "float32"}, "blockwise"),
        (H100, 4096, 1, {"head_dim": 256}, "blockwise"),
        (H100, 512, 1, {"head_dim": 100}, "xla"),
        (A100, 4096, 1, {}, "blockwise"),
        (MI300, 1024, 1, {}, "xla"),
        (CPU, 1024, 1, {}, "xla"),
        (CPU, 1025, 1, {}, "blockwise"),
    ],
)
def test_auto_takes_the_kernel_where_it_can_run(device, length, sequence, changes, expected):
    assert choose(device, length, sequence, **changes) == expected


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
def test_plain_backends_run_anywhere(backend):
    for device in (TPU, H100, A100, MI300, CPU):
        assert choose(device, 100, backend=backend) == backend


@pytest.mark.parametrize(
    ("device", "attention", "length", "sequence", "dtype", "message"),
    [
        (H100, "splash", 4096, 1, "bfloat16", "for TPUs, this is NVIDIA H100.*; use 'auto' or 'blockwise'"),
        (TPU, "splash", 1000, 1, "bfloat16", "rows of 1000 on 1 .* multiples of 128; use 'auto' or 'xla'"),
        (TPU, "cudnn", 4096, 1, "bfloat16", "Hopper generation or newer, this is TPU v5"),
        (A100, "cudnn", 4096, 1, "bfloat16", "Hopper generation or newer, this is NVIDIA A100"),
        (H100, "cudnn", 4096, 1, "float32", "compute_dtype = 'bfloat16', not 'float32'"),
        (H100, "cudnn", 4096, 4, "bfloat16", "mesh.sequence = 4"),
    ],
)
def test_a_backend_that_cannot_run_there_is_refused(device, attention, length, sequence, dtype, message):
    with pytest.raises(ConfigError, match=f"^execution.attention = '{attention}': .*{message}"):
        choose(device, length, sequence, attention, dtype)


def test_an_old_cudnn_is_not_asked(monkeypatch):
    for version, expected in ((90500, "blockwise"), (90600, "cudnn")):
        monkeypatch.setattr(cudnn, "check_cudnn_version", lambda version=version: version)
        assert choose(H100, 4096) == expected


def test_a_mesh_says_its_devices_and_how_rows_are_cut():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence=4))
    assert backend_for(MODEL, AUTO, mesh, 4096) == "blockwise"
    assert backend_for(MODEL, AUTO, jax.devices()[0], 512) == "xla"
    splash = dataclasses.replace(AUTO, attention="splash")
    assert backend_for(MODEL, splash, mesh, 512) == "splash"  # interpreted
    with pytest.raises(ConfigError, match="rows of 256 on 4 devices"):
        backend_for(MODEL, splash, mesh, 256)


@pytest.mark.parametrize(
    ("device", "length", "expected"),
    [(CPU, 16, "xla"), (CPU, 2048, "blockwise"), (TPU, 512, "splash"), (TPU, 5, "xla"), (H100, 5, "cudnn")],
)
def test_a_model_by_itself_takes_the_kernel_of_the_device_at_hand(monkeypatch, device, length, expected):
    params, asked = transformer_params(TRANSFORMER), set()
    for backend in ("xla", "blockwise", "splash", "cudnn"):
        monkeypatch.setattr(attention, f"attend_{backend}", lambda q, *args, backend=backend: asked.add(backend) or q)
    monkeypatch.setattr(jax, "devices", lambda *backend: [device])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    model = Transformer(TRANSFORMER, AUTO)
    apply = functools.partial(model.apply, {"params": params})
    jax.eval_shape(apply, jax.ShapeDtypeStruct((1, length), "int32"))
    assert asked == {expected}


def test_kernels_are_left_alone_where_only_xla_knows_how_devices_share_rows(monkeypatch):
    params, asked = transformer_params(TRANSFORMER), set()
    for backend in ("xla", "splash"):
        monkeypatch.setattr(attention, f"attend_{backend}", lambda q, *args, backend=backend: asked.add(backend) or q)
    monkeypatch.setattr(attention, "_current_device", lambda: TPU)

    def backends(*contexts) -> set[str]:
        asked.clear()
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            apply = functools.partial(Transformer(TRANSFORMER).apply, {"params": params})
            jax.eval_shape(apply, jax.ShapeDtypeStruct((8, 128), "int32"))
        return set(asked)

    mesh = make_mesh(MeshConfig())
    assert backends() == backends(jax.set_mesh(mesh)) == {"xla"}
    assert backends(constraints_on(mesh)) == {"splash"}


def test_the_device_at_hand_is_that_of_the_mesh_or_else_the_default():
    last = jax.devices()[-1]
    with jax.default_device(last):
        assert attention._current_device() is last
    tpu = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=jax.sharding.AbstractDevice("TPU v5", 1, "tpu"))
    with jax.sharding.use_abstract_mesh(tpu):
        assert attention._current_device().platform == "tpu"
