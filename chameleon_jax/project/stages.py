"""Stages of work, one after another: what is finished is skipped, training that was interrupted is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chameleon_jax.config import TrainConfig
from chameleon_jax.console import commands
from chameleon_jax.console.train import train as train_transformer
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.files import read_json, write_json
from chameleon_jax.runtime.folders import Kind, check_file, check_folder, remove_folder
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import TEXT_TOKENIZER
from chameleon_jax.training.run_folder import RUN

if TYPE_CHECKING:
    from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stage(NamedTuple):
    title: str
    config: Any
    """Configs and plain data that decide what it makes, besides what the stages before it made."""
    product: Path
    kind: Kind
    work: Callable[[], dict[str, Any]]

    def is_made(self) -> bool:
        """Whether the product is there; of a run, its model."""
        return (self.product / "model" if self.kind is RUN else self.product).exists()


class Stages:
    """Runs stages that are not finished yet. `stages.json` records the key, time and results of each.

    The file also marks the folder as one of these: nothing that a stage did not make is removed or replaced.
    """

    def __init__(self, folder: Path, command: str, expected: Collection[str] = ()):
        """Args:
        folder: where everything goes.
        command: that runs the stages, for messages.
        expected: names that may be in the folder before the first stage.
        """
        self.folder, self.path, self.command, self.expected = folder, folder / "stages.json", command, expected
        self.done: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        records = self.done.values() if isinstance(self.done, dict) else [self.done]
        if not all(isinstance(record, dict) and {"key", "finished"} <= record.keys() for record in records):
            raise FileError(f"{self.path}: is no record of {self.command}; choose another folder")

    def run(self, stages: Sequence[Stage], fresh: bool) -> dict[str, Any]:
        """Runs `stages` and returns the results of the last one. Finished stages whose product exists are skipped.

        The key of a stage is a hash of its config and those of all stages before it, without the values that are
        defaults: a stage is still done when a later version adds keys.

        Raises:
          FileError: before any work, if something else exists at the path of a product.
        """
        found = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        if not self.done and found - set(self.expected):
            raise FileError(f"{self.folder}: is not empty, and not from {self.command}; choose another folder")
        key, plan = hashlib.sha256(), []
        for stage in stages:
            values = [stage.title, _without_defaults(stage.config), platform.python_version()]
            key.update(json.dumps(values, sort_keys=True).encode())
            before = {} if fresh else self.done.get(stage.title, {})
            same = before.get("key") == key.hexdigest()
            reused = same and before["finished"] and stage.is_made()
            plan.append((stage, key.hexdigest(), same, reused))
            if not reused:
                self._check(stage)
        for stage, key, same, reused in plan:
            if reused:
                before = self.done[stage.title]
                console.print(
                    f"✓ {stage.title}: reused from an earlier run, which took {before['seconds']:.0f} s", style="green"
                )
            else:
                self._run(stage, key, same)
        return self.done[stages[-1].title]["figures"]

    def _check(self, stage: Stage) -> None:
        (check_folder if stage.product.is_dir() else check_file)(stage.product, stage.kind)
        if stage.title not in self.done and stage.product.exists():
            raise FileError(f"{stage.product}: is there already, but not from {self.command}; choose another folder")

    def _run(self, stage: Stage, key: str, same: bool) -> None:
        console.print(f"▶ {stage.title}", style="bold")
        if not same and stage.kind is RUN:  # training would go on from what was made from something else
            remove_folder(stage.product, RUN)
        continued = same and stage.product.exists()
        earlier = self.done[stage.title] if continued else {}
        began, cpu_began = time.monotonic(), time.process_time()

        def note(finished: bool, **values: Any) -> float:
            seconds = time.monotonic() - began
            self._note(
                stage.title, key=key, finished=finished, continued=continued,
                seconds=earlier.get("seconds", 0.0) + seconds,
                cpu_seconds=earlier.get("cpu_seconds", 0.0) + time.process_time() - cpu_began,
                peak_memory_gib=max(earlier.get("peak_memory_gib", 0.0), peak_memory_gib()), **values,
            )  # fmt: skip
            return seconds

        note(finished=False)
        try:
            figures = stage.work()
        except BaseException:  # Ctrl-C too: the time counts when the stage goes on
            note(finished=False)
            raise
        seconds = note(finished=True, figures=figures)
        console.print(f"✓ {stage.title}: {seconds:.0f} s", style="green")

    def _note(self, title: str, **values: Any) -> None:
        self.done[title] = values
        write_json(self.path, self.done)


def _without_defaults(config: Any) -> Any:
    """`to_dict` of a config, but without what has its default value, and with the names of classes, whose defaults
    these are."""
    if dataclasses.is_dataclass(config):
        values = {field.name: (getattr(config, field.name), field) for field in dataclasses.fields(config)}
        changed = {
            name: _without_defaults(value) for name, (value, field) in values.items() if value != _default(field)
        }
        return {type(config).__name__: changed}
    if isinstance(config, (tuple, list)):
        return [_without_defaults(item) for item in config]
    if isinstance(config, dict):
        return {name: _without_defaults(item) for name, item in config.items()}
    return config


def _default(field: dataclasses.Field) -> Any:
    """Of a field; `MISSING` if there is none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def training_stages(
    text: TextTokenizerCommand,
    image: ImageTokenizerCommand | None,
    prepare: PrepareCommand,
    train: TrainConfig,
    data: Any = None,
) -> list[Stage]:
    """The commands from files to a model, as stages.

    Args:
      image: None where there are no pictures.
      data: plain data that changes when the files of the sources do.
    """  # fmt: skip
    from data_pipeline.prepare import PREPARED

    stages = [
        Stage("train text tokenizer", {"command": text, "data": data}, Path(text.output), TEXT_TOKENIZER,
              lambda: commands.train_text_tokenizer(text)),
        Stage("prepare data", prepare, Path(prepare.output), PREPARED, lambda: commands.prepare(prepare)),
        Stage("train Chameleon", train, Path(train.output), RUN, lambda: train_transformer(train)),
    ]  # fmt: skip
    if image is not None:
        stages.insert(1, Stage("train image tokenizer", image, Path(image.output), RUN,
                               lambda: commands.train_image_tokenizer(image)))  # fmt: skip
    return stages
