"""Google Cloud Storage. Files are uploaded as whole objects, and copied to the local disk before they are read."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.locks import only_writer
from chameleon_jax.runtime.progress import bytes_bar, console

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_OLD = datetime.timedelta(days=1)
"""Age after which an unfinished upload is assumed to be that of a killed process, as buckets have no locks."""


def as_path(path: str | Path) -> Path:
    """A local path, or for `gs://bucket/…` a path in a bucket with the interface of pathlib.

    Raises:
      FileError: for other schemes, for a name without a folder, or if gcsfs is not installed.
    """
    found = _SCHEME.match(os.fspath(path))
    if not found:
        return Path(path)
    scheme, name = found[1], found[2].rstrip("/")
    if scheme != "gs":
        raise FileError(
            f"{path}: {scheme}:// is not supported; expected a local path or gs://bucket/folder (Google Cloud Storage)"
        )
    if "/" not in name:
        raise FileError(f"{path}: expected a folder in a bucket, as in gs://bucket/folder")
    if find_spec("gcsfs") is None:
        raise FileError(f"{path}: needs gcsfs, which is not installed; pip install 'chameleon-jax[gcs]'")
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec
    from etils import epath

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # TensorStore writes there too
    return epath.Path(f"gs://{name}")


def is_cloud(path: str | Path) -> bool:
    """Whether a path is in a bucket. Raises `FileError` as `as_path` does."""
    return os.fspath(as_path(path)).startswith("gs://")


@contextlib.contextmanager
def explain_cloud_errors(path: str | Path) -> Iterator[None]:
    """Turns errors of a bucket into a `FileError` that names `path`."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("gcsfs", "google", "aiohttp")):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FileError(
            f"{path}: the bucket cannot be used: {reason}. Does it exist, and may this account read and write it? "
            "(gcloud auth application-default login)"
        ) from error


