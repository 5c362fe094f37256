"""Training with several processes: how they find each other, exchange values, and notice that one of them died."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chameleon_jax.errors import ConfigError, FileError
from chameleon_jax.runtime.progress import console

if TYPE_CHECKING:
    from chameleon_jax.config import DistributedConfig

ENVIRONMENT = {
    "coordinator": "CHAMELEON_COORDINATOR",
    "processes": "CHAMELEON_PROCESSES",
    "process": "CHAMELEON_PROCESS",
}
"""Environment variables for launchers that cannot pass options; options take precedence."""

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
"""What JAX needs to find the processes of a step started by srun; a batch script's shell lacks the second."""

_SLICES = {"MEGASCALE_NUM_SLICES": 1, "MEGASCALE_SLICE_ID": 0}
"""How many slices of a TPU pod work together and which one this is, with their defaults."""


def is_first() -> bool:
    """Whether this is process 0, which prints and writes small files."""
    return jax.process_index() == 0


def start(config: DistributedConfig) -> None:
    """Joins the other processes of the run, if there are any. Must be called before any computation.

    Raises:
      ConfigError: if only some of coordinator, processes and process are set, or the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    known = _from_environment(config)
    options = {"heartbeat_timeout_seconds": config.heartbeat_seconds, "shutdown_timeout_seconds": 60}
    if known:
        if known["num_processes"] == 1:
            return
        # With cluster detection JAX would also assign one GPU to each process of a Slurm step.
        options["cluster_detection_method"] = "deactivate"
        where = f"process {known['process_id']} of {known['num_processes']}, {known['coordinator_address']}"
    else:
        where = _cluster()
        if not where:
            return
    try:
        jax.distributed.initialize(**known, **options)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(
            f"distributed: cannot join the other processes ({where}): {reason}. Is process 0 running, and its host and "
            "port reachable from here?"
        ) from None
    if not is_first():
        console.quiet = True  # only process 0 prints
    console.print(f"{jax.process_count()} processes, {jax.device_count()} devices.")


def _from_environment(config: DistributedConfig) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` from options and environment variables; empty if none is set."""
    values = {"coordinator": config.coordinator, "processes": config.processes, "process": config.process}
    unset = {"coordinator": "", "processes": 0, "process": -1}
    for name, variable in ENVIRONMENT.items():
        text = os.environ.get(variable)
        if values[name] == unset[name] and text:
            try:
                values[name] = type(unset[name])(text)
            except ValueError:
                raise ConfigError(f"{variable} = {text!r}: must be a whole number") from None
    if values["processes"] == 1 and values["process"] in (-1, 0):
        return {"coordinator_address": values["coordinator"], "num_processes": 1, "process_id": 0}
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


def _cluster() -> str:
    """Name of the cluster if JAX can detect its coordinator and several processes; empty for a single process.

    The conditions are those of `jax/_src/clusters`.

    Raises:
      ConfigError: if there are several processes that JAX cannot detect.
    """
    env = os.environ
    if env.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        if "OMPI_MCA_orte_hnp_uri" not in env:
            raise ConfigError(
                "distributed: this Open MPI (5 or newer) does not say where process 0 is; set CHAMELEON_COORDINATOR to "
                "its host:port, CHAMELEON_PROCESSES to $OMPI_COMM_WORLD_SIZE, CHAMELEON_PROCESS to "
                "$OMPI_COMM_WORLD_RANK"
            )
        return "Open MPI"
    # An interactive step is one task, but SLURM_NTASKS is still that of its allocation.
    if all(name in env for name in SLURM) and "1" not in (env["SLURM_NTASKS"], env.get("SLURM_STEP_NUM_TASKS")):
        return "Slurm"
    if workers := _tpu_workers():  # GKE
        return "Cloud TPU" if _over_slices(0, len(workers), env)[1] > 1 else ""
    if _is_tpu_vm():
        return "Cloud TPU" if _place_on_tpu_vm()[1] > 1 else ""
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if find_spec("kubernetes") is None:
            raise ConfigError(
                "distributed: this is a pod of an Indexed Job, and JAX needs kubernetes to find the other pods: "
                "pip install 'jax[k8s]', or set CHAMELEON_COORDINATOR, CHAMELEON_PROCESSES and CHAMELEON_PROCESS; "
                "CHAMELEON_PROCESSES=1 if this pod trains alone"
            )
        return "Kubernetes"
    return ""


