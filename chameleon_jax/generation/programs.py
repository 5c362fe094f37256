"""The compiled programs of the engine: many steps of all rows a call, and what prepares a row for them.

The device decides every token; the host only moves lanes. Legend: R rows, W window, d model width, C text columns,
N codes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from chameleon_jax.array_types import Array
from chameleon_jax.config import DType, TransformerConfig
from chameleon_jax.generation.guidance import guide
from chameleon_jax.generation.jacobi import accept, next_guesses
from chameleon_jax.generation.modality import IN_TEXT, Columns, advance, allowed_text, picture_fits
from chameleon_jax.generation.rows import CONTEXT, LENGTH, RUNNING, STOP, Rows, token_keys
from chameleon_jax.generation.sampling import Sampling, draw, penalise_repetition
from chameleon_jax.models.decoding import Cache, DecodeWeights, Head, decode_weights, extend, head, readout


class Weights(NamedTuple):
    """The Transformer as it decodes, its output layer parted by modality."""

    layers: DecodeWeights
    text: Head  # [C]
    image: Head  # [N]


class Written(NamedTuple):
    """What a call has written: the first `count` of each row."""

    tokens: Array  # int32 [R, capacity]
    logprobs: Array  # float32 [R, capacity]
    count: Array  # int32 [R]
    steps: Array  # int32 [R]; in which the row went on


class State(NamedTuple):
    """How a call leaves the rows."""

    running: Array  # bool [R]
    waiting: Array  # bool [R]
    place: Array  # int32 [R]
    reason: Array  # int32 [R]
    steps: Array  # int32 []; of the call


class Drawn(NamedTuple):
    tokens: Array  # int32 [R, W]
    logprobs: Array  # float32 [R, W]


def make_weights(
    params: Any, config: TransformerConfig, columns: Columns, *, dtype: DType, quantization: str | None = None
) -> Weights:
    """The parameters of a Transformer as the engine uses them: a copy, in another layout."""
    layers = decode_weights(params, config, dtype=dtype, quantization=quantization)
    parts = (
        head(params["output"], ids, dtype=dtype, quantization=quantization)
        for ids in (columns.text_ids, columns.image_ids)
    )
    return Weights(layers, *parts)


@functools.partial(
    jax.jit, static_argnames=("config", "max_steps", "window", "logits_sharding"), donate_argnames=("rows", "caches")
)
def decode(
    config: TransformerConfig,
    weights: Weights,
    columns: Columns,
    rows: Rows,
    caches: tuple[Cache, ...],
    steps: Array,
    leave_early: Array,
    *,
    max_steps: int,
    window: int,
    logits_sharding: NamedSharding | None = None,
) -> tuple[Rows, tuple[Cache, ...], Written, State]:
    """Writes the next tokens of all rows that run.

    Args:
      caches: of the rows' own lanes; if a row draws with guidance, of their second lanes too, and of their third.
      steps: how often the lanes are read, at most `max_steps`. It ends sooner once no row can go on, or one waits for
        lanes of guidance.
      leave_early: also end once a row has ended, as where another request waits for its place.
      window: tokens of a picture that are tried at a time; see generation/jacobi.py.
      logits_sharding: on a mesh, where to draw. Whole logits on every device take one collective, those divided by
        columns dozens of small ones.
    """
    R = rows.running.shape[0]

    def go_on(state) -> Array:
        step, now, _, _ = state
        ended = jnp.any(rows.running & ~now.running)
        return (step < steps) & jnp.any(now.running) & ~jnp.any(now.running & now.waiting) & ~(leave_early & ended)

    def one(state):
        step, now, caches, written = state
        ids = jnp.concatenate([now.request.pending[:, None], now.guesses[:, : window - 1]], axis=1)  # [R, W]
        starts = now.request.length[:, : len(caches)].T.reshape(-1)
        hidden, caches = extend(weights.layers, config, jnp.tile(ids, (len(caches), 1)), starts, caches)
        hidden = hidden.reshape(len(caches), R, window, -1)
        drawn, seen = _draw(weights, columns, now, hidden, logits_sharding)
        now, count = _advance(columns, now, drawn, seen)
        places = written.count[:, None] + jnp.arange(window)
        row = jnp.arange(R)[:, None]
        written = Written(
            written.tokens.at[row, places].set(drawn.tokens, mode="drop"),
            written.logprobs.at[row, places].set(drawn.logprobs, mode="drop"),
            written.count + count,
            written.steps + (count > 0),
        )
        return step + 1, now, caches, written

    capacity = max_steps * window
    nothing = jnp.zeros(R, jnp.int32)
    written = Written(jnp.zeros((R, capacity), jnp.int32), jnp.zeros((R, capacity), jnp.float32), nothing, nothing)
    step, rows, caches, written = jax.lax.while_loop(go_on, one, (jnp.int32(0), rows, caches, written))
    state = State(rows.running, rows.waiting, rows.request.place, rows.reason, step)
    return rows, caches, written, state


def _draw(
    weights: Weights, columns: Columns, rows: Rows, hidden: Array, logits_sharding: NamedSharding | None
) -> tuple[Drawn, Array]:
    """The tokens that may come next, and the text columns seen up to then.

    Columns of a modality in which no row is are not computed.

    Args:
      hidden: [lanes of a row, R, W, d].
    """
    request, (R, W) = rows.request, hidden.shape[1:3]
    in_picture = request.place != IN_TEXT
    active = rows.running & ~rows.waiting
    keys = token_keys(rows, W)

    def logits_of(head: Head, hidden: Array, columns: int) -> Array:
        logits = readout(head, hidden)
        if logits_sharding is not None:
            logits = jax.lax.with_sharding_constraint(logits, logits_sharding)
        return logits[..., :columns]

    def text(_):
        logits = logits_of(weights.text, hidden[0, :, 0], len(columns.text_ids))
        logits = penalise_repetition(logits, request.seen, request.penalty)
        may_begin = (request.pictures_left > 0) & picture_fits(columns, request.room)
        allowed = allowed_text(columns, may_begin, request.ends_turn)
        column, logprob = draw(keys[:, 0], jnp.where(allowed, logits, -jnp.inf), request.text)
        written = active & ~in_picture
        seen = request.seen.at[jnp.arange(R), column].max(written)
        return columns.text_ids[column], logprob, seen

    def picture(_):
        repeated = lambda each: jnp.repeat(each, W, axis=0)  # noqa: E731  what is a row's is that of all its window
        logits = logits_of(weights.image, hidden, len(columns.image_ids))
        full, *others = logits.reshape(len(hidden), R * W, -1)
        if others:
            second, third = (*others, None)[:2]
            full = guide(full, second, third, repeated(rows.scales), repeated(rows.guided))
        column, logprob = draw(keys.reshape(-1), full, Sampling(*map(repeated, request.picture)))
        return columns.image_ids[column].reshape(R, W), logprob.reshape(R, W)

    nothing = jnp.zeros((R, W), jnp.int32), jnp.zeros((R, W), jnp.float32)
    writes_text, writes_codes = active & ~in_picture, active & in_picture & (request.place < columns.codes_per_image)
    token, logprob, seen = jax.lax.cond(
        jnp.any(writes_text), text, lambda _: (nothing[0][:, 0], nothing[1][:, 0], request.seen), None
    )
    tokens, logprobs = jax.lax.cond(jnp.any(writes_codes), picture, lambda _: nothing, None)
    closes = request.place[:, None] + jnp.arange(W) >= columns.codes_per_image  # its codes are written
    tokens, logprobs = jnp.where(closes, columns.end_image, tokens), jnp.where(closes, 0.0, logprobs)
    first = jnp.arange(W) == 0
    tokens = jnp.where(in_picture[:, None], tokens, jnp.where(first, token[:, None], 0))
    logprobs = jnp.where(in_picture[:, None], logprobs, jnp.where(first, logprob[:, None], 0.0))
    return Drawn(tokens, logprobs), seen


def _advance(columns: Columns, rows: Rows, drawn: Drawn, seen: Array) -> tuple[Rows, Array]:
    """The rows after what was drawn, and how many of the drawn tokens are final, int32 [R]."""
    request, tokens = rows.request, drawn.tokens
    in_picture = request.place != IN_TEXT
    active = rows.running & ~rows.waiting
    left = columns.codes_per_image + 1 - request.place  # tokens of the picture, its end included
    guesses = rows.guesses[:, : tokens.shape[1] - 1]
    count = jnp.where(in_picture, jnp.minimum(accept(tokens, guesses), left), 1)
    count = jnp.where(active, count, 0)

    last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    begins = active & ~in_picture & (last == columns.begin_image)
    ends_picture = active & in_picture & (count == left)
    place = jnp.where(in_picture, request.place + count, advance(columns, request.place, last))
    place = jnp.where(ends_picture, IN_TEXT, place)
    place = jnp.where(active, place, request.place)
    room = request.room - count
    text_left = request.text_left - (active & ~in_picture & ~begins)

    reason = rows.reason
    in_text = place == IN_TEXT
    stopped = ~in_picture & jnp.any(last[:, None] == request.stops, axis=1) | ends_picture & request.one_picture
    for ended, why in ((room <= 0, CONTEXT), (in_text & (text_left <= 0), LENGTH), (stopped, STOP)):
        reason = jnp.where(active & ended, why, reason)
    running = rows.running & (reason == RUNNING)

    drawing = active & in_picture
    reads = jnp.stack([active, drawing & (rows.guided >= 1), drawing & (rows.guided >= 2)], axis=1)
    request = request._replace(
        length=request.length + jnp.where(reads, count[:, None], 0),
        pending=jnp.where(active, last, request.pending),
        place=place,
        room=room,
        text_left=text_left,
        pictures_left=request.pictures_left - begins,
        seen=seen,
    )
    rows = Rows(
        request=request,
        written=rows.written + count,
        running=running,
        waiting=jnp.where(active, begins & running & request.guidance, rows.waiting),
        guided=jnp.where(ends_picture, 0, rows.guided),
        scales=rows.scales,
        reason=reason,
        guesses=rows.guesses if tokens.shape[1] == 1 else next_guesses(tokens, count),
    )
    return rows, count
