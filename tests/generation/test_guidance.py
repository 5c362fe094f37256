"""The contexts that guide a picture, and how their logits are put together (spec section 5.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.generation.guidance import NOTHING, PICTURES, contexts, guide
from chameleon_jax.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary.in_released_order(num_pieces=20, num_codes=8)
T = int(VOCABULARY.text_ids[5])
C = int(VOCABULARY.image_ids[2])
BOS, B, E = VOCABULARY.bos, VOCABULARY.begin_image, VOCABULARY.end_image
TURN = VOCABULARY.end_of_turn

LOGITS = jnp.asarray([[[2.0, 0.0, 1.0]], [[1.0, 1.0, 0.0]], [[0.0, 1.0, 2.0]]])  # full, pictures, nothing


DOCUMENTS = {
    "text": [BOS, T, TURN, T, B],
    "text and pictures": [BOS, T, B, C, C, E, T, B, C, C, E, TURN, B],
    "pictures": [BOS, B, C, C, E, B],
    "nothing": [BOS, B],
}
"""What a picture may follow."""
FULL_TEXT = np.asarray(DOCUMENTS["text and pictures"])


def logits_of(ids) -> np.ndarray:
    """Some logits for a context, the same for the same ids."""
    return np.random.default_rng([int(token) for token in ids]).normal(size=6).astype(np.float32)


@pytest.mark.parametrize("written", [0, 3])
@pytest.mark.parametrize(
    ("document", "scales", "kinds"),
    [
        ("text", (3.0, 1.2), (NOTHING,)),
        ("text", (3.0, 1.0), (NOTHING,)),
        ("text", (1.0, 1.2), ()),
        ("text", (0.0, 0.0), (NOTHING,)),
        ("text and pictures", (3.0, 1.2), (PICTURES, NOTHING)),
        ("text and pictures", (1.0, 1.2), (PICTURES, NOTHING)),
        ("text and pictures", (3.0, 1.0), (PICTURES,)),
        ("text and pictures", (2.0, 2.0), (NOTHING,)),
        ("text and pictures", (1.0, 1.0), ()),
        ("pictures", (3.0, 1.2), (NOTHING,)),
        ("pictures", (3.0, 1.0), ()),
        ("nothing", (3.0, 1.2), ()),
        ("nothing", (1.0, 3.0), ()),
    ],
)
def test_contexts_that_are_needed_give_the_logits_of_all_three(document, scales, kinds, written):
    ids = np.asarray(DOCUMENTS[document] + [C] * written)
    found = contexts(ids, *scales, VOCABULARY)
    assert found.kinds == kinds
    full, *others = (jnp.asarray(logits_of(context)[None]) for context in (ids, *found.prompts))
    second, third = [*others, jnp.nan * full, jnp.nan * full][:2]
    guided = guide(full, second, third, jnp.asarray([found.scales]), jnp.asarray([len(kinds)]))
    last = ids[np.flatnonzero(ids == B)[-1] :]
    pictures = logits_of([token for token in ids if token in (BOS, B, C, E)]).astype(np.float64)
    nothing = logits_of([BOS, *last])
    expected = nothing + scales[1] * (pictures - nothing) + scales[0] * (full - pictures)
    np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-5)


def test_contexts_of_the_released_code():
    """The pictures with their marks; the begin of sequence alone; both with what is written of this picture."""
    found = contexts(np.asarray([*FULL_TEXT, C]), 3.0, 1.2, VOCABULARY)
    assert [context.tolist() for context in found.prompts] == [[BOS, B, C, C, E, B, C, C, E, B, C], [BOS, B, C]]
    assert found.prompts[0].dtype == np.int32


@pytest.mark.parametrize("ids", [[BOS, T], [BOS, T, B, C, C, E], [BOS]])
def test_document_that_ends_in_text_has_nothing_to_guide(ids):
    with pytest.raises(ValueError, match="inside a picture"):
        contexts(np.asarray(ids), 3.0, 1.2, VOCABULARY)


def test_formula_of_the_released_code():
    """Vector V11, for a row with two contexts; beside it one row with one and one with none."""
    full, pictures, nothing = (jnp.broadcast_to(logits, (3, 3)) for logits in LOGITS)
    scales, count = jnp.asarray([[3.0, 1.2]] * 3), jnp.asarray([2, 1, 0])
    guided = guide(full, pictures, nothing.at[1:].set(jnp.nan), scales, count)
    np.testing.assert_allclose(guided[0], [4.2, -2.0, 2.6], rtol=1e-6)
    np.testing.assert_allclose(guided[1], [4.0, -2.0, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(guided[2], full[2])


def test_row_is_guided_in_a_batch_as_it_is_alone():
    """Bit for bit, also where a row that needs fewer contexts shares a program with rows that need more."""
    rng = np.random.default_rng(0)
    full, second, third = jnp.asarray(rng.normal(size=(3, 6, 500)) * 10, jnp.float32)
    scales, count = jnp.asarray(rng.uniform(0, 4, (6, 2)), jnp.float32), jnp.asarray([0, 1, 2, 0, 1, 2])
    together = jax.jit(guide)(full, second, third, scales, count)
    for row in range(6):
        one = slice(row, row + 1)
        least = third[one] if count[row] == 2 else None
        alone = jax.jit(guide)(full[one], second[one], least, scales[one], count[one])
        np.testing.assert_array_equal(together[row], alone[0])
