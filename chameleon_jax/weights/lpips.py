"""Reads the parameters of LPIPS from the files in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chameleon_jax.models.perceptual import BLOCKS
from chameleon_jax.weights.torch_files import read_floats, read_tensors

_VGG = "VGG16 as torchvision publishes it (vgg16-397923af.pth)"
_HEADS = "the learned weights of LPIPS for VGG16 (lpips/weights/v0.1/vgg.pth, or vgg.pth of taming-transformers)"


def read_lpips(vgg: str | Path, heads: str | Path) -> dict[str, Any]:
    """Reads the parameters of `models.perceptual.LPIPS`, without torch.

    Args:
      vgg: torchvision's state dict of VGG16 for ImageNet; its classifier is ignored.
      heads: the state dict with the learned weight of each feature, as in the `lpips` package.

    Returns:
      A tree of float32 arrays.

    Raises:
      FileError: if a file cannot be read, or a tensor is missing, has another shape or is not finite.
    """
    features, learned = read_tensors(vgg), read_tensors(heads)
    params: dict[str, Any] = {}
    layer, channels = 0, 3  # torchvision counts convolutions, ReLUs and poolings
    for number, widths in enumerate(BLOCKS, start=1):
        block = params[f"block_{number}"] = {}
        for conv, width in enumerate(widths, start=1):
            kernel = read_floats(vgg, features, f"features.{layer}.weight", (width, channels, 3, 3), _VGG)
            bias = read_floats(vgg, features, f"features.{layer}.bias", (width,), _VGG)
            block[f"conv_{conv}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
            layer, channels = layer + 2, width
        layer += 1
        key = f"lin{number - 1}.model.1.weight"
        params[f"weights_{number}"] = read_floats(heads, learned, key, (1, channels, 1, 1), _HEADS).reshape(channels)
    return params
