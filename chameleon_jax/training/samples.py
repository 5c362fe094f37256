"""Samples: what a model in training makes of the same prompts or pictures again and again, written to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from chameleon_jax.document import Document
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.files import new_file, write_text
from chameleon_jax.training.task import Params


class Sample(NamedTuple):
    title: str
    document: Document
    """What the model made."""
    prompt: Sequence[str] = ()
    """What it was given, in paragraphs, if it is to be shown."""


Sampler = Callable[[Params], Sequence[Sample]]
"""Maps the parameters of the model, see `state.model_params`, to samples. All processes call it, and those of the first
are written."""


def write_samples(folder: Path, step: int, samples: Sequence[Sample]) -> Path:
    """Writes `samples.md` and its pictures into the subfolder `step-N`; returns the subfolder."""
    folder = folder / f"step-{step}"
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "samples.md", "\n".join(_lines(folder, step, samples)) + "\n")
    return folder


def _lines(folder: Path, step: int, samples: Sequence[Sample]) -> Iterator[str]:
    yield f"# Step {step}"
    for number, sample in enumerate(samples, start=1):
        yield f"\n## {sample.title}"
        for paragraph in sample.prompt:
            yield ""
            yield from _quoted(paragraph)
        yield "\nAnswer:\n" if sample.prompt else ""
        pictures = 0
        for segment in sample.document:
            if isinstance(segment, str):
                yield from _quoted(segment)
                continue
            pictures += 1
            name = f"{number:02d}-{pictures}.png"
            with new_file(folder / name) as tmp:
                segment.save(tmp, "PNG")
            yield f"\n![picture {pictures}]({name})\n"


def _quoted(text: str) -> Iterator[str]:
    """Text as a Markdown code block."""
    yield from (f"    {line}" for line in text.splitlines())
