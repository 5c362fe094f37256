"""Opening files: on this machine or, through fsspec, in a bucket; plain, or compressed with gzip or Zstandard."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from chameleon_jax.document import MOST_BYTES, DocumentError
from chameleon_jax.errors import ChameleonError, ConfigError, FileError
from chameleon_jax.runtime.reading import open_descriptor, open_file

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CHUNK = 1 << 20
_BLOCK = 8 << 20
"""Bytes that are fetched from a bucket at a time."""
_EXTRAS = {"gs": "gcs", "s3": "s3", "hf": "released"}


class BrokenStreamError(DocumentError):
    """A compressed or encoded file is truncated or damaged: what was read before is right, and nothing follows."""


def is_remote(path: str) -> bool:
    """Whether a path is one for fsspec, such as gs://bucket/data.jsonl."""
    return "://" in path


def file_system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a remote path, and the path as it calls it.

    Raises:
      ConfigError: if a package for it is missing.
    """
    import fsspec

    scheme = path.partition("://")[0]
    try:
        return fsspec.url_to_fs(path)
    except ImportError as error:
        extra = f"; pip install 'chameleon-jax[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else ""
        raise ConfigError(f"{path}: a package for {scheme}:// is not installed: {error}{extra}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {scheme}:// is not known; expected gs://, s3:// or hf:// ({error})") from None


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turns what goes wrong with a file into a `FileError` that names it."""
    try:
        yield
    except ChameleonError:
        raise
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:
        if not is_remote(path):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FileError(f"{path}: cannot be read: {reason}") from error


def open_plain(path: str) -> io.BufferedReader:
    """Opens a file as it is. Raises `FileError` if it is not a regular file or cannot be read."""
    with explained(path):
        if not is_remote(path):
            return open_file(path)
        system, name = file_system(path)
        return io.BufferedReader(system.open(name, "rb", block_size=_BLOCK), _CHUNK)


def read_ranges(path: str, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, each from a first byte up to a last one, and no more."""
    with explained(path):
        if is_remote(path):
            system, name = file_system(path)
            return [system.cat_file(name, begin, end) for begin, end in ranges]
        descriptor = open_descriptor(path)
        try:
            return [os.pread(descriptor, end - begin, begin) for begin, end in ranges]
        finally:
            os.close(descriptor)


def size_of(path: str) -> int:
    with explained(path):
        if is_remote(path):
            system, name = file_system(path)
            return system.size(name)
        return os.stat(path).st_size


def read_remote_picture(path: str) -> bytes:
    """The contents of a picture in a bucket. Raises `DocumentError` if there is none, `FileError` if it is out of
    reach."""
    try:
        system, name = file_system(path)
        return system.cat_file(name, 0, MOST_BYTES + 1)
    except FileNotFoundError:
        raise DocumentError(f"{path}: no such picture file") from None
    except ValueError as error:
        raise DocumentError(f"{path}: {error}") from None
    except Exception as error:
        with explained(path):
            raise error


def open_stream(path: str) -> io.BufferedReader:
    """Opens a file for reading from its beginning, decompressed if its first bytes are those of gzip or Zstandard.

    The stream raises `BrokenStreamError` where the compressed data is truncated or damaged.
    """
    file = open_plain(path)
    expand = compression(file.peek(8))
    return io.BufferedReader(Chunks(expand(file)), _CHUNK) if expand else file


def open_text(path: str) -> io.BufferedReader:
    """The same of text, which comes in UTF-8 even if the file is in UTF-16 (with its byte-order mark)."""
    file = open_stream(path)
    return io.BufferedReader(Chunks(_utf_16_as_utf_8(file)), _CHUNK) if file.peek(2).startswith(UTF_16) else file


def compression(head: bytes) -> Callable[[BinaryIO], Iterator[bytes]] | None:
    """What decompresses a file with these first bytes, if it is compressed."""
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


def _utf_16_as_utf_8(file: BinaryIO) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-16")()
    with file:
        try:
            while data := file.read(1 << 16):
                yield decoder.decode(data).encode()
            decoder.decode(b"", final=True)
        except UnicodeError as error:
            raise BrokenStreamError(f"not valid UTF-16: {error}") from None


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


def zstandard_package() -> Any:
    """The package that reads Zstandard. Raises `ConfigError` if it is missing."""
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            "path: files compressed with Zstandard need zstandard, which is not installed; pip install "
            "'chameleon-jax[zstd]'"
        ) from None
    return zstandard


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    zstandard = zstandard_package()
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
