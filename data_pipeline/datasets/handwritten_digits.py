"""The 1,797 real handwritten digits that scikit-learn ships, as PNG pictures with label and caption.

Source: E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(CC BY 4.0). Scans of 8 x 8 grey values, enlarged here to 32 x 32 in dark ink on white.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
import tensorflow_datasets as tfds

from data_pipeline.datasets.number_words import DIGITS

RESOLUTION = 32
TEST_PICTURES = 360


class HandwrittenDigits(tfds.core.GeneratorBasedBuilder):
    """Splits: train 1,437 and test 360 pictures, assigned by a hash of the scan."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits from scikit-learn as PNG pictures with label and caption.",
            features=tfds.features.FeaturesDict(
                # tfds writes its own Image feature with TensorFlow; encoded bytes need none.
                {"png": tfds.features.Tensor(shape=(), dtype=np.object_), "label": np.int64, "caption": np.str_}
            ),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        from sklearn.datasets import load_digits

        data = load_digits()
        scans = data.images.astype(np.uint8)  # [1797, 8, 8], 0 … 16
        order = sorted(range(len(scans)), key=lambda index: hashlib.sha256(scans[index].tobytes()).digest())
        return {
            "train": self._generate_examples(scans, data.target, order[TEST_PICTURES:]),
            "test": self._generate_examples(scans, data.target, order[:TEST_PICTURES]),
        }

    def _generate_examples(self, scans: np.ndarray, labels: np.ndarray, indices: list[int]):
        from PIL import Image

        for index in indices:
            ink = Image.fromarray((255 - scans[index] * 255.0 / 16).round().astype(np.uint8))
            picture = ink.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            picture.save(file, "PNG")
            label = int(labels[index])
            yield index, {"png": file.getvalue(), "label": label, "caption": f"A handwritten {DIGITS[label]}."}
