"""Rows of prepared data in the terminal."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chameleon_jax.config import require
from chameleon_jax.console.terminal import steers_nothing, write_picture
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.folders import check_writable
from chameleon_jax.tokens.documents import DocumentTokenizer

if TYPE_CHECKING:
    from data_pipeline.loader import PreparedData


def print_rows(prepared: PreparedData, name: str, rows: Sequence[str], output: str) -> None:
    """Prints rows, what is learnt from told apart.

    Args:
      prepared: the data.
      name: of a source, or held_out.NAME; '' is the first one.
      rows: their numbers, as people type them.
      output: folder to draw their pictures into; '' draws none.
    """
    from data_pipeline.unpacking import unpack

    if output:
        check_writable(output)
    tokenizer = prepared.tokenizer(with_image=bool(output))
    given, name = name, name or next(iter(prepared.header["sources"]))
    part = "held_out" if name.startswith("held_out.") else "sources"
    name = name.removeprefix("held_out.")
    known = [*prepared.header["sources"], *(f"held_out.{other}" for other in prepared.header["held_out"])]
    require(name in prepared.header[part], "source", given, f"was not prepared; there is {', '.join(known)}")
    source = prepared.rows(part, name)
    numbers = _row_numbers(rows, len(source))
    print("bold is learnt from, dim is not" if sys.stdout.isatty() else "what stands in ⟦ ⟧ is learnt from")
    for number in numbers:
        row = source[number]
        documents = unpack(row, tokenizer)
        print(
            f"\n{name}, row {number}: {len(documents)} documents, {np.count_nonzero(row['segment_ids'])} of "
            f"{prepared.sequence_length} tokens, {np.count_nonzero(row['loss_weights'])} of them learnt from"
        )
        files = (as_path(output) / f"{part}-{name}-{number}-{nth}.png" for nth in itertools.count(1))
        for spans in documents:
            texts = ((_as_text(span.content, tokenizer, files if output else None), span.weight) for span in spans)
            runs = itertools.groupby(texts, lambda pair: pair[1])
            print("".join(_weighed("".join(text for text, _ in run), weight) for weight, run in runs))


def _as_text(content: str | np.ndarray, tokenizer: DocumentTokenizer, files: Iterator[Path] | None) -> str:
    """Text as it is; of a picture, given as ids, a mark. It is drawn into the next of `files`, if there are any."""
    if isinstance(content, str):
        return content
    if files is None:
        return "[picture]"
    if len(content) != tokenizer.codes_per_image:
        return f"[picture of {len(content)} instead of {tokenizer.codes_per_image} codes]"
    (image,) = tokenizer.need("image").detokenize(tokenizer.vocabulary.code_of_id[content[None]])
    write_picture(image, file := next(files))
    return f"[picture: {file}]"


def _row_numbers(given: Sequence[str], count: int) -> list[int]:
    """Numbers of rows, from texts such as '3,17' or '[3, 17]'."""
    words = ",".join(given).strip("[]").split(",")
    numbers = [int(word) if word.strip().isdecimal() else -1 for word in words]
    allowed = f"must be numbers from 0 to {count - 1} with commas between them, as in 3,17"
    require(all(0 <= number < count for number in numbers), "rows", ",".join(given), allowed)
    return numbers


def _weighed(text: str, weight: float) -> str:
    """Text with its weight in the loss made visible."""
    text = steers_nothing(text)
    if sys.stdout.isatty():
        return f"\x1b[{1 if weight == 1 else 2 if weight == 0 else 0}m{text}\x1b[0m"
    return text if weight == 0 else f"⟦{text}⟧" if weight == 1 else f"⟦{weight:.3g} x {text}⟧"
