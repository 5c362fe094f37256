"""Forms: how a record becomes the documents that are trained on.

In this order: copies, the limit on pictures, a template or an order of text and pictures, text dropped for guidance,
separators. Every choice is a hash of seed, record id and purpose, so that it is the same in any process, whatever else
is read, and one choice does not move another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import DocumentError
from data_pipeline.filters import check
from data_pipeline.records import Record, Rejected, Segment, Turn

if TYPE_CHECKING:
    from data_pipeline.sources.source import SourceConfig

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


@config
class Template:
    """A document, or a conversation of one turn, with places for the parts of a record: {image} stands for its
    pictures, one after another, {text} for its text, any other name for the column or field of that name; {{ and }} are
    braces. A text alone stands for `document`."""

    document: str = ""
    """Such as "{image}A photo of {text}."."""
    prompt: str = ""
    """Such as "{image}What is this?"."""
    answer: str = ""
    """Such as "{text}"."""

    @classmethod
    def short_form(cls, value: Any) -> Any:
        return {"document": value} if isinstance(value, str) else value

    def __post_init__(self):
        given = [name for name in ("document", "prompt", "answer") if getattr(self, name)]
        require(
            given in (["document"], ["prompt", "answer"]), "document", self.document,
            "give either this or prompt and answer",
        )  # fmt: skip
        for name in given:
            text = getattr(self, name)
            lone = any(match[0] in ("{", "}") for match in _PLACE.finditer(text))
            require(not lone, name, text, "places are {image}, {text} or {column}; braces are written {{ and }}")


@config
class FormConfig:
    """How records become documents. By default they stay as they are, except that pictures and captions that come from
    columns or files of their own, and so in no order, are put in either order."""

    order: Literal["auto", "as_is", "image_first", "text_first", "rotate"] = "auto"
    """Order of pictures and text in documents that no template makes. 'rotate': pictures first in some documents, text
    first in the others (paper, section 2.2: half of each). 'auto': 'rotate' for one picture with a caption from columns
    or files of their own, 'as_is' for all others. Conversations keep their order."""
    image_first_share: float = 0.5
    """Share of documents with pictures first, with order 'rotate'."""
    templates: tuple[Template, ...] = ()
    """Documents to make from the parts of a record, such as "{image}A photo of {text}.", or `prompt` and `answer` for a
    conversation. Each record takes one of them."""
    separator: str = ""
    """Text between neighbouring segments of which one is text, such as a space or a line break; not in templates, which
    say all."""
    max_pictures: int = 0
    """Pictures of a document; 0: any number."""
    too_many_pictures: Literal["keep_first", "split"] = "keep_first"
    """What becomes of documents with more. 'keep_first': the first ones stay, and all of the text. 'split': another
    document begins at the picture that is one too many. Conversations are only cut between turns: the turns before that
    picture stay, and 'split' makes another conversation of the others."""
    drop_text: float = 0.0
    """Probability that of a document with pictures only they remain: begin of sequence and the pictures, as guidance by
    text has them. Of conversations, those that answer with pictures."""
    drop_all: float = 0.0
    """Probability that only the last picture remains, as guidance by pictures has it."""
    copies: int = 1
    """Documents to make of each record, each with its own order, template, dropped text and augmentation."""

    def __post_init__(self):
        require(0 <= self.image_first_share <= 1, "image_first_share", self.image_first_share, "must be from 0 to 1")
        require(self.max_pictures >= 0, "max_pictures", self.max_pictures, "must be 0 or more")
        for name in ("drop_text", "drop_all"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must be from 0 to 1")
        require(
            self.drop_text + self.drop_all <= 1,
            "drop_all",
            self.drop_all,
            f"and drop_text = {self.drop_text} must not exceed 1 together",
        )
        require(self.copies > 0, "copies", self.copies, "must be at least 1")


def names_in(form: FormConfig) -> list[str]:
    """The parts of records that the templates of a form ask for."""
    texts = [text for template in form.templates for text in (template.document, template.prompt, template.answer)]
    return sorted({match[1] for text in texts for match in _PLACE.finditer(text) if match[1]})


def rng_of(seed: int, record_id: str, purpose: str) -> np.random.Generator:
    """Random numbers for one purpose in the processing of one record."""
    digest = hashlib.sha256(f"{seed} {purpose}\0{record_id}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def documents_of(record: Record, source: SourceConfig, seed: int) -> list[Record] | Rejected:
    """The documents and conversations that a source's filter and form make of a record, or why there is none."""
    try:
        reason = check(record, source.filter)
        return Rejected(record.id, record.place, reason) if reason else apply_form(record, source.form, seed)
    except DocumentError as error:
        return Rejected(record.id, record.place, str(error))


def apply_form(record: Record, form: FormConfig, seed: int) -> list[Record]:
    """The documents and conversations that a record is made into, in order, with ids of their own.

    The first has the record's id; the others add to it "copy 1" and "part 2".

    Raises:
      DocumentError: if the record lacks something that its template asks for, or leaves nothing.
    """
    made = []
    for copy in range(form.copies):
        own = dataclasses.replace(record, id=f"{record.id} copy {copy}") if copy else record
        for part in _limit_pictures(own, form):
            part = _drop_text(_arrange(part, form, seed), form, seed)
            made.append(part if part.fields == {} else dataclasses.replace(part, fields={}))
    return made


def _is_text(segment: Segment) -> bool:
    return isinstance(segment, str)


