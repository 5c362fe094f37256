"""Pictures to image codes and back: the preprocessing of the released models, and the VQGAN as an image tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import ImageTokenizerConfig, PreprocessingConfig
from chameleon_jax.document import DocumentError, is_picture, to_rgb
from chameleon_jax.errors import ChameleonError
from chameleon_jax.models.vq import QUERIES_AT_A_TIME, VQModel
from chameleon_jax.runtime.compiler_options import convolution_options
from chameleon_jax.tokens.resize import resize_part

if TYPE_CHECKING:
    from PIL.Image import Image


RELEASED = PreprocessingConfig()
"""The preprocessing of Meta's code."""


class NoImageDecoder(ChameleonError):
    """Pictures were requested from a model without the image tokenizer's decoder."""

    def __init__(
        self,
        message: str = "these weights came without the image decoder (Hugging Face's releases lack it), so codes "
        "cannot become pictures; give the folder `tokenizer` of Meta's release (vqgan.ckpt, vqgan.yaml) as well: "
        'chameleon_jax.load(path, image_tokenizer="…/tokenizer")',
    ):
        super().__init__(message)


LONGEST_WHOLE = 16
"""If a resized side is more than this many times `resolution`, only the part that is kept is computed."""


def to_square(image: Image, resolution: int, preprocessing: PreprocessingConfig = RELEASED) -> Image:
    """Resizes a picture with Lanczos to 8-bit RGB, `resolution` pixels wide and high. EXIF orientation is ignored.

    The shorter side becomes `resolution` and the centre is cropped; with fit 'pad' the longer side does, and the
    picture is centred and padded. The other side is rounded half to even like Python's `round` in Meta's code, and
    truncated in transformers. 16-bit greyscale keeps its upper eight bits in either style (transformers itself would
    clip it to white).

    Raises:
      DocumentError: for floating-point pictures and pictures without pixels.
    """
    from PIL import Image

    image = to_rgb(image, preprocessing.style)
    edge = min(image.size) if preprocessing.fit == "crop" else max(image.size)
    if preprocessing.style == "huggingface":
        sides = [int(resolution * side / edge) for side in image.size]
    else:
        scale = resolution / edge
        sides = [round(scale * side) for side in image.size]
    width, height = (max(side, 1) for side in sides)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    if max(width, height) > LONGEST_WHOLE * resolution:  # the result is the same, bit for bit
        return resize_part(image, (width, height), (left, top, left + resolution, top + resolution))
    if width > max(height, resolution):  # Pillow resizes such a picture in width first, then in height what remains
        image = image.resize((width, image.height), Image.Resampling.LANCZOS)
        image = image.crop((left, 0, left + resolution, image.height))
        width, left = resolution, 0
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if min(width, height) >= resolution:
        return image.crop((left, top, left + resolution, top + resolution))
    square = Image.new("RGB", (resolution, resolution), preprocessing.pad_colour)
    square.paste(image, (-left, -top))
    return square


def resize_and_crop(image: Image, resolution: int) -> Image:
    """`to_square` as in Meta's code."""
    return to_square(image, resolution)


def scale(values: np.ndarray, style: Literal["meta", "huggingface"] = "meta") -> np.ndarray:
    """Scales 8-bit values to float32 in [-1, 1], in float64 as Meta's code does.

    In transformers' style white becomes 0.989 (255 x 0.0078 - 1), and the subtraction is in float32.
    """
    values = np.asarray(values)
    if values.dtype == np.uint8 and values.size > 256:  # ten times as fast by a table
        return scale(np.arange(256), style)[values]
    values = values.astype(np.float64)
    if style == "huggingface":
        return (values * 0.0078).astype(np.float32) - np.float32(1)
    return (values / 255 * 2 - 1).astype(np.float32)


def to_pixels(image: Image, resolution: int, preprocessing: PreprocessingConfig = RELEASED) -> np.ndarray:
    """A picture as float32 `[resolution, resolution, 3]` in [-1, 1]; see `to_square` and `scale`."""
    return scale(np.asarray(to_square(image, resolution, preprocessing)), preprocessing.style)


def to_image(pixels: np.ndarray) -> Image:
    """Inverts the scaling of `to_pixels`: clips, then truncates (not rounds) to 8 bits, as Meta's code does."""
    from PIL import Image

    values = (np.clip(np.asarray(pixels, np.float32), -1, 1) + 1) / 2
    return Image.fromarray((values * 255).astype(np.uint8))


def _method(config: ImageTokenizerConfig, method: str, params: Any, values: Array) -> Array:
    return VQModel(config).apply({"params": params}, values, method=method)


@functools.cache
def _program(largest_map: int, any_cores: bool = False) -> Callable[..., Array]:
    """`_method`, compiled for maps up to a size.

    For `any_cores` the order of its sums does not depend on the number of cores of a CPU, which is slower: that of
    Eigen's convolutions does (see `convolution_options`), whatever the number of its threads.
    """
    device = jax.local_devices()[0]
    on_any = {"xla_cpu_multi_thread_eigen": False} if device.platform == "cpu" else {}
    options = on_any if any_cores else convolution_options(device, largest_map)
    return jax.jit(_method, static_argnums=(0, 1), compiler_options=options)


