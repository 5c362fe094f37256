"""Verifies everything that has a checksum: `chameleon inspect --verify`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from chameleon_jax.errors import ChameleonError, DamagedFile, FileError
from chameleon_jax.runtime.arrays import verify_arrays
from chameleon_jax.runtime.headers import read_header
from chameleon_jax.tokens.documents import DocumentTokenizer, load_image_tokenizer, load_text_tokenizer
from chameleon_jax.training.checkpoint import verify_checkpoint
from chameleon_jax.weights.checklist import CHECKLIST, verify_checklist
from chameleon_jax.weights.formats import open_checkpoint
from chameleon_jax.weights.huggingface import is_huggingface_vq
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer
from chameleon_jax.weights.native import find_native
from chameleon_jax.weights.taming import IMAGE_FILE

_Part = tuple[Path, str, Callable[[], str]]
"""A file or folder, its kind, and a function that verifies it and returns a summary."""


def verify(path: str | Path) -> Iterator[tuple[str, str, str, bool]]:
    """Verifies a text tokenizer's file, or everything that is ours or part of a released model in a folder.

    Arrays are read one at a time.

    Yields:
      Path, kind, summary, and whether the part is intact.

    Raises:
      FileError: if there is nothing that can be verified.
    """
    path, found = Path(path), False
    for part, kind, check in _parts(path):
        found = True
        try:
            yield str(part), kind, check(), True
        except ChameleonError as error:
            yield str(part), kind, str(error), False
    if not found:
        raise FileError(f"{path}: holds nothing that can be verified (a model, prepared data, a run or a tokenizer)")


def _parts(path: Path) -> Iterator[_Part]:
    text = path if path.is_file() else path / "text.model"
    if text.is_file() and not (path / "vocabulary.json").is_file():
        yield text, "text tokenizer", lambda: f"{load_text_tokenizer(text).num_pieces} pieces"
    for folder in (path, path / "run", path / "rows", path / "image_tokenizer"):  # the last three of a demo
        if folder.is_dir():
            yield from _parts_of(folder)
    for checklist in sorted(path.rglob(CHECKLIST)):
        yield checklist, "MD5 checksums", lambda file=checklist: f"{verify_checklist(file)} files"


def _parts_of(folder: Path) -> Iterator[_Part]:
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir():
        for step in sorted(int(entry.name) for entry in checkpoints.iterdir() if entry.name.isdecimal()):
            checkpoint = checkpoints / str(step)
            yield checkpoint, "checkpoint", lambda checkpoint=checkpoint: verify_checkpoint(checkpoint)
    if (folder / "dataset.json").is_file():
        yield folder, "prepared data", lambda: _verify_rows(folder)
        yield folder / "tokenizer", "tokenizer", lambda: _tokenizer(folder / "tokenizer")
        return
    if (folder / "vocabulary.json").is_file():
        yield folder, "tokenizer", lambda: _tokenizer(folder)
        return
    if _is_image_tokenizer(folder):
        yield folder, "image tokenizer", lambda: _image(folder)
        return
    released = is_huggingface_vq(folder) or (folder / IMAGE_FILE).is_file()
    if released and not any(folder.rglob("consolidated*.pth")):
        yield folder, "image tokenizer", lambda: _released_image(folder)
        return
    native = find_native(folder)
    if native in (folder, folder / "model"):
        yield native, "model", lambda: _model(native)
        yield native / "tokenizer", "tokenizer", lambda: _tokenizer(native / "tokenizer")
    elif native is None and (any(folder.glob("*.safetensors")) or any(folder.rglob("consolidated*.pth"))):
        yield folder, "model", lambda: f"{open_checkpoint(folder).layout}, complete"


def _is_image_tokenizer(folder: Path) -> bool:
    try:
        return "num_codes" in read_header(folder / "config.json").get("model", {})
    except FileError:
        return False


def _model(folder: Path) -> str:
    open_checkpoint(folder)
    return verify_arrays(folder / "params", read_header(folder / "config.json").get("checksums"))


def _tokenizer(folder: Path) -> str:
    tokenizer = DocumentTokenizer.load(folder)
    has_checksum = "text_sha256" in read_header(folder / "vocabulary.json")
    parts = [name for name in ("text", "image", "vocabulary") if getattr(tokenizer, name) is not None]
    return f"{', '.join(parts)}{'' if has_checksum else ' (written before there were checksums)'}"


def _image(folder: Path) -> str:
    load_image_tokenizer(folder)
    return "parameters compared"


def _released_image(folder: Path) -> str:
    return f"complete {'with' if read_image_tokenizer(folder).can_decode else 'without'} decoder, all numbers finite"


def _verify_rows(folder: Path) -> str:
    from data_pipeline.loader import PreparedData

    data, count = PreparedData(folder), 0
    for part in ("sources", "held_out"):
        for name, entry in data.header[part].items():
            digest, rows = hashlib.sha256(), data.rows(part, name)
            for begin in range(0, len(rows), 256):
                for record in rows.records(np.arange(begin, min(begin + 256, len(rows)))):
                    digest.update(record)
            if digest.hexdigest() != entry["sha256"]:
                raise DamagedFile(f"{folder}: the rows of {part}.{name} are not those that dataset.json describes")
            count += len(rows)
    return f"{count:,} rows compared"
