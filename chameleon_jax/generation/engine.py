"""Generation: one compiled program reads the prompts and writes text and pictures, whatever each row is at.

The host never looks at a token to decide what the next may be. Legend: B documents, C copies for guidance, T prompt
length, S cache slots, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.config import ExecutionConfig, GenerationConfig, TransformerConfig
from chameleon_jax.generation.guidance import (
    NOTHING,
    copies,
    forget_before_picture,
    guide_copies,
    visible_in_prompt,
    visible_when_written,
)
from chameleon_jax.generation.modality import IN_TEXT, ModalityRules, advance, allowed, picture_fits, place_after
from chameleon_jax.generation.sampling import penalise_repetition, sample
from chameleon_jax.models.transformer import KVCache, Transformer
from chameleon_jax.tokens.vocabulary import Vocabulary

PROMPT_MULTIPLE = 16
"""Prompts are padded to a multiple of this, so that few lengths are compiled."""


class Prompts(NamedTuple):
    """Prompts padded on the left to a common length."""

    ids: Array  # int32 [B, T]
    visible: Array  # bool [C, B, T]; what each copy sees, never padding
    place: Array  # int32 [B]; see generation/modality.py
    first_slot: Array  # int32 [B]; where the row's begin of sequence stands

    @property
    def positions(self) -> Array:
        """int32 `[C, B, T]`: each copy counts the tokens it sees from 0; padding takes no position."""
        return jnp.maximum(jnp.cumsum(self.visible, axis=-1) - 1, 0)


class _Loop(NamedTuple):
    step: Array  # []; tokens written
    tokens: Array  # int32 [B, max_new_tokens]
    logits: Array  # float32 [C, B, V]; of the next token
    cache: KVCache  # of C * B rows
    positions: Array  # int32 [C, B]; of the next visible token
    place: Array  # int32 [B]
    done: Array  # bool [B]
    seen: Array | None  # bool [B, V]; ids in the prompt or written since; only if repetition is penalised


def make_prompts(prompts: Sequence[np.ndarray], vocabulary: Vocabulary, config: GenerationConfig) -> Prompts:
    """Pads prompts (ids with begin of sequence, no end) and works out what each copy sees."""
    longest = max(len(ids) for ids in prompts)
    T = -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    kinds = copies(config)
    ids = np.full((len(prompts), T), vocabulary.pad, np.int32)
    visible = np.zeros((len(kinds), len(prompts), T), bool)
    for row, prompt in enumerate(prompts):
        ids[row, T - len(prompt) :] = prompt
        for copy, kind in enumerate(kinds):
            visible[copy, row, T - len(prompt) :] = visible_in_prompt(kind, prompt, vocabulary)
    place = np.array([place_after(vocabulary, prompt) for prompt in prompts], np.int32)
    first_slot = np.array([T - len(prompt) for prompt in prompts], np.int32)
    return Prompts(*map(jnp.asarray, (ids, visible, place, first_slot)))


@functools.partial(jax.jit, static_argnames=("model_config", "execution", "config", "eos", "pad"))
def generate_ids(
    model_config: TransformerConfig,
    execution: ExecutionConfig,
    config: GenerationConfig,
    params: Any,
    rules: ModalityRules,
    prompts: Prompts,
    keys: Array,
    *,
    eos: int,
    pad: int,
) -> Array:
    """Writes up to `config.max_new_tokens` tokens after each prompt.

    Args:
      keys: one random key a row; a row's samples depend on its own key alone.

    Returns:
      int32 `[B, max_new_tokens]`; after a row's last token (end of sequence, or the end of the picture in mode
      'image') it holds `pad`.
    """
    model = Transformer(model_config, execution)
    kinds = copies(config)
    C, (B, T), N = len(kinds), prompts.ids.shape, config.max_new_tokens

    def feed(cache: KVCache, ids: Array, positions: Array, visible: Array) -> tuple[Array, KVCache]:
        """Tokens [C, B, t] into the cache; logits [C, B, V] after the last of them."""
        flat = [x.reshape(C * B, -1) for x in (ids, positions, visible.astype(jnp.int32))]
        logits, cache = model.apply({"params": params}, *flat, cache)
        return logits[:, -1].reshape(C, B, -1), cache

    def write(loop: _Loop) -> _Loop:
        in_picture = loop.place != IN_TEXT
        may_begin = picture_fits(rules, N - loop.step) & (config.mode != "text")
        mask = allowed(rules, loop.place, jnp.broadcast_to(may_begin, (B,)))
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step)
        plain = jnp.where(mask, loop.logits[0], -jnp.inf)
        if loop.seen is not None:
            plain = penalise_repetition(plain, loop.seen, config.repetition_penalty)
        text = sample(row_keys, plain, config.text)
        guided = guide_copies(loop.logits, config.text_guidance, config.image_guidance)
        image = sample(row_keys, jnp.where(mask, guided, -jnp.inf), config.image)
        token = jnp.where(loop.done, pad, jnp.where(in_picture, image, text)).astype(jnp.int32)

        place = jnp.where(loop.done, IN_TEXT, advance(rules, loop.place, token))
        done = loop.done | (token == eos)
        if config.mode == "image":
            done |= in_picture & (place == IN_TEXT)

        cache, positions, visible = loop.cache, loop.positions, []
        for copy, kind in enumerate(kinds):
            visible.append(visible_when_written(kind, loop.place, place, IN_TEXT) & ~loop.done)
            if kind == NOTHING:
                rows = slice(copy * B, (copy + 1) * B)
                segments, start = forget_before_picture(
                    cache.segment_ids[rows], positions[copy], (loop.place == IN_TEXT) & (place == 0), prompts.first_slot
                )
                cache = cache._replace(segment_ids=cache.segment_ids.at[rows].set(segments))
                positions = positions.at[copy].set(start)
        visible = jnp.stack(visible)
        logits, cache = feed(cache, jnp.broadcast_to(token, (C, B)), positions, visible)
        tokens = jax.lax.dynamic_update_slice(loop.tokens, token[:, None], (0, loop.step))
        seen = None if loop.seen is None else loop.seen.at[jnp.arange(B), token].set(True)
        return _Loop(loop.step + 1, tokens, logits, cache, positions + visible, place, done, seen)

    cache = KVCache.empty(model_config, C * B, T + N, execution.compute_dtype)
    logits, cache = feed(cache, jnp.broadcast_to(prompts.ids, (C, B, T)), prompts.positions, prompts.visible)
    seen = None
    if config.repetition_penalty != 1:  # padding counts as seen, as in the released code; it is never drawn anyway
        seen = jnp.zeros((B, model_config.vocab_size), bool).at[jnp.arange(B)[:, None], prompts.ids].set(True)
    start = _Loop(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((B, N), pad, jnp.int32),
        logits=logits,
        cache=cache,
        positions=prompts.positions[..., -1] + 1,
        place=prompts.place,
        done=jnp.zeros(B, bool),  # an end of sequence in the prompt does not count
        seen=seen,
    )
    running = lambda loop: (loop.step < N) & ~jnp.all(loop.done)  # noqa: E731
    return jax.lax.while_loop(running, write, start).tokens
