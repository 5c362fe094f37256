"""How records name their pictures, and the marks in texts for their places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chameleon_jax.document import IMAGE_MARKS, DocumentError
from data_pipeline.records import Picture, Segment
from data_pipeline.sources.json_text import shown

MARK = re.compile("|".join(map(re.escape, IMAGE_MARKS)))


def name_of(value: Any) -> str:
    """The path, or the file in base64, by which some JSON names a picture; "" if it names none."""
    while isinstance(value, dict):
        keys = ("image_url", "image", "path", "url", "base64", "bytes")
        value = next((value[key] for key in keys if value.get(key)), "")
    if not isinstance(value, str):
        raise DocumentError(f"{shown(value)}: a picture is a path, or its file in base64")
    return value


def names_of(values: Mapping[str, Any]) -> list[str]:
    """The same of the pictures that an object lists as `image` or `images`."""
    given = [values[key] for key in ("image", "images") if values.get(key)]
    if len(given) > 1:
        raise DocumentError("give image or images, not both")
    files = given[0] if given else []
    files = files if isinstance(files, list) else [files]
    names = [name_of(file) if isinstance(file, (str, dict)) else "" for file in files]
    if not all(names):
        raise DocumentError("image must be a path or a list of paths")
    return names


def has_marks(text: str) -> bool:
    return "image" in text and MARK.search(text) is not None


def put_at_marks(text: str, pictures: Sequence[Picture]) -> tuple[Segment, ...]:
    """A text with pictures at its marks; without marks, they come first.

    Raises:
      DocumentError: if the number of marks is not that of the pictures.
    """
    first, *rest = MARK.split(text)
    if not rest:
        return (*pictures, *([text] if text else []))
    if len(rest) != len(pictures):
        raise DocumentError(
            f"the text has {len(rest)} image marks (such as <image>), but there are {len(pictures)} pictures"
        )
    segments = [first, *(segment for pair in zip(pictures, rest, strict=True) for segment in pair)]
    return tuple(segment for segment in segments if segment != "")
