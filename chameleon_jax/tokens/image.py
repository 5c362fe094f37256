"""Pictures to image codes and back: the released preprocessing, and the image tokenizer around the VQGAN."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import ImageTokenizerConfig
from chameleon_jax.document import to_rgb
from chameleon_jax.models.vq import VQModel

if TYPE_CHECKING:
    from PIL.Image import Image


def resize_and_crop(image: Image, resolution: int) -> Image:
    """Shorter side to `resolution` with Lanczos, then the centre square. EXIF orientation is ignored.

    The longer side is rounded half to even, as Python's `round` does and the released code with it.
    """
    from PIL import Image

    image = to_rgb(image)
    scale = resolution / min(image.size)
    width, height = (round(scale * side) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def scale(values: np.ndarray) -> np.ndarray:
    """8-bit values as float32 in [-1, 1], computed in float64 as the released code does."""
    return (np.asarray(values, np.float64) / 255 * 2 - 1).astype(np.float32)


def to_pixels(image: Image, resolution: int) -> np.ndarray:
    """A picture as float32 `[resolution, resolution, 3]` in [-1, 1]."""
    return scale(np.asarray(resize_and_crop(image, resolution)))


def to_image(pixels: np.ndarray) -> Image:
    """Undoes the scaling of `to_pixels`: clamp, then truncate (not round) to 8 bits, as the released code does."""
    from PIL import Image

    values = (np.clip(np.asarray(pixels, np.float32), -1, 1) + 1) / 2
    return Image.fromarray((values * 255).astype(np.uint8))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(config: ImageTokenizerConfig, method: str, params: Any, values: Array) -> Array:
    return VQModel(config).apply({"params": params}, values, method=method)


class ImageTokenizer:
    """Pictures to codes and back.

    Attributes:
      config: sizes of the VQGAN.
      params: its parameter tree, always float32.
    """

    batch = 64
    """Pictures computed at a time; the last batch is filled up, so that each size is compiled once."""

    def __init__(self, config: ImageTokenizerConfig, params: Any):
        self.config = config
        self.params = params

    def _in_batches(self, method: str, values: np.ndarray) -> np.ndarray:
        size = self.batch if len(values) > 1 else 1
        pieces = []
        for start in range(0, len(values), size):
            piece = values[start : start + size]
            padding = [(0, size - len(piece))] + [(0, 0)] * (values.ndim - 1)
            output = _apply(self.config, method, self.params, jnp.asarray(np.pad(piece, padding)))
            pieces.append(np.asarray(output)[: len(piece)])
        return np.concatenate(pieces)

    def encode_pixels(self, pixels: Float[Array, "B h w 3"] | np.ndarray) -> np.ndarray:
        """Codes int32 `[B, codes_per_image]`, in raster order, of pictures in [-1, 1]."""
        return self._in_batches("encode", np.asarray(pixels, np.float32)).astype(np.int32)

    def decode_codes(self, codes: Int[Array, "B n"] | np.ndarray) -> np.ndarray:
        """Pictures float32 `[B, h, w, 3]`, about in [-1, 1], of codes."""
        return self._in_batches("decode", np.asarray(codes, np.int32))

    def tokenize(self, images: Sequence[Image]) -> np.ndarray:
        """Codes int32 `[len(images), codes_per_image]` of pictures of any size and mode."""
        if not images:
            return np.zeros((0, self.config.codes_per_image), np.int32)
        return self.encode_pixels(np.stack([to_pixels(image, self.config.resolution) for image in images]))

    def detokenize(self, codes: np.ndarray) -> list[Image]:
        """The pictures that codes `[n, codes_per_image]` stand for."""
        return [to_image(pixels) for pixels in self.decode_codes(codes)] if len(codes) else []
