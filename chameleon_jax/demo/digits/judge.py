"""A classifier that judges drawings: a support vector machine trained on real digits of the training split only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

COPIES = 6
"""Augmented versions of each training picture. Trained on clean digits alone, the classifier fails on shifted ones."""


def _features(images: Sequence[Image]) -> np.ndarray:
    """8 x 8 grey values of pictures, the resolution of the scans, float64 `[n, 64]` in [0, 1]."""
    from PIL import Image

    small = (image.convert("L").resize((8, 8), Image.Resampling.BOX) for image in images)
    return np.stack([np.asarray(image, np.float64).ravel() / 255 for image in small])


class Judge:
    """Recognises the digit on a picture."""

    def __init__(self, images: Sequence[Image], labels: np.ndarray, seed: int):
        """Trains on real pictures, each as it is and in `COPIES` augmented versions."""
        from sklearn.svm import SVC

        from data_pipeline.augment import LIGHT, augment

        rng = np.random.default_rng(seed)
        augmented = [augment(image, LIGHT, rng) for _ in range(COPIES) for image in images]
        self._classifier = SVC(C=10).fit(_features([*images, *augmented]), np.tile(labels, COPIES + 1))

    def __call__(self, images: Sequence[Image]) -> np.ndarray:
        """The digit on each picture, int `[n]`."""
        return self._classifier.predict(_features(images))


def nearest_distances(images: np.ndarray, references: np.ndarray, shift: int = 0) -> np.ndarray:
    """Root mean square pixel difference of each picture to its nearest reference, for values in [-1, 1].

    Args:
      images: float32 `[n, h, w, 3]`.
      references: float32 `[m, h, w, 3]`.
      shift: references are also shifted by up to this many pixels, filled up with white.
    """
    height, width = images.shape[1:3]
    a = images.reshape(len(images), -1)
    padded = np.pad(references, ((0, 0), (shift, shift), (shift, shift), (0, 0)), constant_values=1)
    nearest = np.full(len(images), np.inf)
    for top in range(2 * shift + 1):
        for left in range(2 * shift + 1):
            b = padded[:, top : top + height, left : left + width].reshape(len(references), -1)
            squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
            nearest = np.minimum(nearest, squared.min(axis=1))
    return np.sqrt(np.maximum(nearest, 0) / a.shape[1])
