"""Pictures are scaled, cropped and rounded as the released code does it (spec sections 3.5 and 3.6, vector V7)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import IMAGE_TOKENIZER, image_tokenizer, random_picture

from chameleon_jax.config import ConfigError, ImageTokenizerConfig, PreprocessingConfig
from chameleon_jax.document import DocumentError
from chameleon_jax.tokens.image import ImageTokenizer, NoImageDecoder, resize_and_crop, to_image, to_pixels, to_square

CACHE = "JAX_COMPILATION_CACHE_DIR"
CAN_PIN = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1
HUGGING_FACE = PreprocessingConfig(style="huggingface")
TRANSPARENT_MODES = ["RGBA", "LA", "P with transparency"]
MODES = ["RGB", "L", "1", "P", "CMYK", "I;16", *TRANSPARENT_MODES]


def smooth_picture(width: int, height: int) -> Image.Image:
    """Every place differs, so a wrong offset shows."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x * 7 + y * 3) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def noise(mode: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A picture in which every pixel counts."""
    values = rng.integers(0, 256, (*size[::-1], 4), np.uint8)
    if mode.startswith("P"):
        picture = Image.fromarray(values[..., 0]).convert("P")
        picture.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        if mode != "P":
            picture.info["transparency"] = rng.integers(0, 256, 256, np.uint8).tobytes()
        return picture
    if mode == "I;16":
        return Image.fromarray(values[..., 0] * np.uint16(256) + values[..., 1])
    return Image.fromarray(values).convert(mode)


def square_by_hand(picture: Image.Image, resolution: int) -> np.ndarray:
    """The steps of the released code one by one (spec section 3.5), uint8."""
    if picture.mode == "I;16":  # our own addition
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    opacity = np.asarray(picture.convert("RGBA"))[..., 3:] / 255.0
    if (opacity < 1).any():
        colours = np.asarray(picture.convert("RGBA"))[..., :3]
        picture = Image.fromarray(np.trunc((1 - opacity) * 255 + opacity * colours).astype(np.uint8))
    picture = picture.convert("RGB")
    factor = resolution / min(picture.width, picture.height)
    width, height = round(factor * picture.width), round(factor * picture.height)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    resized = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    return resized[top : top + resolution, left : left + resolution]


@pytest.mark.parametrize("mode", MODES)
def test_squares_are_those_of_the_released_steps_for_odd_sizes(mode):
    rng = np.random.default_rng(MODES.index(mode))
    for resolution in (64, 64, 64, 64, 48, 512):
        width, height = (2 * rng.integers(16, 750, 2) + 1).tolist()
        picture = noise(mode, (width, height), rng)
        square = np.asarray(resize_and_crop(picture, resolution))
        np.testing.assert_array_equal(square, square_by_hand(picture, resolution), err_msg=f"{width} x {height}")


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
    """Vector V7."""
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


@pytest.mark.parametrize(
    ("size", "resized", "offset"),
    [
        ((640, 480), (682, 512), (85, 0)),
        ((1000, 667), (767, 512), (127, 0)),
        ((667, 1000), (512, 767), (0, 127)),
        ((1023, 768), (682, 512), (85, 0)),
        ((1025, 1024), (512, 512), (0, 0)),
    ],
)
def test_sizes_and_crops_of_transformers(size, resized, offset):
    picture = smooth_picture(*size)
    left, top = offset
    by_hand = picture.resize(resized, Image.Resampling.LANCZOS).crop((left, top, left + 512, top + 512))
    assert to_square(picture, 512, HUGGING_FACE).tobytes() == by_hand.tobytes()


@pytest.mark.torch
def test_pixels_are_those_of_the_installed_transformers():
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.chameleon.image_processing_pil_chameleon")
    processor = module.ChameleonImageProcessorPil()
    rng = np.random.default_rng(0)
    modes = [mode for mode in MODES if mode != "I;16"]  # which transformers clips to white
    cases = [((640, 480), 512), ((1000, 667), 512), ((33, 1499), 64), ((1025, 1024), 64), ((64, 64), 64)]
    cases += [((2 * rng.integers(16, 500, 2) + 1).tolist(), int(rng.choice([64, 100, 47]))) for _ in range(17)]
    for number, (size, resolution) in enumerate(cases):
        mode = modes[number % len(modes)]
        picture = noise(mode, size, rng)
        square = {"height": resolution, "width": resolution}
        expected = processor(picture, size={"shortest_edge": resolution}, crop_size=square, return_tensors="np")
        pixels = to_pixels(picture, resolution, HUGGING_FACE)
        assert pixels.dtype == expected["pixel_values"].dtype == np.float32
        channels_first = np.moveaxis(pixels, -1, 0)
        np.testing.assert_array_equal(channels_first, expected["pixel_values"][0], err_msg=f"{mode} {size}")


