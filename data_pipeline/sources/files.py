"""What all sources that read files share: finding the files, and the pictures that their records name.

A source's `path` is a file, a folder or a pattern such as data/*.jsonl.gz, on this machine or in a bucket. Files are
called by their names relative to it, so that nothing depends on where they lie.
"""

from __future__ import annotations

import base64
import binascii
import concurrent.futures
import fnmatch
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple, TypeVar

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from data_pipeline.records import Picture, Shard
from data_pipeline.sources.source import SourceConfig
from data_pipeline.sources.streams import explained, file_system, is_remote, read_ranges, size_of, zstandard_package

T = TypeVar("T")

SHARD_BYTES = 64 << 20
"""Size of the shards into which large files are cut."""
PICTURES_PER_SHARD = 1000
PICTURE_BYTES = SHARD_BYTES // PICTURES_PER_SHARD
"""Bytes of text that are taken to be as much work as a picture."""
GROUP_BYTES = 8 << 20
GROUP_FILES = 1000
"""Limits of groups of small files that are read together."""
MOST_BRACES = 1_000_000
"""Numbers that a pair of braces in a path may stand for."""
MOST_PICTURES = 512
"""Pictures of one record."""
_SAMPLE = 64 << 10
_REQUESTS = 32
"""Files of a bucket that are looked at together."""


class DataFile(NamedTuple):
    """A file of a source."""

    name: str
    """Relative to the path of the source, with forward slashes."""
    root: str
    size: int

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.name)


@config
class PathSource(SourceConfig):
    """A source that reads files."""

    path: str = ""
    """The file, a folder of such files, or a pattern such as data/*.jsonl.gz or shard-{000..127}.tar; also in a bucket
    (gs://, s3://) or on the Hugging Face Hub (hf://datasets/…). Must be given."""

    patterns: ClassVar[tuple[str, ...]] = ("*",)
    """Names of the files that are read of a folder, in lower case."""

    def __post_init__(self):
        super().__post_init__()
        allowed = f"must name a file, a folder or a pattern; kind {self.kind!r} reads files"
        require(bool(self.path), "path", self.path, allowed)

    def files(self) -> list[DataFile]:
        """The files in the order of their names. Raises `FileError` if there are none."""
        return list_files(self.path, self.patterns)

    @property
    def root(self) -> str:
        """The folder to which the names of files are relative."""
        return _root(self.path)

    def path_of(self, shard: Shard) -> str:
        """Where the (first) file of a shard lies."""
        return os.path.join(self.root, shard.files[0])


@config
class FilesSource(PathSource):
    """A source that reads files with pictures, or with their names."""

    exif: bool = True
    """Rotate pictures as their EXIF data says, so that they stand as people see them. The released code does not; with
    false, the codes are those that it would give."""


# ----------------------------------------------------------------------------------------------------------------------
# Finding files
# ----------------------------------------------------------------------------------------------------------------------


def list_files(path: str, patterns: tuple[str, ...] = ("*",)) -> list[DataFile]:
    """The files that the `path` of a source means, in the order of their names.

    Args:
      path: a file, a pattern (`**` stands for any folders, braces as in shard-{000..127}.tar for files that must all be
        there), or a folder, of which all files are meant whose names match one of `patterns`, at any depth; hidden ones
        are not.

    Raises:
      FileError: if there are none.
    """
    with explained(path):
        root, is_folder = _root(path), _is_folder(path)
        if is_remote(path):
            found = _find_remote(path, root, is_folder)
        elif is_folder:
            found = [(name, None) for name in _walk(path)]
        elif _is_pattern(path):
            found = [(os.path.relpath(name, root), None) for name in _glob(path) if not os.path.isdir(name)]
        else:
            found = [(os.path.basename(path), None)]
    if is_folder:
        is_meant = re.compile("|".join(map(fnmatch.translate, patterns))).match
        found = [(name, size) for name, size in found if is_meant(os.path.basename(name).lower())]
    if not found:
        expected = f"no files {' or '.join(patterns)} in this folder" if is_folder else "no file matches this pattern"
        raise FileError(f"{path}: {expected}")
    if any(name.endswith((".zst", ".zstd")) for name, _ in found):
        zstandard_package()  # rather than find out in the middle
    found.sort()
    return [
        DataFile(name.replace(os.sep, "/"), root, size_of(os.path.join(root, name)) if size is None else size)
        for name, size in found
    ]


def _root(path: str) -> str:
    if _is_folder(path):
        return path.rstrip("/") or path
    has_braces = _is_pattern(path) and expand_braces(path) != [path]
    path = os.path.dirname(path.partition("{")[0] if has_braces else path)
    while glob.has_magic(path):
        path = os.path.dirname(path)
    return path


