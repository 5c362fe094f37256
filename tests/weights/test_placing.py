"""Opened onto a mesh, every array is born where it belongs, and each device's part is read from the files once."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tiny_models import transformer_params

import chameleon_jax
from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import MeshConfig, TransformerConfig
from chameleon_jax.errors import FileError
from chameleon_jax.models.transformer import abstract_params
from chameleon_jax.sharding import make_mesh, params_shardings
from chameleon_jax.weights import sources
from chameleon_jax.weights.checkpoint import ConversionError
from chameleon_jax.weights.formats import open_checkpoint
from chameleon_jax.weights.sources import FileWeights, leaves_of

CONFIG = TransformerConfig(
    vocab_size=96, d_model=64, num_layers=3, num_heads=8, num_kv_heads=4, head_dim=8, mlp_dim=48, qk_norm_groups=2
)
IDS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, 24))
FORMATS = ("chameleon", "huggingface", "meta")
"""Meta's is in two shards."""


@pytest.fixture(scope="module")
def model() -> Chameleon:
    return Chameleon(CONFIG, transformer_params(CONFIG, seed=3), None)


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    for format in FORMATS:
        model.save(place / format, format)
    return {format: place / format for format in FORMATS}


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    return make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])


MESHES = {
    "8 fsdp": lambda: mesh_of(fsdp=8),
    "2 data x 4 tensor": lambda: mesh_of(data=2, tensor=4),
    "2 x 2 x 2": lambda: mesh_of(2, 2, 2),
    "one device": lambda: mesh_of(),
    "an axis fsdp alone": lambda: jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,)),
}


def wanted_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    return leaves_of(params_shardings(abstract_params(CONFIG), mesh))


def assert_same(arrays: dict[str, jax.Array], expected: dict[str, jax.Array]) -> None:
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(expected[name]), err_msg=name)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("format", FORMATS)
def test_arrays_lie_on_the_mesh_as_the_model_asks_and_hold_the_same_numbers(model, folders, format, mesh):
    mesh = MESHES[mesh]()
    leaves = leaves_of(chameleon_jax.load(folders[format], mesh=mesh).params)
    for name, sharding in wanted_shardings(mesh).items():
        assert leaves[name].sharding == sharding, name
        assert leaves[name].committed
        for shard in leaves[name].addressable_shards:
            assert shard.data.shape == sharding.shard_shape(leaves[name].shape)
    assert_same(leaves, leaves_of(model.params))


@pytest.mark.parametrize("mesh", MESHES)
def test_logits_on_a_mesh_are_those_of_one_device(model, folders, mesh):
    loaded = chameleon_jax.load(folders["meta"], mesh=MESHES[mesh]())
    np.testing.assert_allclose(loaded.logits(IDS), model.logits(IDS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_numbers_are_cast_on_their_way_to_the_mesh(model, folders, format):
    leaves = leaves_of(chameleon_jax.load(folders[format], mesh=mesh_of(2, 2, 2), dtype="bfloat16").params)
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"bfloat16"}
    assert_same(leaves, {name: leaf.astype(jnp.bfloat16) for name, leaf in leaves_of(model.params).items()})


def test_wide_mesh_really_cuts_the_arrays(folders):
    """So that the tests above are about something."""
    leaves = leaves_of(chameleon_jax.load(folders["meta"], mesh=mesh_of(2, 2, 2)).params)
    cut = {name for name, leaf in leaves.items() if not leaf.sharding.is_fully_replicated}
    assert cut == {name for name in leaves if "q_norm" not in name and "k_norm" not in name}
    assert leaves["layers/attention/q"].addressable_shards[0].data.shape == (3, 32, 4, 8)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (lambda: mesh_of(tensor=8), r"sequence 1 x tensor 8: does not divide layers/attention/k of shape "),
        (lambda: mesh_of(fsdp=3), r"mesh data 1 x fsdp 3 x sequence 1 x .*: does not divide embed of shape \(96, 64\)"),
    ],
)
def test_mesh_that_does_not_divide_the_arrays_is_refused_by_name(folders, format, mesh, message):
    with pytest.raises(ConversionError, match=message):
        chameleon_jax.load(folders[format], mesh=mesh())


# ----------------------------------------------------------------------------------------------------------------------
# What is read
# ----------------------------------------------------------------------------------------------------------------------


def weights_of(folder: Path) -> FileWeights:
    weights = open_checkpoint(folder).weights
    assert isinstance(weights, FileWeights)
    return weights


