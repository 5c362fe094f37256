"""What all sources that read files share: finding the files, opening them, and the pictures they name.

A source's `path` is a file, a folder or a pattern such as data/*.jsonl.gz. Files are called by their names relative to
it, so that nothing depends on where they lie.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import glob
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar, NamedTuple

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError, FileError
from chameleon_jax.runtime.reading import open_file
from data_pipeline.records import Picture, Shard
from data_pipeline.sources.source import SourceConfig

SHARD_BYTES = 64 << 20
"""Size of the shards into which large files are cut."""
MOST_PICTURES = 512
"""Pictures of one record."""
_CHUNK = 1 << 20
_SAMPLE = 64 << 10


class BrokenStreamError(DocumentError):
    """A compressed or encoded file is truncated or damaged: what was read before is right, and nothing follows."""


class DataFile(NamedTuple):
    """A file of a source."""

    name: str
    """Relative to the path of the source, with forward slashes."""
    path: str
    size: int


@config
class FilesSource(SourceConfig):
    """A source that reads files."""

    path: str = ""
    """The file, a folder of such files, or a pattern such as data/*.jsonl.gz. Must be given."""
    exif: bool = True
    """Rotate pictures as their EXIF data says, so that they stand as people see them. The released code does not; with
    false, the codes are those that it would give."""

    patterns: ClassVar[tuple[str, ...]] = ("*",)
    """Names of the files that are read of a folder."""

    def __post_init__(self):
        super().__post_init__()
        require(
            bool(self.path),
            "path",
            self.path,
            f"must name a file, a folder or a pattern; kind {self.kind!r} reads files",
        )

    def files(self) -> list[DataFile]:
        """The files in the order of their names. Raises `FileError` if there are none."""
        return list_files(self.path, self.patterns)

    def path_of(self, shard: Shard) -> str:
        """Where the (first) file of a shard lies."""
        return os.path.join(_root(self.path), shard.files[0])


# ----------------------------------------------------------------------------------------------------------------------
# Finding files
# ----------------------------------------------------------------------------------------------------------------------


def list_files(path: str, patterns: tuple[str, ...] = ("*",)) -> list[DataFile]:
    """The files that the `path` of a source means, in the order of their names.

    Args:
      path: a file, a pattern (`**` stands for any folders), or a folder, of which all files are meant whose names match
        one of `patterns`, at any depth; hidden ones are not.

    Raises:
      FileError: if there are none.
    """
    root = _root(path)
    if os.path.isdir(path):
        found = [name for name in _walk(path) if any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)]
    elif os.path.lexists(path) or not glob.has_magic(path):
        found = [path]
    else:
        found = [name for name in glob.glob(path, recursive=True) if not os.path.isdir(name)]
    files = [DataFile(os.path.relpath(name, root).replace(os.sep, "/"), name, _size(name)) for name in sorted(found)]
    if not files:
        expected = f"no files {' or '.join(patterns)} in this folder" if os.path.isdir(path) else "matches no file"
        raise FileError(f"{path}: {expected}")
    return files


def _root(path: str) -> str:
    """The folder to which the names of files are relative."""
    if os.path.isdir(path):
        return path
    while glob.has_magic(path) and not os.path.lexists(path):
        path = os.path.dirname(path)
        if not glob.has_magic(path):
            return path
    return os.path.dirname(path)


def _walk(folder: str) -> Iterator[str]:
    """Paths of all files that are not hidden, through links to folders too, each folder once."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(here, name) for name in names if not name.startswith("."))


def _size(path: str) -> int:
    with open_plain(path) as file:
        return file.seek(0, os.SEEK_END)


def identity(path: str, begin: int = 0, end: int = 0) -> str:
    """A hash that changes when the contents of a file, or of this part of it, change.

    It covers the size and the first, middle and last 64 KiB, so that nobody waits for it; never path or times. A little
    more than the part is covered, since a last line may go on behind it.
    """
    with open_plain(path) as file:
        size = file.seek(0, os.SEEK_END)
        end = min(end + _SAMPLE, size) if end else size
        digest = hashlib.sha256(f"{end - begin}".encode())
        for start in sorted({begin, max(begin, (begin + end - _SAMPLE) // 2), max(begin, end - _SAMPLE)}):
            file.seek(start)
            digest.update(file.read(min(_SAMPLE, end - start)))
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Opening files
# ----------------------------------------------------------------------------------------------------------------------


def open_plain(path: str) -> BinaryIO:
    """Opens a file as it is. Raises `FileError` if it is not a regular file or cannot be read."""
    try:
        return open_file(path)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def open_stream(path: str) -> io.BufferedReader:
    """Opens a file for reading from its begin, decompressed if its first bytes are those of gzip or Zstandard.

    The stream raises `BrokenStreamError` where the compressed data is truncated or damaged.
    """
    file = open_plain(path)
    expand = compression(file.peek(8))
    return io.BufferedReader(Chunks(expand(file)), _CHUNK) if expand else file


def compression(head: bytes) -> Any:
    """The function that decompresses a file with these first bytes, or None."""
    return next((expand for magic, expand in _COMPRESSIONS.items() if head.startswith(magic)), None)


class Chunks(io.RawIOBase):
    """A stream of the bytes that an iterator gives."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    with file:
        try:
            stream = gzip.GzipFile(fileobj=file)
            while chunk := stream.read1(_CHUNK):
                yield chunk
        except EOFError:
            raise BrokenStreamError("the gzip file is truncated") from None
        except (zlib.error, gzip.BadGzipFile) as error:
            raise BrokenStreamError(f"the gzip file is damaged: {error}") from None


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            "path: files compressed with Zstandard need zstandard, which is not installed; pip install "
            "'chameleon-jax[zstd]'"
        ) from None
    with file:
        frame = zstandard.ZstdDecompressor().decompressobj()
        rest, fresh = b"", True
        # So little at a time, as a kilobyte may be that of 32 MB.
        while data := rest or file.read(1024):
            try:
                chunk = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise BrokenStreamError(f"the Zstandard file is damaged: {error}") from None
            rest, fresh = b"", False
            if frame.eof:
                rest = frame.unused_data
                frame, fresh = zstandard.ZstdDecompressor().decompressobj(), True
            if chunk:
                yield chunk
        if not fresh:
            raise BrokenStreamError("the Zstandard file is truncated")


_COMPRESSIONS = {b"\x1f\x8b": _gunzip, b"\x28\xb5\x2f\xfd": _unzstd}


# ----------------------------------------------------------------------------------------------------------------------
# Pictures that records name
# ----------------------------------------------------------------------------------------------------------------------

_DATA_URL = re.compile(r"data:[\w/+.;=-]*,", re.ASCII)
_BASE64_OF_PICTURES = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK", "AAAA")
"""How base64 of PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF begins."""
_SHORTEST_BASE64 = 80
"""No picture is shorter; names that begin like one are."""


class Pictures:
    """Makes the pictures of one record from what it says of them."""

    def __init__(self, folder: str, place: str):
        self._folder = folder
        self._place = place
        self._count = 0

    def __call__(self, value: str) -> Picture:
        """The picture at a path relative to the file that the record is in; or of a `data:` URL, or of base64.

        Raises:
          DocumentError: for base64 that is damaged, and for more than `MOST_PICTURES`.
        """
        self._count += 1
        if self._count > MOST_PICTURES:
            raise DocumentError(f"more than {MOST_PICTURES} pictures")
        name = f"{self._place}, picture {self._count}"
        if url := _DATA_URL.match(value[:100]):
            return Picture(name, _from_base64(value[url.end() :], name))
        if len(value) >= _SHORTEST_BASE64 and value.startswith(_BASE64_OF_PICTURES):
            return Picture(name, _from_base64(value, name))
        return Picture(os.path.join(self._folder, value))


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DocumentError(f"{name}: not valid base64") from None
