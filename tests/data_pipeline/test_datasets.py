"""The embedded data sets are what they say, built without network and without TensorFlow."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.config import ConfigError
from data_pipeline.datasets import NAMES, open_dataset
from data_pipeline.datasets.number_words import DIGITS


def all_of(name: str, split: str, datasets: str) -> list[dict]:
    return list(open_dataset(name, split, datasets))


def test_digits_are_split_without_overlap(datasets):
    pictures = {split: all_of("handwritten_digits", split, datasets) for split in ("train", "test")}
    assert {split: len(examples) for split, examples in pictures.items()} == {"train": 1437, "test": 360}
    train, test = ({example["png"] for example in pictures[split]} for split in ("train", "test"))
    assert not train & test
    for examples in pictures.values():  # each digit is there in both, about a tenth of all
        shares = np.bincount([example["label"] for example in examples], minlength=10) / len(examples)
        assert shares.min() > 0.06


def test_pictures_are_the_scans_of_their_labels(datasets):
    """Against scikit-learn's own arrays: shrunk back to 8 x 8, each picture is one of the scans with its label."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    right = 0
    for example in all_of("handwritten_digits", "test", datasets):
        picture = Image.open(io.BytesIO(example["png"]))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (32, 32))
        assert example["caption"].decode() == f"A handwritten {DIGITS[example['label']]}."
        corners = np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert np.median(corners) > 200, "dark ink on white"
        values = np.asarray(picture.resize((8, 8), Image.Resampling.BOX)).astype(float).ravel()
        ink = (255 - values) / 255 * 16
        nearest = np.abs(scans.data - ink).sum(axis=1).argmin()
        right += scans.target[nearest] == example["label"]
    assert right == 360


@pytest.mark.parametrize("name", ["python_reference", "python_stdlib"])
def test_texts_are_split_by_name(datasets, name):
    train, test = (all_of(name, split, datasets) for split in ("train", "test"))
    names = [{example["name"].decode() for example in examples} for examples in (train, test)]
    assert len(names[0]) == len(train)
    assert len(names[1]) == len(test)
    assert not names[0] & names[1]
    assert 0.02 < len(test) / (len(train) + len(test)) < 0.25
    for example in train + test:
        assert example["text"].decode().strip()


def test_held_out_topics_share_no_long_paragraph_with_training(datasets):
    def paragraphs(split: str) -> set[str]:
        texts = [example["text"].decode() for example in all_of("python_reference", split, datasets)]
        words = [" ".join(paragraph.split()) for text in texts for paragraph in text.split("\n\n")]
        return {each for each in words if len(each) >= 40}

    train, test = paragraphs("train"), paragraphs("test")
    assert len(test) > 50
    assert not train & test


def test_slices_of_a_split(datasets):
    whole = [example["png"] for example in all_of("handwritten_digits", "train", datasets)]
    first = [example["png"] for example in all_of("handwritten_digits", "train[:90%]", datasets)]
    rest = [example["png"] for example in all_of("handwritten_digits", "train[90%:]", datasets)]
    assert first + rest == whole
    assert abs(len(rest) - 144) <= 1


@pytest.mark.parametrize("split", ["validation", "train[:", "", "train[:200%]"])
def test_unknown_split_is_named_with_the_known_ones(datasets, split):
    with pytest.raises(ConfigError) as caught:
        open_dataset("handwritten_digits", split, datasets)
    message = str(caught.value)
    assert message.startswith(f"split = {split!r}: ")
    assert "train" in message.partition(": ")[2]
    assert "test" in message
    assert "\n" not in message


def test_tensorflow_is_not_imported(datasets):
    """In a process of its own: open, read, and look what was loaded on the way."""
    script = (
        "import sys; from data_pipeline.datasets import open_dataset, NAMES; "
        f"examples = [open_dataset(name, 'test', {datasets!r})[0] for name in NAMES]; "
        "assert 'tensorflow_datasets' in sys.modules; "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'torch', 'keras')))"
    )
    for name in NAMES:
        open_dataset(name, "test", datasets)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
