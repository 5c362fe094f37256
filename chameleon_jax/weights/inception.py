"""Reads the parameters of the Inception network of the FID from the file that pytorch-fid publishes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.errors import FileError
from chameleon_jax.models.inception import SIDE, Inception
from chameleon_jax.weights.stored import StoredTensor
from chameleon_jax.weights.torch_files import read_floats, read_tensors

_EXPECTED = "pytorch-fid's weights of 2015-12-05 (pt_inception-2015-12-05-6726825d.pth)"
_EPSILON = 1e-3


def read_inception(path: str | Path) -> dict[str, Any]:
    """Reads the parameters of `models.inception.Inception`, without torch. The classifier is ignored.

    Returns:
      A tree of float32 arrays, with each batch normalisation as part of its convolution.

    Raises:
      FileError: if the file cannot be read, or a tensor is missing, has another shape or is not finite.
    """
    tensors = read_tensors(path)

    def read(layer: Mapping[str, Any], name: str) -> dict[str, Any]:
        if "kernel" in layer:
            return _convolution(path, tensors, name, layer["kernel"].shape)
        return {part: read(inner, f"{name}.{part}".lstrip(".")) for part, inner in layer.items()}

    return read(_abstract_params(), "")


@functools.cache
def _abstract_params() -> dict[str, Any]:
    picture = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), picture)["params"]


def _convolution(
    path: str | Path, tensors: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    height, width, inputs, outputs = shape

    def floats(key: str, *shape: int) -> np.ndarray:
        return read_floats(path, tensors, f"{name}.{key}", shape, _EXPECTED)

    kernel = floats("conv.weight", outputs, inputs, height, width).transpose(2, 3, 1, 0)
    scale, bias, mean, variance = (
        floats(f"bn.{key}", outputs).astype(np.float64) for key in ("weight", "bias", "running_mean", "running_var")
    )
    if np.any(variance < 0):
        raise FileError(f"{path}: {name}.bn.running_var has values below 0; fetch the file again")
    scale = scale / np.sqrt(variance + _EPSILON)
    return {"kernel": (kernel * scale).astype(np.float32), "bias": (bias - mean * scale).astype(np.float32)}
