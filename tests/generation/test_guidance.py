"""Three readings of one document, and how their logits are put together (spec section 5.4)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import GenerationConfig
from chameleon_jax.generation.guidance import (
    FULL,
    NOTHING,
    PICTURES,
    copies,
    guide,
    visible_in_prompt,
    visible_when_written,
)
from chameleon_jax.generation.modality import IN_TEXT
from chameleon_jax.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary.in_released_order(num_pieces=20, num_codes=8)
T = int(VOCABULARY.text_ids[5])
C = int(VOCABULARY.image_ids[2])
BOS, B, E = VOCABULARY.bos, VOCABULARY.begin_image, VOCABULARY.end_image
TURN = VOCABULARY.end_of_turn

LOGITS = jnp.asarray([[[2.0, 0.0, 1.0]], [[1.0, 1.0, 0.0]], [[0.0, 1.0, 2.0]]])  # full, pictures, nothing


def test_formula_of_the_released_code():
    """Vector V11."""
    np.testing.assert_allclose(guide(LOGITS, 3.0, 1.2), [[4.2, -2.0, 2.6]], rtol=1e-6)


def test_scales_of_one_give_the_full_reading():
    np.testing.assert_allclose(guide(LOGITS, 1.0, 1.0), LOGITS[0], rtol=1e-6)
    np.testing.assert_array_equal(guide(LOGITS[:1], 1.0, 1.0), LOGITS[0])


def test_without_image_guidance_two_readings_give_what_three_give():
    np.testing.assert_allclose(guide(LOGITS[:2], 3.0, 1.0), guide(LOGITS, 3.0, 1.0), rtol=1e-6)


def test_each_row_is_guided_by_itself():
    rows = jnp.concatenate([LOGITS, LOGITS[:, :, ::-1]], axis=1)
    guided = guide(rows, 3.0, 1.2)
    np.testing.assert_allclose(guided, [[4.2, -2.0, 2.6], [2.6, -2.0, 4.2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "text_guidance", "image_guidance", "expected"),
    [
        ("interleaved", 3.0, 1.2, (FULL, PICTURES, NOTHING)),
        ("image", 3.0, 1.2, (FULL, PICTURES, NOTHING)),
        ("image", 1.0, 1.2, (FULL, PICTURES, NOTHING)),
        ("image", 3.0, 1.0, (FULL, PICTURES)),
        ("interleaved", 1.0, 1.0, (FULL,)),
        ("auto", 3.0, 1.2, (FULL, PICTURES, NOTHING)),
        ("auto", 1.0, 1.0, (FULL,)),
        ("text", 3.0, 1.2, (FULL,)),
    ],
)
def test_only_readings_that_matter_are_computed(mode, text_guidance, image_guidance, expected):
    config = GenerationConfig(mode=mode, text_guidance=text_guidance, image_guidance=image_guidance)
    assert copies(config) == expected


@pytest.mark.parametrize(
    ("ids", "pictures", "nothing"),
    [
        ([BOS], "1", "1"),
        ([BOS, T, T, TURN], "1000", "1000"),
        ([BOS, T, B], "101", "101"),
        ([BOS, T, B, C, C, E, T], "1011110", "1000000"),
        ([BOS, B, C, C, E, T, B, C], "11111011", "10000011"),
        ([BOS, B, C, C, E, TURN, B, C, C, E], "1111101111", "1000000000"),
    ],
)
def test_what_each_reading_sees_of_a_prompt(ids, pictures, nothing):
    ids = np.asarray(ids)
    assert visible_in_prompt(FULL, ids, VOCABULARY).all()
    for kind, expected in ((PICTURES, pictures), (NOTHING, nothing)):
        seen = visible_in_prompt(kind, ids, VOCABULARY)
        assert "".join(str(int(value)) for value in seen) == expected


def test_what_each_reading_sees_of_what_is_written():
    # Rows: text after text, begin of image, a code, the last code, end of image.
    before = jnp.asarray([IN_TEXT, IN_TEXT, 0, 3, 4])
    after = jnp.asarray([IN_TEXT, 0, 1, 4, IN_TEXT])
    assert visible_when_written(FULL, before, after, IN_TEXT).tolist() == [True] * 5
    assert visible_when_written(PICTURES, before, after, IN_TEXT).tolist() == [False, True, True, True, True]
    assert visible_when_written(NOTHING, before, after, IN_TEXT).tolist() == [False, True, True, True, False]
