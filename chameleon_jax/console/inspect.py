"""`chameleon inspect`: what a model folder holds, or what is damaged in a folder of any kind."""

from __future__ import annotations

import json
from typing import Any

from chameleon_jax.config import InspectCommand
from chameleon_jax.console.verify import verify
from chameleon_jax.errors import LONGEST_MESSAGE, DamagedFile, printable
from chameleon_jax.weights.describe import describe, lines
from chameleon_jax.weights.formats import open_checkpoint


def inspect(config: InspectCommand, *, path: str) -> dict[str, Any]:
    """Prints what a model folder holds, or with `verify` what is damaged in a folder of any kind.

    Raises:
      DamagedFile: after the last line, if anything is.
    """
    if config.verify:
        return _verify(path, config.json)
    found = describe(open_checkpoint(path))
    if config.json:
        print(json.dumps(found, indent=2))
        return {}
    for name, text in lines(found):
        print(f"{name:<17}{printable(text, LONGEST_MESSAGE)}")
    return {}


def _verify(path: str, as_json: bool) -> dict[str, Any]:
    damaged, results = 0, []
    for place, kind, found, sound in verify(path):
        damaged += not sound
        results.append({"path": place, "kind": kind, "sound": sound, "found": found})
        if not as_json:
            line = found if found.startswith(place) else f"{place}: {kind}: {found}"
            print(printable(f"{'sound' if sound else 'DAMAGED':<9}{line}", LONGEST_MESSAGE))
    if as_json:
        print(json.dumps(results, indent=2))
    if damaged:
        raise DamagedFile(f"{path}: {damaged} of {len(results)} parts are damaged, or cannot be read")
    return {}
