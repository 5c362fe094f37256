"""Files that are not those of LPIPS are rejected, with what they hold and what was expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.weights.lpips import read_lpips
from chameleon_jax.weights.torch_writing import write_torch_file

HEADS = {f"lin{number}.model.1.weight": (1, width, 1, 1) for number, width in enumerate((64, 128, 256, 512, 512))}


def written(path: Path, shapes: dict[str, tuple[int, ...]], value: float = 0.5, dtype=np.float32) -> Path:
    write_torch_file(
        path, {k: (s, np.dtype(dtype)) for k, s in shapes.items()}, lambda k: np.full(shapes[k], value, dtype)
    )
    return path


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (HEADS, r"holds no features\.0\.weight, but lin0\.model\.1\.weight, .* expected VGG16 as torchvision"),
        ({}, r"holds no features\.0\.weight, but nothing"),
        ({"features.0.weight": (64, 3, 11, 11)}, r"\[64, 3, 11, 11\], not of floats \[64, 3, 3, 3\]"),
        (
            {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,), "features.2.weight": (64,)},
            r"features\.2\.wei",
        ),
    ],
    ids=["swapped", "empty", "AlexNet", "with BatchNorm"],
)
def test_other_files_in_place_of_vgg16_are_rejected(tmp_path, shapes, message):
    with pytest.raises(FileError, match=r"vgg16\.pth: .*" + message):
        read_lpips(written(tmp_path / "vgg16.pth", shapes), written(tmp_path / "vgg.pth", HEADS))


def test_heads_of_another_network_are_rejected(tmp_path):
    shapes = {}
    for layer, channels in ((0, 3), (2, 64)):
        shapes |= {f"features.{layer}.weight": (64, channels, 3, 3), f"features.{layer}.bias": (64,)}
    vgg = written(tmp_path / "vgg16.pth", shapes)
    for heads, message in (
        (vgg, r"vgg16\.pth: holds no lin0\.model\.1\.weight, but features\.0\.weight"),
        (written(tmp_path / "squeeze.pth", {"lin0.model.1.weight": (1, 96, 1, 1)}), r"\[1, 96, 1, 1\], not of floats"),
        (written(tmp_path / "integers.pth", HEADS, 1, np.int32), r"is int32 \[1, 64, 1, 1\], not of floats"),
        (
            written(tmp_path / "nan.pth", HEADS, np.nan),
            r"nan\.pth: lin0\.model\.1\.weight has values that are not finite",
        ),
    ):
        with pytest.raises(FileError, match=message):
            read_lpips(vgg, heads)


def test_files_that_are_not_state_dicts_are_rejected(tmp_path):
    (tmp_path / "vgg16.pth").write_text("<html>404</html>")
    with pytest.raises(FileError, match=r"vgg16\.pth: not a torch checkpoint"):
        read_lpips(tmp_path / "vgg16.pth", written(tmp_path / "vgg.pth", HEADS))
