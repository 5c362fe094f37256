"""Checkpoints of a run: state, data position and config together, written in the background by Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from chameleon_jax.config import CheckpointConfig, RunConfig, from_dict, to_dict
from chameleon_jax.config.resuming import OnResume, keys_where
from chameleon_jax.errors import DamagedFile, FileError
from chameleon_jax.runtime.arrays import (
    all_or_none,
    compare_arrays,
    read_verified,
    without_barriers,
    without_glob_characters,
)
from chameleon_jax.runtime.checksums import array_checksums
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.distributed import first_difference, gather_texts, is_first
from chameleon_jax.runtime.files import absolute
from chameleon_jax.runtime.headers import FORMAT_VERSION, check_version, read_header, with_checksum
from chameleon_jax.runtime.progress import console, report_elapsed
from chameleon_jax.runtime.versions import versions
from chameleon_jax.training.optimizer import make_schedule
from chameleon_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run. Use as a context manager; leaving it waits until pending checkpoints are written."""

    def __init__(self, folder: str | Path, config: CheckpointConfig):
        self.folder = absolute(folder)
        self._best = _Best()
        with contextlib.ExitStack() as stack, explain_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                stack.enter_context(without_glob_characters(self.folder)),
                context=_context(),
                preservation_policy=_preservation(config, self._best),
                cleanup_tmp_directories=True,
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        with self._stack, explain_disk_errors(self.folder):
            self._checkpointer.close()

    def save(
        self, state: TrainState, config: RunConfig, data_fingerprint: str, unlogged: list[dict[str, float]] = ()
    ) -> None:
        """Starts writing the state after step `state.step`; returns as soon as training may continue.

        Args:
          unlogged: metrics of the steps since the last line of metrics.jsonl.
        """
        step = int(state.step)
        header = {
            "format_version": FORMAT_VERSION,
            "config": to_dict(config),
            "data": {"next_batch": step, "fingerprint": data_fingerprint},
            "unlogged": [_json_values(line) for line in unlogged],
            "versions": versions(),
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "checksums": array_checksums(state),
        }
        header = with_checksum(json.loads(json.dumps(header)))
        with explain_disk_errors(self.folder):
            self._checkpointer.save_checkpointables_async(step, {"state": state, "run": header}, force=True)

    def keep_best(self, step: int | None) -> None:
        """Never removes the checkpoint of this step."""
        self._best.step = step

    def load(self, step: int, abstract_state: TrainState) -> TrainState | None:
        """The state after `step`; None if its checkpoint no longer exists or is damaged."""
        if step not in [checkpoint.step for checkpoint in self._checkpointer.checkpoints]:
            return None
        path = self.folder / str(step)
        try:
            header = all_or_none(path, lambda: _read_header(path))
            return _restore_state(path, abstract_state, header)
        except DamagedFile as error:
            console.print(f"{error}", style="bold red")
            return None

    def restore(
        self, abstract_state: TrainState, config: RunConfig, data_fingerprint: str
    ) -> tuple[TrainState, list[dict[str, float]]] | None:
        """Restores the newest intact checkpoint directly onto the devices, in the dtypes of `abstract_state`.

        All processes must call this together. They restore the same checkpoint, the newest that each of them can read;
        newer, damaged ones are renamed to `damaged-…`, so that the run can write these steps again.

        Returns:
          The state and the `unlogged` metrics; None if there is no checkpoint.

        Raises:
          FileError: if the checkpoints belong to another config or other data, cannot be read for a reason other than
            damage, or all of them are damaged.
        """
        steps = self._steps()
        damaged: list[int] = []
        for step in steps:
            path = self.folder / str(step)
            try:
                with report_elapsed(f"restore step {step}"):
                    header, changed = all_or_none(path, lambda path=path: _read_run(path, config, data_fingerprint))
                    state = _restore_state(path, abstract_state, header)
            except DamagedFile as error:
                console.print(f"{error}. Trying the one before it.", style="bold red")
                damaged.append(step)
                continue
            if changed:
                console.print(f"Resuming with {', '.join(changed)}: results will differ in rounding.")
            if damaged:
                self._rename_damaged(damaged)
            return state, [_numbers(line) for line in header.get("unlogged", [])]
        if steps:
            raise FileError(
                f"{self.folder}: none of the checkpoints {', '.join(map(str, steps))} can be read; "
                "restore a copy, or start a new run in another output folder"
            )
        return None

    def _steps(self) -> list[int]:
        """Steps with a checkpoint according to process 0, newest first, even those that Orbax does not recognise."""
        children = self.folder.iterdir() if self.folder.exists() else ()  # buckets have no empty folders
        found = [int(path.name) for path in children if path.name.isdecimal()]
        return json.loads(gather_texts(json.dumps(sorted(found, reverse=True)))[0])

    def _rename_damaged(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that the run can write these steps again. Nothing is deleted."""

        def rename() -> None:
            for step in steps if is_first() else ():
                names = itertools.chain([f"damaged-{step}"], (f"damaged-{step}-{n}" for n in itertools.count(2)))
                damaged = next(path for path in map(self.folder.joinpath, names) if not path.exists())
                with explain_disk_errors(damaged):
                    (self.folder / str(step)).rename(damaged)
                console.print(f"Renamed {self.folder / str(step)} to {damaged.name}; it may be deleted.")

        all_or_none(self.folder, rename)
        self._checkpointer.reload()


def _context() -> ocp.Context:
    """Orbax's settings for writing checkpoints: `run` is a JSON file."""
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry()
    context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name="run")
    return context


