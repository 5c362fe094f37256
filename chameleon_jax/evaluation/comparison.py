"""Two models answer the same prompts, for people to compare without knowing whose answer is whose.

This is the relative and absolute evaluation of the Chameleon paper (arXiv 2405.09818, section 4) in small.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chameleon_jax.chameleon import load
from chameleon_jax.config import GenerationConfig, from_dict, to_dict
from chameleon_jax.document import Document, DocumentError, open_image
from chameleon_jax.errors import FileError
from chameleon_jax.generating import encode_prompts, resolved
from chameleon_jax.runtime.files import new_file, read_json, write_json
from chameleon_jax.runtime.progress import console, progress_bar
from chameleon_jax.runtime.reading import read_bytes
from chameleon_jax.weights.checklist import CHECKLIST
from chameleon_jax.weights.checkpoint import Checkpoint

LARGEST_PROMPTS = 64 << 20
"""Bytes of a file of prompts in plain text."""


class Prompt(NamedTuple):
    place: str
    """Where it stands: "prompts.txt, line 3"."""
    document: Document


class Pair(NamedTuple):
    """A prompt and its two answers as they are shown.

    Attributes:
      first: number of the model, 0 or 1, whose answer is shown first.
      answers: in the order in which they are shown.
    """

    prompt: Prompt
    first: int
    answers: tuple[Document, Document]


def read_prompts(path: str) -> list[Prompt]:
    """The prompts in a file: JSON lines of texts and pictures in any form of the kind of source 'documents' if its name
    ends in .jsonl, else texts, one a line.

    Raises:
      FileError: if there are none, one cannot be read, or one is there twice.
    """
    prompts = list(_of_json_lines(path) if path.endswith(".jsonl") else _of_text(path))
    if not prompts:
        raise FileError(f"{path}: holds no prompts; expected one a line, or JSON lines in a file called .jsonl")
    seen: dict[str, str] = {}
    for place, document in prompts:
        before = seen.setdefault(_digest(document), place)
        if before != place:
            raise FileError(f"{place}: is the same prompt as {before}; give each once")
    return prompts


def _of_text(path: str) -> Iterator[Prompt]:
    try:
        text = read_bytes(path, LARGEST_PROMPTS).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: is no UTF-8 text at byte {error.start}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Prompt(f"{path}, line {number}", [line.strip()])


def _of_json_lines(path: str) -> Iterator[Prompt]:
    from data_pipeline.records import Rejected
    from data_pipeline.sources import SourceConfig

    source = from_dict(SourceConfig, {"kind": "documents", "path": path})
    for record in source.read_all():
        if isinstance(record, Rejected):
            raise FileError(f"{record.place}: {record.reason}")
        try:
            document = [each if isinstance(each, str) else each.open() for each in record.segments]
        except DocumentError as error:
            raise FileError(f"{record.place}: {error}") from None
        yield Prompt(record.place, document)


def _digest(*values: Any) -> str:
    """A hash of values of JSON and of documents."""

    def plain(value: Any) -> Any:
        image = np.asarray(value)
        return [list(image.shape), hashlib.sha256(image.tobytes()).hexdigest()]

    return hashlib.sha256(json.dumps(values, default=plain).encode()).hexdigest()[:24]


def identity(name: str, checkpoint: Checkpoint) -> str:
    """What tells a model from others: its name, and the small files that hold checksums of its weights, if it has any.
    Answers of a model that was trained again are not taken for its own."""
    files = [checkpoint.folder / file for file in ("config.json", "params.json", CHECKLIST)]
    return _digest(name, [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()])


def inputs(models: Sequence[str], prompts: Sequence[Prompt], generation: GenerationConfig) -> str:
    """A hash of all that a comparison is made of; `models` by identity."""
    return _digest(list(models), [prompt.document for prompt in prompts], to_dict(generation))


def answer(
    name: str, model: str, prompts: Sequence[Prompt], generation: GenerationConfig, folder: Path
) -> list[Document]:
    """The model's answers to all prompts. Those in `folder` are read, the others generated and written there, some at a
    time; the model is loaded only if there are any.

    Args:
      name: what `load` opens.
      model: its identity.

    Raises:
      DocumentError: if a prompt leaves no room for an answer, before anything is generated; and as `generate_many`.
    """
    files = [folder / f"{_digest(model, to_dict(generation), prompt.document)}.json" for prompt in prompts]
    answers = [_read_answer(file) for file in files]
    left = [place for place, known in enumerate(answers) if known is None]
    if not left:
        return answers
    if done := len(prompts) - len(left):
        console.print(f"{name}: {done:,} of {len(prompts):,} prompts were answered before")
    opened = load(name)
    options = resolved(opened, generation)
    for place in left:
        try:
            encode_prompts(opened, [prompts[place].document], [options])
        except DocumentError as error:  # which does not know where it stands
            raise DocumentError(f"{prompts[place].place}: {str(error).removeprefix('the prompt ')}") from None
    opened.drop_params()  # which takes half of the memory
    with progress_bar(name, len(left)) as bar:
        step = opened.engine_config.rows
        for begin in range(0, len(left), step):
            group = left[begin : begin + step]
            for place, written in zip(
                group, opened.generate_many([prompts[place].document for place in group], generation), strict=True
            ):
                _write_answer(files[place], name, prompts[place].place, written)
                answers[place] = list(written)
            bar.update(begin + len(group))
    return answers


def _write_answer(file: Path, name: str, place: str, document: Document) -> None:
    """Writes an answer in our own form of documents, and its pictures beside it first."""
    segments: list[Any] = []
    for number, segment in enumerate(document, start=1):
        if not isinstance(segment, str):
            picture = file.with_name(f"{file.stem}-{number}.png")
            with new_file(picture, tidy=False) as tmp:
                segment.save(tmp, "PNG")
            segment = {"image": picture.name}
        segments.append(segment)
    write_json(file, {"model": name, "prompt": place, "answer": segments})


def _read_answer(file: Path) -> Document | None:
    """An answer that was written before; None if there is none, or it is not whole."""
    if not file.is_file():
        return None
    try:
        segments = read_json(file)["answer"]
        return [each if isinstance(each, str) else open_image(file.parent / each["image"]) for each in segments]
    except (FileError, DocumentError, LookupError, TypeError):
        return None


def pair_up(prompts: Sequence[Prompt], answers: Sequence[Sequence[Document]], made_of: str) -> list[Pair]:
    """Draws for each prompt whose answer is shown first, such that each model's is for half of them.

    Args:
      made_of: what `inputs` gave, the seed: who knows the order of one comparison knows nothing of the next.
    """
    first = np.random.default_rng(int(made_of, 16)).permutation(len(prompts)) % 2
    return [
        Pair(prompt, number, (answers[number][place], answers[1 - number][place]))
        for place, (prompt, number) in enumerate(zip(prompts, first.tolist(), strict=True))
    ]


def key_of(pairs: Sequence[Pair], models: Sequence[str], made_of: str) -> dict[str, Any]:
    """What tells whose answer is whose, as JSON. Its `comparison` is a hash of what judges see.

    Args:
      models: their names.
      made_of: what `inputs` gave.
    """
    return {
        "format_version": 1,
        "comparison": _digest([[pair.prompt.document, *pair.answers] for pair in pairs]),
        "inputs": made_of,
        "models": list(models),
        "prompts": {
            str(number): {"A": pair.first, "B": 1 - pair.first, "place": pair.prompt.place}
            for number, pair in enumerate(pairs, start=1)
        },
    }
