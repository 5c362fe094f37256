"""Folders of arrays, written and read with Orbax; the checksum of every array is verified when it is read."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from chameleon_jax.errors import ChameleonError, DamagedFile, FileError
from chameleon_jax.runtime.array_folders import check_claims, check_folder
from chameleon_jax.runtime.checksums import array_checksums, differences, dtypes_of
from chameleon_jax.runtime.cloud import is_cloud
from chameleon_jax.runtime.distributed import gather_texts
from chameleon_jax.runtime.files import absolute

Result = TypeVar("Result")


def _orbax() -> Any:
    """Orbax's settings for folders of arrays."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    # Weights hardly compress, and zstd makes writing six times and reading three times slower.
    context.array.saving.use_compression = False
    # An array in one chunk is written without a copy (2.2 GiB/s); with several chunks, or with zarr 3, it is copied
    # first (0.4 GiB/s). But to read a part of a chunk all of it is read, so the largest arrays are split.
    context.array.saving.use_zarr3 = False
    context.array.saving.storage_options.chunk_byte_size = 1 << 30
    context.memory.read_concurrent_bytes = 512 << 20
    return context


def without_barriers(context: Any) -> Any:
    """Makes Orbax wait for no other process, so that each can fail on its own; returns the changed context."""
    this = jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = this, {this}
    return context


@contextlib.contextmanager
def without_glob_characters(path: Path) -> Iterator[Path]:
    """Yields a path to the same folder that has no characters special to `glob`.

    Orbax finds files with `glob`. In a folder named `[red]` it does not find the files that it has just written, and
    silently leaves a checkpoint that cannot be read.
    """
    if not glob.has_magic(str(path)):
        yield path
        return
    if is_cloud(path):
        raise FileError(f"{path}: a folder of arrays must not have *, ? or [ in its name")
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        yield link / path.name


def save_arrays(path: str | Path, tree: Any) -> dict[str, str]:
    """Writes a tree of arrays as an Orbax folder. `path` must not exist; use it inside `new_folder`.

    Returns:
      The checksums of the arrays, for `load_arrays`.
    """
    from orbax.checkpoint import v1 as ocp

    checksums = array_checksums(tree)
    with _orbax(), without_glob_characters(absolute(path)) as target:
        ocp.save(target, tree)
        if jax.process_index() == 0:  # Orbax writes the local path into this file, which would be published with it
            (target / "commit_success.txt").write_text("Checkpoint commit was successful\n", encoding="utf-8")
    return checksums


def load_arrays(path: str | Path, abstract: Any, checksums: Mapping[str, str] | None = None) -> Any:
    """Reads what `save_arrays` wrote. Every process that holds a part of the arrays must call it.

    Args:
      path: the folder.
      abstract: a tree of `jax.ShapeDtypeStruct`. Arrays are read directly onto its shardings, if it has any, else onto
        the first device.
      checksums: the result of `save_arrays`; None for a folder that was written without checksums.

    Raises:
      FileError: if the folder is missing, cannot be read, or holds other names or shapes.
      DamagedFile: if it is damaged.
    """
    path = Path(path)
    all_or_none(path, lambda: check_arrays(path, abstract), _is_shared(abstract))
    return read_verified(path, functools.partial(_read, path), abstract, checksums)


def verify_arrays(path: str | Path, checksums: Mapping[str, str] | None) -> str:
    """Reads the arrays of a folder one by one and compares their checksums; returns a summary in words.

    Raises:
      FileError, DamagedFile: as `load_arrays`.
    """
    path = Path(path)
    stored = all_or_none(path, lambda: _stored(path), shared=False)
    return compare_arrays(path, stored, functools.partial(_read, path), checksums)


def _read(path: Path, wanted: Any) -> Any:
    from orbax.checkpoint import v1 as ocp

    with without_barriers(_orbax()):
        return ocp.load(path.absolute(), wanted)


def _stored(path: Path) -> Any:
    """Names, shapes and dtypes of the arrays in a folder."""
    from orbax.checkpoint import v1 as ocp

    with without_barriers(ocp.Context()):
        return ocp.metadata(path.absolute()).metadata


