"""The notebooks run from a clean kernel, show what they promise, and are in step with their sources."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))

import make_notebooks  # noqa: E402
import nbformat  # noqa: E402


@pytest.mark.parametrize("source", make_notebooks.SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_made_from_its_source(source):
    stored = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(stored)
    of_source = make_notebooks.read_source(source)
    assert [(cell.cell_type, cell.source) for cell in stored.cells] == [
        (cell.cell_type, cell.source) for cell in of_source.cells
    ], "run `make notebooks`"
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert source.with_suffix(".ipynb").stat().st_size < 1.5e6


COMPILES_FAST = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
"""Flags of the tests, with which compiling is quick and running is slow."""


def executed(name: str, tmp_path: Path, flags: str = ""):
    """Text that a notebook prints, and its pictures, when it is run anew.

    Args:
      flags: for XLA. Without any, training is fast.
    """
    (source,) = (path for path in make_notebooks.SOURCES if path.name.startswith(name))
    notebook = make_notebooks.execute(source, tmp_path, XLA_FLAGS=flags)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    data = [output.data for output in outputs if "data" in output]
    pictures = [Image.open(io.BytesIO(base64.b64decode(each["image/png"]))) for each in data if "image/png" in each]
    pages = [each["text/html"] for each in data if "text/html" in each]
    assert re.search(r"JAX [\d.]+ found \d × cpu", text)
    assert all(np.ptp(np.asarray(picture.convert("L"))) > 100 for picture in pictures), "an empty picture"
    return text, pictures, pages


@pytest.mark.slow
def test_text_and_pictures_from_one_model(tmp_path):
    text, _, pages = executed("01", tmp_path, COMPILES_FAST)
    page = "".join(pages)
    assert "orange." in page  # red and yellow
    for caption in (
        "A green circle at the top left.",
        "A red circle at the top left and a yellow star at the bottom right.",
    ):
        assert caption in page
    for answer in (
        "How many shapes are there?</span>",
        "Three.",
        "A purple star.",
        "The circle.",
        "Then comes",
        "<b>assistant</b>",
    ):
        assert answer in page
    assert "the same pixels: True" in text
    assert "picture 2: 16 of 16 codes" in text
    assert "it ended by 'stop'" in text
    assert page.count("data:image/png;base64,") >= 20


@pytest.mark.slow
def test_training_on_a_folder_of_pictures(tmp_path):
    text, pictures, _ = executed("02", tmp_path)
    first, last = map(float, re.search(r"loss: ([\d.]+) at first, ([\d.]+) at last", text).groups())
    assert last < first / 5
    first, last = map(
        float, re.search(r"PSNR while training: ([\d.]+) dB at first, ([\d.]+) dB at last", text).groups()
    )
    assert last > first + 8
    right, of = map(int, re.search(r"(\d+) of (\d+) captions are word for word", text).groups())
    assert right >= 0.7 * of
    assert len(pictures) == 5


@pytest.mark.slow
def test_looking_into_the_image_tokenizer(tmp_path):
    text, pictures, _ = executed("03", tmp_path)
    of_known, of_strange = (
        [float(value) for value in line.split(",")] for line in re.findall(r"PSNR in dB: (.*)", text)
    )
    assert min(of_known) > 35 > 30 > max(of_strange)
    assert len(pictures) == 9


@pytest.mark.slow
def test_the_model_as_a_library(tmp_path):
    text, pictures, _ = executed("04", tmp_path, COMPILES_FAST)
    first, last = map(float, re.search(r"new answer: ([\d.]+) at first, ([\d.]+) at last", text).groups())
    assert first > 1 > 0.2 > last
    assert "Which shape is red? Before: The circle. After: The ball." in text
    assert "Which shape is yellow? Before: The star. After: The star." in text
    steps = re.findall(r"loss ([\d.]+) on eight devices, ([\d.]+) on one", text)
    assert len(steps) == 3
    np.testing.assert_allclose(*np.array(steps, float).T, rtol=1e-4)
    assert len(pictures) == 3
