"""What a measurement was made on: hardware and versions, for the JSON of `chameleon bench`."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.runtime.versions import versions


def environment(also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Processor, memory, devices, Python and the versions of the packages that matter, and of those named."""
    devices = jax.devices()
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(*also),
    }


def _first(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
