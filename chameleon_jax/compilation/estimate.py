"""What a compiled train step needs and how fast it could be: memory by kind, and a roofline."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import jax
from jax.sharding import Mesh

from chameleon_jax.compilation.collectives import Collective
from chameleon_jax.config import TrainConfig
from chameleon_jax.runtime.accelerators import Accelerator
from chameleon_jax.training.transformer import flops_per_token

FITS_BELOW = 0.9
"""Share of the memory that a step may take: the runtime, fragmentation and checkpoints in flight need some too."""

SLICE_BANDWIDTH = 6.25e9
"""Bytes/s of one chip to other slices through the data centre's network: 50 Gbit/s, an assumption."""


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of arrays (or `jax.ShapeDtypeStruct`s) on each device, without padding."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def memory_report(
    compiled: Any, trees: dict[str, Any], capacity: float | None, *, beside: str | None = None
) -> dict[str, Any]:
    """Bytes per device by kind, and whether they fit into `capacity` (None if unknown).

    `padding` is what arguments take beyond their bytes, in tiles that they do not fill.

    Args:
      trees: what is in memory meanwhile, by name: the arguments of `compiled`, and `beside`.
      beside: the one of them that is no argument.
    """
    stats = compiled.memory_analysis()
    report: dict[str, Any] = {name: bytes_per_device(tree) for name, tree in trees.items()}
    more = report[beside] if beside else 0
    report["padding"] = max(stats.argument_size_in_bytes - sum(report.values()) + more, 0)
    report["temporaries"] = stats.temp_size_in_bytes
    report["program"] = stats.generated_code_size_in_bytes
    fresh_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes  # the rest takes the place of arguments
    held = stats.argument_size_in_bytes + fresh_outputs + more
    # Temporaries are at their height while the state is there. XLA's own figure on a CPU leaves them out.
    report["peak"] = max(stats.peak_memory_in_bytes + more, held + report["temporaries"]) + report["program"]
    report["capacity"] = capacity
    report["share"] = report["peak"] / capacity if capacity else None
    report["fits"] = fits(report["peak"], capacity)
    return report


def fits(peak: float, capacity: float | None) -> bool | None:
    return None if capacity is None else peak < FITS_BELOW * capacity


def advice(config: TrainConfig, mesh: Mesh, memory: dict[str, Any]) -> list[str]:
    """What to try where a step does not fit, for its largest part of the memory first."""
    state = memory["parameters"] + memory["optimizer_state"]
    rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation)
    for_state = []
    if mesh.shape["data"] > 1:
        fsdp = mesh.shape["data"] * mesh.shape["fsdp"]
        for_state.append(f"--mesh.data 1 --mesh.fsdp {fsdp}: one copy of the state instead of {mesh.shape['data']}")
    for_state.append("more chips, each with a smaller part of parameters and optimizer state")
    for_activations = []
    if config.execution.remat != "full":
        for_activations.append("--execution.remat full: keep only the input of each layer")
    if rows > 1:
        cut = next(parts for parts in range(2, rows + 1) if rows % parts == 0)
        for_activations.append(
            f"--accumulation {config.accumulation * cut}: {rows // cut} rows a device at a time instead of {rows}"
        )
    if not config.loss_chunk:
        for_activations.append("--loss-chunk 512: logits of a part of the row at a time")
    if config.execution.attention == "xla":
        for_activations.append("--execution.attention blockwise: scores of a part of the row at a time")
    if rows == 1:
        for_activations.append("--mesh.sequence 2: rows cut along their length")
    if state > memory["temporaries"]:
        return [*for_state, *for_activations]
    return [*for_activations, *for_state]


LANES = 128
"""Width of a TPU's vector registers and of the tiles that its arrays are kept in."""


def width_advice(config: TrainConfig, mesh: Mesh) -> list[str]:
    """Advice for a mesh whose axis fsdp shards the model width into pieces narrower than a TPU tile.

    Such pieces cannot be gathered as they lie: XLA writes the all-gathers and reduce-scatters of the weights as
    all-reduces of the whole, several times the bytes (docs/compiled_for_pods.md).
    """
    fsdp, width = mesh.shape["fsdp"], config.model.d_model
    best = math.gcd(max(width // LANES, 1), fsdp)
    if mesh.devices.flat[0].platform != "tpu" or width // fsdp >= LANES or best == fsdp:
        return []
    data = mesh.shape["data"] * fsdp // best
    return [
        f"--mesh.data {data} --mesh.fsdp {best}: pieces of d_model of {width // best}; those of {width // fsdp} are "
        f"narrower than the {LANES} lanes of a TPU and are moved as all-reduces"
    ]


def collectives_report(collectives: list[Collective]) -> dict[str, dict[str, Any]]:
    """Kind -> how often a step runs it, the bytes that each device receives by it, and these bytes by dtype."""
    report: dict[str, dict[str, Any]] = {}
    for each in collectives:
        entry = report.setdefault(each.kind, {"count": 0, "bytes": 0, "dtypes": defaultdict(int)})
        entry["count"] += each.times
        entry["bytes"] += each.nbytes * each.times
        entry["dtypes"][each.dtype] += each.nbytes * each.times
    return {kind: {**entry, "dtypes": dict(entry["dtypes"])} for kind, entry in sorted(report.items())}


def step_traffic_bound(config: TrainConfig, params: Any, state_bytes: int, mesh: Mesh) -> int:
    """A lower bound on the bytes that a device moves from and to its memory per step.

    The state is read and written once, and for each part of the batch the weights (gathered, in the precision of the
    products) are read once forward, once backward, and once more where layers are computed again.
    """
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) // mesh.shape["tensor"]
    passes = 2 if config.execution.remat == "none" else 3
    width = {"float32": 4, "bfloat16": 2}[config.execution.compute_dtype]
    return 2 * state_bytes + config.accumulation * passes * count * width


def roofline(
    config: TrainConfig, length: int, mesh: Mesh, accelerator: Accelerator, traffic: int, collectives: list[Collective]
) -> dict[str, float]:
    """Bounds on the step time, with compute, memory and network at their peak: in parallel or one after the other.

    Args:
      length: tokens a row.
      traffic: what `step_traffic_bound` gives.

    Returns:
      seconds of the products, the memory and the collectives; of the step with perfect overlap and with none; tokens/s
      of a chip and MFU for both.
    """
    slices = _slice_of_each(mesh)
    crosses = [len({slices[place] for place in each.group or range(len(slices))}) > 1 for each in collectives]
    within, across = (
        sum(each.nbytes * each.times for each, over in zip(collectives, crosses, strict=True) if over is wanted)
        for wanted in (False, True)
    )
    tokens = config.batch_size * length / mesh.size
    compute = tokens * flops_per_token(config, length) / accelerator.bf16_flops
    memory = traffic / accelerator.memory_bandwidth
    communication = within / accelerator.interconnect_bandwidth + across / SLICE_BANDWIDTH
    best, worst = max(compute, memory, communication), compute + memory + communication
    return {
        "compute_seconds": compute,
        "memory_seconds": memory,
        "collective_seconds": communication,
        "step_seconds_all_at_once": best,
        "step_seconds_one_by_one": worst,
        "tokens_per_second_per_device_all_at_once": tokens / best,
        "tokens_per_second_per_device_one_by_one": tokens / worst,
        "mfu_all_at_once": compute / best,
        "mfu_one_by_one": compute / worst,
    }


def _slice_of_each(mesh: Mesh) -> list[int]:
    return [getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat]