@pytest.mark.parametrize("style", ["meta", "huggingface"])
@pytest.mark.parametrize("mode", TRANSPARENT_MODES)
def test_styles_blend_transparency_up_to_one_grey_level(style, mode):
    picture = noise(mode, (16, 16), np.random.default_rng(1))
    rgba = np.asarray(picture.convert("RGBA")).astype(float)
    opacity = rgba[..., 3:] / 255
    exact = (1 - opacity) * 255 + opacity * rgba[..., :3]
    square = np.asarray(to_square(picture, 16, PreprocessingConfig(style=style)))
    assert np.abs(square - exact).max() <= 1
    assert opacity.min() < 0.1


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("style", ["meta", "huggingface"])
def test_pictures_without_pixels_are_refused(style, fit):
    for mode in ("RGB", "RGBA"):
        with pytest.raises(DocumentError, match="no pixels"):
            to_square(Image.new(mode, (0, 5)), 16, PreprocessingConfig(style=style, fit=fit))


# ----------------------------------------------------------------------------------------------------------------------
# Borders
# ----------------------------------------------------------------------------------------------------------------------

CORNERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def picture_with_corners(width: int, height: int) -> Image.Image:
    """Black, with a mark of its own colour in each corner: top left, top right, bottom left, bottom right."""
    picture = Image.new("RGB", (width, height))
    for colour, (right, bottom) in zip(CORNERS, [(0, 0), (1, 0), (0, 1), (1, 1)], strict=True):
        left, top = right * (width - 12), bottom * (height - 12)
        picture.paste(colour, (left, top, left + 12, top + 12))
    return picture


@pytest.mark.parametrize("colour", [(255, 255, 255), (7, 70, 170)])
@pytest.mark.parametrize(
    ("size", "style", "box"),  # left, top, right, bottom of the picture in the square
    [
        ((90, 40), "meta", (0, 18, 64, 46)),  # 28.4 rows
        ((40, 90), "meta", (18, 0, 46, 64)),
        ((80, 33), "meta", (0, 19, 64, 45)),  # 26.4
        ((80, 34), "meta", (0, 19, 64, 46)),  # 27.2: the odd row of border is above
        ((100, 99), "meta", (0, 1, 64, 64)),  # 63.36
        ((128, 45), "meta", (0, 21, 64, 43)),  # 22.5 is rounded half to even
        ((128, 46), "huggingface", (0, 21, 64, 44)),
        ((128, 47), "huggingface", (0, 21, 64, 44)),  # 23.5 is truncated
    ],
)
def test_padding_keeps_the_whole_picture_in_the_middle(size, style, box, colour):
    picture = picture_with_corners(*size)
    square = to_square(picture, 64, PreprocessingConfig(style=style, fit="pad", pad_colour=colour))
    assert (square.size, square.mode) == ((64, 64), "RGB")
    left, top, right, bottom = box
    by_hand = picture.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    assert square.crop(box).tobytes() == by_hand.tobytes()
    for corner, place in zip(CORNERS, [(left, top), (right - 1, top), (left, bottom - 1), (right - 1, bottom - 1)]):  # noqa: B905
        np.testing.assert_allclose(square.getpixel(place), corner, atol=8)
    pixels = np.asarray(square).copy()
    pixels[top:bottom, left:right] = colour
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8(colour), pixels.shape))


def test_borders_are_white_unless_asked_otherwise():
    square = to_square(picture_with_corners(64, 32), 64, PreprocessingConfig(fit="pad"))
    assert square.getpixel((30, 2)) == (255, 255, 255)


def test_square_pictures_need_no_borders():
    picture = smooth_picture(75, 75)
    assert to_square(picture, 32, PreprocessingConfig(fit="pad")).tobytes() == resize_and_crop(picture, 32).tobytes()


def test_thin_picture_keeps_at_least_one_row():
    square = to_square(Image.new("RGB", (999, 1)), 16, PreprocessingConfig(fit="pad"))
    assert np.asarray(square).sum() == 16 * 15 * 3 * 255


@pytest.mark.parametrize("colour", [(1, 2), (0, 0, 256), (-1, 0, 0)])
def test_colour_of_borders_that_is_none_is_refused(colour):
    with pytest.raises(ConfigError, match="pad_colour"):
        PreprocessingConfig(pad_colour=colour)


