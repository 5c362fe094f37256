"""Files that are not the Inception network of the FID are rejected, with what they hold and what was expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.weights.inception import read_inception
from chameleon_jax.weights.torch_writing import write_torch_file

FIRST = "Conv2d_1a_3x3"
LAYER = {f"{FIRST}.conv.weight": (32, 3, 3, 3)} | {
    f"{FIRST}.bn.{key}": (32,) for key in ("weight", "bias", "running_mean", "running_var")
}


def written(path: Path, shapes: dict[str, tuple[int, ...]], values: dict[str, float]) -> Path:
    specs = {key: (shape, np.dtype(np.float32)) for key, shape in shapes.items()}
    write_torch_file(path, specs, lambda key: np.full(shapes[key], values.get(key, 0.5), np.float32))
    return path


@pytest.mark.parametrize(
    ("shapes", "values", "message"),
    [
        ({"features.0.weight": (64, 3, 3, 3)}, {}, r"holds no Conv2d_1a_3x3\.conv\.weight, but features\.0\.weight …"),
        (LAYER | {f"{FIRST}.conv.weight": (32, 1, 3, 3)}, {}, r"is float32 \[32, 1, 3, 3\], not of floats \[32, 3"),
        (LAYER, {f"{FIRST}.bn.bias": np.nan}, r"Conv2d_1a_3x3\.bn\.bias has values that are not finite"),
        (LAYER, {f"{FIRST}.bn.running_var": -1.0}, r"Conv2d_1a_3x3\.bn\.running_var has values below 0"),
        (LAYER, {}, r"holds no Conv2d_2a_3x3\.conv\.weight, .* expected pytorch-fid's weights of 2015-12-05"),
    ],
    ids=["VGG16", "grey", "not finite", "negative variance", "one layer alone"],
)
def test_other_files_are_rejected(tmp_path, shapes, values, message):
    with pytest.raises(FileError, match=r"inception\.pth: .*" + message):
        read_inception(written(tmp_path / "inception.pth", shapes, values))


def test_damaged_file_is_rejected(tmp_path):
    path = written(tmp_path / "inception.pth", LAYER, {})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileError, match=r"inception\.pth: damaged, cut short, or not what torch\.save writes"):
        read_inception(path)