def wanted(model: Chameleon, shardings: dict[str, NamedSharding], dtype=jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = leaves_of(model.params)
    return {
        name: jax.ShapeDtypeStruct(leaves[name].shape, dtype, sharding=sharding) for name, sharding in shardings.items()
    }


@pytest.mark.parametrize("format", ["huggingface", "meta"])
@pytest.mark.parametrize("mesh", ["8 fsdp", "2 data x 4 tensor", "2 x 2 x 2", "one device"])
def test_every_byte_of_a_leaf_is_read_once_however_many_devices_hold_it(model, folders, format, mesh):
    weights = weights_of(folders[format])
    for name, target in wanted(model, wanted_shardings(MESHES[mesh]())).items():
        read = []
        weights.place({name: target}, read.append)
        assert sum(read) == 4 * math.prod(target.shape), name


def test_all_that_is_read_is_the_size_of_the_files(folders):
    """Meta's files hold a copy of the RMSNorms for each shard, of which one is read, and RoPE's frequencies."""
    checkpoint = open_checkpoint(folders["meta"])
    for mesh in MESHES.values():
        read = []
        checkpoint.load_params(mesh(), None, read.append)
        assert sum(read) == checkpoint.weights.nbytes


@contextlib.contextmanager
def another_process_has(devices: set[jax.Device], monkeypatch) -> Iterator[list[list[jax.Array]]]:
    """As in a process that cannot address `devices`. An array of all parts is then not to be had here; what would
    become this process's parts of it is given instead."""
    addressable = NamedSharding.addressable_devices_indices_map
    parts: list[list[jax.Array]] = []

    def only_ours(sharding, shape):
        return {device: index for device, index in addressable(sharding, shape).items() if device not in devices}

    with monkeypatch.context() as patch:
        patch.setattr(NamedSharding, "addressable_devices_indices_map", only_ours)
        patch.setattr(jax, "make_array_from_single_device_arrays", lambda shape, sharding, arrays: parts.append(arrays))
        yield parts


@pytest.mark.parametrize("format", ["huggingface", "meta"])
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("embed", PartitionSpec("x", None)),
        ("embed", PartitionSpec(None, "x")),
        ("output", PartitionSpec("x", None)),
        ("output", PartitionSpec(None, "x")),
        ("layers/attention/q", PartitionSpec(None, "x", None, None)),
        ("layers/attention/q", PartitionSpec(None, None, "x", None)),
        ("layers/attention/o", PartitionSpec(None, "x", None, None)),
        ("layers/mlp/down", PartitionSpec(None, None, "x")),
    ],
)
def test_process_reads_only_what_its_own_devices_hold(model, folders, tmp_path, monkeypatch, format, name, spec):
    """Numbers that other processes' devices hold are not even looked at: here they are NaN, which is refused."""
    devices = jax.devices()
    sharding = NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)), spec)
    target = wanted(model, {name: sharding})[name]
    part_of = sharding.devices_indices_map(target.shape)
    original = np.asarray(leaves_of(model.params)[name])
    poisoned = np.full_like(original, np.nan)
    for device in devices[2:4]:
        poisoned[part_of[device]] = original[part_of[device]]

    params = leaves_of(model.params) | {name: jnp.asarray(poisoned)}
    Chameleon(CONFIG, sources.tree_of(params), None).save(tmp_path / "model", format)
    weights, read = weights_of(tmp_path / "model"), []
    with another_process_has({*devices} - {*devices[2:4]}, monkeypatch) as parts:
        weights.place({name: target}, read.append)
    (found,) = parts
    for device, part in zip(devices[2:4], found, strict=True):
        assert part.devices() == {device}
        np.testing.assert_array_equal(np.asarray(part), original[part_of[device]])
    assert sum(read) == original.nbytes * 2 // 8

    with pytest.raises(FileError, match="holds infinite values or NaN"):
        weights.place({name: target})


# ----------------------------------------------------------------------------------------------------------------------
# Pieces
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["huggingface", "meta"])
@pytest.mark.parametrize("strip", [1, 3000, 5000])
def test_size_of_the_strips_that_are_read_changes_nothing(model, folders, monkeypatch, format, strip):
    weights, shardings = weights_of(folders[format]), wanted_shardings(mesh_of(2, 2, 2))
    targets = wanted(model, shardings)
    usual, small = [], []
    weights.place(targets, usual.append)
    monkeypatch.setattr(sources, "STRIP", strip)
    arrays = weights.place(targets, small.append)
    assert len(small) > len(usual)
    assert sum(small) == sum(usual)
    if strip > 1:  # the rows of a head at least
        assert max(small) <= strip
    assert_same(arrays, leaves_of(model.params))


