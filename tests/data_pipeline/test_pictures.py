"""Pictures are decoded, checked and augmented as their source says, wherever they are read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from picture_files import kept_squares
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.document import DocumentError
from data_pipeline.augment import AugmentConfig, augment
from data_pipeline.filters import FilterConfig
from data_pipeline.forms import FormConfig, rng_of
from data_pipeline.pictures import open_picture
from data_pipeline.records import Picture
from data_pipeline.segments import read_texts
from data_pipeline.sources import DocumentsSource


@pytest.fixture
def source(tmp_path) -> DocumentsSource:
    """Three documents, the second with a strip."""
    for number, size in enumerate([(40, 40), (100, 4), (40, 60)]):
        random_picture(number, size).save(tmp_path / f"{number}.png")
    lines = [json.dumps([f"Picture {number}.", {"image": f"{number}.png"}]) + "\n" for number in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(lines))
    return DocumentsSource(
        path=str(tmp_path / "own.jsonl"),
        filter=FilterConfig(max_aspect_ratio=3),
        form=FormConfig(copies=2, templates=("{image}Copy: {text}",)),
        augment=AugmentConfig(brightness=0.5),
    )


def test_picture_is_refused_by_the_filter_and_named(source, tmp_path):
    name = str(tmp_path / "1.png")
    with pytest.raises(
        DocumentError, match=r"1\.png: filter\.max_aspect_ratio = 3\.0: it has a picture of 100 x 4 pix"
    ):
        open_picture(Picture(name), source, 0, "id", 0, 16)


def test_picture_depends_on_seed_document_and_number(source, tmp_path):
    def opened(*arguments) -> bytes:
        return open_picture(Picture(str(tmp_path / "0.png")), source, *arguments, 16).tobytes()

    assert opened(0, "id", 0) == opened(0, "id", 0)
    assert len({opened(0, "id", 0), opened(1, "id", 0), opened(0, "id copy 1", 0), opened(0, "id", 1)}) == 4


def test_large_picture_is_shrunk_before_it_is_changed():
    large = Image.linear_gradient("L").resize((400, 200))
    settings, rng = AugmentConfig(brightness=0.2), lambda: rng_of(0, "", "")
    assert augment(large, settings, rng(), side=16).size == (67, 34)  # by 6, to more than twice 16
    assert augment(large, settings, rng(), side=64).size == (400, 200)
    small = np.asarray(augment(large, settings, rng(), side=16).resize((4, 2), Image.Resampling.BOX), int)
    assert np.abs(small - np.asarray(augment(large, settings, rng()).resize((4, 2), Image.Resampling.BOX))).max() < 6


def test_tokenizers_learn_from_what_filter_and_form_make(source):
    assert read_texts([source], "") == [f"Copy: Picture {number}." for number in (0, 0, 1, 1, 2, 2)]
    assert kept_squares(source, 8).shape == (4, 8, 8, 3), "two copies of two pictures; the strip is refused"
