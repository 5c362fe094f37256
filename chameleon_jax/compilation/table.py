"""The report of `chameleon compile` as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

GIB = 1 << 30
_WIDTH = 34


def _size(nbytes: float) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes / factor:,.2f} {unit}"
    return f"{nbytes:,.0f} B"


def line(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}{text}"


def generate_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `chameleon compile generate`."""
    yield from _devices(report)
    lanes = f"{report['lanes_per_row']} lane{'s' * (report['lanes_per_row'] > 1)} of {report['slots']:,} tokens each"
    yield line("rows", f"{report['rows']}, with {lanes}; window {report['window']}")
    yield line("compiled in", f"{report['compile_seconds']:.0f} s")
    yield "\nmemory of a device"
    for name in ("weights", "cache", "rows", "padding", "temporaries", "program", "peak"):
        yield line(f"  {name}", f"{_size(report['memory'][name]):>12}")
    yield from _verdict(report["memory"])
    yield from _collectives({"loops_of_unknown_length": 0, **report})
    if report["step_seconds_at_least"]:
        yield line("\na step, at least", f"{1000 * report['step_seconds_at_least']:.2f} ms, to read weights and cache")
    if "saved" in report:
        yield line("saved", report["saved"])


def image_tokenizer_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `chameleon compile image-tokenizer`."""
    yield from _devices(report)
    side, pictures = report["resolution"], report["pictures_per_device_and_part"]
    yield line("batch", f"{report['batch_size']:,} pictures of {side} x {side} pixels")
    yield line("pictures a device", f"{pictures} at a time (accumulation {report['accumulation']})")
    yield line("compiled in", f"{report['compile_seconds']:.0f} s")
    yield from _memory_of_step(report)
    yield from _collectives(report)
    if "saved" in report:
        yield line("saved", report["saved"])


def _devices(report: dict[str, Any]) -> Iterator[str]:
    topology = f" ({report['topology']}" + (f" x {report['slices']} slices)" if report["slices"] > 1 else ")")
    yield line("devices", f"{report['devices']} x {report['device']}{topology if report['topology'] else ''}")
    yield line("mesh", "  ".join(f"{axis} {size}" for axis, size in report["mesh"].items()))
    yield line("parameters of the model", f"{report['parameters']:,}")


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `chameleon compile`, aligned, one fact a line."""
    yield from _devices(report)
    yield line("batch", f"{report['batch_size']:,} rows of {report['sequence_length']:,} tokens")
    rows, parts = report["rows_per_device_and_part"], report["accumulation"]
    yield line("rows a device", f"{rows} at a time (accumulation {parts})")
    yield line("compiled in", f"{report['compile_seconds']:.0f} s")
    yield from _memory(report)
    yield from _replicated(report)
    yield from _collectives(report)
    yield from _estimate(report)
    if "saved" in report:
        yield line("saved", report["saved"])


def _memory_of_step(report: dict[str, Any]) -> Iterator[str]:
    memory = report["memory"]
    yield "\nmemory of a device"
    for name in ("parameters", "optimizer_state", "batch", "padding", "temporaries", "program", "peak"):
        yield line(f"  {name.replace('_', ' ')}", f"{_size(memory[name]):>12}")
    yield from _verdict(memory)


def _memory(report: dict[str, Any]) -> Iterator[str]:
    yield from _memory_of_step(report)
    evaluation = report["evaluation_memory"]
    yield line("  temporaries of evaluation", f"{_size(evaluation['temporaries']):>12}")
    yield line("  peak of evaluation", f"{_size(evaluation['peak']):>12}")
    yield from _verdict(evaluation)
    for index, text in enumerate(report["advice"]):
        yield line("  try" if index == 0 else "  or", text)


def _verdict(memory: dict[str, Any]) -> Iterator[str]:
    if memory["capacity"]:
        verdict = "fits" if memory["fits"] else "does not fit"
        yield line("  of", f"{_size(memory['capacity']):>12}  {memory['share']:.0%}: {verdict}")


def _replicated(report: dict[str, Any]) -> Iterator[str]:
    yield "\narrays of the state above 1 MiB that are not cut" + ("" if report["replicated"] else ": none")
    for array in report["replicated"]:
        shape = " x ".join(map(str, array["shape"]))
        yield line(f"  {array['name']}", f"{shape}, {_size(array['nbytes'])}, along {', '.join(array['axes'])}")


def _collectives(report: dict[str, Any]) -> Iterator[str]:
    yield "\ncollectives of a step" + ("" if report["collectives"] else ": none")
    for kind, entry in report["collectives"].items():
        dtypes = ", ".join(f"{dtype} {_size(nbytes)}" for dtype, nbytes in sorted(entry["dtypes"].items()))
        yield line(f"  {kind}", f"{entry['count']:>7,} times, each device receives {_size(entry['bytes'])} ({dtypes})")
    if report["loops_of_unknown_length"]:
        yield f"  ({report['loops_of_unknown_length']} loops of unknown length count as one iteration)"


def _estimate(report: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield line("model FLOPs a step", f"{report['model_flops']:.3g}, a device {report['model_flops_per_device']:.3g}")
    estimate = report["estimate"]
    if estimate is None:
        yield "no estimate of the time: the peak figures of this device are not known"
        return
    yield "estimate from the peak figures, not a measurement"
    yield line("  products at peak", f"{estimate['compute_seconds']:.3f} s")
    yield line("  memory, at least", f"{estimate['memory_seconds']:.3f} s")
    yield line("  collectives", f"{estimate['collective_seconds']:.3f} s")
    for key, name in (("all_at_once", "step, all at once"), ("one_by_one", "step, one after the other")):
        rate = estimate[f"tokens_per_second_per_device_{key}"]
        yield line(
            f"  {name}",
            f"{estimate[f'step_seconds_{key}']:.3f} s, {rate:,.0f} tokens/s a device, MFU {estimate[f'mfu_{key}']:.1%}",
        )
