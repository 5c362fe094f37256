"""Lists of MD5 checksums in the format of `md5sum`, as the released models come with."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from chameleon_jax.errors import DamagedFile, FileError
from chameleon_jax.runtime.reading import LARGEST_JSON, open_file, read_bytes

CHECKLIST = "checklist.chk"
_LINE = re.compile(r"([0-9a-fA-F]{32})\s+\*?(\S.*)")


def write_checklist(folder: Path) -> None:
    """Writes the checklist of a folder, which must otherwise be complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_md5(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKLIST).write_text("".join(lines), encoding="utf-8")


def verify_checklist(path: Path) -> int:
    """Verifies the files that a checklist names; returns how many there are.

    Raises:
      DamagedFile: if the list is malformed, or a file is missing or has another checksum; names the first such file.
      FileError: if it names a file outside its folder.
    """
    text = read_bytes(path, LARGEST_JSON).decode("utf-8", "replace")
    found = [_LINE.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    if not found or None in found:
        raise DamagedFile(f"{path}: not a list of MD5 checksums and file names")
    for line in found:
        file = path.parent / line[2]
        if ".." in file.parts or not file.is_relative_to(path.parent):
            raise FileError(f"{path}: names {line[2]}, which is not in its folder")
        if not file.is_file():
            raise DamagedFile(f"{file}: is missing, though {path} lists it")
        if _md5(file) != line[1].lower():
            raise DamagedFile(f"{file}: damaged: its MD5 checksum is not the one in {path}; download or copy it again")
    return len(found)


def _md5(path: Path) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