def compare_arrays(path: Path, stored: Any, read: Callable[[Any], Any], checksums: Mapping[str, str] | None) -> str:
    """Verifies the arrays that `stored` describes one by one; for `read` see `read_verified`. Returns a summary."""
    paths, structure = jax.tree_util.tree_flatten_with_path(stored)
    names = [jax.tree_util.keystr(key, simple=True, separator="/") for key, _ in paths]
    if checksums is None:
        return f"{len(names)} arrays, written before there were checksums"
    dtypes = dtypes_of(path, checksums)
    if set(names) != set(checksums):
        raise DamagedFile(f"{path}: damaged: {min(set(names) ^ set(checksums))} is missing or was never written")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for number, (name, (_, leaf)) in enumerate(zip(names, paths, strict=True)):
        wanted = [...] * len(names)
        wanted[number] = jax.ShapeDtypeStruct(leaf.shape, dtypes[name], sharding=here)
        tree = structure.unflatten(wanted)
        leaves = all_or_none(path, lambda tree=tree: structure.flatten_up_to(read(tree)), shared=False)
        _refuse(path, differences({name: leaves[number]}, checksums))
    return f"{len(names)} arrays compared"


def check_arrays(path: str | Path, abstract: Any) -> Any:
    """Shapes and dtypes of the arrays in a folder; their data is not read.

    Raises:
      FileError: unless they have the names and shapes of `abstract`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileError(f"{path}: no such folder of arrays")
    size = check_folder(path)
    try:
        stored = _stored(path)
        wanted, found = _shapes(abstract), _shapes(stored)
    except Exception as error:
        raise explain_reading(path, error, "is not a complete folder of arrays") from error
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise FileError(
                f"{path}: {name} has shape {found.get(name, 'none (missing)')}, "
                f"the config expects {wanted.get(name, 'no such array')}"
            )
    check_claims(path, stored, size)
    return stored


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(leaf)) for path, leaf in leaves}


def read_verified(
    path: Path, read: Callable[[Any], Any], abstract: Any, checksums: Mapping[str, str] | None = None
) -> Any:
    """Reads a tree of arrays, compares checksums, and casts the arrays to the requested dtypes.

    Checksums are of the stored dtypes. Arrays that are cast are read one by one, so that at most one is in memory in
    both dtypes.

    Args:
      path: the folder, for error messages.
      read: reads the arrays of a tree except leaves that are `...`. It must not wait for other processes.
      abstract: a tree of `jax.ShapeDtypeStruct`.
      checksums: from `checksums.array_checksums`; None to compare nothing.

    Raises:
      FileError, DamagedFile: as `load_arrays`; the same class in all processes.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    paths, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {
        jax.tree_util.keystr(key, simple=True, separator="/"): jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding or here
        )
        for key, leaf in paths
    }
    shared, found = _is_shared(wanted), {}
    for group in _groups(path, wanted, checksums):
        tree = structure.unflatten([group.get(name, ...) for name in wanted])
        leaves = all_or_none(path, lambda tree=tree: structure.flatten_up_to(read(tree)), shared)
        part = {name: leaf for name, leaf in zip(wanted, leaves, strict=True) if name in group}
        if checksums is not None:
            # Each process may have read its own copy of the files, so each compares.
            wrong = differences(part, checksums)
            all_or_none(path, lambda wrong=wrong: _refuse(path, wrong), shared)
        for name in list(part):
            found[name] = _as_type(part.pop(name), wanted[name].dtype)
    return structure.unflatten([found[name] for name in wanted])


def _is_shared(abstract: Any) -> bool:
    """Whether other processes hold parts of the arrays."""
    return not all(leaf.sharding is None or leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(abstract))


def _groups(
    path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], checksums: Mapping[str, str] | None
) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """Groups of arrays to read together, in stored dtypes: those that keep their dtype, then each of the others."""
    if checksums is None:
        yield dict(wanted)
        return
    stored = dtypes_of(path, checksums)
    if wanted.keys() != checksums.keys():
        name = min(wanted.keys() ^ checksums.keys())
        raise FileError(f"{path}: {name} is {'missing' if name in wanted else 'no array that the config expects'}")
    as_stored = {name: leaf for name, leaf in wanted.items() if leaf.dtype == stored[name]}
    if as_stored:
        yield as_stored
    for name, leaf in wanted.items():
        if leaf.dtype != stored[name]:
            yield {name: jax.ShapeDtypeStruct(leaf.shape, stored[name], sharding=leaf.sharding)}


