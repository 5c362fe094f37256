"""Embedded data sets and prepared rows, made once for all tests of the data pipeline."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import image_tokenizer, random_picture, text_tokenizer

from chameleon_jax.console.commands import prepare
from chameleon_jax.runtime.files import write_text
from chameleon_jax.tokens.documents import save_image_tokenizer
from data_pipeline.config import PrepareCommand
from data_pipeline.datasets import openmoji
from data_pipeline.sources import DocumentsSource


def write_documents(path: Path, documents: list) -> Path:
    """A file of JSON lines; a number in a document stands for the picture of that number, saved beside it."""
    lines = []
    for document in documents:
        segments = []
        for segment in document:
            if isinstance(segment, int):
                random_picture(segment).save(path.parent / f"{segment}.png")
                segment = {"image": f"{segment}.png"}
            segments.append(segment)
        lines.append(json.dumps(segments) + "\n")
    write_text(path, "".join(lines))
    return path


FEW_THINGS = (
    "1F44B", "1F469-200D-1F527", "1F468-200D-1F527", "1F9D1-200D-1F527", "1F46E", "1F468-200D-1F680",
    "1F9D1-200D-1F680", "1F9D1-200D-2764-200D-1F9D1", "1F353", "1F950", "2615", "1F35E", "1F9C0", "1F1EB-1F1F7",
    "2640", "1F3FB", "1F981", "1F9F2", "E040", "1FA77", "1F499", "1F49A",
)  # fmt: skip
"""Families of OpenMoji that stand for all of them: people in tones, the same woman, man and person, couples, single
things, some held out, one without a name."""


@pytest.fixture(scope="module")
def few_pictures() -> Iterator[dict[str, Path]]:
    """Of OpenMoji's pictures, only those of `FEW_THINGS`, by code points, for what is built meanwhile."""
    few = {
        code_points: path
        for code_points, path in openmoji.svg_files().items()
        if openmoji.family_of(code_points).removesuffix("-200D-2640").removesuffix("-200D-2642") in FEW_THINGS
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "svg_files", lambda: few)
        yield few


@pytest.fixture(scope="session")
def datasets(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def command(tmp_path_factory, datasets) -> PrepareCommand:
    """Tokenizers and documents to prepare: 40 with pictures, 60 of text, 9 held out."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "text.model").write_bytes(text_tokenizer().model)
    save_image_tokenizer(image_tokenizer(), folder / "image")
    mixed = [[f"Picture {number}: ", number, " and ", number + 1, "."][: 2 + number % 4] for number in range(40)]
    prose = [[f"The fox said {number} to the dog. " * (1 + number % 3)] for number in range(60)]
    held_out = [[1000 + number, f" is picture {number}, which nobody has seen."] for number in range(9)]
    source = lambda name, documents: DocumentsSource(  # noqa: E731
        name=name, path=str(write_documents(folder / f"{name}.jsonl", documents))
    )
    return PrepareCommand(
        text_tokenizer=str(folder / "text.model"),
        image_tokenizer=str(folder / "image"),
        output=str(folder / "rows"),
        sequence_length=48,
        sources=(source("mixed", mixed), source("prose", prose)),
        held_out=(source("unseen", held_out),),
        datasets=datasets,
        processes=1,
    )


@pytest.fixture(scope="session")
def prepared(command) -> Path:
    """The folder of prepared rows. Tests that change it copy it first."""
    prepare(command)
    return Path(command.output)


@pytest.fixture
def own_command(command, tmp_path) -> PrepareCommand:
    """The same job with another output."""
    return dataclasses.replace(command, output=str(tmp_path / "rows"))
