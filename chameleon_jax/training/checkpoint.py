"""Checkpoints of a run: state, data position and config together, written in the background by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from chameleon_jax.config import CheckpointConfig, TrainConfig, first_difference, from_dict, to_dict
from chameleon_jax.files import FORMAT_VERSION, FileError, check_version, explain_disk_errors
from chameleon_jax.progress import console
from chameleon_jax.training.state import TrainState
from chameleon_jax.versions import versions

MAY_CHANGE = (
    "output", "data", "mesh", "distributed", "checkpoint", "bad_steps", "profile", "trackers", "log_every",
    "evaluate_every", "evaluation_batches", "sequence_length", "initial",
)  # fmt: skip
"""Parts of a TrainConfig that a run may change when it goes on: none of them changes what is computed. The data may
have moved; that it is the same data is checked by its fingerprint."""

CHANGES_ROUNDING = (
    "accumulation", "loss_chunk", "model.attention", "model.remat", "model.unroll", "model.param_dtype",
    "model.compute_dtype", "optimizer.moment_dtype",
)  # fmt: skip
"""Keys that may change as well, so that a run can move to other hardware, but not without a word: the run is no longer
the same bit for bit."""


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving waits for what is still being written."""

    def __init__(self, folder: str | Path, config: CheckpointConfig):
        self.folder = Path(folder).absolute()
        with explain_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=_preservation(config),
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        with explain_disk_errors(self.folder):
            self._checkpointer.close()

    def save(
        self, state: TrainState, config: TrainConfig, data_fingerprint: str, unlogged: list[dict[str, float]] = ()
    ) -> None:
        """Starts writing the state after step `state.step`; returns as soon as training may go on.

        Args:
          unlogged: metrics of the steps since the last line of metrics.jsonl.
        """
        step = int(state.step)
        header = {
            "format_version": FORMAT_VERSION,
            "config": to_dict(config),
            "data": {"next_batch": step, "fingerprint": data_fingerprint},
            "unlogged": list(unlogged),
            "versions": versions(),
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        }
        with explain_disk_errors(self.folder):
            self._checkpointer.save_checkpointables_async(step, {"state": state, "run": header}, force=True)

    def restore(
        self, abstract_state: TrainState, config: TrainConfig, data_fingerprint: str
    ) -> tuple[TrainState, list[dict[str, float]]] | None:
        """The newest checkpoint that can be read, straight onto its devices and in the types of `abstract_state`.

        Returns:
          the state and the `unlogged` metrics; None if there is no checkpoint.

        Raises:
          FileError: if the checkpoints belong to another config or other data, or none of them can be read.
        """
        steps = sorted((checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            path = self.folder / str(step)
            try:
                header = self._checkpointer.load_checkpointables(step, {"run": None})["run"]
                _check_same_run(header, config, data_fingerprint, path)
                state = self._checkpointer.load_checkpointables(step, {"state": abstract_state})["state"]
                return state, header.get("unlogged", [])
            except FileError:
                raise
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                console.print(f"[bold red]{path}: damaged, trying the one before it[/] ({reason})")
        if steps:
            raise FileError(
                f"{self.folder}: none of the checkpoints {', '.join(map(str, steps))} can be read; "
                "restore a copy, or start anew in another output folder"
            )
        return None


def _preservation(config: CheckpointConfig) -> Any:
    policies = ocp.training.preservation_policies
    newest = policies.LatestN(config.keep)
    if not config.keep_every:
        return newest
    return policies.AnyPreservationPolicy([newest, policies.EveryNSteps(config.keep_every)])


def _without(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A nested mapping without the entries of these dotted keys."""
    left = {}
    for name, value in values.items():
        if name in keys:
            continue
        inner = tuple(key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}."))
        left[name] = _without(value, inner) if inner and isinstance(value, dict) else value
    return left


def _check_same_run(header: dict[str, Any], config: TrainConfig, data_fingerprint: str, path: Path) -> None:
    check_version(header, path)
    before, now = (to_dict(from_dict(TrainConfig, header["config"])), to_dict(config))
    difference = first_difference(*(_without(values, MAY_CHANGE + CHANGES_ROUNDING) for values in (before, now)))
    if difference:
        key, old, new = difference
        raise FileError(
            f"{path}: is a checkpoint of another config: {key} was {old!r}, now {new!r}. Go on with the old value, "
            "or start anew in another output folder (--output)"
        )
    if header["data"]["fingerprint"] != data_fingerprint:
        raise FileError(
            f"{path}: was trained on other data than {config.data} now holds. Prepare the same data again, "
            "or start anew in another output folder (--output)"
        )
    changed = [
        f"{key} = {_value(now, key)!r} (was {_value(before, key)!r})"
        for key in CHANGES_ROUNDING
        if _value(now, key) != _value(before, key)
    ]
    if changed:
        console.print(f"Going on with {', '.join(changed)}: no longer the same run bit for bit.")


def _value(values: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in nested mappings."""
    for name in key.split("."):
        values = values[name]
    return values
