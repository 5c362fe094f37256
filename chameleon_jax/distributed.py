"""Several processes that train one model: how they find each other, agree, and notice that one of them died."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.config import ConfigError, DistributedConfig, first_difference
from chameleon_jax.progress import console

ENVIRONMENT = {
    "coordinator": "CHAMELEON_COORDINATOR",
    "processes": "CHAMELEON_PROCESSES",
    "process": "CHAMELEON_PROCESS",
}
"""For launchers that can set variables but not options. An option wins over its variable."""

CLUSTERS = (
    ("Slurm", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
    ("Open MPI", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"),
    ("Kubernetes", "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
    ("Cloud TPU", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
    ("Cloud TPU", "TPU_PROCESS_ADDRESSES", "CLOUD_TPU_TASK_ID"),
    ("Cloud TPU slices", "MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES"),
)
"""Where JAX finds coordinator, number and rank of the processes by itself, and two variables that tell it is there."""


def is_first() -> bool:
    """Whether this process is the one that talks and writes small files."""
    return jax.process_index() == 0


def start(config: DistributedConfig) -> None:
    """Joins the other processes of the run, if there are any. To be called before anything is computed.

    Raises:
      ConfigError: if only some of coordinator, processes and process are known, or the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    known = _from_environment(config)
    options = {"heartbeat_timeout_seconds": config.heartbeat_seconds, "shutdown_timeout_seconds": 60}
    if known:
        place = f"process {known['process_id']} of {known['num_processes']}, {known['coordinator_address']}"
    else:
        names = {"SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"}  # one process is no cluster
        found = [
            name
            for name, *variables in CLUSTERS
            if all(os.environ.get(variable) for variable in variables)
            and not any(os.environ[variable] == "1" for variable in variables if variable in names)
        ]
        if not found:
            return
        place = found[0]
    try:
        jax.distributed.initialize(**known, **options)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(
            f"distributed: cannot join the other processes ({place}): {reason}. Is process 0 running, and its host and "
            "port reachable from here?"
        ) from None
    if not is_first():
        console.quiet = True  # one of them is enough to read
    console.print(f"{jax.process_count()} processes, {jax.device_count()} devices.")


def _from_environment(config: DistributedConfig) -> dict[str, Any]:
    """Arguments for JAX from options and variables; empty if none is given."""
    values = {"coordinator": config.coordinator, "processes": config.processes, "process": config.process}
    unset = {"coordinator": "", "processes": 0, "process": -1}
    for name, variable in ENVIRONMENT.items():
        text = os.environ.get(variable)
        if values[name] == unset[name] and text:
            try:
                values[name] = type(unset[name])(text)
            except ValueError:
                raise ConfigError(f"{variable} = {text!r}: must be a whole number") from None
    missing = [name for name in values if values[name] == unset[name]]
    if len(missing) == len(values):
        return {}
    if missing:
        raise ConfigError(
            f"distributed.{missing[0]}: missing (or {ENVIRONMENT[missing[0]]}); coordinator, processes and process go "
            "together"
        )
    if not 0 <= values["process"] < values["processes"]:
        raise ConfigError(
            f"distributed.process = {values['process']}: must be from 0 to {values['processes'] - 1}, one less than "
            "processes"
        )
    return {
        "coordinator_address": values["coordinator"],
        "num_processes": values["processes"],
        "process_id": values["process"],
    }


def wait_for_all(what: str) -> None:
    """Returns once every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def gather_texts(text: str) -> list[str]:
    """The text that each process gave, in the order of the processes."""
    from jax.experimental import multihost_utils

    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(mine.size)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def check_same(values: dict[str, Any]) -> None:
    """Refuses processes that were started with different configs, data or versions; all of them give the same reason.

    Raises:
      ConfigError: naming the process, the key and both values.
    """
    if jax.process_count() == 1:
        return
    first, *others = [json.loads(text) for text in gather_texts(json.dumps(values))]
    for number, other in enumerate(others, start=1):
        difference = first_difference(first, other)
        if difference:
            key, expected, found = difference
            raise ConfigError(
                f"{key}: is {expected!r} in process 0 but {found!r} in process {number}; start all processes alike"
            )


def check_shared(folder: Path) -> None:
    """Refuses an output folder that is not the same for all processes.

    Raises:
      ConfigError: naming the processes that do not see what process 0 writes there.
    """
    if jax.process_count() == 1:
        return
    mark = folder / f".shared-{gather_texts(uuid.uuid4().hex)[0]}"
    if is_first():
        mark.touch()
    gather_texts("written")
    seen = gather_texts("yes" if mark.exists() else "no")
    if is_first():
        mark.unlink()
    blind = [str(number) for number, answer in enumerate(seen) if answer == "no"]
    if blind:
        raise ConfigError(
            f"output = {str(folder)!r}: processes {', '.join(blind)} do not see what process 0 writes there; it must "
            "be on a file system that all hosts share"
        )


@contextlib.contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Ends this process with a message if a collective operation fails because another process is gone.

    Nothing can be tidied up then: every way to do so waits for the one that died. A process that hangs instead of
    failing is ended by JAX itself after `heartbeat_seconds`, which says so too.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:300]
        print(
            f"chameleon: process {jax.process_index()} of {jax.process_count()} lost the others: one of them died or "
            f"cannot be reached ({reason}). Its own output says why. Start all processes again with the same command: "
            "the run goes on from its last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