def place_in_cluster() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are, for work that needs no connection between them: as
    CHAMELEON_PROCESS and CHAMELEON_PROCESSES say, or Slurm, Open MPI, or a TPU pod."""
    env = os.environ
    if "CHAMELEON_PROCESS" in env and "CHAMELEON_PROCESSES" in env:
        names = ("CHAMELEON_PROCESS", "CHAMELEON_PROCESSES")
    elif all(name in env for name in SLURM) and env.get("SLURM_STEP_NUM_TASKS") != "1":
        names = ("SLURM_PROCID", "SLURM_NTASKS")
    elif "OMPI_COMM_WORLD_RANK" in env:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    elif workers := _tpu_workers():
        return _over_slices(int(env["TPU_WORKER_ID"]), len(workers), env)
    elif _is_tpu_vm():
        return _place_on_tpu_vm()
    else:
        return 0, 1
    number, count = (int(env[name]) if env.get(name, "").isdecimal() else -1 for name in names)
    if not 0 <= number < count:
        raise ConfigError(f"{names[0]} = {env[names[0]]!r}: must be from 0 to one less than {names[1]}")
    return number, count


def _tpu_workers() -> list[str]:
    """Hosts of this TPU slice, if the environment tells them."""
    # Where libtpu finds no TPU, it sets these variables to warnings, which child processes inherit.
    if not os.environ.get("TPU_WORKER_ID", "").isdecimal():
        return []
    workers = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    return workers.split(",") if workers else []


def _is_tpu_vm() -> bool:
    """Whether this may be a TPU VM, which has a metadata server."""
    # JAX sets the first variable if it finds TPUs and libtpu, and the second if it finds none.
    return "TPU_ML_PLATFORM" in os.environ and "TPU_SKIP_MDS_QUERY" not in os.environ


def _place_on_tpu_vm() -> tuple[int, int]:
    """Number of this host of a Cloud TPU slice and how many there are, over all slices; only the metadata server knows.

    The attributes are those that `jax/_src/clusters` reads.
    """
    number = _metadata("agent-worker-number")
    if not number:
        return 0, 1
    # Lines such as MEGASCALE_NUM_SLICES: '2'
    lines = dict(line.split(":", 1) for line in _metadata("tpu-env").splitlines() if ":" in line)
    slices = {name: os.environ.get(name) or lines.get(name, "").strip(" '") for name in _SLICES}
    return _over_slices(int(number), len(_metadata("worker-network-endpoints").split(",")), slices)


def _over_slices(number: int, hosts: int, slices: Mapping[str, str]) -> tuple[int, int]:
    """Number of a host and how many there are over all slices, of its number in one slice of so many hosts."""
    count, place = (int(slices.get(name) or default) for name, default in _SLICES.items())
    return place * hosts + number, count * hosts


def _metadata(attribute: str) -> str:
    """What the metadata server of a TPU VM says; "" where there is none, as beside the TPU of a notebook."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{attribute}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def wait_for_all(what: str) -> None:
    """A barrier named `what`: waits until every process has called it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def gather_texts(text: str) -> list[str]:
    """Gathers the strings of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(mine.size)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def broadcast_from_first(work: Callable[[], str]) -> str:
    """Runs `work` in process 0 and returns its result in all processes; if it fails, all of them raise.

    Raises:
      FileError: in the other processes, with the message of the error.
    """
    if jax.process_count() == 1:
        return work()
    result, failure = "", None
    if is_first():
        try:
            result = work()
        except Exception as error:
            failure = error
    first = json.loads(gather_texts(json.dumps([result, str(failure) if failure else None]))[0])
    if failure:
        raise failure
    if first[1] is not None:
        raise FileError(first[1])
    return first[0]


def check_same(values: dict[str, Any]) -> None:
    """Checks that all processes were started with the same config, data and versions; raises in all of them if not.

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
    """Checks that the output folder is the same for all processes.

    Raises:
      ConfigError: naming the processes that do not see what process 0 writes there.
    """
    if jax.process_count() == 1:
        return
    probe = folder / f".shared-{gather_texts(uuid.uuid4().hex)[0]}"
    if is_first():
        for old in folder.glob(".shared-*"):  # of a process that was killed at this point
            old.unlink()
        probe.touch()
    gather_texts("written")
    seen = gather_texts("yes" if probe.exists() else "no")
    if is_first():
        probe.unlink()
    unseen_by = [str(number) for number, answer in enumerate(seen) if answer == "no"]
    if unseen_by:
        raise ConfigError(
            f"output = {str(folder)!r}: processes {', '.join(unseen_by)} do not see what process 0 writes there; it "
            "must be on a file system that all hosts share"
        )


@contextlib.contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Exits with a message if JAX fails in one of several processes, whether because another died or on its own.

    There is no orderly shutdown: it would wait for the other processes, which wait for this one. A process that hangs
    instead of failing is ended by JAX, with a message, after `heartbeat_seconds`.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0][:300]
        if is_lost_process_error(str(error)):
            what = f"lost the others: one of them died or cannot be reached ({reason}). Its own output says why."
        else:
            traceback.print_exc()
            what = f"failed: {reason}. It ends here, and the others with it."
        print(
            f"chameleon: process {jax.process_index()} of {jax.process_count()} {what} Start all processes again with "
            "the same command: the run resumes from its last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def is_lost_process_error(message: str) -> bool:
    """Whether an error of JAX comes from communication with other processes, not from compiling or computing here.

    Collectives on CPUs are Gloo's and on GPUs NCCL's; their errors have all kinds of status codes.
    """
    if message.startswith(("RESOURCE_EXHAUSTED", "UNIMPLEMENTED")):
        return False
    codes, signs = (
        "DEADLINE_EXCEEDED|UNAVAILABLE|ABORTED|CANCELLED",
        "gloo|nccl|megascale|heartbeat|coordination|connection",
    )
    return bool(re.match(codes, message) or re.search(signs, message.splitlines()[0] if message else "", re.I))


def first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first difference of two configs as plain data: the dotted key and both values; None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            found = first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return first_difference(dict(enumerate(old)), dict(enumerate(new)), key)
    return None if old == new else (key, old, new)
