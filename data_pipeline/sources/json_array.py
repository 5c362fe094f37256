"""Reads one JSON array item by item: LLaVA's files are published in this form and may have gigabytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from chameleon_jax.document import DocumentError
from data_pipeline.sources.json_text import JSON, LONGEST_LINE

_CHUNK = 1 << 20


def array_items(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The objects of the array, one at a time in memory.

    Raises:
      DocumentError: at the first place that is not JSON. The caller knows how many items came before.
    """
    text = io.TextIOWrapper(file, "utf-8-sig")
    buffer, ended = "", False
    expected = "["
    while True:
        buffer = buffer.lstrip()
        if not buffer and not ended:
            buffer, ended = _more(text, buffer)
            continue
        if expected == "[" or (expected == "," and buffer.startswith(",")):
            _require(buffer.startswith(expected), f"expected {expected!r}")
            buffer, expected = buffer[1:], "{" if expected == "," else "{]"
            continue
        if buffer.startswith("]") and expected in ("{]", ","):
            _require(not (buffer[1:] + text.read(_CHUNK)).strip(), "more text behind the array")
            return
        _require(
            expected != "," and buffer.startswith("{"), "expected ',' or ']'" if expected == "," else "expected '{'"
        )
        try:
            item, end = JSON.raw_decode(buffer)
        except RecursionError:
            raise DocumentError("not usable JSON: nested too deeply") from None
        except DocumentError:
            raise
        except ValueError as error:
            # An item that looks invalid may only be cut off by the end of the buffer.
            _require(not ended and len(buffer) < LONGEST_LINE, str(error))
            buffer, ended = _more(text, buffer)
            continue
        yield item
        buffer, expected = buffer[end:], ","


def _more(text: io.TextIOWrapper, buffer: str) -> tuple[str, bool]:
    """The buffer at least doubled, so that long items are decoded few times; and whether the file has ended."""
    try:
        read = text.read(max(_CHUNK, len(buffer)))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not valid UTF-8: {error.reason}") from None
    return buffer + read, not read


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise DocumentError(f"not valid JSON: {reason[:200]}")
