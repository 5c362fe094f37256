"""Checks the attention kernel on the devices at hand before training: are its values and gradients correct?"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from chameleon_jax.array_types import Array
from chameleon_jax.config import ExecutionConfig, TransformerConfig
from chameleon_jax.errors import TrainingError
from chameleon_jax.models.attention import KERNELS, attend, backend_for
from chameleon_jax.models.attention_mask import Mask
from chameleon_jax.models.transformer import remat_policy
from chameleon_jax.runtime.distributed import gather_texts
from chameleon_jax.runtime.progress import console
from chameleon_jax.sharding import AXES, constraints_on, replicated

LENGTH = 512
"""Tokens per device of a test row, if the length of the run's rows is not known yet."""
QUERIES = 512
"""Plain attention is computed for at most this many queries at a time, to avoid the scores of whole rows."""
TIMES_PLAIN, AT_LEAST = 4.0, 1e-4
"""A kernel may deviate from float32 by `TIMES_PLAIN` times as much as plain attention in the same dtype, plus
`AT_LEAST`."""


def check_attention(
    config: TransformerConfig, execution: ExecutionConfig, where: Any, length: int | None = None
) -> ExecutionConfig:
    """Compares the kernel that `execution.attention` selects on a mesh (or a device) with plain attention.

    Compares values and gradients on one random packed row per data-parallel device. Length, heads, head dimension,
    dtype and remat policy are those of the run, and so are the block sizes and kernels. 'xla' and 'blockwise' are plain
    attention and are not compared.

    Args:
      where: the mesh or device.
      length: length of the run's rows; by default `LENGTH` per device.

    Returns:
      `execution`, with another backend if 'auto' selected a kernel that is wrong; a message says so.

    Raises:
      ConfigError: if `execution.attention` names a backend that cannot run there.
      TrainingError: if it names a kernel that fails, or deviates by more than the dtype explains.
    """
    if not isinstance(where, Mesh):
        where = Mesh(np.asarray(where).reshape((1,) * len(AXES)), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    length = length or LENGTH * where.shape.get("sequence", 1)
    kernel = backend_for(config, execution, where, length)
    if kernel not in KERNELS:
        return execution
    found = _problem(config, execution, kernel, where, length)
    if found is None:
        return execution
    problem = f"attention backend {kernel!r} on {where.devices.flat[0].device_kind}: {found}"
    if execution.attention != "auto":
        raise TrainingError(
            f"{problem}. With this kernel, documents packed into one row may attend to each other, or gradients be "
            "wrong; set execution.attention = 'blockwise'"
        )
    plain = "blockwise" if _problem(config, execution, "blockwise", where, length) is None else "xla"
    console.print(f"{problem}. Continuing with {plain!r}, which is slower.", style="bold red", markup=False)
    return dataclasses.replace(execution, attention=plain)


def _problem(
    config: TransformerConfig, execution: ExecutionConfig, backend: str, mesh: Mesh, length: int
) -> str | None:
    """What is wrong with a backend, or None. The same in all processes."""
    rows = mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)
    compare = jax.jit(
        functools.partial(deviations, config, execution, backend, rows, length), out_shardings=replicated(mesh)
    )
    try:
        with jax.set_mesh(mesh), constraints_on(mesh):
            found, plain = map(np.asarray, compare(jax.random.key(0)))
        problem = too_far(found, plain, execution.compute_dtype)
    except Exception as error:  # whatever the kernel raises, it cannot be used; the reason is reported
        problem = f"fails ({(str(error).strip() or type(error).__name__).splitlines()[0][:200]})"
    if jax.process_count() > 1:
        problem = next(filter(None, gather_texts(problem or "")), None)
    return problem


def too_far(found: np.ndarray, plain: np.ndarray, dtype: str) -> str | None:
    names = ("values", "gradient of q", "gradient of k", "gradient of v")
    for name, deviation, usual in zip(names, found, plain, strict=True):
        if deviation > TIMES_PLAIN * usual + AT_LEAST:
            size = f"{deviation:.2g} of their size"
            return f"its {name} deviate by {size} from plain attention, {dtype} explains {usual:.1g}"
    return None


