"""The bytes that a compiled program moves between devices, read from its HLO text.

The text is parsed here because JAX gives nothing else: `Compiled.cost_analysis` counts no collectives and the body of a
loop once, the message types of serialized HLO come with TensorFlow only, and the HLO objects of jaxlib are private and
show attributes, such as replica groups, as the same text.

A collective in a loop counts once per iteration. XLA notes the trip count of loops that it understands, such as those
of `lax.scan`; on TPUs it does not, and the count is the constant that the loop's condition compares with. An
asynchronous operation, which has a start and an end, counts once. Collectives inside fusions are counted. Where a TPU
overlaps a collective with several matrix products, each of their fusions holds a copy of it; copies share a channel and
count once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?[\]})]) (?P<opcode>[a-z][a-z0-9\-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|called_computations|branch_computations)=(?:%?([\w.\-]+)|\{([^}]*)\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_DTYPE_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
    """One collective operation of a program."""

    kind: str
    """One of `KINDS`."""
    dtype: str
    """HLO's name, such as bf16; of the largest array if there are several."""
    nbytes: int
    """Bytes that each device receives per run, with a ring algorithm; of an all-gather, those it does not have yet."""
    group: tuple[int, ...]
    """Devices of the first replica group, as indices into the flattened mesh; empty for all devices."""
    times: int
    """How often it runs each time the program runs."""


class Traffic(NamedTuple):
    """The collectives of one run of a program."""

    collectives: list[Collective]
    unknown_loops: int
    """Loops with collectives whose trip count is unknown; they count as one iteration."""


class _Instruction(NamedTuple):
    name: str
    opcode: str
    type: str
    rest: str  # operands and attributes


def read_collectives(hlo: str, num_devices: int) -> Traffic:
    """Finds the collectives of a program and how often each runs.

    Args:
      hlo: `compiled.as_text()`.
      num_devices: number of devices that the program runs on.
    """
    computations, entry = _computations(hlo)
    found: Counter[Collective] = Counter()
    unknown = 0

    def walk(name: str, times: int, channels: set[str]) -> bool:
        """Counts the collectives of a computation; returns whether there are any. `channels` are counted already."""
        nonlocal unknown
        moves = False
        for instruction in computations.get(name, ()):
            collective = _collective(instruction, name, num_devices)
            if collective is not None:
                channel = _CHANNEL.search(instruction.rest)
                found[collective] += times * (channel is None or channel[1] not in channels)
                channels |= {channel[1]} if channel else set()
                moves = True
                continue
            if instruction.opcode.endswith(("-done", "-update")):
                continue  # names what its start already ran
            loop = instruction.opcode == "while"
            trips = _trip_count(instruction, computations) if loop else 1
            for called in _called(instruction):
                inside = walk(called, times * (trips or 1), channels if instruction.opcode == "fusion" else set())
                unknown += inside and trips is None
                moves = moves or inside
        return moves

    walk(entry, 1, set())
    return Traffic([each._replace(times=times) for each, times in found.items() if times], unknown)


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The program's computations by name, and the name of its entry computation."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_Instruction(match["name"], match["opcode"], match["type"], match["rest"]))
    return computations, entry


def _trip_count(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int | None:
    known = _TRIPS.search(loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)
    instructions = computations.get(condition[1], []) if condition else []
    if not instructions or instructions[-1].opcode != "compare" or "direction=LT" not in instructions[-1].rest:
        return None
    limit = re.match(r"[^,]*, [^)]*?%?([\w.\-]+)\)", instructions[-1].rest)
    constant = next((each for each in instructions if limit and each.name == limit[1]), None)
    if constant is None or constant.opcode != "constant":
        return None
    return int(constant.rest.partition(")")[0])


def _called(instruction: _Instruction) -> Iterator[str]:
    for one, several in _CALLED.findall(instruction.rest):
        yield from [one] if one else (name.strip().lstrip("%") for name in several.split(","))


def _collective(instruction: _Instruction, computation: str, num_devices: int) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start").replace("ragged-all-to-all", "all-to-all")
    if kind not in KINDS:
        return None
    group = _first_group(instruction.rest)
    size = len(group) or num_devices
    arrays = [(dtype, _nbytes(dtype, shape)) for dtype, shape in _ARRAY.findall(instruction.type)]
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, context): the results follow as many operands
        arrays = [each for each in arrays if each[1] > 4] or arrays
        arrays = arrays[len(arrays) // 2 :]
    total = sum(nbytes for _, nbytes in arrays)
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        kind, total = "reduce-scatter", total // size  # the TPU compiler's form: each device keeps its part
    received = {
        "all-gather": total * (size - 1) / size,
        "reduce-scatter": total * (size - 1),
        "all-reduce": 2 * total * (size - 1) / size,
        "collective-permute": total,
        "all-to-all": total * (size - 1) / size,
    }[kind]
    return Collective(kind, max(arrays, key=lambda each: each[1])[0], round(received), group, 0)


def _nbytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int((_DTYPE_BITS.search(dtype) or ["0"])[0])
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _first_group(attributes: str) -> tuple[int, ...]:
    """The devices of the first replica group; of pairs for collective-permute, the first pair.

    Groups are listed, `{{0,1},{2,3}}`; numbered, `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)`; or axes of a mesh,
    `mesh['a'=2,'b'=4] {'a','b':(2)2}`, where `:(2)2` is the second factor of an axis of size 4.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", attributes)
    if listed:
        return _numbers(listed[1])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, order = _numbers(iota[2]), _numbers(iota[3]) if iota[3] else None
        devices = np.arange(math.prod(shape)).reshape(shape).transpose(order)
        return tuple(devices.reshape(_numbers(iota[1]))[0].tolist())
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if mesh is None:
        return ()
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    devices = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    index: list[Any] = [np.zeros(1, int)] * len(sizes)
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh[2]):
        step = sizes[name] // (int(before) * int(part)) if part else 1
        indices = np.arange(int(part) if part else sizes[name]) * step
        axis = list(sizes).index(name)
        index[axis] = (index[axis][:, None] + indices[None]).ravel()
    return tuple(sorted(devices[np.ix_(*index)].ravel().tolist()))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
