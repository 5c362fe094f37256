"""What a model makes of documents that were held out: captions, drawings, answers, continuations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import GenerationConfig, SamplingConfig
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from data_pipeline.forms import FormConfig, apply_form
from data_pipeline.records import Record, Rejected
from data_pipeline.sources import SourceConfig

if TYPE_CHECKING:
    from chameleon_jax.document import Document

GREEDY = SamplingConfig(temperature=0.0, top_p=1.0)
CAPTION = GenerationConfig(mode="text", max_new_tokens=60, text=GREEDY)
ANSWER = GenerationConfig(form="chat", max_new_tokens=120, text=GREEDY)
PROSE = GenerationConfig(mode="text", max_new_tokens=80)
TEXT_TO_CONTINUE = 300
"""Characters of a text that are given."""


class Sample(NamedTuple):
    """A prompt from a held-out document, how that goes on, and what the model writes."""

    prompt: Document
    truth: Document
    written: Document


class Samples(NamedTuple):
    captions: list[Sample]
    drawings: list[Sample]
    answers: list[Sample]
    prose: list[Sample]


def write_samples(
    model: Chameleon, sources: Sequence[SourceConfig], datasets: str, count: int, guidance: float
) -> Samples:
    """Has the model go on with held-out documents.

    Args:
      model: with an image tokenizer that decodes, where there are pictures.
      sources: of held-out records.
      datasets: folder of embedded data sets.
      count: documents of each source, at most.
      guidance: scale for drawing; 1 for models that have never seen pictures without text.
    """
    asked: dict[str, list[tuple[Document, Document]]] = {name: [] for name in Samples._fields}
    for source in sources:
        own = {name: [] for name in Samples._fields}
        for record in _readable(source, datasets):
            for name, prompt, truth in _questions(record, source.form):
                own[name].append((prompt, truth))
            if max(map(len, own.values())) >= count:
                break
        for name, pairs in own.items():
            asked[name] += pairs[:count]
    drawing = GenerationConfig(
        mode="image", image=SamplingConfig(top_p=0.9), text_guidance=guidance, image_guidance=1.0
    )
    options = {"captions": CAPTION, "drawings": drawing, "answers": ANSWER, "prose": PROSE}
    written = {name: model.generate_many([prompt for prompt, _ in pairs], options[name]) if pairs else []
               for name, pairs in asked.items()}  # fmt: skip
    return Samples(**{
        name: [Sample(*pair, answer) for pair, answer in zip(asked[name], written[name], strict=True)] for name in asked
    })  # fmt: skip


def _readable(source: SourceConfig, datasets: str) -> Iterator[Record]:
    """Records of a source whose pictures can be opened."""
    for record in source.read_all(datasets):
        if not isinstance(record, Rejected):
            yield record


def _open(segments: Iterable, exif: bool = True) -> Document:
    return [segment if isinstance(segment, str) else segment.open(exif=exif) for segment in segments]


def _questions(record: Record, form: FormConfig) -> Iterator[tuple[str, Document, Document]]:
    """What can be asked of a record: the name of a field of `Samples`, a prompt, and what follows it."""
    once = dataclasses.replace(form, copies=1, drop_text=0.0, drop_all=0.0)
    try:
        made = [
            document
            for order in ("image_first", "text_first")
            for document in apply_form(record, dataclasses.replace(once, order=order) if _is_pair(record) else once, 0)
        ]
        for document in made if _is_pair(record) and not form.templates else made[:1]:
            yield from _of_document(document)
    except (DocumentError, FileError):
        return  # counted by `prepare`


def _is_pair(record: Record) -> bool:
    return bool(record.fields) and len(record.segments) <= 2


def _of_document(document: Record) -> Iterator[tuple[str, Document, Document]]:
    if document.turns:
        prompt, answer = document.turns[0]
        yield "answers", _open(prompt), _open(answer)
        return
    segments = document.segments
    first = next((place for place, segment in enumerate(segments) if not isinstance(segment, str)), None)
    if first is None:
        text = "".join(segments)
        if len(text) > 1:
            stop = min(TEXT_TO_CONTINUE, len(text) // 2)
            yield "prose", [text[:stop]], [text[stop : 2 * stop]]
        return
    if first > 0:
        yield "drawings", _open(segments[:first]), _open(segments[first : first + 1])
    if len(segments) > first + 1 and isinstance(segments[first + 1], str):
        yield "captions", _open(segments[: first + 1]), [segments[first + 1]]
