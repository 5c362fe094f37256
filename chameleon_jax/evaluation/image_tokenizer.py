"""Measures image tokenizers by what they make of pictures, which stream past: no more than a batch of them is kept.

All figures are of pictures in 8 bits, as files have them: squares of the tokenizer's resolution, and what is
reconstructed of them, rounded.

Legend: B batch, h height and w width of a picture, N codes.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.errors import ConfigError
from chameleon_jax.evaluation.frechet import Moments, frechet_distance
from chameleon_jax.evaluation.ssim import WINDOW, ssim
from chameleon_jax.models.inception import FEATURES, Inception, resize
from chameleon_jax.models.perceptual import LPIPS
from chameleon_jax.runtime.progress import console, progress_bar
from chameleon_jax.tokens.image import ImageTokenizer, scale
from chameleon_jax.training.codebooks import perplexity
from chameleon_jax.training.image_tokenizer_task import psnr

if TYPE_CHECKING:
    from data_pipeline.squares import Square

BATCH = 16
"""Pictures that are compared at once, at most."""
ENOUGH_FOR_FID = 10_000


class Example(NamedTuple):
    """A picture, and what each tokenizer makes of it."""

    name: str
    original: np.ndarray
    reconstructions: tuple[np.ndarray, ...]
    psnr_db: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is measured.

    Attributes:
      pictures: how many.
      figures: for each tokenizer, by name. `lpips` and `rfid` only where their networks were given, `ssim` only of
        pictures of at least 11 pixels a side.
      counts: for each tokenizer int64 `[N]`, how often each code occurs.
      worst: those with the lowest PSNR of the first tokenizer, the worst first.
      random: pictures chosen at random, the same ones each time.
    """

    pictures: int
    figures: list[dict[str, float]]
    counts: list[np.ndarray]
    worst: list[Example]
    random: list[Example]


class _Best:
    """The `limit` items with the highest ranks among all that were offered."""

    def __init__(self, limit: int):
        self._limit, self._heap, self._number = limit, [], itertools.count()

    def offer(self, rank: float, item: Any) -> None:
        entry = (rank, -next(self._number), item)  # numbers differ, so that items are never compared
        (heapq.heappush if len(self._heap) < self._limit else heapq.heappushpop)(self._heap, entry)

    def items(self) -> list[Any]:
        return [item for *_, item in sorted(self._heap, reverse=True)]


