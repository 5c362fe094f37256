"""Interleaved texts and pictures in the shapes of OBELICS and MMC4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chameleon_jax.document import DocumentError
from data_pipeline.records import Picture, Segment
from data_pipeline.sources.json_text import check_text, shown


def is_interleaved(values: Mapping[str, Any]) -> bool:
    """Whether a mapping looks like a document of OBELICS or MMC4."""
    return "text_list" in values or ("texts" in values and "images" in values)


def is_empty(segments: Sequence[Segment]) -> bool:
    """Whether there is nothing but white space."""
    return all(isinstance(segment, str) and not segment.strip() for segment in segments)


def parse_interleaved(values: Mapping[str, Any], picture: Callable[[str], Picture]) -> tuple[Segment, ...]:
    """The segments of a document of OBELICS, whose lists `texts` and `images` have null where the other has something,
    or of MMC4, whose `image_info` says before which sentence of `text_list` each picture stands.

    Raises:
      DocumentError: if it is neither.
    """
    segments = _mmc4(values, picture) if "text_list" in values else _obelics(values, picture)
    if is_empty(segments):
        raise DocumentError("the document is empty")
    return tuple(segments)


def _obelics(values: Mapping[str, Any], picture: Callable[[str], Picture]) -> list[Segment]:
    texts, images = values.get("texts"), values.get("images")
    if not isinstance(texts, list) or not isinstance(images, list):
        raise DocumentError("texts and images must be two lists")
    if len(texts) != len(images):
        raise DocumentError(f"texts has {len(texts)} places, but images {len(images)}")
    segments: list[Segment] = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True), start=1):
        if (text is None) == (image is None):
            raise DocumentError(
                f"place {place} of texts and images must have a value in one of them, and null in the other"
            )
        given = image if text is None else text
        if not isinstance(given, str):
            raise DocumentError(f"place {place}, {shown(given)}: must be a text or the path of a picture")
        segments.append(picture(given) if text is None else check_text(given))
    return segments


def _mmc4(values: Mapping[str, Any], picture: Callable[[str], Picture]) -> list[Segment]:
    sentences, pictures = values["text_list"], values.get("image_info") or []
    if not isinstance(sentences, list) or not all(isinstance(each, str) for each in sentences):
        raise DocumentError("text_list must be a list of texts")
    if not isinstance(pictures, list):
        raise DocumentError("image_info must be a list")
    names: dict[int, list[str]] = {}
    for info in pictures:
        name, place = (
            (info.get("image_name"), info.get("matched_text_index")) if isinstance(info, dict) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(place, int) or not 0 <= place < len(sentences):
            expected = f"image_name must be a path, and matched_text_index from 0 to {len(sentences) - 1}"
            raise DocumentError(f"image_info: {shown(info)}: {expected}")
        names.setdefault(place, []).append(name)
    segments: list[Segment] = []
    for place, sentence in enumerate(sentences):
        segments += map(picture, names.get(place, ()))
        sentence = check_text(sentence)
        if segments and isinstance(segments[-1], str):
            segments[-1] += f" {sentence}"
        else:
            segments.append(sentence)
    return segments
