"""Checksums of arrays that do not depend on the mesh or on the layout of the files."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.errors import DamagedFile, printable

SMALL = 1 << 16
"""Arrays of at most this many elements are summed by NumPy: to compile a sum for their shapes takes longer."""

_CHECKSUM = re.compile(r"((?:bfloat|float|u?int)\d\w*|bool) \w{16}")


def array_checksums(tree: Any) -> dict[str, str]:
    """A checksum of each array of a tree, such as {"layers/mlp/up": "bfloat16 0123456789abcdef"}.

    A checksum is two sums over all elements, modulo 2^32, of a hash of the element's bits and its index. The hash is
    invertible, so two arrays that differ in a single element always have different checksums; other arrays have equal
    ones with probability 2^-64. It is computed where the arrays are, without temporaries of their size.

    With several processes, all of them must call this together.
    """
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    small = {name: leaf for name, leaf in leaves.items() if is_small(leaf)}
    sums = {name: _sum_on_host(leaf) for name, leaf in jax.device_get(small).items()}
    large = {name: leaf for name, leaf in leaves.items() if name not in small}
    meshes = {leaf.sharding.mesh for leaf in large.values() if isinstance(leaf, jax.Array) and _has_mesh(leaf)}
    for mesh in (None, *meshes):
        group = {
            name: leaf
            for name, leaf in large.items()
            if (leaf.sharding.mesh if isinstance(leaf, jax.Array) and _has_mesh(leaf) else None) == mesh
        }
        sums |= jax.device_get(_sums_on(mesh)(group)) if group else {}
    return {name: f"{leaf.dtype} {''.join(f'{int(part):08x}' for part in sums[name])}" for name, leaf in leaves.items()}


def is_small(leaf: Array) -> bool:
    """Whether this process holds all of an array, and NumPy is done with it before a program is compiled."""
    return leaf.size <= SMALL and (not isinstance(leaf, jax.Array) or leaf.is_fully_addressable)


def differences(tree: Any, checksums: Mapping[str, str]) -> list[str]:
    """Names of the arrays of a tree that do not match `checksums`."""
    return [name for name, found in array_checksums(tree).items() if found != checksums.get(name)]


def dtypes_of(path: object, checksums: Any) -> dict[str, np.dtype]:
    """Dtypes of the arrays that `checksums` were computed from, by name.

    Args:
      path: the folder of the arrays, for error messages.
      checksums: the checksums in a header.

    Raises:
      DamagedFile: if they are not a mapping from names to checksums.
    """
    if not isinstance(checksums, Mapping):
        raise DamagedFile(f"{path}: damaged: its checksums are {printable(checksums)}; expected one for each array")
    dtypes = {}
    for name, checksum in checksums.items():
        try:
            dtypes[name] = jnp.dtype(_CHECKSUM.fullmatch(checksum)[1])
        except TypeError:  # not a string, no match, or an unknown dtype
            raise DamagedFile(
                f"{path}: damaged: the checksum of {name} is {printable(checksum)}; expected a type and 16 digits"
            ) from None
    return dtypes


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _has_mesh(leaf: jax.Array) -> bool:
    return isinstance(leaf.sharding, jax.sharding.NamedSharding)


@functools.lru_cache(maxsize=8)
def _sums_on(mesh: jax.sharding.Mesh | None) -> Any:
    """`_sums`, compiled with replicated results."""
    everywhere = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(_sums, out_shardings=everywhere)


def _sums(leaves: dict[str, Array]) -> dict[str, Array]:
    return {name: _sum(leaf) for name, leaf in leaves.items()}


def _sum_on_host(leaf: np.ndarray) -> tuple[np.uint32, np.uint32]:
    """The same as `_sum`."""
    word = leaf.reshape(-1).view(f"u{leaf.dtype.itemsize}").astype(np.uint32)
    place = np.arange(leaf.size, dtype=np.uint32)
    mixed = _mix(word ^ (place * np.uint32(0x9E3779B1)))
    return mixed.sum(dtype=np.uint32), (mixed * (2 * place + 1)).sum(dtype=np.uint32)


def _sum(leaf: Array) -> Array:
    """uint32 [2]."""
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    word = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    mixed = _mix(word ^ (place * np.uint32(0x9E3779B1)))
    # One reduction of a pair: with two of them XLA would write `mixed` to memory.
    add = lambda one, other: (one[0] + other[0], one[1] + other[1])  # noqa: E731
    zero = np.uint32(0)
    pair = jax.lax.reduce((mixed, mixed * (2 * place + 1)), (zero, zero), add, range(leaf.ndim))
    return jnp.stack(pair)


def _mix(word: Array) -> Array:
    """The finalizer of MurmurHash3: a bijection in which every bit of the result depends on all bits of the word."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
