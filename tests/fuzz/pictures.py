"""Mutated pictures in every format that Pillow writes, those that are refused too: opened, and brought to size."""

from __future__ import annotations

import functools
import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import harness
import numpy as np
from PIL import Image

FORMATS = {
    "PNG": ("RGB", "RGBA", "L", "P", "1", "I;16", "LA"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "RGBA", "L", "1", "CMYK", "I;16", "F", "LAB", "YCbCr"),
    "PPM": ("RGB", "L", "1", "I;16", "F"),
    "JPEG2000": ("RGB", "RGBA", "L", "I;16"),
    "MPO": ("RGB",),
    "TGA": ("RGB", "RGBA", "L"),
    "ICO": ("RGBA",),
    "DDS": ("RGB", "RGBA", "L"),
    "BLP": ("P",),
    "QOI": ("RGB", "RGBA"),
    "PCX": ("RGB", "L", "P"),
    "SGI": ("RGB", "L"),
    "EPS": ("RGB",),
    "ICNS": ("RGBA",),
    "IM": ("RGB", "F"),
}  # fmt: skip
"""Modes of the pictures that are mutated, by format."""

OPTIONS = {
    "PNG": ({}, {"compress_level": 0}),
    "JPEG": ({}, {"progressive": True}, {"exif": True}),
    "WEBP": ({}, {"lossless": True}, {"save_all": True}, {"exif": True}),
    "AVIF": ({"speed": 10}, {"speed": 10, "exif": True}),
    "GIF": ({}, {"save_all": True}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}),
}

WORDS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")


@functools.cache
def _whole(kind: str, mode: str, option: int) -> bytes:
    """A sound file of one format and mode."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (24, 40, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(values[..., 0] * np.uint16(257))
    elif mode == "LAB":
        picture = Image.frombytes("LAB", (40, 24), values[..., :3].tobytes())
    else:
        picture = Image.fromarray(values).convert("RGB" if mode in ("YCbCr", "P") else mode).convert(mode)
    if kind in ("ICO", "ICNS"):
        picture = picture.resize((32, 32))
    options = dict(OPTIONS.get(kind, ({},))[option])
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a kite"
        options["exif"] = exif
    if options.get("save_all"):
        options["append_images"] = [picture.transpose(Image.Transpose.ROTATE_180)]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.save(file, kind, **options)
    return file.getvalue()


def _mutate(content: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """One change; most are near the beginning, where the headers are."""

    def place(length: int = 1) -> int:
        return min(int(rng.random() ** rng.choice((1, 4)) * len(content)), max(len(content) - length, 0))

    way = rng.randrange(8)
    if way == 0:
        content[place()] ^= 1 << rng.randrange(8)
    elif way == 1:
        word = rng.choice(WORDS)
        at = place(len(word))
        content[at : at + len(word)] = word
    elif way == 2:
        content[place()] = rng.randrange(256)
    elif way == 3:
        del content[place() :]
    elif way == 4:
        at = place()
        del content[at : at + rng.randrange(1, 64)]
    elif way == 5:
        at = place()
        content[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
    elif way == 6:
        start, at = place(), place()
        content[at:at] = content[start : start + rng.randrange(1, 256)]
    else:  # a part of another file
        start = rng.randrange(len(other))
        at = place()
        content[at : at + 32] = other[start : start + rng.randrange(1, 64)]
    return content or bytearray(b"\0")


def _mend_png(content: bytearray) -> bytearray:
    """Right checksums, so that what is wrong inside the chunks gets as far as the decoder."""
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return content


def write_case(seed: int, folder: Path) -> Path:
    rng = random.Random(seed)
    kinds = list(FORMATS)

    def whole(kind: str) -> bytes:
        return _whole(kind, rng.choice(FORMATS[kind]), rng.randrange(len(OPTIONS.get(kind, ({},)))))

    kind = kinds[seed % len(kinds)]
    content = bytearray(whole(kind))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        content = _mutate(content, rng, whole(rng.choice(kinds)))
    if kind == "PNG" and rng.random() < 0.7:
        content = _mend_png(content)
    path = folder / f"picture.{rng.choice(('png', 'jpg', kind.lower()))}"
    path.write_bytes(content)
    return path


def read_case(path: Path) -> None:
    from chameleon_jax.document import open_image
    from chameleon_jax.tokens.image import to_square

    to_square(open_image(path), 64)


if __name__ == "__main__":
    harness.main(__file__)
