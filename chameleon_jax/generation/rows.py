"""Rows: the requests that run at once, as arrays on the device.

A row is one document that is being continued. It has a lane of its own in the cache, and up to two more while it draws
a picture with guidance (`generation/guidance.py`). Options of a request are arrays too, so that none compiles anew.

Legend: R rows, C text columns.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.generation.modality import IN_TEXT
from chameleon_jax.generation.sampling import Sampling

RUNNING, STOP, LENGTH, CONTEXT = 0, 1, 2, 3
"""Why a row has ended: not yet, at a stop id or its only picture, at its limit of text, at the end of the context."""
STOPS = 8
"""Most ids at which a request may stop."""


class Request(NamedTuple):
    """What a row needs to know of its request. In `Rows` each has a leading axis R."""

    length: Array  # int32 [3]; tokens that the lanes have read
    pending: Array  # int32 []; the last token, which no lane has read yet
    place: Array  # int32 []; see generation/modality.py
    room: Array  # int32 []; tokens that still fit the context
    text_left: Array  # int32 []; text tokens that may still be written
    pictures_left: Array  # int32 []
    one_picture: Array  # bool []; ends with its first picture
    ends_turn: Array  # bool []; may write the end of turn
    stops: Array  # int32 [STOPS]; ids that end it; -1 for none
    key: Array  # uint32 [2]; what its random numbers are made of
    text: Sampling
    picture: Sampling
    penalty: Array  # float32 []; of repetition
    guidance: Array  # bool []; whether its pictures are guided
    seen: Array  # bool [C]; text columns in the prompt or written since


class Rows(NamedTuple):
    """All rows."""

    request: Request
    written: Array  # int32 [R]; tokens written so far
    running: Array  # bool [R]
    waiting: Array  # bool [R]; has begun a picture and waits for its lanes of guidance
    guided: Array  # int32 [R]; lanes of guidance that the row has
    scales: Array  # float32 [R, 2]; of the guidance of the picture that it draws
    reason: Array  # int32 [R]; why it ended
    guesses: Array  # int32 [R, window - 1]; the tokens that may follow `pending` in a picture

    @classmethod
    def empty(cls, rows: int, columns: int, window: int) -> Rows:
        """Rows of which none runs, as NumPy arrays."""
        numbers, flags = np.zeros(rows, np.int32), np.zeros(rows, bool)
        scalars = np.zeros(rows, np.float32)
        sampling = Sampling(temperature=scalars, top_p=scalars + 1, min_p=scalars, top_k=numbers)
        request = Request(
            length=np.zeros((rows, 3), np.int32),
            pending=numbers,
            place=np.full(rows, IN_TEXT, np.int32),
            room=numbers,
            text_left=numbers,
            pictures_left=numbers,
            one_picture=flags,
            ends_turn=flags,
            stops=np.full((rows, STOPS), -1, np.int32),
            key=np.zeros((rows, 2), np.uint32),
            text=sampling,
            picture=sampling,
            penalty=scalars + 1,
            guidance=flags,
            seen=np.zeros((rows, columns), bool),
        )
        guesses = np.zeros((rows, window - 1), np.int32)
        scales = np.ones((rows, 2), np.float32)
        return cls(request, numbers, flags, flags, numbers, scales, numbers, guesses)


def put(rows: Rows, row: Array, request: Request, sample: Array) -> Rows:
    """Starts a request in a row.

    Args:
      request: its `key` is the seed's, which is folded with `sample`: one prompt has as many samples as one likes.
    """
    request = request._replace(
        key=jax.random.key_data(jax.random.fold_in(as_key(request.key), sample)),
        # Lanes of guidance stay as long as they are: while the row has none, what `decode` writes into them lands
        # behind what they have read, which another row may still copy.
        length=rows.request.length[row].at[0].set(request.length[0]),
    )
    return Rows(
        request=jax.tree.map(lambda all, one: all.at[row].set(one), rows.request, request),
        written=rows.written.at[row].set(0),
        running=rows.running.at[row].set(True),
        waiting=rows.waiting.at[row].set((request.place != IN_TEXT) & request.guidance),
        guided=rows.guided.at[row].set(0),
        scales=rows.scales,
        reason=rows.reason.at[row].set(RUNNING),
        guesses=rows.guesses,
    )


def give_lanes(rows: Rows, row: Array, lanes: Array, length: Array, scales: Array) -> Rows:
    """Lets a waiting row go on: it has `lanes` lanes of guidance, which have read `length` [2] tokens; see `guide`."""
    lengths = rows.request.length
    length = jnp.where(jnp.arange(2) < lanes, length, lengths[row, 1:])  # as in `put`
    return rows._replace(
        request=rows.request._replace(length=lengths.at[row, 1:].set(length)),
        waiting=rows.waiting.at[row].set(False),
        guided=rows.guided.at[row].set(lanes),
        scales=rows.scales.at[row].set(scales),
    )


def stop(rows: Rows, row: Array) -> Rows:
    """Ends a row."""
    return rows._replace(running=rows.running.at[row].set(False))


def seed_data(seed: int) -> np.ndarray:
    """uint32 [2]: the key data of a seed below 2^63, also negative, as JAX makes it with 64-bit integers."""
    return np.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def as_key(data: Array) -> Array:
    """Random keys from key data `[…, 2]`."""
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def token_keys(rows: Rows, window: int) -> Array:
    """Random keys `[R, window]` of each row's next tokens.

    The key of a token depends on the row's key and on how many tokens the row wrote before it, on nothing else.
    """
    places = rows.written[:, None] + jnp.arange(window)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(as_key(rows.request.key), places)
