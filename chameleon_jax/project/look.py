"""Finds out what is in a folder of files: which kinds of sources read them, and how much there is."""

from __future__ import annotations

import csv
import itertools
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_jax.config import ConfigError, from_dict
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.progress import progress_bar
from data_pipeline.records import Record, Rejected
from data_pipeline.sources import SourceConfig

RECORDS = 2000
"""Records of each source that are read; of more, the rest is estimated."""
PICTURES = 200
"""Pictures of each source whose size is looked at."""
TEXT = 1 << 18
"""Bytes of text of each source that are kept, to find out how large a vocabulary they can fill."""
FILES = 200_000
"""Files of a folder that are listed."""

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"})
_TEXTS = frozenset({".txt", ".md", ".rst", ".tex", ".py"})
_TABLES = frozenset({".csv", ".tsv"})
_CAPTION_KEYS = ("caption", "text", "prompt", "description", "title")
_IMAGE_COLUMNS = ("image", "file_name", "image_path", "path")
_TEXT_COLUMNS = ("text", "caption")


class Found(NamedTuple):
    """A source, and how much is in it."""

    source: dict[str, Any]
    """As a YAML file has it, without what concerns training."""
    said: str
    """What it is, for people."""
    records: int
    exact: bool
    """Whether all records were read, rather than some."""
    ids: tuple[str, ...]
    """Ids of the records that were read."""
    pictures: float
    """A record."""
    text_bytes: float
    """A record."""
    shorter_side: int
    """Median of the shorter sides of the pictures in pixels; 0 without pictures."""
    are_pairs: bool
    """One picture and its caption each, in no order of their own."""
    are_turns: bool
    words: frozenset[str]
    """Of all texts, in lower case."""
    texts: tuple[tuple[str, str], ...]
    """Different texts up to `TEXT` bytes, each with the id of its record."""
    rejected: tuple[Rejected, ...]


def look(folder: str | Path) -> list[Found]:
    """What is in a folder, or in a file.

    Raises:
      ConfigError: if there is nothing to learn from, with what there is instead.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileError(f"{folder}: there is no such folder")
    found = [_measure(source, said) for source, said in propose(folder.absolute())]
    found = [each for each in found if each.records and (each.pictures or each.text_bytes)]
    if not found:
        raise ConfigError(
            f"{folder}: holds nothing to learn from. Expected are pictures with captions (kite.txt beside kite.jpg, or "
            "a table of file_name and text), JSON lines, text files, WebDataset tars or Parquet"
        )
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Which sources
# ----------------------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """Files that are not hidden, at any depth."""
    if folder.is_file():
        return [folder]
    depth = len(folder.parts)
    paths = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.parts[depth:]))
    return sorted(itertools.islice((path for path in paths if path.is_file()), FILES))


def propose(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Sources that read what is there, each with words for people."""
    files = _files(folder)
    by_suffix: dict[str, list[Path]] = {}
    for path in files:
        by_suffix.setdefault(path.suffix.lower(), []).append(path)
    pictures = [path for path in files if path.suffix.lower() in _PICTURES]
    beside = {path.with_suffix("") for path in pictures} | set(pictures)
    sidecars = Counter(
        suffix for suffix in (".txt", ".json") for path in by_suffix.get(suffix, ()) if path.with_suffix("") in beside
    )
    lists = list(_lists(files, beside))
    yield from lists
    if pictures and (sidecars or not lists):
        yield _pictures(folder, pictures, sidecars)
    for suffix, kind in ((".tar", "webdataset"), (".parquet", "parquet")):
        if suffix in by_suffix:
            yield {"kind": kind, "path": str(folder)}, f"records in {len(by_suffix[suffix]):,} {suffix} files"
    texts = [path for path in files if path.suffix.lower() in _TEXTS and path.with_suffix("") not in beside]
    if texts and not pictures:
        yield {"kind": "text", "path": str(folder)}, "text files"


