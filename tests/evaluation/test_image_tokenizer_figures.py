"""Figures of reconstructions against those of the lpips package, of torch and of their formulas; in flat memory."""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm
from tiny_models import IMAGE_TOKENIZER, random_picture

from chameleon_jax.evaluation.image_tokenizer import evaluate_image_tokenizers
from chameleon_jax.tokens.image import RELEASED
from chameleon_jax.weights.inception import read_inception
from chameleon_jax.weights.lpips import read_lpips
from chameleon_jax.weights.torch_writing import write_torch_file
from data_pipeline.squares import Square

DATA = Path(__file__).parent.parent / "data"


class Given:
    """Reconstructs pictures as it is told: float32 in [-1, 1], of the pictures that it was given last."""

    config, preprocessing, batch = IMAGE_TOKENIZER, RELEASED, 16

    def __init__(self, reconstruct: Callable[[np.ndarray], np.ndarray]):
        self._reconstruct = reconstruct

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self._pixels = pixels
        return np.zeros((len(pixels), 4), np.int32)

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        return self._reconstruct(self._pixels)


def networks(folder: Path) -> dict[str, Any]:
    """Those with the random weights of the fixtures, read from files as they are published."""

    def write(name: str, tensors: dict[str, np.ndarray]) -> Path:
        specs = {key: (x.shape, x.dtype) for key, x in tensors.items()}
        write_torch_file(folder / name, specs, tensors.__getitem__)
        return folder / name

    def random_weights(name: str):
        spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.random_weights()

    vgg, heads = (write(name, each) for name, each in zip("ab", random_weights("make_lpips_fixture"), strict=True))
    unused = {"fc.bias": np.zeros(1008, np.float32), "Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(0)}
    inception = write("c", random_weights("make_inception_fixture") | unused)
    return {"lpips": read_lpips(vgg, heads), "inception": read_inception(inception)}


def test_networks_give_the_figures_that_they_give_in_torch(tmp_path):
    with np.load(DATA / "lpips.npz") as file:
        originals, reconstructions, distances = file["target"], file["output"], file["distances"]
    with np.load(DATA / "inception.npz") as file:
        a, b = np.split(file["features"].astype(np.float64), 2)
    squares = [Square(str(number), pixels) for number, pixels in enumerate(originals)]
    measured = evaluate_image_tokenizers(
        [Given(lambda _: reconstructions / np.float32(127.5) - 1)], squares, **networks(tmp_path)
    )
    figures = measured.figures[0]
    assert figures["lpips"] == pytest.approx(np.mean(distances), rel=1e-5)
    x, y = (each - each.mean(0) for each in (a, b))  # of two pictures: x.T @ x / 1 is the covariance
    root = np.trace(sqrtm(x @ y.T @ y @ x.T).real)  # of a small matrix with the eigenvalues of the product
    wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * root
    assert figures["rfid"] == pytest.approx(wanted, rel=1e-3)
    error = np.mean((originals.astype(float) - reconstructions) ** 2, axis=(1, 2, 3))
    assert figures["reconstruction_psnr_db"] == pytest.approx(np.mean(10 * np.log10(255**2 / error)), rel=1e-5)
    (example,) = measured.worst[:1]
    np.testing.assert_array_equal(example.reconstructions[0], reconstructions[int(example.name)])


def test_examples_are_the_worst_and_always_the_same_random_ones():
    squares = [Square(str(seed), np.asarray(random_picture(seed))) for seed in range(70)]
    grey = Given(lambda pixels: np.zeros_like(pixels))
    first, again = (evaluate_image_tokenizers([grey], squares, samples=4) for _ in range(2))
    all_of_them = evaluate_image_tokenizers([grey], squares, samples=70).worst
    decibels = [example.psnr_db[0] for example in all_of_them]
    assert decibels == sorted(decibels)
    assert [example.name for example in first.worst] == [example.name for example in all_of_them[:4]]
    assert [example.name for example in first.random] == [example.name for example in again.random]
    assert first.figures[0]["reconstruction_psnr_db"] == pytest.approx(np.mean(decibels), rel=1e-5)


def test_pictures_smaller_than_a_window_have_no_ssim():
    squares = [Square("small", np.asarray(random_picture(seed, (8, 8)))) for seed in range(3)]
    measured = evaluate_image_tokenizers([Given(lambda pixels: pixels)], squares)
    assert "ssim" not in measured.figures[0]
    assert measured.figures[0]["reconstruction_psnr_db"] > 100


def test_only_a_few_pictures_are_held_at_a_time():
    alive, most = weakref.WeakSet(), 0

    class Pixels(np.ndarray):
        """An array that a set can hold."""

        __hash__ = object.__hash__
        __eq__ = object.__eq__

    def squares() -> Iterator[Square]:
        nonlocal most
        for seed in range(400):
            pixels = np.full((16, 16, 3), seed % 256, np.uint8).view(Pixels)
            alive.add(pixels)
            most = max(most, len(alive))
            yield Square(str(seed), pixels)

    tokenizer = Given(lambda pixels: -pixels)
    measured = evaluate_image_tokenizers([tokenizer], squares(), samples=3)
    assert measured.pictures == 400
    assert most <= 2 * tokenizer.batch + 2 * 3 + 1
    assert len(measured.worst) == len(measured.random) == 3
