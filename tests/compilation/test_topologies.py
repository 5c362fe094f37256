"""Names of TPU pods: those that exist, those that do not, and the mesh that is laid over them."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

from chameleon_jax.compilation.topologies import _parse, describe_topology
from chameleon_jax.config import ConfigError, MeshConfig, find_configs
from chameleon_jax.console.cli import main
from chameleon_jax.errors import ChameleonError
from chameleon_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("name", "chips"),
    [
        ("v5e:16x16", (16, 16)), ("v5p:4x4x8", (4, 4, 8)), ("v4:2x2x1", (2, 2, 1)), ("v5e:1x1", (1, 1)),
        ("v5e-8", (2, 4)), ("v5litepod-16", (4, 4)), ("v6e-256", (16, 16)), ("v6e-128", (8, 16)),
    ],
)  # fmt: skip
def test_names_of_topologies(name, chips):
    assert _parse(name)[1] == chips


@pytest.mark.parametrize(
    "name",
    ["", "v5p", "v9:4x4", "v5p-256", "v5e-0", "v5e-12", "v6e-512", "v5e:4x4x4", "v5p:8x8", "v5e:3x4", "v5e:0x4",
     "v5p:4x4x0", "v5e:axb", "v5e:16x16\n"],
)  # fmt: skip
def test_unknown_names_are_one_line_that_lists_the_kinds(name):
    with pytest.raises(ConfigError) as error:
        describe_topology(name)
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith(f"topology = {name!r}: ")
    assert all(kind in said for kind in ("v4:4x4x4", "v5e:16x16", "v5p:4x4x8", "v6e:8x16", "tpu7x:4x4x4", "v6e-N"))


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ChameleonError, match=r"pip install 'chameleon-jax\[tpu\]'"):
        describe_topology("v5e:2x4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v9:4x4", "--sequence-length", "64"], "topology = 'v9:4x4': there is no such TPU"),
        (["--slices", "2"], "slices = 2: needs --topology"),
        (["--topology", "v5e:2x4", "--slices", "0"], "slices = 0: must be at least 1"),
        (["--json", "maybe"], "'maybe': is one argument too many; expected CONFIG"),
        (["--json=maybe"], "json = 'maybe': must be true or false"),
        (["--mesh.data", "8"], "sequence_length: missing; must be a whole number"),
        (["--sequence-length", "0"], "sequence_length = 0: must be at least 1"),
        (
            ["--sequence-length", "100", "--loss-chunk", "64"],
            "loss_chunk = 64: must divide the length of the rows, 100",
        ),
    ],
)
def test_wrong_commands_are_one_line(arguments, message, capsys):
    assert main(["compile", str(find_configs() / "demo" / "train.yaml"), *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def slice_of_tpus(index: int) -> list[SimpleNamespace]:
    """Four chips in a square, as far as the arrangement of meshes looks at them."""
    return [
        SimpleNamespace(
            platform="tpu", device_kind="TPU v5 lite", id=4 * index + place, process_index=index, slice_index=index,
            coords=[place % 2, place // 2, 0], core_on_chip=0,
        )
        for place in range(4)
    ]  # fmt: skip


def test_slices_hold_whole_copies(monkeypatch):
    monkeypatch.setattr("chameleon_jax.sharding.Mesh", lambda devices, axes, axis_types: devices)
    devices = slice_of_tpus(0) + slice_of_tpus(1)
    arranged = make_mesh(MeshConfig(data=2, fsdp=4), devices[::-1])
    assert arranged.shape == (2, 4, 1, 1)
    assert [{device.slice_index for device in copy.flat} for copy in arranged] == [{0}, {1}]
    with pytest.raises(ConfigError, match=r"mesh.data = 1: must be a multiple of the 2 slices"):
        make_mesh(MeshConfig(data=1, fsdp=8), devices)
