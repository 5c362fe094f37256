"""The files of kept pictures that training reads: those of the units, without duplicates."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import ConfigError
from chameleon_jax.runtime.cloud import on_disk
from chameleon_jax.runtime.files import read_json
from chameleon_jax.runtime.progress import progress_bar
from data_pipeline.config import PrepareCommand
from data_pipeline.kept_pictures import to_bytes
from data_pipeline.processes import cores
from data_pipeline.rows import PREPARED_VERSION
from data_pipeline.sources.source import settings_of
from data_pipeline.units import Unit, UnitFiles, pictures_of_unit


def write_pictures(
    command: PrepareCommand, planned: Sequence[Unit], skipped: dict[tuple[str, str], np.ndarray], folder: Path
) -> dict[str, Any]:
    """Puts the pictures of all sources into `folder`; returns the header.

    Raises:
      ConfigError: if a source has none.
      FileError: if the file of a unit is damaged. The unit is then done no more.
    """
    _check_files(planned, command.output)
    header: dict[str, Any] = {
        "format_version": PREPARED_VERSION, "keep": "pictures", "resolution": command.resolution, "sources": {},
        "held_out": {},
    }  # fmt: skip
    for part in ("sources", "held_out"):
        for source in getattr(command, part):
            place = f"{part}.{source.name}"
            own = [unit for unit in planned if unit.place == place]
            entry = _write_source(f"{part}-{source.name}", own, command.output, skipped, folder)
            if not entry["pictures"]:
                raise ConfigError(f"{place}: has no pictures")
            header[part][source.name] = {**entry, "source": settings_of(source)}
    return header


def _check_files(planned: Sequence[Unit], output: str) -> None:
    """Reads all of them, since nothing else would find what was damaged since they were written."""
    own = list({unit.key: unit for unit in planned}.values())
    with ThreadPoolExecutor(cores()) as pool, progress_bar("check", len(own)) as bar:
        for done, _ in enumerate(pool.map(lambda unit: sum(1 for _ in pictures_of_unit(unit, output)), own), 1):
            bar.update(done)


def _write_source(
    name: str, own: Sequence[Unit], output: str, skipped: dict[tuple[str, str], np.ndarray], folder: Path
) -> dict[str, Any]:
    """One file for each unit that has pictures, named by a hash of them. Nothing is copied if files can be linked."""
    files, file_pictures, digest = [], [], hashlib.sha256()
    for unit in own:
        unit_files, skip = UnitFiles(output, unit.key), skipped[unit.place, unit.key]
        mark = read_json(unit_files.done)
        pictures, contents = mark["documents"] - len(skip), mark["documents_sha256"]
        if not pictures:
            continue
        new = folder / f".{name}-{len(files):05d}.{os.getpid()}.part"
        if len(skip):
            contents = _copy_without(unit, output, skip, new)
        else:
            link_or_copy(Path(on_disk(unit_files.documents)), new)
        digest.update(contents.encode())
        files.append(f"{name}-{len(files):05d}-{contents[:16]}.arrayrecord")
        file_pictures.append(pictures)
        os.replace(new, folder / files[-1])
    return {
        "files": files, "file_pictures": file_pictures, "pictures": sum(file_pictures), "sha256": digest.hexdigest(),
    }  # fmt: skip


def _copy_without(unit: Unit, output: str, skip: np.ndarray, new: Path) -> str:
    """Writes the pictures of a unit but those at the places `skip`; returns their SHA-256."""
    from array_record.python.array_record_module import ArrayRecordWriter

    digest, skip = hashlib.sha256(), set(skip.tolist())
    writer = ArrayRecordWriter(str(new), "group_size:1,uncompressed")
    try:
        for number, picture in enumerate(pictures_of_unit(unit, output)):
            if number not in skip:
                content = to_bytes(picture)
                digest.update(content)
                writer.write(content)
    finally:
        writer.close()
    return digest.hexdigest()


def link_or_copy(file: Path, new: Path) -> None:
    """`new` holds what `file` holds; without a copy, where the file system has links."""
    try:
        os.link(file, new)
    except OSError:
        shutil.copyfile(file, new)
