"""What the stages need that a bare machine lacks: `python -m chameleon_jax.bench.gpu.needs [FOLDER]`.

Prints requirements for pip. With a folder, has pip put the wheels there, those of what they need in turn included; run
it with the version of Python, and on the kind of processor, of the machine with the GPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from chameleon_jax.bench.gpu.stages import STAGES

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


def requirements() -> list[str]:
    """`name==version` of each, in the version that the project is tested with."""
    versions = dict(re.findall(r"^([\w.-]+)==([^;\s]+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    versions = {_normal(name): version for name, version in versions.items()}
    names = sorted({name for stage in STAGES for name in stage.needs})
    return [f"{name}=={versions[_normal(name)]}" for name in names]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    if not CONSTRAINTS.is_file():  # the installed package is without
        raise SystemExit(f"{CONSTRAINTS}: no such file; run this in a checkout of the repository")
    print("\n".join(requirements()))
    if not arguments:
        return 0
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--constraint", str(CONSTRAINTS)]
    return subprocess.run([*command, "--wheel-dir", arguments[0], *requirements()], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
