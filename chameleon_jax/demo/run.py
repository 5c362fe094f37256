"""`chameleon demo`: runs the project's commands one after another, then evaluates the model and writes a report.

Finished stages are reused if their configs and inputs are the same. Interrupted training is resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_jax.chameleon import load
from chameleon_jax.config import (
    ConfigError,
    DemoCommand,
    EvaluationConfig,
    TrainConfig,
    find_configs,
    read_config,
    to_dict,
)
from chameleon_jax.console import commands
from chameleon_jax.console.train import train as train_transformer
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.cloud import is_cloud
from chameleon_jax.runtime.files import read_json, write_json
from chameleon_jax.runtime.folders import Kind, check_file, check_folder, remove_folder
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import IMAGE_TOKENIZER, TEXT_TOKENIZER
from chameleon_jax.training.run_folder import RUN
from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand
from data_pipeline.prepare import PREPARED

REPORT = Kind("a report of the demo", lambda path: b"Chameleon" in path.read_bytes())


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB. The demo starts no other processes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _Stage(NamedTuple):
    title: str
    config: Any
    product: Path
    kind: Kind
    work: Callable[[], dict[str, Any]]


class _Stages:
    """Runs stages that are not finished yet. `stages.json` records the key, time and results of each.

    The file also marks the folder as one of a demo: nothing that a stage did not make is removed or replaced.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "stages.json"
        self.done: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        records = self.done.values() if isinstance(self.done, dict) else [self.done]
        if not all(isinstance(record, dict) and {"key", "finished"} <= record.keys() for record in records):
            raise FileError(f"{self.path}: is no record of a demo; choose another folder (--output)")

    def run(self, stages: Sequence[_Stage], fresh: bool) -> dict[str, Any]:
        """Runs `stages` and returns the results of the last one. Finished stages whose product exists are skipped.

        The key of a stage is a hash of its config and those of all stages before it.

        Raises:
          FileError: before any work, if something else exists at the path of a product.
        """
        if not self.done and self.folder.is_dir() and os.listdir(self.folder):
            raise FileError(f"{self.folder}: is not empty, and not from a demo; choose another folder (--output)")
        key, plan = hashlib.sha256(), []
        for stage in stages:
            values = [stage.title, to_dict(stage.config), platform.python_version()]
            key.update(json.dumps(values, sort_keys=True).encode())
            before = {} if fresh else self.done.get(stage.title, {})
            same = before.get("key") == key.hexdigest()
            reused = same and before["finished"] and stage.product.exists()
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

    def _check(self, stage: _Stage) -> None:
        (check_folder if stage.product.is_dir() else check_file)(stage.product, stage.kind)
        if stage.title not in self.done and stage.product.exists():
            raise FileError(f"{stage.product}: is there already, but no demo made it; choose another folder (--output)")

    def _run(self, stage: _Stage, key: str, same: bool) -> None:
        console.print(f"▶ {stage.title}", style="bold")
        if not same and stage.kind is RUN:  # training would go on from what was made from something else
            remove_folder(stage.product, RUN)
        continued = same and not self.done[stage.title]["finished"]
        self._note(stage.title, key=key, finished=False)
        began, cpu_began = time.monotonic(), time.process_time()
        figures = stage.work()
        seconds = time.monotonic() - began
        self._note(
            stage.title, key=key, finished=True, continued=continued, seconds=seconds,
            cpu_seconds=time.process_time() - cpu_began, peak_memory_gib=peak_memory_gib(), figures=figures,
        )  # fmt: skip
        console.print(f"✓ {stage.title}: {seconds:.0f} s", style="green")

    def _note(self, title: str, **values: Any) -> None:
        self.done[title] = values
        write_json(self.path, self.done)


def run_demo(command: DemoCommand) -> dict[str, Any]:
    """Trains tokenizers and model, evaluates them on held-out data, and writes metrics.json and report.html.

    Returns:
      the contents of metrics.json.
    """
    if is_cloud(command.output):
        raise ConfigError(f"output = {command.output!r}: the demo needs a folder on this machine")
    output = Path(command.output)
    recipes = Path(command.recipes) if command.recipes else find_configs() / "demo"
    paths = {
        "text": output / "text.model",
        "image": output / "image_tokenizer",
        "rows": output / "rows",
        "run": output / "run",
        "datasets": output / "datasets",
    }

    def recipe(cls: type, name: str, **overrides: Path) -> Any:
        return read_config(cls, recipes / f"{name}.yaml", {key: str(path) for key, path in overrides.items()})

    # All recipes are read first, so that a mistake in the last is found at once.
    text = recipe(TextTokenizerCommand, "text_tokenizer", output=paths["text"], datasets=paths["datasets"])
    image = recipe(ImageTokenizerCommand, "image_tokenizer", output=paths["image"], datasets=paths["datasets"])
    prepare = recipe(
        PrepareCommand, "prepare", text_tokenizer=paths["text"], image_tokenizer=paths["image"], output=paths["rows"],
        datasets=paths["datasets"],
    )  # fmt: skip
    train = recipe(TrainConfig, "train", data=paths["rows"], output=paths["run"])
    evaluation_config = recipe(EvaluationConfig, "evaluation")
    for name in ("python_reference", "python_stdlib"):
        if name not in [source.name for source in prepare.held_out]:
            raise ConfigError(f"{recipes}/prepare.yaml: held_out: the demo measures {name}, which is not listed")

    stages = _Stages(output)
    report = output / "report.html"
    judge = lambda: _judge(output, prepare, train, evaluation_config, stages.done)  # noqa: E731
    plan = (
        ("train text tokenizer", text, paths["text"], TEXT_TOKENIZER, lambda: commands.train_text_tokenizer(text)),
        ("train image tokenizer", image, paths["image"], IMAGE_TOKENIZER,
         lambda: commands.train_image_tokenizer(image)),
        ("prepare data", prepare, paths["rows"], PREPARED, lambda: commands.prepare(prepare)),
        ("train Chameleon", train, paths["run"], RUN, lambda: train_transformer(train)),
        ("judge and report", evaluation_config, report, REPORT, judge),
    )  # fmt: skip
    metrics = stages.run([_Stage(*each) for each in plan], command.fresh)
    console.print(f"\nOpen {report} in a browser.\n", style="bold")
    return metrics


def _judge(
    output: Path,
    prepare: PrepareCommand,
    train: TrainConfig,
    evaluation_config: EvaluationConfig,
    stages: dict[str, Any],
) -> dict[str, Any]:
    from chameleon_jax.demo.evaluate import evaluate
    from chameleon_jax.demo.report import write_report
    from data_pipeline.loader import PreparedData

    began, cpu_began = time.monotonic(), time.process_time()
    model, data = load(train.output), PreparedData(train.data)
    evaluation = evaluate(model, data, evaluation_config, prepare.datasets)
    before = [stage for stage in stages.values() if stage["finished"]]
    metrics = {
        **evaluation.metrics,
        "total_minutes": (sum(stage["seconds"] for stage in before) + time.monotonic() - began) / 60,
        "cpu_minutes": (sum(stage["cpu_seconds"] for stage in before) + time.process_time() - cpu_began) / 60,
        "peak_memory_gib": max(peak_memory_gib(), *(stage["peak_memory_gib"] for stage in before)),
    }
    write_json(output / "metrics.json", metrics)
    write_report(output / "report.html", model, train, evaluation, metrics, stages)
    return metrics