def objects_in(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Size and other metadata of all objects in `folder`, by relative path."""
    folder = as_path(folder)
    with explain_cloud_errors(folder):
        prefix = f"{_name(folder)}/"
        found = _system().find(_name(folder), detail=True)
        return {name.removeprefix(prefix): info for name, info in found.items() if name.startswith(prefix)}


def read_object(path: str | Path, limit: int) -> bytes:
    """The content of an object. Raises `FileError` if it has more than `limit` bytes."""
    path = as_path(path)
    with explain_cloud_errors(path):
        if not path.exists():
            raise FileError(f"{path}: no such file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise FileError(f"{path}: has more than {limit:,} bytes, which no such file needs; is it another file?")
    return content


def upload(source: Path, target: str | Path) -> None:
    """Writes a file, or all files of a folder, to a bucket."""
    target = as_path(target)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    with explain_cloud_errors(target), bytes_bar(f"upload {target}", size) as progress:
        for path in files:
            where = target if path == source else target / path.relative_to(source).as_posix()
            _system().put_file(str(path), _name(where))
            progress(path.stat().st_size)


def copy_folder(source: Path, target: str | Path) -> None:
    """Copies a local folder to a path that does not exist yet."""
    if is_cloud(target):
        upload(source, target)
    else:
        shutil.copytree(source, target)


def append(path: str | Path, text: str) -> None:
    """Appends text to an object, or creates it. The old content is not downloaded: the bucket composes both."""
    path = as_path(path)
    with explain_cloud_errors(path):
        if not path.exists():
            path.write_text(text)
            return
        tail = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        tail.write_text(text)
        _system().merge(_name(path), [_name(path), _name(tail)])
        tail.unlink()


# ----------------------------------------------------------------------------------------------------------------------
# Folders that appear only when complete
# ----------------------------------------------------------------------------------------------------------------------


def new_tmp_folder(folder: Path) -> Path:
    """A new name beside `folder`, for `put_in_place`; removes unfinished uploads that are more than a day old."""
    with explain_cloud_errors(folder):
        beside = list(folder.parent.iterdir()) if folder.parent.exists() else []
    for left in beside:
        if re.fullmatch(rf"\.{re.escape(folder.name)}\.[0-9a-f]+\.part", left.name):
            updated = [datetime.datetime.fromisoformat(info["updated"]) for info in objects_in(left).values()]
            if updated and datetime.datetime.now(datetime.UTC) - max(updated) > _OLD:
                remove(left)
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")


def put_in_place(tmp: Path, folder: Path) -> None:
    """Replaces the objects of `folder` by those of `tmp`. If this process is killed before the end, the next one that
    reads or writes the folder finishes the replacement."""
    with explain_cloud_errors(folder):
        _journal(folder).write_text(tmp.name)
    finish(folder)


def finish(folder: str | Path) -> None:
    """Finishes a `put_in_place` that was interrupted, if there is one."""
    folder = as_path(folder)
    with explain_cloud_errors(folder):
        journal = _journal(folder)
        if not journal.exists():
            return
        tmp = folder.with_name(journal.read_text())
        new, system = objects_in(tmp), _system()
        for name in new:
            system.cp_file(_name(tmp / name), _name(folder / name))
        for name in objects_in(folder).keys() - new.keys():
            (folder / name).unlink()
        journal.unlink()
        for name in new:
            (tmp / name).unlink()


def remove(folder: str | Path) -> None:
    """Deletes all objects in a folder."""
    for name in objects_in(folder):
        (as_path(folder) / name).unlink()


# ----------------------------------------------------------------------------------------------------------------------
# Copies on the local disk
# ----------------------------------------------------------------------------------------------------------------------


def on_disk(path: str | Path) -> str | Path:
    """The local copy of a path in a bucket (see `download`); a local path unchanged."""
    return download(path) if is_cloud(path) else path


def download(path: str | Path) -> Path:
    """Copies a file or folder of a bucket to the local cache; only what has changed is copied.

    Returns:
      The copy, in `$XDG_CACHE_HOME/chameleon_jax` (default: ~/.cache/chameleon_jax).

    Raises:
      FileError: if there is no such object, or the copy does not match the bucket's size or checksum.
    """
    path = as_path(path)
    finish(path)
    with explain_cloud_errors(path):
        found = objects_in(path)
        if not found and path.is_file():
            found = {"": _system().info(_name(path))}
    if not found:
        raise FileError(f"{path}: there is no such file or folder in the bucket")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "chameleon_jax" / "gs" / _name(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(target.with_name(f".{target.name}.lock"), target, wait=True):
        _copy(path, found, target)
    return target


def _copy(path: Path, found: dict[str, dict[str, Any]], target: Path) -> None:
    """Updates the local copy; a file beside it records the version of each object that was copied."""
    record = target.with_name(f".{target.name}.copied")
    try:
        copied = json.loads(record.read_text())
    except (OSError, ValueError):
        copied = {}
    version = {name: f"{info.get('generation')} {info['size']}" for name, info in found.items()}
    here = lambda name: target / name if name else target  # noqa: E731
    missing = [name for name in found if copied.get(name) != version[name] or not here(name).is_file()]
    if missing:
        size = sum(found[name]["size"] for name in missing)
        if shutil.disk_usage(target.parent).free < size:
            raise FileError(f"{path}: its copy takes {size / 2**30:.1f} GiB, more than is free in {target.parent}")
        console.print(f"copying {path} to {target}")
        with bytes_bar(f"copy {path.name}", size) as progress:
            for name in missing:
                _download(path / name if name else path, found[name], here(name))
                progress(found[name]["size"])
    if target.is_dir():
        for file in [each for each in target.rglob("*") if each.is_file()]:
            if file.relative_to(target).as_posix() not in found:
                file.unlink()
    record.write_text(json.dumps(version))


def _download(source: Path, info: dict[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with explain_cloud_errors(source):
        _system().get_file(_name(source), str(part))
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    expected = info.get("md5Hash")  # composed objects have none
    if part.stat().st_size != info["size"] or (expected and base64.b64encode(digest.digest()).decode() != expected):
        part.unlink()
        raise FileError(f"{source}: the download does not match the bucket's size or checksum; run the command again")
    os.replace(part, target)


def _system() -> Any:
    """The file system object that epath uses."""
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


def _name(path: Path) -> str:
    return os.fspath(path).removeprefix("gs://")


def _journal(folder: Path) -> Path:
    """A file that exists while `put_in_place` replaces a folder; it names the folder of the new objects."""
    return folder.with_name(f".{folder.name}.complete")


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yields a path in a temporary folder; what is written there is uploaded to `path` at the end."""
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        local = Path(folder) / path.name
        yield local
        upload(local, path)
