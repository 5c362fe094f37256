"""What to say when the lanes of an engine do not fit the memory."""

from __future__ import annotations

import os

import jax

from chameleon_jax.config import DType, TransformerConfig
from chameleon_jax.errors import ChameleonError

LANES = 3
"""Lanes of a row that draws with both kinds of guidance."""


class OutOfMemory(ChameleonError):
    """The device cannot hold so many answers, or so long ones, at once. The message says what fits."""


def explained(
    error: BaseException, config: TransformerConfig, rows: int, slots: int, dtype: DType, held: int
) -> BaseException:
    """`OutOfMemory` instead of an error of XLA that says so; any other error as it is.

    Args:
      rows, slots: of the engine that ran out of it.
      held: bytes that this engine holds itself.
    """
    if not (isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
        return error
    a_token = LANES * 2 * config.num_layers * config.num_kv_heads * config.head_dim * (2 if dtype == "bfloat16" else 4)
    free = max(0, _free_bytes() + held) * 9 // 10
    fitting = min(rows - 1, free // (a_token * slots))
    if fitting > 0:
        hint = f"{fitting} at a time fit; give fewer documents at once"
    else:
        hint = f"one of {free // a_token:,} fits; set context_length to that or less"
    return OutOfMemory(f"out of memory with {rows} answers of up to {slots:,} tokens at a time: {hint}")


def _free_bytes() -> int:
    """Of the first device, or of the host where that is all there is."""
    memory = jax.devices()[0].memory_stats()
    if memory:
        return memory["bytes_limit"] - memory["bytes_in_use"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
