"""What hatchling builds of the project, without fetching anything."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path


def build(kind: str, source: Path, folder: Path) -> Path:
    """A 'wheel' or 'sdist' of a checkout, or of what an sdist holds."""
    code = f"import sys, hatchling.build as b; print(b.build_{kind}(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True, check=True
    )
    return folder / result.stdout.split()[-1]


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