def _is_folder(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    system, name = file_system(path)
    return not _is_pattern(path) and system.isdir(name)


def _is_pattern(path: str) -> bool:
    has_magic = glob.has_magic(path) or expand_braces(path) != [path]
    return has_magic and (is_remote(path) or not os.path.lexists(path))


def expand_braces(path: str) -> list[str]:
    """The paths that one with braces stands for, as in a shell: {000..127} for numbers, {train,test} for words."""
    for found in re.finditer(r"\{([^{}]*)\}", path):
        ends = re.fullmatch(r"(\d{1,12})\.\.(\d{1,12})", found[1])
        if ends:
            count = int(ends[2]) - int(ends[1]) + 1
            if not 0 < count <= MOST_BRACES:
                raise FileError(f"{path}: {found[0]} stands for {count:,} files; must be from 1 to {MOST_BRACES:,}")
            digits = max(map(len, ends.groups())) if any(end.startswith("0") for end in ends.groups()) else 1
            words = [f"{number:0{digits}}" for number in range(int(ends[1]), int(ends[2]) + 1)]
        elif "," in found[1]:
            words = found[1].split(",")
        else:
            continue
        return [each for word in words for each in expand_braces(path[: found.start()] + word + path[found.end() :])]
    return [path]


def _glob(pattern: str) -> list[str]:
    paths = expand_braces(pattern)
    found = [glob.glob(path, recursive=True) if glob.has_magic(path) else [path] for path in paths]
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def _walk(folder: str) -> Iterator[str]:
    """Names, relative to the folder, of all files that are not hidden, through links to folders too, each folder
    once."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.join(os.path.relpath(here, folder), "").removeprefix(f".{os.sep}")
        yield from (inside + name for name in names if not name.startswith("."))


def _find_remote(path: str, root: str, is_folder: bool) -> list[tuple[str, int | None]]:
    """Names relative to `root`, and sizes."""
    system, name = file_system(path)
    if not is_folder and not _is_pattern(path):
        return [(os.path.basename(path), None)]
    if is_folder:
        found = system.find(name, detail=True)
    else:
        found = {}
        for each in expand_braces(name):
            found |= system.glob(each, detail=True) if glob.has_magic(each) else {each: system.info(each)}
    start = len(file_system(root)[1].rstrip("/")) + 1
    names = [(file[start:], info["size"]) for file, info in found.items() if info["type"] == "file"]
    return [(name, size) for name, size in names if not (is_folder and name.startswith(".")) and "/." not in name]


def identity(
    path: str,
    begin: int = 0,
    end: int = 0,
    whole: int = 0,
    size: int | None = None,
    head: bytes = b"",
    sample: int = _SAMPLE,
) -> str:
    """A hash that changes when the contents of a file, or of this part of it, change.

    It covers the size and samples of the beginning, middle and end, so that nobody waits for it, or everything if that
    is no more than `whole` bytes; never path or times. A little more than the part is covered, as a last line may go
    on.

    Args:
      size: that of the file, where it is known.
      head: its first bytes, where they were read before.
      sample: bytes of each sample.
    """
    size = size_of(path) if size is None else size
    end = min(end + sample, size) if end else size
    digest = hashlib.sha256(f"{end - begin}".encode())
    is_whole = end - begin <= whole
    starts = {begin} if is_whole else {begin, max(begin, (begin + end - sample) // 2), max(begin, end - sample)}
    ranges = [(start, end if is_whole else min(start + sample, end)) for start in sorted(starts)]
    parts = [head[start:stop] for start, stop in ranges] if end <= len(head) else read_ranges(path, ranges)
    if is_whole:
        return hashlib.sha256(digest.digest() + parts[0]).hexdigest()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def of_each(files: Sequence[DataFile], function: Callable[[DataFile], T]) -> list[T]:
    """The results of a function that reads a little of each file; of many files at a time, as disks and buckets let
    one wait."""
    together = max(1, min(100, len(files) // _REQUESTS))
    some = (files[begin : begin + together] for begin in range(0, len(files), together))
    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
        return list(itertools.chain.from_iterable(pool.map(lambda part: list(map(function, part)), some)))


# ----------------------------------------------------------------------------------------------------------------------
# Pictures that records name
# ----------------------------------------------------------------------------------------------------------------------

_DATA_URL = re.compile(r"data:[\w/+.;=-]*,", re.ASCII)
_BASE64_OF_PICTURES = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK", "AAAA")
"""How base64 of PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF begins."""
_BUCKETS = ("gs://", "s3://", "hf://")
_SHORTEST_BASE64 = 80
"""Characters of the smallest pictures. Names that are longer and begin like one have a dot."""


class Pictures:
    """Makes the pictures of one record from what it says of them."""

    def __init__(self, folder: str, place: str):
        self._folder = folder
        self._place = place
        self._count = 0

    def __call__(self, value: str) -> Picture:
        """The picture at a path relative to the folder of the record's file; or of a `data:` URL, or of base64.

        Raises:
          DocumentError: for web addresses, for base64 that is damaged, and for more than `MOST_PICTURES`.
        """
        self._count += 1
        if self._count > MOST_PICTURES:
            raise DocumentError(f"more than {MOST_PICTURES} pictures")
        name = f"{self._place}, picture {self._count}"
        if url := _DATA_URL.match(value[:100]):
            return Picture(name, _from_base64(value[url.end() :], name))
        if len(value) >= _SHORTEST_BASE64 and value.startswith(_BASE64_OF_PICTURES) and "." not in value:
            return Picture(name, _from_base64(value, name))
        value = value.removeprefix("file://")
        if not is_remote(value):
            return Picture(os.path.join(self._folder, value))
        if not value.startswith(_BUCKETS):
            raise DocumentError(f"{value[:80]}: is not fetched; download pictures first, and name their files")
        return Picture(value)


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DocumentError(f"{name}: not valid base64") from None