def _count_pictures(segments: Sequence[Segment]) -> int:
    return sum(not _is_text(segment) for segment in segments)


def _limit_pictures(record: Record, form: FormConfig) -> list[Record]:
    """The parts of a record, none of which has too many pictures."""
    if not form.max_pictures or len(record.pictures) <= form.max_pictures:
        return [record]
    pieces = record.turns or record.segments
    counts = [_count_pictures((*piece.prompt, *piece.answer) if record.turns else [piece]) for piece in pieces]
    most = form.max_pictures
    if max(counts) > most:  # only a turn can have more than one
        raise DocumentError(f"turn {counts.index(max(counts)) + 1} has {max(counts)} pictures; max_pictures = {most}")
    if form.too_many_pictures == "keep_first" and not record.turns:
        before = np.cumsum(counts)
        kept = tuple(piece for piece, n in zip(pieces, before, strict=True) if _is_text(piece) or n <= most)
        return [dataclasses.replace(record, segments=kept)]
    parts, left = [[]], most
    for piece, count in zip(pieces, counts, strict=True):
        if count > left:
            parts.append([])
            left = most
        parts[-1].append(piece)
        left -= count
    if form.too_many_pictures == "keep_first":
        parts = parts[:1]
    name = "turns" if record.turns else "segments"
    return [
        dataclasses.replace(
            record, id=f"{record.id} part {number}" if number > 1 else record.id, **{name: tuple(part)}
        )
        for number, part in enumerate(parts, start=1)
    ]  # fmt: skip


def _arrange(record: Record, form: FormConfig, seed: int) -> Record:
    """A record in the form that a template or the order asks for."""
    if form.templates:
        number = 0
        if len(form.templates) > 1:
            number = rng_of(seed, record.id, "template").integers(len(form.templates))
        return _fill_in(record, form.templates[number])
    if record.turns:
        if not form.separator:
            return record
        turns = [Turn(*(_separate(part, form.separator) for part in turn)) for turn in record.turns]
        return dataclasses.replace(record, turns=tuple(turns))
    segments = _in_order(record, form, seed)
    segments = _separate(segments, form.separator) if form.separator else segments
    return record if segments is record.segments else dataclasses.replace(record, segments=segments)


def _in_order(record: Record, form: FormConfig, seed: int) -> tuple[Segment, ...]:
    order, segments = form.order, record.segments
    texts = tuple(filter(_is_text, segments))
    if order == "auto":
        image, text = record.fields.get("image"), record.fields.get("text")
        order = "rotate" if segments in ((image, text), (text, image)) else "as_is"
    if order == "rotate":
        image_first = rng_of(seed, record.id, "order").random() < form.image_first_share
        order = "image_first" if image_first else "text_first"
    if order == "as_is":
        return segments
    pictures = tuple(segment for segment in segments if not _is_text(segment))
    return pictures + texts if order == "image_first" else texts + pictures


def _join(parts: Sequence[Segment]) -> tuple[Segment, ...]:
    """Neighbouring texts as one."""
    joined: list[Segment] = []
    for part in parts:
        if part == "":
            continue
        if joined and _is_text(part) and _is_text(joined[-1]):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


def _separate(segments: Sequence[Segment], separator: str) -> tuple[Segment, ...]:
    parts: list[Segment] = []
    for segment in segments:
        if segment == "":
            continue
        if parts and (_is_text(segment) or _is_text(parts[-1])):
            parts.append(separator)
        parts.append(segment)
    return _join(parts)


def _fill_in(record: Record, template: Template) -> Record:
    """The document or conversation that a template makes of a record."""
    if record.turns:
        raise DocumentError("form.templates: are made from documents, and this is a conversation")
    pictures, taken = iter(record.pictures), 0

    def value(name: str) -> Segment:
        nonlocal taken
        found = record.fields.get(name)
        if found is None and name == "image":
            taken, found = taken + 1, next(pictures, None)
        elif found is None and name == "text":
            found = "".join(record.texts)
        if not found or (_is_text(found) and not found.strip()):
            names = ", ".join(record.fields) or "none"
            raise DocumentError(f"form.templates: there is no {{{name}}} here, or it is empty; fields: {names}")
        return found

    if template.document:
        filled = dataclasses.replace(record, segments=_fill_places(template.document, value))
    else:
        turn = Turn(_fill_places(template.prompt, value), _fill_places(template.answer, value))
        filled = dataclasses.replace(record, segments=(), turns=(turn,))
    if taken and (left := len(list(pictures))):
        raise DocumentError(
            f"form.templates: {taken + left} pictures, and {{image}} stands in the template {taken} times"
        )
    return filled


def _fill_places(template: str, value: Callable[[str], Segment]) -> tuple[Segment, ...]:
    parts, end = [], 0
    for match in _PLACE.finditer(template):
        parts += [template[end : match.start()], value(match[1]) if match[1] else match[0][0]]
        end = match.end()
    return _join([*parts, template[end:]])


def _drop_text(record: Record, form: FormConfig, seed: int) -> Record:
    """The record, or what remains of it for guidance: a document of pictures, without text and ends of turns."""
    if not form.drop_text and not form.drop_all:
        return record
    drawn = any(_count_pictures(turn.answer) for turn in record.turns) if record.turns else record.pictures
    chance = rng_of(seed, record.id, "drop_text").random()
    if not drawn or chance >= form.drop_text + form.drop_all:
        return record
    kept = record.pictures if chance < form.drop_text else record.pictures[-1:]
    return dataclasses.replace(record, segments=kept, turns=())
