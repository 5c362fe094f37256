"""What took the time in a trace of `jax.profiler`, as a few lines of JSON."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_jax.errors import FileError

if TYPE_CHECKING:
    from jax.profiler import ProfileData

KINDS = (
    ("convolutions", re.compile(r"fprop|dgrad|wgrad|conv2d", re.IGNORECASE)),
    ("attention", re.compile(r"cudnn|fmha|flash|sdpa", re.IGNORECASE)),
    ("matrix products", re.compile(r"gemm|nvjet|cutlass|cublas|xmma|\bdot", re.IGNORECASE)),
    ("copies", re.compile(r"^(memcpy|memset)|copy|transpose", re.IGNORECASE)),
)
"""Kernels by their names, the first that fits; all others are fusions of XLA."""


def summarise(folder: str | Path, steps: int, most: int = 12) -> dict[str, Any]:
    """Milliseconds a step by kernel and by kind of kernel, from the newest trace in a folder.

    Args:
      steps: steps that were traced.
      most: kernels to name.

    Raises:
      FileError: if there is no trace.
    """
    from jax.profiler import ProfileData

    files = sorted(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileError(f"{folder}: has no trace")
    times, counts = collections.Counter(), collections.Counter()
    begin, end = float("inf"), 0.0
    for name, start, duration in _kernels(ProfileData.from_file(str(files[-1]))):
        times[name] += duration
        counts[name] += 1
        begin, end = min(begin, start), max(end, start + duration)
    by_kind = collections.Counter()
    for name, duration in times.items():
        by_kind[next((kind for kind, pattern in KINDS if pattern.search(name)), "fusions")] += duration
    total = sum(times.values())

    def milliseconds(nanoseconds: float) -> float:
        return round(nanoseconds / 1e6 / steps, 3)

    return {
        "steps": steps,
        "milliseconds_per_step": milliseconds(max(end - begin, 0)),
        "milliseconds_of_kernels": milliseconds(total),
        "kinds": {kind: milliseconds(duration) for kind, duration in by_kind.most_common()},
        "kernels": [
            {
                "kernel": name[:100], "milliseconds": milliseconds(duration), "share": round(duration / total, 3),
                "calls": counts[name] / steps,
            }
            for name, duration in times.most_common(most)
        ],
    }  # fmt: skip


def _kernels(trace: ProfileData) -> Iterator[tuple[str, float, float]]:
    """Name, start and duration in ns: what ran on the streams of the first GPU; without one, XLA's operations."""
    planes = {plane.name: plane for plane in trace.planes}
    on_gpu = "/device:GPU:0" in planes
    for line in planes["/device:GPU:0" if on_gpu else "/host:CPU"].lines:
        if on_gpu and not line.name.startswith("Stream"):  # such as modules, which are made of kernels
            continue
        for event in line.events:
            if on_gpu or "hlo_op" in dict(event.stats):
                yield event.name, event.start_ns, event.duration_ns
