"""Classifier-free guidance for pictures: three readings of the same document, seen in full, pictures only, not at all.

As in the released code (after InstructPix2Pix, Brooks et al. 2023), but in one program: all copies of a document are
fed the same tokens into the same cache slots, and differ only in which of them they can see. A token that a copy must
not see is written with segment 0 and takes no position, so that what the copy computes is exactly what it would
compute for the shortened document.

Legend: B documents, C copies, S cache slots, T prompt length, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array, Bool, Float, Int
from chameleon_jax.config import GenerationConfig
from chameleon_jax.tokens.vocabulary import IMAGE, Vocabulary

FULL, PICTURES, NOTHING = "full", "pictures", "nothing"


def copies(config: GenerationConfig) -> tuple[str, ...]:
    """The readings that the guidance scales make use of; without pictures or guidance one is enough."""
    if config.mode == "text" or (config.text_guidance == 1 and config.image_guidance == 1):
        return (FULL,)
    return (FULL, PICTURES) if config.image_guidance == 1 else (FULL, PICTURES, NOTHING)


class Contexts(NamedTuple):
    """What a picture is guided by, beside everything that was written before it."""

    kinds: tuple[str, ...]  # none, one or both of PICTURES and NOTHING, in this order
    prompts: tuple[np.ndarray, ...]  # int32; the ids of each kind, which end as the document does
    scales: tuple[float, float]  # for `guide`


def contexts(ids: np.ndarray, text_guidance: float, image_guidance: float, vocabulary: Vocabulary) -> Contexts:
    """The contexts that the guidance of a picture needs; those that coincide or cancel out are left out.

    With f, p and n the logits after everything, after the pictures only and after nothing, s the scale of the text and
    t that of the pictures, a picture is drawn from n + t (p - n) + s (f - p), as in the released code:

    - p and n coincide (no picture before this one): n + s (f - n);
    - f and p coincide (pictures only): n + t (f - n);
    - s = t: p cancels out, n + s (f - n);
    - t = 1: n cancels out, p + s (f - p);
    - what is left has scale 1, or n coincides with f as well: f alone.

    Args:
      ids: int `[T]`, the document from its begin of sequence, up to the begin of this picture or some of its codes.

    Raises:
      ValueError: if the document does not end inside a picture.
    """
    ids = np.asarray(ids, np.int32)
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    if len(begins) == 0 or (ids[begins[-1] :] == vocabulary.end_image).any():
        raise ValueError("a document that does not end inside a picture has nothing to guide")
    marks = (vocabulary.bos, vocabulary.begin_image, vocabulary.end_image)
    pictures = ids[np.isin(ids, marks) | (vocabulary.modality[ids] == IMAGE)]
    nothing = np.concatenate([[np.int32(vocabulary.bos)], ids[begins[-1] :]])
    if np.array_equal(pictures, nothing):
        image_guidance = text_guidance
    elif np.array_equal(ids, pictures):
        text_guidance = image_guidance
    scales = (text_guidance, image_guidance)
    if text_guidance == image_guidance:
        if text_guidance == 1 or np.array_equal(ids, nothing):
            return Contexts((), (), scales)
        return Contexts((NOTHING,), (nothing,), scales)
    if image_guidance == 1:
        return Contexts((PICTURES,), (pictures,), scales)
    return Contexts((PICTURES, NOTHING), (pictures, nothing), scales)


def guide(
    full: Float[Array, "R C"],
    second: Float[Array, "R C"],
    third: Float[Array, "R C"] | None,
    scales: Float[Array, "R 2"],
    count: Int[Array, "R"],
) -> Float[Array, "R C"]:
    """Guided logits float32, from raw ones: forbidden columns come later, infinities have no difference.

    Args:
      full: logits after everything.
      second: logits after the first of the row's contexts; anything where there is none.
      third: logits after the second of them; anything where there is none, None if no row has two.
      scales: those of each row's `Contexts`.
      count: how many contexts each row has; a row with none is `full`, bit for bit.
    """
    full, second, scales = full.astype(jnp.float32), second.astype(jnp.float32), scales.astype(jnp.float32)
    base = second
    if third is not None:
        third = third.astype(jnp.float32)
        base = jnp.where((count == 2)[:, None], third + scales[:, 1:] * (second - third), second)
    return jnp.where((count == 0)[:, None], full, base + scales[:, :1] * (full - second))


def guide_copies(logits: Float[Array, "C B V"], text_guidance: float, image_guidance: float) -> Float[Array, "B V"]:
    """nothing + image_guidance (pictures - nothing) + text_guidance (full - pictures), on raw logits."""
    if logits.shape[0] == 1:
        return logits[0]
    full, pictures = logits[0], logits[1]
    nothing = logits[2] if logits.shape[0] == 3 else pictures
    return nothing + image_guidance * (pictures - nothing) + text_guidance * (full - pictures)


def visible_in_prompt(kind: str, ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """bool `[T]`: the tokens of a prompt (begin of sequence first) that a copy sees.

    'pictures' sees whole pictures with their marks; 'nothing' sees a picture only while it is being written.
    """
    if kind == FULL:
        return np.ones(len(ids), bool)
    marks = (ids == vocabulary.begin_image) | (ids == vocabulary.end_image)
    visible = marks | (vocabulary.modality[ids] == IMAGE)
    if kind == NOTHING:
        ends = np.flatnonzero(ids == vocabulary.end_image)
        visible[: ends[-1] + 1 if len(ends) else 0] = False
    visible[0] = True
    return visible


def visible_when_written(kind: str, before: Int[Array, "B"], after: Int[Array, "B"], in_text: int) -> Bool[Array, "B"]:
    """Whether a copy sees a token that moved its row from place `before` to place `after`."""
    if kind == FULL:
        return jnp.ones(before.shape, bool)
    if kind == PICTURES:
        return (before != in_text) | (after != in_text)
    return after != in_text


def forget_before_picture(
    segment_ids: Int[Array, "B S"], positions: Int[Array, "B"], begins: Bool[Array, "B"], first_slot: Int[Array, "B"]
) -> tuple[Int[Array, "B S"], Int[Array, "B"]]:
    """What the copy 'nothing' sees from now on: rows that begin a picture keep only their begin of sequence.

    Args:
      segment_ids: of the cache; 0 hides a slot.
      positions: of the row's next token.
      begins: rows that begin a picture now.
      first_slot: where each row's begin of sequence stands.
    """
    start = jnp.arange(segment_ids.shape[1]) == first_slot[:, None]
    kept = jnp.where(begins[:, None], start.astype(segment_ids.dtype), segment_ids)
    return kept, jnp.where(begins, 1, positions)