def _read_run(path: Path, config: RunConfig, data_fingerprint: str) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint's header, and the config changes since then that affect rounding."""
    header = _read_header(path)
    return header, _check_same_run(header, config, data_fingerprint, path)


def _read_header(path: Path) -> dict[str, Any]:
    file = path / "run" / "data.json"
    if file.exists():
        return read_header(file)
    with without_barriers(ocp.Context()):  # written by an older version
        header = ocp.load_checkpointables(path, {"run": None})["run"]
    if "format_version" not in header:
        raise DamagedFile(f"{path}: damaged: its run has no format_version")
    check_version(header, path)
    return header


def verify_checkpoint(path: Path) -> str:
    """Compares header and arrays of a checkpoint with their checksums, on any devices. Returns a summary.

    Raises:
      FileError, DamagedFile: if it cannot be read, or is damaged.
    """
    header = all_or_none(path, lambda: _read_header(path), shared=False)

    def stored() -> Any:
        with without_barriers(_context()):
            return ocp.checkpointables_metadata(path.absolute()).metadata["state"]

    state = all_or_none(path, stored, shared=False)
    return compare_arrays(path, state, functools.partial(_read_state, path.absolute()), header.get("checksums"))


def _restore_state(path: Path, abstract_state: TrainState, header: dict[str, Any]) -> TrainState:
    return read_verified(path, functools.partial(_read_state, path), abstract_state, header.get("checksums"))


def _read_state(path: Path, wanted: Any) -> Any:
    with without_barriers(ocp.Context()):
        return ocp.load_checkpointables(path, {"state": wanted})["state"]


def _json_values(line: dict[str, Any]) -> dict[str, Any]:
    """Metrics with infinity and NaN as strings, as JSON has neither."""
    return {name: value if math.isfinite(value) else str(value) for name, value in line.items()}


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items()}


@dataclasses.dataclass
class _Best:
    """A policy that keeps the checkpoint of one step."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


def stored_config(folder: Path) -> dict[str, Any] | None:
    """The config that the newest checkpoint of a run was saved with, as plain data; None if there is none."""
    steps = sorted((path for path in folder.glob("[0-9]*") if path.name.isdecimal()), key=lambda path: -int(path.name))
    for step in steps:
        with contextlib.suppress(Exception):  # errors are reported when it is restored
            return _read_header(absolute(step))["config"]
    return None


def _preservation(config: CheckpointConfig, best: _Best) -> Any:
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(config.keep), best]
    if config.keep_every:
        kept.append(policies.EveryNSteps(config.keep_every))
    return policies.AnyPreservationPolicy(kept)


def _check_same_run(header: dict[str, Any], config: RunConfig, data_fingerprint: str, path: Path) -> list[str]:
    """Raises unless the checkpoint belongs to this run; returns allowed config changes that affect rounding."""
    old = from_dict(type(config), header["config"])
    difference = first_difference(*(keys_where(each, OnResume.ANOTHER_RUN) for each in (old, config)))
    if difference:
        key, was, value = difference
        raise FileError(
            f"{path}: is a checkpoint of another config: {key} was {was!r}, now {value!r}. Resume with the old value, "
            "or start a new run in another output folder (--output)"
        )
    if header["data"]["fingerprint"] != data_fingerprint:
        raise FileError(
            f"{path}: was trained on other data. Prepare the same data again, "
            "or start a new run in another output folder (--output)"
        )
    _check_steps(old, config, header["data"]["next_batch"], path)
    before, now = (keys_where(each, OnResume.OTHER_ROUNDING) for each in (old, config))
    changed = [f"{key} = {now[key]!r} (was {was!r})" for key, was in before.items() if now[key] != was]
    meshes = [(old.mesh, header.get("devices")), (config.mesh, jax.device_count())]
    if config.depends_on_mesh and meshes[0] != meshes[1]:
        changed.append(f"another mesh ({config.depends_on_mesh} depends on it)")
    return changed


def _check_steps(before: RunConfig, now: RunConfig, done: int, path: Path) -> None:
    """Raises if another number of `steps` changes which rows have been read; prints its effect on the learning rate."""
    if now.steps == before.steps:
        return
    if now.steps < done:
        raise FileError(f"{path}: steps = {now.steps}: this run has already done {done}; set at least as many")
    rows = done * now.batch_size
    if rows > min(before.rows_of_first_stage, now.rows_of_first_stage):
        raise FileError(
            f"{path}: steps was {before.steps}, now {now.steps}: stages are shares of all steps, and this run is past "
            "the first, so rows would be read twice or not at all. Keep steps, or start another run from its model "
            "(--initial)"
        )
    rates = [float(make_schedule(config.optimizer, config.steps)(done)) for config in (before, now)]
    jump = f"; the learning rate continues at {rates[1]:.3g} instead of {rates[0]:.3g}" if rates[0] != rates[1] else ""
    console.print(f"steps was {before.steps:,}, now {now.steps:,}{jump}.", style="bold yellow")