class _Totals:
    """Sums over the pictures that one tokenizer reconstructs."""

    def __init__(self, tokenizer: ImageTokenizer, lpips: Any, inception: Any):
        self._tokenizer, self._lpips, self._inception = tokenizer, lpips, inception
        self._sums: dict[str, float] = {}
        self._moments = Moments(FEATURES)
        self.counts = np.zeros(tokenizer.config.num_codes, np.int64)

    def add(self, originals: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Reconstructs pictures, and compares them `size` at a time; returns reconstructions, and the PSNR of each."""
        codes = self._tokenizer.encode_pixels(scale(originals, self._tokenizer.preprocessing.style))
        self.counts += np.bincount(codes.reshape(-1), minlength=len(self.counts))
        rebuilt = _to_bytes(self._tokenizer.decode_codes(codes))
        figures = {"reconstruction_psnr_db": _in_batches(_psnr, size, None, originals, rebuilt)}
        if min(originals.shape[1:3]) >= WINDOW:
            figures["ssim"] = _in_batches(_ssim, size, None, originals, rebuilt)
        if self._lpips is not None:
            figures["lpips"] = _in_batches(_lpips, size, self._lpips, originals, rebuilt)
        for name, values in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
        if self._inception is not None:
            self._moments.add(_in_batches(_features, size, self._inception, rebuilt))
        return rebuilt, figures["reconstruction_psnr_db"]

    def figures(self, pictures: int, real: Moments) -> dict[str, float]:
        figures = {name: total / pictures for name, total in self._sums.items()}
        if self._inception is not None:
            figures["rfid"] = frechet_distance(real, self._moments)
        return {
            **figures,
            "codebook_used": float(np.mean(self.counts > 0)),
            "codebook_perplexity": float(perplexity(jnp.asarray(self.counts, jnp.float32))),
            "dead_codes": int(np.sum(self.counts == 0)),
        }


def evaluate_image_tokenizers(
    tokenizers: Sequence[ImageTokenizer],
    squares: Iterable[Square],
    *,
    lpips: Any = None,
    inception: Any = None,
    samples: int = 6,
) -> Measured:
    """Measures tokenizers on the same pictures.

    Args:
      tokenizers: one or more of one resolution.
      squares: pictures of that resolution.
      lpips, inception: parameters, as `weights.lpips` and `weights.inception` read them; None leaves the figure out.
      samples: pictures of each kind to keep as examples.

    Raises:
      ConfigError: if there are no pictures, fewer than two for the Fréchet distance, or they are too small for LPIPS.
      NoImageDecoder: if a tokenizer has no decoder.
    """
    lpips, inception = jax.device_put((lpips, inception))
    totals = [_Totals(tokenizer, lpips, inception) for tokenizer in tokenizers]
    real, count, size = Moments(FEATURES), 0, 0
    worst, random, rng = _Best(samples), _Best(samples), np.random.default_rng(0)
    at_once = max(tokenizer.batch * max(1, BATCH // tokenizer.batch) for tokenizer in tokenizers)
    squares = iter(squares)
    with progress_bar("measure", None) as bar:
        while batch := list(itertools.islice(squares, at_once)):
            originals = np.stack([square.pixels for square in batch])
            size = size or min(BATCH, len(batch))
            if inception is not None:
                real.add(_in_batches(_features, size, inception, originals))
            rebuilt, decibels = zip(*(total.add(originals, size) for total in totals), strict=True)
            for row, square in enumerate(batch):  # copies, so that examples do not keep whole batches
                reconstructions = tuple(each[row].copy() for each in rebuilt)
                example = Example(*square, reconstructions, tuple(float(each[row]) for each in decibels))
                worst.offer(-example.psnr_db[0], example)
                random.offer(rng.random(), example)
            count += len(batch)
            bar.update(count)
    if count == 0:
        raise ConfigError("there are no pictures to measure on")
    if inception is not None and count < ENOUGH_FOR_FID:
        console.print(
            f"warning: the fewer pictures, the higher is rfid: compare it for the same {count:,} pictures only, or "
            f"measure on {ENOUGH_FOR_FID:,} or more"
        )
    figures = [total.figures(count, real) for total in totals]
    return Measured(count, figures, [total.counts for total in totals], worst.items(), random.items())


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pictures in [-1, 1], rounded to 8 bits."""
    return np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)


def _in_batches(function: Callable[..., jax.Array], size: int, params: Any, *pictures: np.ndarray) -> np.ndarray:
    """Applies a function to `size` pictures at a time; the last batch is padded, so that only one size is compiled."""
    found = []
    for start in range(0, len(pictures[0]), size):
        parts = [each[start : start + size] for each in pictures]
        padding = [(0, size - len(parts[0])), (0, 0), (0, 0), (0, 0)]
        found.append(np.asarray(function(params, *(np.pad(part, padding) for part in parts)))[: len(parts[0])])
    return np.concatenate(found)


def _pixels(pictures: jax.Array) -> jax.Array:
    return pictures.astype(jnp.float32) / 127.5 - 1


@jax.jit
def _psnr(_: None, originals: jax.Array, rebuilt: jax.Array) -> jax.Array:
    return psnr(_pixels(originals), _pixels(rebuilt))


@jax.jit
def _ssim(_: None, originals: jax.Array, rebuilt: jax.Array) -> jax.Array:
    return ssim(_pixels(originals), _pixels(rebuilt))


@jax.jit
def _lpips(params: Any, originals: jax.Array, rebuilt: jax.Array) -> jax.Array:
    return LPIPS().apply({"params": params}, _pixels(originals), _pixels(rebuilt))


@jax.jit
def _features(params: Any, pictures: jax.Array) -> jax.Array:
    return Inception().apply({"params": params}, resize(_pixels(pictures)))