def test_devices_that_share_memory_do_not_change_each_others_copies(model, folders):
    """On a CPU all copies of an array may be one piece of memory; a training step that takes it over must not write
    there for all of them, one after the other."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    everywhere = {name: NamedSharding(mesh, PartitionSpec()) for name in wanted_shardings(mesh_of())}
    arrays = weights_of(folders["meta"]).place(wanted(model, everywhere))
    step = jax.jit(lambda arrays: jax.tree.map(lambda x: 2 * x, arrays), donate_argnums=0)
    for name, array in step(arrays).items():
        for shard in array.addressable_shards:
            expected = 2 * np.asarray(leaves_of(model.params)[name])
            np.testing.assert_array_equal(np.asarray(shard.data), expected, err_msg=name)


class Accelerator:
    """A CPU device that says it is another one, so that it is sent chunks."""

    def __init__(self, device: jax.Device):
        self.device, self.platform = device, "tpu"

    def __hash__(self) -> int:
        return hash(self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Accelerator) and self.device == other.device


@pytest.fixture
def as_accelerators(monkeypatch) -> list[tuple[int, ...]]:
    """All devices take chunks, which are noted. Only the calls that name a device need to know which it really is."""
    chunks: list[tuple[int, ...]] = []
    addressable = NamedSharding.addressable_devices_indices_map
    device_put, zeros = jax.device_put, jnp.zeros

    def put(values, device):
        assert isinstance(device, Accelerator)
        chunks.append(values.shape)
        return device_put(values, device.device)

    monkeypatch.setattr(
        NamedSharding,
        "addressable_devices_indices_map",
        lambda sharding, shape: {Accelerator(device): index for device, index in addressable(sharding, shape).items()},
    )
    patched = dict(vars(jax), device_put=put)
    monkeypatch.setattr(sources, "jax", types.SimpleNamespace(**patched))
    numbers = dict(vars(jnp), zeros=lambda shape, dtype, device: zeros(shape, dtype, device=device.device))
    monkeypatch.setattr(sources, "jnp", types.SimpleNamespace(**numbers))
    return chunks


@pytest.mark.parametrize("format", ["huggingface", "meta"])
@pytest.mark.parametrize(("chunk", "dtype"), [(700, "float32"), (5000, "bfloat16"), (1 << 28, "float32")])
def test_arrays_sent_to_accelerators_in_chunks_are_the_same(
    model, folders, monkeypatch, as_accelerators, format, chunk, dtype
):
    monkeypatch.setattr(sources, "CHUNK", chunk)
    mesh = mesh_of(2, 2, 2)
    weights, shardings, read = weights_of(folders[format]), wanted_shardings(mesh), []
    arrays = weights.place(wanted(model, shardings, jnp.dtype(dtype)), read.append)
    assert sum(read) == sum(4 * leaf.size for leaf in leaves_of(model.params).values())
    for name, sharding in shardings.items():
        assert arrays[name].sharding == sharding
    assert_same(arrays, {name: leaf.astype(dtype) for name, leaf in leaves_of(model.params).items()})

    parts = sum(len(sharding.device_set) for sharding in shardings.values())
    if chunk == 1 << 28:
        assert len(as_accelerators) == parts  # each part in one piece
    else:
        assert len(as_accelerators) > parts
        itemsize = jnp.dtype(dtype).itemsize
        assert all(shape[0] == 1 or math.prod(shape) * itemsize <= chunk for shape in as_accelerators)


def test_half_precision_file_is_widened_chunk_by_chunk(model, tmp_path, monkeypatch, as_accelerators):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    Chameleon(CONFIG, half, None).save(tmp_path / "model", "meta")
    monkeypatch.setattr(sources, "CHUNK", 3000)
    monkeypatch.setattr(sources, "STRIP", 500)
    arrays = weights_of(tmp_path / "model").place(wanted(model, wanted_shardings(mesh_of(2, 2, 2))))
    expected = {name: np.asarray(leaf).astype(np.float32) for name, leaf in leaves_of(half).items()}
    assert {leaf.dtype for leaf in leaves_of(half).values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same(arrays, expected)