def _as_type(leaf: jax.Array, dtype: np.dtype) -> jax.Array:
    return leaf if leaf.dtype == dtype else leaf.astype(dtype)


def _refuse(path: Path, wrong: list[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DamagedFile(f"{path}: damaged: {wrong[0]}{more} does not match its checksum")


# ----------------------------------------------------------------------------------------------------------------------
# Errors of several processes
# ----------------------------------------------------------------------------------------------------------------------


def all_or_none(path: Path, work: Callable[[], Result], shared: bool = True) -> Result:
    """Runs `work` in every process and returns its result; if it fails in one process, this raises in all of them.

    Args:
      path: what `work` reads, for error messages.
      work: must not wait for other processes.
      shared: False to run it in this process only.

    Raises:
      DamagedFile: if some processes read damaged data and there was no other error.
      Exception: any other error of `work`, unchanged; if only another process failed, a `FileError` with its reason.
    """
    failure, result = None, None
    try:
        result = work()
    except Exception as error:
        failure = explain_reading(path, error)
        if failure is not error:
            failure.__cause__ = error
    if jax.process_count() == 1 or not shared:
        if failure is not None:
            raise failure
        return result
    from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator as operations

    mine = None if failure is None else [isinstance(failure, DamagedFile), f"{type(failure).__name__}: {failure}"]
    told = gather_texts(json.dumps([mine, int(operations.get_current_operation_id())]))
    answers, numbers = zip(*map(json.loads, told), strict=True)
    # Orbax names its barriers after a counter of operations, which is behind in a process that failed early.
    while int(operations.get_current_operation_id()) < max(numbers):
        operations.next_operation_id()
    # Callers can recover from damage by reading an older copy, so other errors take precedence.
    failed = sorted((answer[0], number, answer[1]) for number, answer in enumerate(answers) if answer)
    if not failed:
        return result
    damaged, number, reason = failed[0]
    if failure is not None and isinstance(failure, DamagedFile) == damaged:
        raise failure
    reason = f"in process {number}: {reason}"
    raise DamagedFile(f"{path}: damaged {reason}") if damaged else FileError(f"{path}: cannot be read {reason}")


_MACHINE_ERRNOS = {
    errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EAGAIN,
    errno.EBUSY, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENOSPC, errno.EROFS,
}  # fmt: skip
"""Errors of the machine, which do not mean that a file is damaged."""

_MACHINE_MESSAGES = (
    "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED",
    "Permission denied", "Input/output error", "Too many open files", "Stale file handle", "Connection refused",
    "Connection reset", "timed out", "Cannot allocate memory", "Could not resolve host",
)  # fmt: skip
"""The same errors in the text of a ValueError, which TensorStore raises."""


def explain_reading(path: Path, error: Exception, what: str = "damaged") -> BaseException:
    """The error to raise for `error`, which occurred while `path` was read: `DamagedFile`, unless it has another cause.

    Orbax wraps the original error in its own, even KeyboardInterrupt and MemoryError.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in chain:
        if isinstance(cause, ChameleonError | MemoryError) or not isinstance(cause, Exception):
            return cause
        if "RESOURCE_EXHAUSTED" in str(cause):
            return cause
        if isinstance(cause, jax.errors.JaxRuntimeError):
            return cause
        if isinstance(cause, ConnectionError | TimeoutError) or (
            isinstance(cause, OSError) and cause.errno in _MACHINE_ERRNOS
        ):
            return FileError(f"{cause.filename or path}: cannot be read: {cause.strerror or cause}")
        word = next((word for word in _MACHINE_MESSAGES if word in str(cause)), None)
        if word:
            return FileError(f"{path}: cannot be read: {_first_line(cause)}")
    return DamagedFile(f"{path}: {what} ({_first_line(chain[-1])}); write it again or restore a copy")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
