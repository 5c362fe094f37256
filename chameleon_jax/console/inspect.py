"""`chameleon inspect`: describes a model folder, or verifies a folder of any kind."""

from __future__ import annotations

import json
from typing import Any

from chameleon_jax.config import InspectCommand
from chameleon_jax.console.verify import verify
from chameleon_jax.errors import LONGEST_MESSAGE, DamagedFile, printable
from chameleon_jax.weights.describe import describe, describe_image_tokenizer, image_tokenizer_lines, lines
from chameleon_jax.weights.formats import open_checkpoint
from chameleon_jax.weights.image_tokenizer import open_image_tokenizer


def inspect(config: InspectCommand, *, path: str) -> dict[str, Any]:
    """Prints a description of a model or an image tokenizer, or with `verify` which parts of any folder are intact.

    Raises:
      DamagedFile: after the last line, if any part is damaged.
    """
    if config.verify:
        return _verify(path, config.json)
    opened = open_image_tokenizer(path)
    found = describe_image_tokenizer(path, opened) if opened else describe(open_checkpoint(path))
    if config.json:
        print(json.dumps(found, indent=2))
        return {}
    for name, text in image_tokenizer_lines(found) if opened else lines(found):
        print(f"{name:<17}{printable(text, LONGEST_MESSAGE)}")
    return {}


def _verify(path: str, as_json: bool) -> dict[str, Any]:
    damaged, results = 0, []
    for part, kind, found, sound in verify(path):
        damaged += not sound
        results.append({"path": part, "kind": kind, "sound": sound, "found": found})
        if not as_json:
            line = found if found.startswith(part) else f"{part}: {kind}: {found}"
            print(printable(f"{'sound' if sound else 'DAMAGED':<9}{line}", LONGEST_MESSAGE))
    if as_json:
        print(json.dumps(results, indent=2))
    if damaged:
        raise DamagedFile(f"{path}: {damaged} of {len(results)} parts are damaged, or cannot be read")
    return {}
