"""Any picture file becomes a picture or an error that names it; any mode becomes RGB as the released code does it."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.document import DocumentError, open_image, parse_prompt, to_rgb


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_picture_files_are_read_whole(tmp_path, kind):
    content = encoded(random_picture(0, (20, 10)), kind)
    (tmp_path / "picture").write_bytes(content)
    image = open_image(tmp_path / "picture")
    (tmp_path / "picture").unlink()  # nothing is read later
    expected = Image.open(io.BytesIO(content))
    assert image.size == (20, 10)
    assert image.convert("RGB").tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.png", None, "no such picture file"),
        ("empty.png", b"", "empty"),
        ("text.png", b"this is not a picture at all", "not a picture"),
        ("zeros.jpg", bytes(5000), "not a picture"),
        ("cut.png", encoded(random_picture(1, (64, 64)), "PNG")[:100], "cannot be decoded"),
        ("cut.jpg", encoded(random_picture(1, (64, 64)), "JPEG")[:700], "cannot be decoded"),
        ("header.png", encoded(random_picture(1), "PNG")[:12], "picture"),
    ],
)
def test_file_that_is_no_picture_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DocumentError, match=message) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@given(position=st.integers(0, 400), value=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
def test_one_wrong_byte_gives_a_picture_or_a_clear_error(tmp_path_factory, position, value, kind):
    content = bytearray(encoded(random_picture(2, (24, 24)), kind))
    content[position % len(content)] = value
    path = tmp_path_factory.mktemp("pictures") / "damaged"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some damage that it can live with
        with contextlib.suppress(DocumentError):
            assert open_image(path).size[0] > 0  # any other error fails the test


def test_folder_is_no_picture(tmp_path):
    with pytest.raises(DocumentError, match=str(tmp_path)):
        open_image(tmp_path)


def test_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    random_picture(0, (40, 40)).save(tmp_path / "bomb.png")
    with pytest.raises(DocumentError, match=r"bomb\.png: the picture cannot be decoded"):
        open_image(tmp_path / "bomb.png")


def test_rgb_passes_through():
    picture = random_picture(3)
    assert to_rgb(picture) is picture


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_opaque_modes_are_converted_by_pillow(mode):
    picture = random_picture(4, (9, 7), mode)
    assert picture.mode == mode
    assert to_rgb(picture).mode == "RGB"
    assert to_rgb(picture).tobytes() == picture.convert("RGB").tobytes()


def blend_by_hand(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float64) / 255.0
    return np.trunc((1.0 - alpha) * 255.0 + alpha * rgba[..., :3].astype(np.float64)).astype(np.uint8)


def test_transparency_is_blended_with_white_and_truncated():
    rgba = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    blended = np.asarray(to_rgb(Image.fromarray(rgba)))
    np.testing.assert_array_equal(blended, blend_by_hand(rgba))
    one = Image.fromarray(np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 100, 255, 128]]], np.uint8))
    assert np.asarray(to_rgb(one)).tolist() == [[[255, 255, 255], [10, 20, 30], [127, 177, 255]]]


def test_opaque_alpha_changes_nothing():
    picture = random_picture(5)
    assert to_rgb(picture.convert("RGBA")).tobytes() == picture.tobytes()


def test_grey_with_alpha():
    values = np.random.default_rng(1).integers(0, 256, (5, 6, 2), np.uint8)
    picture = Image.fromarray(values)
    assert picture.mode == "LA"
    np.testing.assert_array_equal(np.asarray(to_rgb(picture)), blend_by_hand(values[..., [0, 0, 0, 1]]))


def test_transparent_colour_of_a_palette_becomes_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = 0
    assert np.asarray(to_rgb(picture)).tolist() == [[[255, 255, 255], [0, 100, 50]]]
    file = io.BytesIO(encoded(picture, "PNG"))
    assert np.asarray(to_rgb(Image.open(file))).tolist() == [[[255, 255, 255], [0, 100, 50]]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_keeps_its_upper_bits(mode):
    values = np.array([[0, 255, 256, 511, 512, 32768, 65535]])
    if mode == "I":
        picture = Image.fromarray(values.astype(np.int32))
    else:
        order = ">" if mode.endswith("B") else "<"
        picture = Image.frombytes(mode, (7, 1), values.astype(f"{order}u2").tobytes())
    assert picture.mode == mode
    expected = [[[0] * 3, [0] * 3, [1] * 3, [1] * 3, [2] * 3, [128] * 3, [255] * 3]]
    assert np.asarray(to_rgb(picture)).tolist() == expected


def test_sixteen_bit_png_file(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(values).save(tmp_path / "scan.png")
    expected = np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(to_rgb(open_image(tmp_path / "scan.png"))), expected)


def test_floating_point_pictures_are_refused():
    with pytest.raises(DocumentError, match="mode F"):
        to_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_picture_without_pixels_is_refused(size):
    for mode in ("RGB", "RGBA"):
        with pytest.raises(DocumentError, match=f"no pixels: {size[0]} x {size[1]}"):
            to_rgb(Image.new(mode, size))


A, B = random_picture(6), random_picture(7)


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        ("", [], []),
        ("just text", [], ["just text"]),
        ("what is this?", [A], [A, "what is this?"]),
        ("and these?", [A, B], [A, B, "and these?"]),
        ("", [A], [A]),
        ("this ⟨image⟩ here", [A], ["this ", A, " here"]),
        ("this <image> here", [A], ["this ", A, " here"]),
        ("<image> and ⟨image⟩", [A, B], [A, " and ", B]),
        ("<image><image>", [A, B], [A, B]),
        ("  <image>\n", [B], ["  ", B, "\n"]),
    ],
)
def test_prompts(text, images, expected):
    document = parse_prompt(text, images)
    assert len(document) == len(expected)
    for segment, other in zip(document, expected, strict=True):
        assert segment is other if not isinstance(other, str) else segment == other


@pytest.mark.parametrize(
    ("text", "images", "marks"), [("<image>", [], 1), ("<image> <image>", [A], 2), ("<image>", [A, B], 1)]
)
def test_marks_and_pictures_must_agree(text, images, marks):
    with pytest.raises(DocumentError, match=rf"{marks} ⟨image⟩ marks but {len(images)} pictures"):
        parse_prompt(text, images)
