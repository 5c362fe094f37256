"""Documents: ordered lists of texts and pictures. Prompts, training examples and answers are all documents.

An example is `["The digit ", picture, " is a seven."]`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chameleon_jax.errors import ChameleonError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Document = list["str | Image"]  # PIL is imported only where pictures are used

IMAGE_MARKS = ("⟨image⟩", "<image>", "<|image|>")
"""Marks for the places of pictures in a prompt that is given as one text."""

MOST_SEGMENTS = 100_000
"""Limit on the texts and pictures of one document."""


class DocumentError(ChameleonError, ValueError):
    """A document, or a picture of one, is invalid."""


class TooManyPixels(DocumentError):
    """A picture is larger than its reader wants."""


def is_picture(value: Any) -> bool:
    """Whether `value` is a `PIL.Image.Image`. Does not import PIL, as there are no pictures unless it is imported."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def as_document(value: Any) -> Document:
    """`value` as a document: a list, tuple or iterator of segments, or a single text or picture.

    Raises:
      DocumentError: for anything else, and for segments that are neither texts nor pictures.
    """
    if isinstance(value, str) or is_picture(value):
        return [value]
    if not isinstance(value, (list, tuple, Iterator)):
        raise DocumentError(f"a document is a list of {_SEGMENTS}, not {type(value).__name__}")
    document: Document = []
    for segment in value:
        if not (isinstance(segment, str) or is_picture(segment)):
            raise DocumentError(
                f"a document holds {_SEGMENTS}, not {type(segment).__name__} as at place {len(document)}"
            )
        if len(document) == MOST_SEGMENTS:
            raise DocumentError(f"the document has more than {MOST_SEGMENTS:,} segments; cut it into several")
        document.append(segment)
    return document


def as_documents(values: Any) -> list[Document]:
    """`values` as documents, each converted by `as_document`: `["one", "two"]` are two documents of one text each.

    Raises:
      DocumentError: for a single text or picture, which is one document; and as `as_document`.
    """
    if isinstance(values, str) or is_picture(values):
        kind = "text" if isinstance(values, str) else "picture"
        raise DocumentError(f"a lone {kind} where a list of documents is expected; put it in a list: [{kind}]")
    if not isinstance(values, (list, tuple, Iterator)):
        raise DocumentError(f"a list of documents is expected, not {type(values).__name__}")
    return [as_document(value) for value in values]


_SEGMENTS = "texts (str) and pictures (PIL.Image.Image, as chameleon_jax.open_image gives them)"


FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats that are opened, by Pillow's names. Excluded are formats that hold no photographs, such as icons and
textures, whose decoders are rarely reviewed, and those that start another program (EPS) or render instead of decode."""

MOST_PIXELS = {
    "PNG": 128, "JPEG": 104, "JPEG CMYK": 80, "MPO": 104, "WEBP": 64, "AVIF": 48, "GIF": 128, "BMP": 128, "TIFF": 80,
    "PPM": 128, "JPEG2000": 32,
}  # fmt: skip
"""Limits on width times height in mebipixels, such that decoding takes about 1 GiB and a few seconds. (MPO are JPEG
files of several pictures, from phones. Progressive JPEG files take 10 bytes per pixel, 12 in CMYK.)"""
MOST_PIXELS_IN_PYTHON = 4
"""The same for formats that Pillow decodes in Python: PPM files with numbers as text, run-length encoded BMP files."""
LONGEST_SIDE = 1 << 22
"""Limit on a side in pixels; Pillow needs 48 bytes for each to resize it."""
MOST_BYTES = 128 << 20
"""Limit on the bytes of a picture file."""
MOST_BYTES_IN_PYTHON = 16 << 20
MOST_READS = 1 << 21
"""Limit on read calls per file. Only files of millions of empty parts need more."""
MOST_PASSES = 1 << 31
"""Limit on the pixels of a JPEG file times its scans, as a progressive file may have any number of scans."""


def open_image(path: str | Path, *, exif: bool = True) -> Image:
    """Opens and decodes a picture file; of an animation, the first frame.

    Args:
      exif: rotate the picture as its EXIF data says, so that it is upright. The released code does not: False gives the
        same codes as it. (Pillow always rotates TIFF files.)

    Raises:
      DocumentError: if it is missing, not a regular file, above the limits of this module, not in one of `FORMATS`, or
        damaged.
    """
    size = _size_of_file(path)
    with _explained(path), _CountedReads(io.FileIO(path)) as file:
        return _decode(file, size, str(path), exif)


def read_picture(path: str | Path) -> bytes:
    """The contents of a picture file, not decoded.

    Raises:
      DocumentError: if it is missing, not a regular file, empty, or above the limits of this module.
    """
    _size_of_file(path)
    with _explained(path):
        return Path(path).read_bytes()


def decode_image(data: bytes, name: str = "", *, exif: bool = True, most_pixels: int | None = None) -> Image:
    """Decodes the contents of a picture file; of an animation, the first frame.

    Args:
      name: of the picture, for messages.
      exif: as for `open_image`.
      most_pixels: a limit of the caller's own, below those of this module.

    Raises:
      TooManyPixels: if there are more than `most_pixels`.
      DocumentError: as `open_image` does.
    """
    _check_bytes(len(data), name or "the picture")
    with _explained(name), _CountedReads(io.BytesIO(data)) as file:
        return _decode(file, len(data), name, exif, most_pixels)


def _decode(file: io.BufferedReader, size: int, name: str, exif: bool, most_pixels: int | None = None) -> Image:
    image = _open(file)
    if most_pixels is not None and image.width * image.height > most_pixels:
        raise TooManyPixels(f"{image.width:,} x {image.height:,} pixels; up to {most_pixels:,} are read")
    _check_size(image)
    _check_work(image, file, size)
    image.load()
    if exif:
        image = _upright(image)
    if image.format in ("WEBP", "AVIF"):  # a copy frees what their decoders keep: the file, all canvases
        image = image.copy()
    image.filename = name  # for later errors
    return image


def _size_of_file(path: str | Path) -> int:
    """Bytes of a picture file. Raises `DocumentError` unless it is a regular file within the limits."""
    try:
        path = Path(path)
        status = path.stat()
    except FileNotFoundError:
        raise DocumentError(f"{path}: no such picture file") from None
    except (OSError, ValueError, TypeError) as error:
        raise DocumentError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DocumentError(f"{path}: is a {_kind_of_file(status.st_mode)}, not a picture file")
    _check_bytes(status.st_size, path)
    return status.st_size


def _check_bytes(size: int, name: str | Path) -> None:
    if size == 0:
        raise DocumentError(f"{name}: the file is empty (0 bytes)")
    if size > MOST_BYTES:
        raise DocumentError(f"{name}: {size:,} bytes; picture files of up to {MOST_BYTES:,} bytes are read")


def _kind_of_file(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


class _CountedReads(io.BufferedReader):
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise DocumentError("the picture consists of too many small parts")
        return super().read(size)


_filters = contextlib.ExitStack()
_filters_lock = threading.Lock()
_threads_inside = 0


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppresses warnings while any thread is inside. Python's filters are those of all threads, so that each of them
    restoring what it has found would not bring back the first ones."""
    global _threads_inside
    with _filters_lock:
        if _threads_inside == 0:
            _filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _threads_inside += 1
    try:
        yield
    finally:
        with _filters_lock:
            _threads_inside -= 1
            if _threads_inside == 0:
                _filters.close()


@contextlib.contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    """Turns any exception of Pillow's decoders into a `DocumentError` that names the picture; suppresses warnings."""
    place = f"{name}: " if name else ""
    try:
        with _no_warnings():
            yield
    except DocumentError as error:
        raise type(error)(f"{place}{error}") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DocumentError(f"{place}the picture cannot be decoded: {reason}") from None


def _open(file: io.BufferedReader) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        pass
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"the picture cannot be decoded: {error}") from None
    file.seek(0)
    prefix = file.read(16)
    Image.init()
    others = [name for name, (_, accept) in Image.OPEN.items() if name not in FORMATS and accept and accept(prefix)]
    known = ", ".join(FORMATS)
    if others:
        raise DocumentError(f"the picture looks like {others[0]}, which is not read; save it as one of {known}")
    raise DocumentError(f"not a picture in a format that can be read ({known})")


def _check_size(image: Image) -> None:
    """Raises if decoding `image`, of which only the header has been read, would take too much memory or time."""
    if image.format not in MOST_PIXELS:
        raise DocumentError(f"the picture's format is {image.format}, which is not read; load() it, or save it as PNG")
    in_python = any(tile.codec_name in ("ppm_plain", "bmp_rle") for tile in image.tile)
    limit = MOST_PIXELS.get(f"{image.format} {image.mode}", MOST_PIXELS[image.format])
    limit = MOST_PIXELS_IN_PYTHON if in_python else limit
    sides = [image.size]
    if image.format == "TIFF":  # a tile may be larger than the picture, and is decoded whole
        sides.append((image.tag_v2.get(322, 0), image.tag_v2.get(323, 0)))
    for width, height in sides:
        if width * height > limit << 20:
            kind = " whose pixels are text or run lengths" if in_python else ""
            raise DocumentError(
                f"{width:,} x {height:,} pixels; {image.format} pictures{kind} of up to {limit << 20:,} are read"
            )


