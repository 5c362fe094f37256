"""A checksum depends on every bit of an array and on nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.runtime import checksums
from chameleon_jax.runtime.checksums import array_checksums, differences

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "bool"]


def array(dtype: str, shape: tuple[int, ...] = (8, 6, 4)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) * 50, jnp.float32).astype(dtype)


def by_hand(values: np.ndarray) -> str:
    """Element by element, in Python's integers."""
    bits, sums, modulus = values.reshape(-1).view(f"u{values.dtype.itemsize}").tolist(), [0, 0], 1 << 32
    for place, word in enumerate(bits):
        word ^= place * 0x9E3779B1 % modulus
        word = (word ^ (word >> 16)) * 0x85EBCA6B % modulus
        word = (word ^ (word >> 13)) * 0xC2B2AE35 % modulus
        word ^= word >> 16
        sums = [sums[0] + word, sums[1] + word * (2 * place + 1)]
    return "".join(f"{part % modulus:08x}" for part in sums)


@pytest.mark.parametrize("small", [0, checksums.SMALL])
@pytest.mark.parametrize("dtype", DTYPES)
def test_checksum_is_the_documented_sum(dtype, small, monkeypatch):
    """Whether XLA or NumPy computes it."""
    monkeypatch.setattr(checksums, "SMALL", small)
    values = array(dtype)
    assert array_checksums({"a": {"b": values}}) == {"a/b": f"{dtype} {by_hand(np.asarray(values))}"}


def test_checksum_is_the_same_on_every_mesh_and_on_none(monkeypatch):
    tree = {"a": array("float32"), "b": array("bfloat16"), "c": jnp.int32(7)}
    expected = array_checksums(tree)
    monkeypatch.setattr(checksums, "SMALL", 0)
    devices = np.array(jax.devices()[:8])
    for shape, spec in (((2, 4), ("x", None, "y")), ((4, 2), (("x", "y"),)), ((8, 1), ())):
        mesh = jax.sharding.Mesh(devices.reshape(shape), ("x", "y"))
        places = {
            name: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec[: leaf.ndim]))
            for name, leaf in tree.items()
        }
        assert array_checksums(jax.device_put(tree, places)) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_single_flipped_bit_changes_it(dtype):
    values = np.asarray(array(dtype, (5, 3)))
    expected = array_checksums([jnp.asarray(values)])
    for byte in range(values.nbytes):
        for bit in range(8):
            flipped = bytearray(values.tobytes())
            flipped[byte] ^= 1 << bit
            other = jnp.asarray(np.frombuffer(bytes(flipped), values.dtype).reshape(values.shape))
            assert differences([other], expected) == ["0"], (byte, bit)


def test_a_block_that_is_zeroed_or_moved_changes_it():
    """A sum of elements times their place, without mixing, misses both in arrays of equal elements."""
    values = np.ones(1 << 18, np.float32)
    expected = array_checksums([jnp.asarray(values)])
    zeroed = values.copy()
    zeroed[1 << 16 : 1 << 17] = 0
    assert differences([jnp.asarray(zeroed)], expected)
    ramp = np.arange(1 << 17, dtype=np.float32)
    expected = array_checksums([jnp.asarray(ramp)])
    assert differences([jnp.asarray(np.roll(ramp, 1 << 16))], expected)


def test_nothing_of_the_size_of_an_array_is_made():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("x", "y"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    for dtype in (jnp.float32, jnp.bfloat16):
        wanted = {"a": jax.ShapeDtypeStruct((4096, 4096), dtype, sharding=sharding)}
        analysis = checksums._sums_on(mesh).lower(wanted).compile().memory_analysis()
        assert analysis.argument_size_in_bytes == 4096 * 4096 * wanted["a"].dtype.itemsize // 8
        assert analysis.temp_size_in_bytes < 100_000


def test_it_is_compiled_once_for_arrays_of_one_kind(monkeypatch):
    monkeypatch.setattr(checksums, "SMALL", 0)
    tree = {"of this test alone": jnp.ones((3, 17))}
    array_checksums(tree)
    before = checksums._sums_on(None)._cache_size()
    for value in range(3):
        array_checksums({"of this test alone": jnp.full((3, 17), value, jnp.float32)})
    assert checksums._sums_on(None)._cache_size() == before
