"""Compile-only devices of TPU topologies, described by libtpu."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any

import jax

from chameleon_jax.config import ConfigError, require
from chameleon_jax.errors import ChameleonError

_AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
"""Kind of TPU -> axes of its torus."""

FORMS = (
    "expected a kind and its chips along each axis, multiples of 2 and 2: v5e:16x16, v6e:8x16, v4:4x4x4, v5p:4x4x8, "
    "tpu7x:4x4x4; or v5e-N, v6e-N for N chips, a power of two from 4 to 256"
)

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # or libtpu asks Google's metadata server which machine this is, for minutes
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs here, so a process that uses the machine's TPU may go on
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any will do: only warnings come from it
}


def describe_topology(name: str, slices: int = 1) -> list[Any]:
    """Compile-only devices of a TPU topology, such as "v5p:4x4x8". No TPU is needed.

    Afterwards JAX in this process runs on the CPU only.

    Args:
      name: kind and chips along each axis; or "v5e-N" and "v6e-N", which Google's names for these count in chips (those
        of v4 and v5p count cores and are refused).
      slices: number of slices of that topology, connected by the data centre's network.

    Raises:
      ConfigError: if there is no such topology.
      ChameleonError: if libtpu is not installed.
    """
    from jax.experimental import topologies

    kind, chips = _parse(name)
    require(slices > 0, "slices", slices, "must be at least 1")
    if importlib.util.find_spec("libtpu") is None:
        raise ChameleonError("topology: needs libtpu, which is not installed; pip install 'chameleon-jax[tpu]'")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as JAX uses them
    if math.prod(chips) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(f"{kind}:{'x'.join(map(str, chips))}", "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"topology = {name!r}: libtpu refuses it ({reason}); {FORMS}") from None


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Kind and chips along each axis."""
    refused = ConfigError(f"topology = {name!r}: there is no such TPU; {FORMS}")
    by_count = re.fullmatch(r"(v5e|v5litepod|v6e)-(\d+)", name)
    if by_count:
        power = math.log2(int(by_count[2]) or 3)
        if not power.is_integer() or not 2 <= power <= 8:
            raise refused
        half = int(power) // 2
        return by_count[1].replace("litepod", "e"), (2**half, 2 ** (int(power) - half))
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if not match or match[1] not in _AXES:
        raise refused
    chips = tuple(map(int, match[2].split("x")))
    whole_hosts = math.prod(chips) == 1 or (chips[0] % 2 == chips[1] % 2 == 0)
    if len(chips) != _AXES[match[1]] or 0 in chips or not whole_hosts:
        raise refused
    return match[1], chips
