"""`chameleon push`: sends a model to the Hugging Face Hub."""

from __future__ import annotations

from typing import Any

from chameleon_jax.config import PushCommand
from chameleon_jax.console.data import in_columns
from chameleon_jax.errors import printable
from chameleon_jax.runtime.progress import console
from chameleon_jax.weights.card import CARD
from chameleon_jax.weights.push import files_to_push, repository_to_push_to
from chameleon_jax.weights.push import push as send


def push(command: PushCommand, *, folder: str, name: str) -> dict[str, Any]:
    """Sends the files of a model, or with `dry_run` lists them."""
    repository = repository_to_push_to(name)
    place, names = files_to_push(folder)
    sizes = {each: (place / each).stat().st_size for each in names}
    if command.dry_run:
        print(in_columns([("bytes", "file"), *((f"{size:,}", each) for each, size in sizes.items())]))
        return {"files": len(names), "gigabytes": sum(sizes.values()) / 1e9, "would be sent to": repository}
    console.print(f"sending {len(names):,} files, {sum(sizes.values()) / 1e9:.3g} GB, to {repository}")
    pushed = send(place, names, name, private=command.private)
    if pushed.kept_card:
        console.print(
            f"note: {repository} has a {CARD}, which stays; once you edit that of {place}, it is sent instead"
        )
    if pushed.left:
        others = f" and {len(pushed.left) - 1:,} more files" if len(pushed.left) > 1 else ""
        console.print(
            f"note: {repository} has {printable(pushed.left[0])}{others}, which this model does not have, perhaps of "
            "an earlier push; they stay, and `hf repos delete-files` deletes them"
        )
    return {"files": len(names) - pushed.kept_card, "sent": pushed.url}
