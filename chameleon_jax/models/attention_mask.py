"""Which keys a query attends to."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from chameleon_jax.array_types import Array, Bool, Int


class Mask(NamedTuple):
    """A causal mask within segments: a query attends to keys at its own slot or earlier, in its own segment.

    A slot is a place in the row, or in the KV cache. With segments [1, 1, 2, 0] (two documents, one pad) the rows of
    the mask are 1000, 1100, 0010, 0001: padding attends to itself, so that no softmax is empty.
    """

    query_slots: Array  # [T]
    key_slots: Array  # [S]
    query_segments: Array  # [B, T]
    key_segments: Array  # [B, S]

    @classmethod
    def of_rows(cls, segment_ids: Int[Array, "B T"]) -> Mask:
        """The mask of whole rows."""
        slots = jnp.arange(segment_ids.shape[1])
        return cls(slots, slots, segment_ids, segment_ids)

    def to_array(self) -> Bool[Array, "B T S"]:
        """True where the query attends to the key."""
        causal = self.key_slots[None, :] <= self.query_slots[:, None]
        same = self.query_segments[:, :, None] == self.key_segments[:, None, :]
        return causal[None] & same
