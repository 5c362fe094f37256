"""Checkpoints of a run: state, data position and config together, written in the background by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from chameleon_jax.config import CheckpointConfig, TrainConfig, to_dict
from chameleon_jax.files import FORMAT_VERSION, FileError, check_version, explain_disk_errors
from chameleon_jax.progress import console
from chameleon_jax.training.state import TrainState

MAY_CHANGE = (
    "output", "data", "mesh", "checkpoint", "log_every", "evaluate_every", "evaluation_batches", "sequence_length",
)  # fmt: skip
"""Parts of a TrainConfig that a run may change when it goes on: none of them changes what is computed. The data may
have moved; that it is the same data is checked by its fingerprint."""


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving waits for what is still being written."""

    def __init__(self, folder: str | Path, config: CheckpointConfig):
        self.folder = Path(folder).absolute()
        with explain_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        with explain_disk_errors(self.folder):
            self._checkpointer.close()

    def save(self, state: TrainState, config: TrainConfig, data_fingerprint: str) -> None:
        """Starts writing the state after step `state.step`; returns as soon as training may go on."""
        step = int(state.step)
        header = {
            "format_version": FORMAT_VERSION,
            "config": to_dict(config),
            "data": {"next_batch": step, "fingerprint": data_fingerprint},
        }
        with explain_disk_errors(self.folder):
            self._checkpointer.save_checkpointables_async(step, {"state": state, "run": header}, force=True)

    def restore(self, abstract_state: TrainState, config: TrainConfig, data_fingerprint: str) -> TrainState | None:
        """The newest checkpoint that can be read, straight onto its devices; None if there is none.

        Raises:
          FileError: if the checkpoints belong to another config or other data, or none of them can be read.
        """
        steps = sorted((checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            path = self.folder / str(step)
            try:
                header = self._checkpointer.load_checkpointables(step, {"run": None})["run"]
                _check_same_run(header, config, data_fingerprint, path)
                return self._checkpointer.load_checkpointables(step, {"state": abstract_state})["state"]
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


def _check_same_run(header: dict[str, Any], config: TrainConfig, data_fingerprint: str, path: Path) -> None:
    check_version(header, path)
    before, now = header["config"], to_dict(config)
    difference = _first_difference(
        {name: value for name, value in before.items() if name not in MAY_CHANGE},
        {name: value for name, value in now.items() if name not in MAY_CHANGE},
    )
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


def _first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            found = _first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return _first_difference(dict(enumerate(old)), dict(enumerate(new)), key)
    return None if old == new else (key, old, new)