def documents(rows: int, length: int) -> np.ndarray:
    """Segment ids `[rows, length]`: five documents, one of them a single token, and padding.

    The first document ends at another position in each row, so that rows differ.
    """
    segments = []
    for row in range(rows):
        lengths = [length // 2 - 3 * row % (length // 4), 1, length // 8, length // 4, length // 16]
        segments.append(np.repeat([1, 2, 3, 4, 5, 0], [*lengths, length - sum(lengths)]))
    return np.stack(segments).astype(np.int32)


def deviations(
    config: TransformerConfig, execution: ExecutionConfig, backend: str, rows: int, length: int, key: Array
) -> tuple[Array, Array]:
    """Deviations from plain attention in float32, of the kernel and of plain attention in the compute dtype.

    A deviation is the largest difference divided by the largest value, for the values and the gradients of q, k and v:
    two arrays `[4]`. Plain attention is computed for one key head after the other.
    """
    D, K = config.head_dim, config.num_kv_heads
    segments = nn.with_logical_constraint(jnp.asarray(documents(rows, length)), ("batch", "length"))
    mask = Mask.of_rows(segments)

    def random(name: int, heads: int, axes: tuple[str | None, ...]) -> Array:
        x = jax.random.normal(jax.random.fold_in(key, name), (rows, length, heads, D))
        return nn.with_logical_constraint(x.astype(execution.compute_dtype), axes)

    queries, keys = ("batch", "length", "heads", None), ("batch", None, "kv_heads", None)
    q, upstream = random(0, config.num_heads, queries), random(1, config.num_heads, queries)
    k, v = random(2, K, keys), random(3, K, keys)

    kernel = functools.partial(attend, mask=mask, backend=backend)
    if execution.remat != "none":
        kernel = jax.checkpoint(kernel, policy=remat_policy(execution.remat))

    def attended(attention: Any, dtype: str, q: Array, k: Array, v: Array, upstream: Array) -> list[Array]:
        out, gradients = jax.vjp(attention, *(x.astype(dtype) for x in (q, k, v)))
        return [x.astype(jnp.float32) for x in (out, *gradients(upstream.astype(dtype)))]

    out, gradients = jax.vjp(kernel, q, k, v)
    computed = out, *gradients(upstream)

    def of_head(arrays: tuple[Array, ...]) -> Array:
        *inputs, out, of_q, of_k, of_v = arrays
        plain = functools.partial(_attend_in_slices, mask=mask)
        with jax.default_matmul_precision("highest"):
            exact = attended(plain, "float32", *inputs)
        usual = attended(plain, execution.compute_dtype, *inputs)

        def largest(x: Array) -> Array:  # XLA's maximum on a CPU ignores NaN
            return jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), jnp.inf))

        return jnp.stack([
            jnp.stack([largest(x - right), largest(same - right), largest(right)])
            for x, same, right in zip((out, of_q, of_k, of_v), usual, exact, strict=True)
        ])  # fmt: skip

    by_head = [jnp.moveaxis(x.reshape(rows, length, K, -1, D), 2, 0) for x in (q, k, v, upstream, *computed)]
    found, plain, size = jnp.moveaxis(jnp.max(jax.lax.map(of_head, tuple(by_head)), axis=0), 1, 0)
    return found / size, plain / size


def _attend_in_slices(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    """Plain attention, for a slice of the queries at a time; so are its gradients."""
    B, T, H, D = q.shape
    size = next(size for size in range(min(QUERIES, T), 0, -1) if T % size == 0)

    @jax.checkpoint
    def of_slice(arrays: tuple[Array, Array, Array]) -> Array:
        q, slots, segments = arrays
        return attend(q, k, v, Mask(slots, mask.key_slots, segments, mask.key_segments), "xla")

    slices = (
        jnp.moveaxis(q.reshape(B, -1, size, H, D), 1, 0),
        mask.query_slots.reshape(-1, size),
        jnp.moveaxis(mask.query_segments.reshape(B, -1, size), 1, 0),
    )
    return jnp.moveaxis(jax.lax.map(of_slice, slices), 0, 1).reshape(q.shape)
