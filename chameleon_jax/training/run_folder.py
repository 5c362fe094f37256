"""The output folder of a run, to which only one run may write at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.cloud import as_path, is_cloud
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.distributed import broadcast_from_first
from chameleon_jax.runtime.folders import Kind, check_writable
from chameleon_jax.runtime.locks import only_writer
from chameleon_jax.runtime.progress import console

RUN = Kind(
    "a training run",
    lambda folder: (
        (folder / "checkpoints").is_dir()
        or (folder / "sessions.jsonl").is_file()
        or (folder / "pictures" / "prepare.json").is_file()  # training has not begun yet
    ),
    (
        "checkpoints/*", "metrics.jsonl", "metrics.jsonl.damaged", "sessions.jsonl", "bad_steps.jsonl", "model/*",
        "adapters/*", "samples/*", "pictures/*", "profile/*", "tensorboard/*", "wandb/*", "wandb_id", ".*",
    ),
)  # fmt: skip


def check_run(folder: str | Path) -> None:
    """Checks that a run may write into `folder`: it is the folder of a run, or has no files with a run's file names.

    Raises:
      FileError: if not, as these files would be overwritten; or if the folder is not writable.
    """
    folder = as_path(folder)
    check_writable(folder)
    if folder.is_dir() and not RUN.is_one(folder):
        names = {pattern.split("/")[0] for pattern in RUN.contents if not pattern.startswith(".")}
        taken = next((name for name in sorted(names) if (folder / name).exists()), None)
        if taken:
            raise FileError(
                f"{folder}: contains {taken}, but is not the folder of a training run; choose another output folder"
            )


@contextlib.contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Locks a folder against other runs. All processes of a run enter it together.

    Buckets have no locks; a message says so.

    Raises:
      FileError: if another run, on any host, holds the lock.
    """
    if is_cloud(folder):
        console.print(f"{folder}: buckets have no locks; make sure that no other run writes there.")
        yield
        return
    with contextlib.ExitStack() as first:
        with explain_disk_errors(folder):
            broadcast_from_first(lambda: first.enter_context(only_writer(folder / ".lock", folder)) or "ours")
        yield
