"""JSON as people write it into data: read strictly, with errors that say what is wrong."""

from __future__ import annotations

import codecs
import json
from typing import Any

from chameleon_jax.document import DocumentError

LONGEST_LINE = 16 << 20
"""Bytes. Tokenizing text takes fifty times its size."""


def check_text(value: str) -> str:
    """Returns the text. Raises `DocumentError` if it is not valid Unicode, or holds a NUL character."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DocumentError(f"{value[:40]!r}…: lone surrogate, not valid Unicode text") from None
    if "\0" in value:
        raise DocumentError(f"{value[:40]!r}…: holds a NUL character, which is no text")
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for error messages."""
    try:
        return json.dumps(value)[:80]
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that is nested too deeply"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DocumentError(f"not usable JSON: the key {twice[:40]!r} is written twice")
    return values


def _no_number(name: str) -> None:
    raise DocumentError(f"not valid JSON: {name} is no number")


JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)
"""Reads JSON as strictly as its standard."""


def parse_json(line: bytes) -> Any:
    """What a line says. Raises `DocumentError` if it is not valid JSON in UTF-8."""
    if b"\0" in line:
        raise DocumentError("holds NUL bytes; text in UTF-16 must begin with its byte-order mark")
    try:
        return JSON.decode(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not valid UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"not valid JSON: {error.msg} at character {error.pos}") from None
    except DocumentError:
        raise
    except ValueError:  # of whole numbers of thousands of digits
        raise DocumentError("not usable JSON: a number has too many digits") from None
    except RecursionError:
        raise DocumentError("not usable JSON: nested too deeply") from None