def _pictures(folder: Path, pictures: Sequence[Path], sidecars: Counter[str]) -> tuple[dict[str, Any], str]:
    """Pictures with captions in files beside them or in names; or without any."""
    source: dict[str, Any] = {"kind": "folder", "path": str(folder)}
    if sidecars:
        suffix, count = sidecars.most_common(1)[0]
        source["captions"] = suffix[1:]
        if suffix == ".json":
            source |= _caption_key(pictures)
        if count < len(pictures):
            source["uncaptioned"] = "keep"
        return source, f"pictures with captions in {suffix} files beside them"
    if len({path.parent for path in pictures}) > 1 and all(path.parent != folder for path in pictures):
        return {**source, "captions": "folder_name"}, "pictures with captions in the names of their folders"
    if sum(len(re.findall(r"[^\W\d_]{3,}", path.stem)) > 1 for path in pictures) > len(pictures) / 2:
        return {**source, "captions": "file_name"}, "pictures with captions in their own names"
    return {**source, "uncaptioned": "keep"}, "pictures without captions"


def _caption_key(pictures: Sequence[Path]) -> dict[str, str]:
    """The key of the caption in the JSON file of the first picture that has one."""
    names = (name for path in pictures for name in (path.with_suffix(".json"), path.with_name(f"{path.name}.json")))
    first = next(name for name in names if name.is_file())
    values = _json(first.read_bytes())
    key = next((key for key in _CAPTION_KEYS if isinstance(values, dict) and values.get(key)), "caption")
    return {} if key == "caption" else {"caption_key": key}


def _lists(files: Sequence[Path], beside: set[Path]) -> Iterator[tuple[dict[str, Any], str]]:
    """Tables and JSON lines. Several of a kind in one folder, and for conversations all of them, are one source."""
    groups: dict[tuple[Path, str, str], list[tuple[Path, dict[str, Any]]]] = {}
    for path in files:
        name = path.name.removesuffix(".gz").removesuffix(".zst")
        suffix = Path(name).suffix.lower()
        if suffix in _TABLES:
            shape = _table(path, suffix)
        elif suffix in (".jsonl", ".ndjson") or (suffix == ".json" and path.with_suffix("") not in beside):
            shape = _shape(path)
        else:
            continue
        if shape:
            groups.setdefault((path.parent, suffix, json.dumps(shape)), []).append((path, shape))
    for (parent, suffix, _), members in groups.items():
        paths = [path for path, _ in members]
        alone = len(paths) == 1
        source = {**members[0][1], "path": str(paths[0] if alone else parent / f"*{suffix}*")}
        what = {"table": "rows of a table, "}.get(source["kind"], f"{source['kind']} in ")
        yield source, f"{what}{paths[0].name}{'' if alone else f' and {len(paths) - 1} more'}"


