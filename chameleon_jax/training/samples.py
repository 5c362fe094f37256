"""Samples: the answers of a model in training to fixed prompts, written to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chameleon_jax.config import SamplePrompt
from chameleon_jax.document import Document
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.files import new_file, write_text

Sampler = Callable[[Any], Sequence[Document]]
"""Maps parameters to the model's answer to each of `config.samples.prompts`."""


def write_samples(folder: Path, step: int, prompts: Sequence[SamplePrompt], answers: Sequence[Document]) -> Path:
    """Writes `samples.md` and its pictures into the subfolder `step-N`; returns the subfolder."""
    folder = folder / f"step-{step}"
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "samples.md", "\n".join(_lines(folder, step, prompts, answers)) + "\n")
    return folder


def _lines(folder: Path, step: int, prompts: Sequence[SamplePrompt], answers: Sequence[Document]) -> Iterator[str]:
    yield f"# Step {step}"
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        yield f"\n## Prompt {number}\n"
        yield from _quoted(prompt.text)
        yield from (f"\n    {path}" for path in prompt.images)
        yield "\nAnswer:\n"
        pictures = 0
        for segment in answer:
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
