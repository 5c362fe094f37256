"""The judge of drawings in colour, on pictures made by hand."""

from __future__ import annotations

import numpy as np

from chameleon_jax.demo.pictures.judge import CELLS, ORIENTATIONS, Judge, histograms


def square(colour, top=4) -> np.ndarray:
    picture = np.full((16, 16, 3), 255, np.uint8)
    picture[top : top + 8, 4:12] = colour
    return picture


RED, DARK_RED, BLUE = (200, 30, 30), (120, 20, 20), (30, 30, 200)
PICTURES = np.stack([square(RED), square(DARK_RED), square(BLUE), square(RED)])
FAMILIES = ["square", "square", "pond", "tomato"]


def test_nearest_is_that_of_the_least_squared_difference():
    rng = np.random.default_rng(0)
    pictures, drawings = (rng.integers(0, 256, (count, 16, 16, 3), np.uint8) for count in (700, 30))
    judge = Judge(pictures, [""] * len(pictures))
    expected = [
        np.argmin([np.mean((drawing / 255 - picture / 255) ** 2) for picture in pictures]) for drawing in drawings
    ]
    np.testing.assert_array_equal(judge(drawings).pixels, expected)
    np.testing.assert_array_equal(judge(pictures).pixels, np.arange(700))
    np.testing.assert_array_equal(judge(pictures).edges, np.arange(700))


def test_pictures_equal_to_the_pixel_count_as_one():
    judge = Judge(PICTURES, FAMILIES)
    np.testing.assert_array_equal(judge.look, [0, 1, 2, 0])
    almost = PICTURES.copy()
    almost[:, 0, 0] -= 9
    np.testing.assert_array_equal(judge.look[judge(almost).pixels], judge.look)


def test_family_is_that_of_any_picture_that_looks_the_same():
    judge = Judge(PICTURES, FAMILIES)
    assert judge.same_family(0, 1)
    assert judge.same_family(3, 1), "the tomato looks like the red square"
    assert not judge.same_family(0, 2)


def test_histograms_see_edges_and_hardly_colours():
    red, dark, moved = histograms(np.stack([square(RED), square(DARK_RED), square(RED, top=0)]))
    assert red.shape == ((CELLS - 1) ** 2 * 4 * ORIENTATIONS,)
    assert np.mean((red - dark) ** 2) < 0.05 * np.mean((red - moved) ** 2)


def test_histogram_of_a_slope_is_in_the_bin_of_its_direction():
    slope = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None] * 16, (16, 16, 3))
    blocks = histograms(slope[None]).reshape((CELLS - 1) ** 2, 4, ORIENTATIONS)
    assert (blocks[..., ORIENTATIONS // 2] > 0.4).all(), "downwards, 90 degrees"
    assert not np.delete(blocks, ORIENTATIONS // 2, axis=-1).any()