def _table(path: Path, suffix: str) -> dict[str, Any] | None:
    """The source that reads a CSV or TSV file; None if it has no column of text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            sample = file.read(1 << 16)
    except (OSError, UnicodeError):
        return {"kind": "table"}
    delimiter = "\t" if suffix == ".tsv" else max(",;\t|", key=sample.partition("\n")[0].count)
    rows = list(itertools.islice(csv.DictReader(sample.splitlines(), delimiter=delimiter), 20))
    return _columns(rows, path.parent)


def _columns(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any] | None:
    """Which columns are pictures and captions: by their names, or else by what is in them."""
    if not rows:
        return None
    names = [name for name in rows[0] if isinstance(name, str)]
    values = {name: [str(row[name]) for row in rows if isinstance(row.get(name), str)] for name in names}
    image = next((name for name in _IMAGE_COLUMNS if name in names), "") or next(
        (name for name in names if values[name] and all(_is_picture(folder, value) for value in values[name])), ""
    )
    text = next((name for name in _TEXT_COLUMNS if name in names), "") or max(
        (name for name in names if name != image and values[name]),
        key=lambda name: statistics.mean(map(len, values[name])),
        default="",
    )
    if not text:
        return None
    source: dict[str, Any] = {"kind": "table"}
    if image and image not in _IMAGE_COLUMNS:
        source["image_column"] = image
    if text not in _TEXT_COLUMNS:
        source["text_column"] = text
    return source


def _is_picture(folder: Path, name: str) -> bool:
    return Path(name).suffix.lower() in _PICTURES and (folder / name).is_file()


def _shape(path: Path) -> dict[str, Any] | None:
    """The source that reads a file of JSON lines, from its first line; None if no kind does."""
    from data_pipeline.sources.jsonl import open_text

    try:
        with open_text(str(path)) as stream:
            line = stream.readline(1 << 20)
    except (DocumentError, FileError):
        return None
    values = _json(line)
    if isinstance(values, list):
        is_array = bool(values) and isinstance(values[0], dict) and _is_chat(values[0])
        return {"kind": "conversations" if is_array else "documents"}
    if not isinstance(values, dict):
        return {"kind": "conversations"} if line.lstrip().startswith(b"[") else None  # one array over many lines
    if _is_chat(values):
        return {"kind": "conversations"}
    if {"texts", "text_list"} & values.keys():  # OBELICS, MMC4
        return {"kind": "documents"}
    return _columns([values], path.parent)


def _is_chat(values: dict[str, Any]) -> bool:
    return bool({"turns", "conversations", "messages"} & values.keys())


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except ValueError:
        return None


# ----------------------------------------------------------------------------------------------------------------------
# How much
# ----------------------------------------------------------------------------------------------------------------------


def _measure(values: dict[str, Any], said: str) -> Found:
    """Reads a source as `prepare` will, up to `RECORDS` records of it."""
    source = from_dict(SourceConfig, values)
    shards = source.shards("")
    items = ((number, item) for number, shard in enumerate(shards) for item in source.read(shard, ""))
    read, number = [], 0
    with progress_bar(f"look at {said}", None) as bar:
        for number, item in itertools.islice(items, RECORDS):  # noqa: B007
            read.append(item)
            bar.update(len(read))
        complete = next(items, None) is None
    records = [item for item in read if isinstance(item, Record)]
    rejected = [item for item in read if isinstance(item, Rejected)]
    texts = [text for record in records for text in _segments(record) if isinstance(text, str)]
    pictures = [segment for record in records for segment in _segments(record) if not isinstance(segment, str)]
    # In shards that were not read, as many records are expected as in those that were.
    total = len(records) if complete else round(len(records) * len(shards) / max(1, number))
    return Found(
        values, said, total, complete, tuple(record.id for record in records),
        len(pictures) / max(1, len(records)), sum(len(text.encode()) for text in texts) / max(1, len(records)),
        _shorter_side(pictures),
        bool(records) and all(record.fields and len(record.segments) <= 2 for record in records),
        any(record.turns for record in records),
        frozenset(word.lower() for text in texts for word in re.findall(r"\w+", text)),
        tuple(_some_texts(records)), tuple(rejected),
    )  # fmt: skip


def _some_texts(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Different texts, each with the id of its record, up to `TEXT` bytes."""
    seen, size = set(), 0
    for record in records:
        for text in _segments(record):
            if isinstance(text, str) and text not in seen:
                seen.add(text)
                size += len(text.encode())
                if size > TEXT:
                    return
                yield record.id, text


def _segments(record: Record) -> Iterator[Any]:
    yield from record.segments
    for turn in record.turns:
        yield from (*turn.prompt, *turn.answer)


def _shorter_side(pictures: Sequence[Any]) -> int:
    """Median over some pictures, evenly spaced; what cannot be opened is left to `prepare`."""
    sides = []
    for picture in pictures[:: max(1, len(pictures) // PICTURES)][:PICTURES]:
        try:
            sides.append(min(picture.open().size))
        except (DocumentError, FileError):
            continue
    return round(statistics.median(sides)) if sides else 0
