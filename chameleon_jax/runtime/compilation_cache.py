"""Enables JAX's persistent compilation cache for the commands.

Compiling takes longer than answering a prompt; with the cache, a program that was compiled before is read from disk.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

LARGEST = 2 << 30
"""Largest size in bytes of the default folder; the least recently used programs are removed when a command starts."""

_CPU_KEYS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")


def keep_programs(folder: str = "") -> None:
    """Lets JAX keep compiled programs on disk. If the folder cannot be used, they are not kept; this is no error.

    Args:
      folder: the folder, or 'none' to keep no programs. By default JAX_COMPILATION_CACHE_DIR if it is set, or else
        `$XDG_CACHE_HOME/chameleon_jax/compiled` (~/.cache/…), where old programs are removed.
    """
    if folder == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not folder and ("JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir):
        return
    try:
        root = Path(folder) if folder else _default_folder()
        cache = root / _machine()
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # anyone who can write here can run code as this user
        if not os.access(cache, os.W_OK):
            return
        if not folder:
            _remove_old(root)
    except (OSError, RuntimeError):  # no home directory, or one that is not writable
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chameleon_jax" / "compiled"


def _machine() -> str:
    """A name for the kind of processor. CPU programs are machine code for the processor that compiled them, but JAX's
    cache keys do not include it, and machines of several kinds may share a home directory."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        lines = [line for line in first if line.split(":")[0].strip() in _CPU_KEYS]
    except OSError:
        lines = []
    described = "\n".join([platform.system(), platform.machine(), platform.processor(), *lines])
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def _remove_old(root: Path) -> None:
    """Removes the least recently read files until at most `LARGEST` bytes are left. Another process may be doing the
    same, or need a file that is removed; it then compiles the program again."""
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
