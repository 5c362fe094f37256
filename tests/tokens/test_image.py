"""Pictures are scaled, cropped and rounded as the released code does it (spec sections 3.5 and 3.6, vector V7)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import IMAGE_TOKENIZER, image_tokenizer, random_picture

from chameleon_jax.tokens.image import resize_and_crop, to_image, to_pixels


def smooth_picture(width: int, height: int) -> Image.Image:
    """Every place differs, so a wrong offset shows."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x * 7 + y * 3) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "resized", "offset"),
    [
        ((640, 480), (683, 512), (85, 0)),
        ((1000, 667), (768, 512), (128, 0)),
        ((667, 1000), (512, 768), (0, 128)),
        ((1023, 768), (682, 512), (85, 0)),
        ((300, 200), (768, 512), (128, 0)),
        ((513, 1025), (512, 1023), (0, 255)),
        ((511, 515), (512, 516), (0, 2)),
        ((1025, 1024), (512, 512), (0, 0)),  # 512.5 is rounded half to even
    ],
)
def test_released_sizes_and_crops(size, resized, offset):
    picture = smooth_picture(*size)
    left, top = offset
    by_hand = picture.resize(resized, Image.Resampling.LANCZOS).crop((left, top, left + 512, top + 512))
    assert resize_and_crop(picture, 512).tobytes() == by_hand.tobytes()


@given(width=st.integers(1, 60), height=st.integers(1, 60), resolution=st.sampled_from([7, 16, 32]))
def test_any_size_becomes_the_centre_square(width, height, resolution):
    picture = smooth_picture(width, height)
    result = resize_and_crop(picture, resolution)
    assert result.size == (resolution, resolution)
    assert result.mode == "RGB"
    if width == height == resolution:
        assert result.tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_any_mode_becomes_rgb_before_it_is_scaled(mode):
    if mode == "I;16":
        picture = Image.fromarray((np.arange(40 * 24).reshape(24, 40) * 60).astype(np.uint16))
        by_hand = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8)).convert("RGB")
    else:
        picture = smooth_picture(40, 24).convert(mode)
        by_hand = picture.convert("RGB")
    by_hand = by_hand.resize((27, 16), Image.Resampling.LANCZOS).crop((5, 0, 21, 16))
    assert resize_and_crop(picture, 16).tobytes() == by_hand.tobytes()


def test_orientation_mark_is_ignored():
    picture = smooth_picture(20, 10)
    picture.getexif()[0x0112] = 6  # "turn me by 90 degrees"
    assert resize_and_crop(picture, 10).tobytes() == resize_and_crop(smooth_picture(20, 10), 10).tobytes()


def test_pixels_are_scaled_in_float64():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = to_pixels(Image.fromarray(values), 16)
    assert pixels.dtype == np.float32
    expected = (values.astype(np.float64) / 255.0 * 2.0 - 1.0).astype(np.float32)
    np.testing.assert_array_equal(pixels, np.stack([expected] * 3, axis=-1))
    assert (pixels.min(), pixels.max()) == (-1.0, 1.0)


def test_way_back_clamps_and_truncates():
    row = np.array([-7, -1, -0.5, 0, 0.5, 0.999, 1, 3], np.float32)
    picture = to_image(np.broadcast_to(row[None, :, None], (2, 8, 3)))
    assert picture.mode == "RGB"
    assert np.asarray(picture)[1, :, 2].tolist() == [0, 0, 63, 127, 191, 254, 255, 255]


def test_codes_of_a_batch_are_those_one_by_one():
    tokenizer = image_tokenizer()
    pictures = [random_picture(seed) for seed in range(tokenizer.batch + 3)]  # one full batch and a short one
    together = tokenizer.tokenize(pictures)
    assert together.dtype == np.int32
    assert together.shape == (len(pictures), IMAGE_TOKENIZER.codes_per_image)
    np.testing.assert_array_equal(together, np.concatenate([tokenizer.tokenize([picture]) for picture in pictures]))
    assert len(np.unique(together)) > 3, "codes that hardly differ would prove nothing"


def test_pictures_of_a_batch_are_those_one_by_one():
    tokenizer = image_tokenizer()
    codes = np.random.default_rng(0).integers(0, IMAGE_TOKENIZER.num_codes, (5, IMAGE_TOKENIZER.codes_per_image))
    together = tokenizer.decode_codes(codes)
    assert together.shape == (5, 16, 16, 3)
    alone = np.concatenate([tokenizer.decode_codes(row[None]) for row in codes])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert [picture.size for picture in tokenizer.detokenize(codes)] == [(16, 16)] * 5


def test_no_pictures_give_no_codes():
    tokenizer = image_tokenizer()
    assert tokenizer.tokenize([]).shape == (0, IMAGE_TOKENIZER.codes_per_image)
    assert tokenizer.detokenize(np.zeros((0, IMAGE_TOKENIZER.codes_per_image), np.int32)) == []