# ----------------------------------------------------------------------------------------------------------------------
# Pixels
# ----------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.skipif(not CAN_PIN, reason="needs Linux and two cores")
def test_prepared_codes_do_not_depend_on_the_number_of_cores(tmp_path):
    """Each process compiles for itself, as machines of other sizes do, and as it would for a user."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", CACHE)}
    for cores in ("1", "2"):
        program = [sys.executable, str(Path(__file__).with_name("codes_on_cores.py")), cores, f"{tmp_path}/{cores}.npz"]
        subprocess.run(program, check=True, env=environment, timeout=300)
    one, two = (np.load(tmp_path / f"{cores}.npz") for cores in (1, 2))
    assert len(np.unique(one["codes"])) > 100
    for name in ("codes", "latents"):
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_pictures_of_a_batch_are_those_one_by_one():
    tokenizer = image_tokenizer()
    codes = np.random.default_rng(0).integers(0, IMAGE_TOKENIZER.num_codes, (5, IMAGE_TOKENIZER.codes_per_image))
    together = tokenizer.decode_codes(codes)
    assert together.shape == (5, 16, 16, 3)
    alone = np.concatenate([tokenizer.decode_codes(row[None]) for row in codes])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert [picture.size for picture in tokenizer.detokenize(codes)] == [(16, 16)] * 5


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1, 2, 3], [0, 16, 1, 2]], "code 16 at place 1 of picture 1: must be from 0 to 15"),
        ([[0, 1, 2, -1]], "code -1 at place 3 of picture 0: must be from 0 to 15"),
        ([[0, 1, 2, 2**40]], "code 1099511627776 at place 3 of picture 0"),
        ([[0, 1, 2]], r"shape \[1, 3\]: pictures are whole numbers \[n, 4\]"),
        ([0, 1, 2, 3], r"shape \[4\]: pictures are whole numbers"),
        ([[0.0, 1.0, 2.0, 3.0]], "codes of type float64"),
    ],
)
def test_codes_that_stand_for_no_picture_are_refused(codes, message):
    for decode in (image_tokenizer().detokenize, image_tokenizer().decode_codes):
        with pytest.raises(DocumentError, match=message):
            decode(np.array(codes))


def test_lone_picture_is_a_list_of_one():
    picture = random_picture(3)
    np.testing.assert_array_equal(image_tokenizer().tokenize(picture), image_tokenizer().tokenize([picture]))


@pytest.mark.parametrize("value", ["kite.png", np.zeros((4, 4, 3), np.uint8), None])
def test_what_is_no_picture_is_refused(value):
    with pytest.raises(DocumentError, match=r"a picture .* is expected, not \w+"):
        image_tokenizer().tokenize([value])


def test_no_pictures_give_no_codes():
    tokenizer = image_tokenizer()
    assert tokenizer.tokenize([]).shape == (0, IMAGE_TOKENIZER.codes_per_image)
    assert tokenizer.detokenize(np.zeros((0, IMAGE_TOKENIZER.codes_per_image), np.int32)) == []


def test_tokenizer_prepares_pictures_as_it_is_told():
    default = image_tokenizer()
    picture = random_picture(0, size=(40, 16))
    codes = [default.tokenize([picture])[0].tolist()]
    for preprocessing in (PreprocessingConfig(fit="pad"), PreprocessingConfig(fit="pad", pad_colour=(0, 0, 0))):
        tokenizer = ImageTokenizer(IMAGE_TOKENIZER, default.params, preprocessing)
        pixels = to_pixels(picture, IMAGE_TOKENIZER.resolution, preprocessing)
        codes.append(tokenizer.tokenize([picture])[0].tolist())
        assert codes[-1] == tokenizer.encode_pixels(pixels[None])[0].tolist()
    assert len({tuple(row) for row in codes}) == 3


def test_codes_are_computed_in_float32_from_any_weights():
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), image_tokenizer().params)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), rounded)
    pictures = [random_picture(seed) for seed in range(40)]
    tokenizer = ImageTokenizer(IMAGE_TOKENIZER, rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(tokenizer.params)} == {jnp.dtype("float32")}
    codes = tokenizer.tokenize(pictures)
    np.testing.assert_array_equal(codes, ImageTokenizer(IMAGE_TOKENIZER, exact).tokenize(pictures))


def test_weights_without_decoder_still_read_pictures():
    whole = image_tokenizer()
    params = {name: leaf for name, leaf in whole.params.items() if name != "decoder"}
    tokenizer = ImageTokenizer(IMAGE_TOKENIZER, params)
    assert whole.can_decode
    assert not tokenizer.can_decode
    codes = tokenizer.tokenize([random_picture(0)])
    np.testing.assert_array_equal(codes, whole.tokenize([random_picture(0)]))
    for draw in (tokenizer.decode_codes, tokenizer.detokenize):
        with pytest.raises(NoImageDecoder, match=r"without the image decoder.*image_tokenizer="):
            draw(codes)
    assert tokenizer.detokenize(codes[:0]) == []
    assert str(NoImageDecoder("another reason")) == "another reason"


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({}, 4),  # 128 MiB a map
        ({"resolution": 2048}, 1),
        ({"resolution": 256}, 16),
        ({"space_to_depth": 4}, 64),
        ({"channel_multipliers": (1, 2), "attn_type": "none"}, 2),
    ],
)
def test_batches_shrink_with_the_size_of_the_maps(changes, batch):
    assert ImageTokenizer(ImageTokenizerConfig(**changes), {}).batch == batch
