"""A page of sample rows of prepared data: what a model will see, decoded back."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from chameleon_jax.pages.parts import Section, img, page
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT, Vocabulary
from data_pipeline.unpacking import Span, unpack

if TYPE_CHECKING:
    from PIL.Image import Image

    from data_pipeline.loader import PreparedData

LONGEST_SPAN = 1200
"""Characters of a text of which no more is shown."""


def rows_page(data: PreparedData, rows: Mapping[str, Sequence[int]], tables: Iterable[tuple[str, str, str]]) -> str:
    """The page as HTML.

    Args:
      data: what was prepared.
      rows: numbers of the rows to show, by source; those held out are called held_out.NAME.
      tables: title, HTML and table of sections before the rows.
    """
    tokenizer = data.tokenizer()
    sources = {name: _source(data, name) for name in rows}
    unpacked = {name: [unpack(sources[name][number], tokenizer) for number in rows[name]] for name in rows}
    spans = itertools.chain.from_iterable(
        spans for documents in unpacked.values() for row in documents for spans in row
    )
    pictures = _pictures([span.content for span in spans if not isinstance(span.content, str)], tokenizer)
    sections = [Section(*each) for each in tables]
    for name, numbers in rows.items():
        cards = "".join(
            _row(sources[name][number], number, documents, pictures, tokenizer.vocabulary)
            for number, documents in zip(numbers, unpacked[name], strict=True)
        )
        said = f"{len(numbers)} of {len(sources[name]):,} rows."
        sections.append(Section(name, "Held out from training. " * name.startswith("held_out.") + said, cards))
    lead = (
        "<p>Tokens decoded back to text and pictures. Each block is one document; documents of a row do not attend to "
        "each other. The loss covers <span class='learnt'>marked text</span> and pictures with a solid frame, "
        "<span class='partly'>this text</span> with a smaller weight; the rest is context. The bar above a row shows "
        "its tokens in order: <span class='key text'></span> text, <span class='key image'></span> image codes, "
        "<span class='key other'></span> special tokens.</p>"
    )
    return page("Rows as the model sees them", lead, sections, "Written by <code>chameleon data</code>.")


def _source(data: PreparedData, name: str) -> Sequence[np.ndarray]:
    """The rows of a source, or of held_out.NAME."""
    return data.rows("held_out" if name.startswith("held_out.") else "sources", name.removeprefix("held_out."))


def _row(
    row: np.ndarray, number: int, documents: list[list[Span]], pictures: Iterator[Image | None], vocabulary: Vocabulary
) -> str:
    used, learnt = np.count_nonzero(row["segment_ids"]), np.count_nonzero(row["loss_weights"])
    blocks = "".join(
        f"<div class='of-row'>{''.join(_span(span, pictures) for span in spans)}</div>" for spans in documents
    )
    count = f"{len(documents)} document{'s' if len(documents) != 1 else ''}"
    said = f"row {number}: {count}, {used:,} of {len(row['inputs']):,} positions filled, {learnt:,} in the loss"
    return f"<div class='row'><small>{said}</small>{_bar(row, vocabulary)}{blocks}</div>"


def _pictures(codes: Sequence[np.ndarray], tokenizer: DocumentTokenizer) -> Iterator[Image | None]:
    """Pictures from ids of codes; None where there are too few or too many."""
    whole = [ids for ids in codes if tokenizer.image and len(ids) == tokenizer.codes_per_image]
    drawn = iter(tokenizer.image.detokenize(tokenizer.vocabulary.code_of_id[np.stack(whole)]) if whole else ())
    return (next(drawn) if tokenizer.image and len(ids) == tokenizer.codes_per_image else None for ids in codes)


def _span(span: Span, pictures: Iterator[Image | None]) -> str:
    kind = "learnt" if span.weight == 1 else "given" if span.weight == 0 else "partly"
    title = f"weight {span.weight:.3g} in the loss"
    if isinstance(span.content, str):
        text = span.content
        if len(text) > LONGEST_SPAN:
            text = f"{text[:LONGEST_SPAN]} … ({len(text) - LONGEST_SPAN:,} more characters)"
        special = " special" if text.startswith("⟨") and text.endswith("⟩") else ""
        return f"<span class='{kind}{special}' title='{title}'>{html.escape(text)}</span>"
    picture = next(pictures)
    if picture is None:
        return f"<span class='{kind} special'>[picture of {len(span.content)} codes]</span>"
    return img(picture, f"picture of {len(span.content)} codes, {title}", 128, kind)


def _bar(row: np.ndarray, vocabulary: Vocabulary) -> str:
    """The row in proportion: a block for each document, text and pictures in their colours."""
    names = {TEXT: "text", IMAGE: "image"}
    kinds = [names.get(kind, "other") for kind in vocabulary.modality[row["inputs"]]]
    blocks = []
    for segment, tokens in itertools.groupby(
        zip(row["segment_ids"].tolist(), kinds, strict=True), lambda pair: pair[0]
    ):
        runs = [
            (kind, sum(1 for _ in run))
            for kind, run in itertools.groupby("empty" if segment == 0 else kind for _, kind in tokens)
        ]
        inside = "".join(f"<i class='{kind}' style='flex: {count}'></i>" for kind, count in runs)
        blocks.append(f"<span style='flex: {sum(count for _, count in runs)}'>{inside}</span>")
    return f"<div class='bar'>{''.join(blocks)}</div>"