class ImageTokenizer:
    """Encodes pictures to codes and decodes them.

    Attributes:
      config: architecture of the VQGAN.
      params: its parameters, always float32: a code is an argmin, and lower precision picks other codes. Without the
        entry `decoder`, as in Hugging Face's releases, codes cannot be decoded.
      preprocessing: how `tokenize` resizes and scales pictures.
    """

    def __init__(self, config: ImageTokenizerConfig, params: Any, preprocessing: PreprocessingConfig = RELEASED):
        self.config = config
        self.params = jax.tree.map(lambda leaf: leaf.astype(np.float32, copy=False), params)
        self.preprocessing = preprocessing

    @property
    def can_decode(self) -> bool:
        """Whether codes can be decoded to pictures."""
        return "decoder" in self.params

    @property
    def batch(self) -> int:
        """Number of pictures per batch; the last batch is padded, so that only one size is compiled.

        At most 64, and few enough that a feature map of full resolution, and the attention scores, take at most 512 MiB
        each: 4 for the released architecture.
        """
        config = self.config
        widest = max(config.channel_multipliers[:2])  # the decoder enlarges its second level before it narrows it
        largest = config.maps[0] ** 2 * config.channels * widest
        middle = (config.grid,) if config.attn_type == "vanilla" else ()
        attended = max((*config.attn_resolutions, *middle), default=0)
        scores = attended**2 * min(attended**2, QUERIES_AT_A_TIME)
        return max(1, min(64, 2**29 // (4 * max(largest, scores))))

    def _in_batches(
        self,
        method: str,
        values: Sequence[Any],
        prepare: Callable[[Any], np.ndarray] = np.asarray,
        any_cores: bool = False,
    ) -> np.ndarray:
        """Applies `method` to `prepare(batch)` for each batch of `values`; only one batch is prepared at a time."""
        size = self.batch if len(values) > 1 else 1
        pieces = []
        for start in range(0, len(values), size):
            piece = prepare(values[start : start + size])
            padding = [(0, size - len(piece))] + [(0, 0)] * (piece.ndim - 1)
            output = _program(self.config.maps[0], any_cores)(
                self.config, method, self.params, jnp.asarray(np.pad(piece, padding))
            )
            pieces.append(np.asarray(output)[: len(piece)])
        return np.concatenate(pieces)

    def encode_pixels(self, pixels: Float[Array, "B h w 3"] | np.ndarray) -> np.ndarray:
        """Codes int32 `[B, codes_per_image]`, in raster order, of pictures in [-1, 1]."""
        return self._in_batches("encode", np.asarray(pixels, np.float32)).astype(np.int32)

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        """Codes int32 `[n, codes_per_image]` of pictures as `to_square` makes them, uint8 `[n, resolution, resolution,
        3]`. On a CPU it computes on one core, and gives the same codes on machines with any number of them."""
        pixels = lambda part: scale(part, self.preprocessing.style)  # noqa: E731
        return self._in_batches("encode", squares, pixels, any_cores=True).astype(np.int32)

    def decode_codes(self, codes: Int[Array, "B n"] | np.ndarray) -> np.ndarray:
        """Pictures float32 `[B, h, w, 3]`, about in [-1, 1], of codes.

        Raises:
          DocumentError: for a code outside the codebook, or another number of codes a picture.
          NoImageDecoder: if the weights came without it.
        """
        if not self.can_decode:
            raise NoImageDecoder()
        return self._in_batches("decode", self._checked(codes))

    def _checked(self, codes: Any) -> np.ndarray:
        codes, wanted = np.asarray(codes), self.config.codes_per_image
        if codes.dtype.kind not in "iu" or codes.ndim != 2 or codes.shape[1] != wanted:
            raise DocumentError(
                f"codes of type {codes.dtype} and shape {list(codes.shape)}: pictures are whole numbers [n, {wanted}]"
            )
        wrong = np.argwhere((codes < 0) | (codes >= self.config.num_codes))
        if len(wrong):
            picture, place = wrong[0].tolist()
            raise DocumentError(
                f"code {codes[picture, place]} at place {place} of picture {picture}: must be from 0 to "
                f"{self.config.num_codes - 1}"
            )
        return codes.astype(np.int32)

    def tokenize(self, images: Sequence[Image]) -> np.ndarray:
        """Codes int32 `[len(images), codes_per_image]` of pictures of any size and mode.

        Raises:
          DocumentError: if one is not a picture or cannot be converted.
        """
        images = [images] if is_picture(images) else list(images)
        if not images:
            return np.zeros((0, self.config.codes_per_image), np.int32)

        def pixels(batch: Sequence[Image]) -> np.ndarray:
            return np.stack([to_pixels(image, self.config.resolution, self.preprocessing) for image in batch])

        return self._in_batches("encode", images, pixels).astype(np.int32)

    def detokenize(self, codes: np.ndarray) -> list[Image]:
        """Decodes codes int `[n, codes_per_image]` to pictures.

        Raises:
          DocumentError: as `decode_codes`.
          NoImageDecoder: if there is no decoder and `codes` is not empty.
        """
        return [to_image(pixels) for pixels in self.decode_codes(codes)] if len(codes) else []