def _check_work(image: Image, file: io.BufferedReader, size: int) -> None:
    """The same for limits that depend on the contents of the file."""
    in_python = any(tile.codec_name in ("ppm_plain", "bmp_rle") for tile in image.tile)
    if in_python and size > MOST_BYTES_IN_PYTHON:
        raise DocumentError(f"{size:,} bytes; pictures like this of up to {MOST_BYTES_IN_PYTHON:,} bytes are read")
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        place = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(place)
        if scans * image.width * image.height > MOST_PASSES:
            raise DocumentError(f"{image.width:,} x {image.height:,} pixels in {scans:,} scans are too much work")


def _upright(image: Image) -> Image:
    """The picture rotated and mirrored as its EXIF data says. Damaged data is ignored."""
    from PIL import ExifTags, Image

    ways = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        way = ways.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        return image
    if way is None:
        return image
    upright = image.transpose(way)
    for name in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # it must not be rotated again
        upright.info.pop(name, None)
    return upright


_TILE = 1 << 20
"""Pixels that are converted at a time, which bounds the memory of intermediate results."""


def to_rgb(image: Image, style: Literal["meta", "huggingface"] = "meta") -> Image:
    """Converts a picture to 8-bit RGB.

    16-bit grey keeps its upper eight bits (Pillow's own conversion would clip nearly everything to white). CMYK,
    palette, grey and bilevel pictures are converted by Pillow.

    Args:
      style: how transparent pixels are blended with white: 'meta' in floating point, truncated, as the released code
        does; 'huggingface' in Pillow's integers, as transformers does.

    Raises:
      DocumentError: for floating-point and Lab pictures, pictures without pixels, and pictures that are not loaded yet
        and fail as in `open_image`.
    """
    if not is_picture(image):
        raise DocumentError(f"a picture (PIL.Image.Image) is expected, not {type(image).__name__}")
    with _explained(getattr(image, "filename", "")):
        if image.width == 0 or image.height == 0:
            raise DocumentError(f"the picture has no pixels: {image.width} x {image.height}")
        if max(image.size) > LONGEST_SIDE:
            raise DocumentError(f"{image.width:,} x {image.height:,} pixels; no side may exceed {LONGEST_SIDE:,}")
        if getattr(image, "tile", None):  # opened by somebody else, and not decoded yet
            _check_size(image)
        image.load()
        if image.mode == "RGB" and (style == "meta" or not image.has_transparency_data):
            return image
        if image.mode == "I" or image.mode.startswith("I;16"):
            return _by_tiles(image, _upper_bits)
        if image.mode == "F":
            raise DocumentError("floating-point pictures (mode F) have no known range; save as 8- or 16-bit first")
        if image.has_transparency_data:
            return _by_tiles(image, _blend if style == "meta" else _composite)
        if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
            raise DocumentError(f"pictures of mode {image.mode} cannot be converted; save as RGB first")
        return image.convert("RGB")


def _by_tiles(image: Image, convert: Callable[[Image], Image]) -> Image:
    from PIL import Image

    rgb = Image.new("RGB", image.size)
    width = min(image.width, _TILE)
    height = max(1, _TILE // width)
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            box = (left, top, min(left + width, image.width), min(top + height, image.height))
            rgb.paste(convert(image.crop(box)), box)
    return rgb


def _upper_bits(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")


def _rgba(image: Image) -> Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _blend(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    rgba = np.asarray(_rgba(image))
    if rgba[..., 3].min() == 255:
        return image.convert("RGB")
    return Image.fromarray(_blended()[rgba[..., 3:], rgba[..., :3]])


@functools.cache
def _blended() -> np.ndarray:
    """uint8 `[256, 256]`: alpha and value to the value blended with white, in the released code's arithmetic."""
    import numpy as np

    alpha, value = np.arange(256, dtype=np.float64)[:, None] / 255, np.arange(256, dtype=np.float64)
    return ((1 - alpha) * 255 + alpha * value).astype(np.uint8)


def _composite(image: Image) -> Image:
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), _rgba(image)).convert("RGB")


def parse_prompt(text: str, images: Sequence[Image]) -> Document:
    """Puts `images` at the marks ⟨image⟩, <image> or <|image|> in `text`; without marks, before the text.

    Raises:
      DocumentError: if the number of marks is not that of the pictures.
    """
    for mark in IMAGE_MARKS[1:]:
        text = text.replace(mark, IMAGE_MARKS[0])
    pieces = text.split(IMAGE_MARKS[0])
    if len(pieces) == 1:
        return [*images, *([text] if text else [])]
    if len(pieces) - 1 != len(images):
        raise DocumentError(
            f"the prompt has {len(pieces) - 1} ⟨image⟩ marks but {len(images)} pictures were given (--image FILE)"
        )
    document: Document = []
    for piece, image in zip(pieces, [*images, None], strict=True):
        document += [piece] if piece else []
        document += [image] if image is not None else []
    return document
