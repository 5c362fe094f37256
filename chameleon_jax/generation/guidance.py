"""Classifier-free guidance for pictures, as in the released code (after InstructPix2Pix, Brooks et al. 2023).

A picture is drawn from the logits after everything before it, moved away from those after shorter contexts: the
pictures before it only, and nothing. A context is an ordinary sequence with a prompt of its own, read in a lane of its
own. Legend: R rows, C columns of the image codes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.tokens.vocabulary import IMAGE, Vocabulary

PICTURES, NOTHING = "pictures", "nothing"
NO_TEXT = np.zeros(0, np.int32)


class Contexts(NamedTuple):
    """What a picture is guided by, beside everything that was written before it."""

    kinds: tuple[str, ...]  # none, one or both of PICTURES and NOTHING, in this order
    prompts: tuple[np.ndarray, ...]  # int32; the ids of each kind, which end as the document does
    scales: tuple[float, float]  # for `guide`


def contexts(
    ids: np.ndarray,
    text_guidance: float,
    image_guidance: float,
    vocabulary: Vocabulary,
    negative: np.ndarray = NO_TEXT,
) -> Contexts:
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
      negative: int `[n]`, text that stands in n in the place of nothing, where there is no picture before this one.

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
    nothing = np.concatenate([nothing[:1], negative, nothing[1:]]).astype(np.int32)
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
