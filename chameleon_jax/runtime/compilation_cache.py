"""JAX's compilation cache, set up so that the commands use it without being asked.

Compiling takes longer than answering a prompt. With the cache, a program that was compiled once is read from disk.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

LARGEST = 2 << 30
"""Bytes that the default folder may hold when a command begins; what was not used for longest is removed first."""

_CPU_KEYS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")


def keep_programs(folder: str = "") -> None:
    """Lets JAX keep compiled programs on disk. Nothing that is wrong with the folder is an error.

    Args:
      folder: where to keep them, 'none' to keep none. By default, JAX_COMPILATION_CACHE_DIR if it is set, or else
        `$XDG_CACHE_HOME/chameleon_jax/compiled` (~/.cache), where old programs are removed.
    """
    if folder == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not folder and ("JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir):
        return
    try:
        root = Path(folder) if folder else _default_folder()
        place = root / _machine()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write here can run code as this user
        if not os.access(place, os.W_OK):
            return
        if not folder:
            _remove_old(root)
    except (OSError, RuntimeError):  # a home that cannot be written to, or none at all
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chameleon_jax" / "compiled"


def _machine() -> str:
    """A name for the kind of processor. Programs for CPUs are machine code for the one that compiled them, which JAX's
    keys do not tell apart; a home may be shared by machines of several kinds."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        lines = [line for line in first if line.split(":")[0].strip() in _CPU_KEYS]
    except OSError:
        lines = []
    described = "\n".join([platform.system(), platform.machine(), platform.processor(), *lines])
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def _remove_old(root: Path) -> None:
    """Removes the files that were not read for longest until `LARGEST` bytes are left. Other processes may do the same,
    or use a file that goes: then it is compiled again."""
    files = []
    for path in root.rglob("*"):
        try:
            if path.is_file():
                stat = path.stat()
                files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
        except OSError:
            continue
    size = sum(each for _, each, _ in files)
    for _, each, path in sorted(files):
        if size <= LARGEST:
            break
        path.unlink(missing_ok=True)
        size -= each
