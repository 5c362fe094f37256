"""Any picture file becomes a picture or an error that names it; any mode becomes RGB as the released code does it."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import struct
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin
from tiny_models import random_picture

from chameleon_jax import document as documents
from chameleon_jax.document import (
    DocumentError,
    as_document,
    as_documents,
    decode_image,
    open_image,
    parse_prompt,
    to_rgb,
)


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


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "DDS", "BLP", "SGI", "QOI", "ICNS"])
def test_formats_that_are_not_listed_are_refused_by_name(tmp_path, kind, monkeypatch):
    executed = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: executed.append(arguments))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: executed.append(arguments))
    picture = random_picture(0, (32, 32)).convert({"BLP": "P", "ICNS": "RGBA"}.get(kind, "RGB"))
    path = tmp_path / "kite.png"
    path.write_bytes(encoded(picture, kind))
    with pytest.raises(DocumentError, match=rf"kite\.png: .*{kind}, which is not read; save it as one of PNG, JPEG"):
        open_image(path)
    if kind == "EPS":  # opened by somebody else, and not decoded yet
        with pytest.raises(DocumentError, match=r"kite\.png: .*EPS, which is not read"):
            to_rgb(Image.open(path))
    assert executed == []


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "JPEG2000", "AVIF", "MPO"])
def test_other_listed_formats_are_read(tmp_path, kind):
    (tmp_path / "picture").write_bytes(encoded(random_picture(0, (20, 10)), kind))
    assert open_image(tmp_path / "picture").size == (20, 10)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, IndexError, EOFError, MemoryError])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    random_picture(0).save(tmp_path / "odd.png")

    def fail(self):
        raise error("of a kind of its own")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(DocumentError, match=r"odd\.png: the picture cannot be decoded: .*of a kind of its own"):
        open_image(tmp_path / "odd.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_image(tmp_path / "odd.png")


def test_avif_with_damaged_planes_is_named(tmp_path):
    content = bytearray(encoded(random_picture(0, (200, 150)), "AVIF"))
    start = content.index(b"mdat") + 4
    content[start : start + 200] = bytes(200)
    (tmp_path / "zeros.avif").write_bytes(content)
    with pytest.raises(DocumentError, match=r"zeros\.avif: the picture cannot be decoded"):
        open_image(tmp_path / "zeros.avif")


@pytest.mark.parametrize(("kind", "mode", "size"), [("PNG", "1", (13300, 13300)), ("WEBP", "RGB", (9000, 9000))])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, kind, mode, size, monkeypatch):
    path = tmp_path / f"bomb.{kind.lower()}"
    Image.new(mode, size).save(path, **({"lossless": True, "method": 0} if kind == "WEBP" else {}))
    monkeypatch.setattr(Image.core, "new", None)  # no pixels are wanted any more
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DocumentError, match=rf"bomb.*: {size[0]:,} x {size[1]:,} pixels; {kind} pictures of up to"):
            open_image(path)


def test_limits_of_a_file_are_said(tmp_path, monkeypatch):
    path = tmp_path / "picture"

    def refusal(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(DocumentError, match="picture: ") as caught:
            open_image(path)
        return str(caught.value)

    plain = b"P3 2048 2049 255\n"  # 2049 rows of text, which Pillow reads in Python
    assert "pictures whose pixels are text or run lengths of up to 4,194,304" in refusal(plain)
    progressive = io.BytesIO()
    random_picture(0, (64, 64)).save(progressive, "JPEG", progressive=True)
    monkeypatch.setattr(documents, "MOST_PASSES", 64 * 64)
    assert "scans are too much work" in refusal(progressive.getvalue())
    monkeypatch.setattr(documents, "MOST_READS", 20)
    comments = encoded(random_picture(0), "JPEG").replace(b"\xff\xdb", b"\xff\xfe\0\x02" * 50 + b"\xff\xdb", 1)
    assert "too many small parts" in refusal(comments)
    monkeypatch.setattr(documents, "MOST_BYTES", 100)
    assert "picture files of up to 100 bytes are read" in refusal(bytes(101))


def test_tiles_of_a_tiff_count_as_pixels(tmp_path):
    file = io.BytesIO()
    random_picture(0).save(file, "TIFF", tiffinfo={40001: 16384, 40002: 16384})
    content = file.getvalue()
    for tag, name in ((40001, 322), (40002, 323)):  # width and height of tiles
        content = content.replace(struct.pack("<H", tag), struct.pack("<H", name), 1)
    (tmp_path / "tiled.tif").write_bytes(content)
    with pytest.raises(DocumentError, match=r"tiled\.tif: 16,384 x 16,384 pixels; TIFF"):
        open_image(tmp_path / "tiled.tif")


@pytest.mark.parametrize(
    ("make", "kind"), [(os.mkfifo, "pipe"), (os.mkdir, "folder"), (lambda path: path.symlink_to("/dev/zero"), "device")]
)
def test_what_is_no_file_is_not_waited_for(tmp_path, make, kind):
    make(tmp_path / "kite.png")
    with pytest.raises(DocumentError, match=rf"kite\.png: is a {kind}, not a picture file"):
        open_image(tmp_path / "kite.png")


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 300, None, 7, b"kite.png"])
def test_path_that_is_none_is_refused(path):
    with pytest.raises(DocumentError):
        open_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_their_exif_data_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    random_picture(1, (20, 10)).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as plain:
        upright = ImageOps.exif_transpose(plain)
        opened = open_image(tmp_path / "photo.png")
        assert opened.size == upright.size
        assert opened.tobytes() == upright.tobytes()
        assert ImageOps.exif_transpose(opened).tobytes() == upright.tobytes()  # not turned again
        assert open_image(tmp_path / "photo.png", exif=False).tobytes() == plain.tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"not EXIF at all", b"Exif\0\0" + bytes(40)])
def test_damaged_exif_data_says_nothing(tmp_path, exif):
    picture = random_picture(1, (20, 10))
    picture.save(tmp_path / "photo.png", exif=exif)
    assert open_image(tmp_path / "photo.png").tobytes() == picture.tobytes()


def test_rgb_passes_through():
    picture = random_picture(3)
    assert to_rgb(picture) is picture


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_opaque_modes_are_converted_by_pillow(mode):
    picture = random_picture(4, (9, 7), mode)
    assert picture.mode == mode
    assert to_rgb(picture).mode == "RGB"
    assert to_rgb(picture).tobytes() == picture.convert("RGB").tobytes()


def blend_by_hand(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float64) / 255.0
    return np.trunc((1.0 - alpha) * 255.0 + alpha * rgba[..., :3].astype(np.float64)).astype(np.uint8)


@pytest.mark.parametrize("style", ["meta", "huggingface"])
@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "RGBA", "PA", "I;16", "I", "palette with alpha"])
def test_large_pictures_are_converted_in_parts_with_the_same_bits(mode, style, monkeypatch):
    if mode.startswith("palette"):
        picture = random_picture(4, (29, 17), "P")
        picture.info["transparency"] = bytes(range(256))
    elif mode.startswith("I"):
        values = np.random.default_rng(2).integers(0, 65536, (17, 29))
        picture = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        values = np.random.default_rng(2).integers(0, 256, (17, 29, 4), np.uint8)
        picture = Image.fromarray(values).convert("LA" if mode == "PA" else mode)
        picture = picture.convert(mode)
    whole = to_rgb(picture, style).tobytes()
    for pixels in (1, 7, 64, 29 * 5):
        monkeypatch.setattr(documents, "_TILE", pixels)
        assert to_rgb(picture, style).tobytes() == whole


def test_every_alpha_and_value_is_blended_as_in_the_released_code():
    alpha, value = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([value, value, value, alpha], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(rgba))), blend_by_hand(rgba))


@pytest.mark.parametrize(("mode", "plain"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_alpha_is_undone(mode, plain):
    values = np.random.default_rng(3).integers(0, 256, (5, 6, 4), np.uint8)
    picture = Image.fromarray(values).convert(plain).convert(mode)
    assert picture.mode == mode
    assert to_rgb(picture).tobytes() == to_rgb(picture.convert(plain)).tobytes()


def test_lab_pictures_are_refused_by_name():
    with pytest.raises(DocumentError, match="pictures of mode LAB cannot be converted; save as RGB first"):
        to_rgb(Image.new("LAB", (4, 4)))


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
        ("<|image|>which?", [A], [A, "which?"]),
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


@pytest.mark.parametrize("value", ["Counting up", A], ids=["text", "picture"])
def test_lone_text_or_picture_is_a_document_of_one(value):
    assert as_document(value) == [value]


@pytest.mark.parametrize("make", [list, tuple, iter, lambda parts: (part for part in parts)])
def test_sequences_of_segments_are_documents(make):
    assert as_document(make(["one ", A, " two"])) == ["one ", A, " two"]


@pytest.mark.parametrize(
    "value", [{"prompt": "a"}, None, 3, b"bytes", {"a", "b"}, np.zeros((4, 4, 3), np.uint8), Path("kite.png"), [b"a"]]
)
def test_what_is_no_document_is_refused_in_one_line(value):
    with pytest.raises(DocumentError, match=r"(a document (is|holds)|segments).* not \w+") as caught:
        as_document(value)
    assert "\n" not in str(caught.value)


def test_endless_document_is_refused():
    with pytest.raises(DocumentError, match="more than 100,000 segments"):
        as_document(itertools.repeat("a"))


def test_texts_in_a_list_of_documents_are_documents():
    assert as_documents(["one", A, ["two", A]]) == [["one"], [A], ["two", A]]
    for lone in ("one", A):
        with pytest.raises(DocumentError, match="put it in a list"):
            as_documents(lone)
    with pytest.raises(DocumentError, match="a list of documents is expected, not dict"):
        as_documents({"a": ["b"]})


def test_threads_that_decode_leave_the_filters_of_warnings_as_they_were():
    data, filters = encoded(random_picture(0), "PNG"), warnings.filters[:]
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(decode_image, [data] * 400))) == 400
    assert warnings.filters == filters
