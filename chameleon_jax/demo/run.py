"""`chameleon demo`: the project's own commands one after another, then an examination and a report.

A stage whose config and inputs are those of a finished run is reused. Training itself goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chameleon_jax import commands
from chameleon_jax.chameleon import load
from chameleon_jax.config import (
    ConfigError,
    DemoCommand,
    EvaluationConfig,
    ImageTokenizerCommand,
    PrepareCommand,
    TextTokenizerCommand,
    TrainConfig,
    find_configs,
    read_config,
    to_dict,
)
from chameleon_jax.files import read_json, write_json
from chameleon_jax.progress import console


def peak_memory_gib() -> float:
    """Most memory this process has held, in GiB; the demo starts no others."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _Stages:
    """Runs stages once. `stages.json` keeps for each what it was made from, how long it took and what it said."""

    def __init__(self, folder: Path):
        self.path = folder / "stages.json"
        self.done: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        self.key = hashlib.sha256()

    def run(self, title: str, config: Any, product: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a stage; runs it unless the same was done before and `product` is there.

        A stage's key covers its own config and, through the running hash, all stages before it.
        """
        self.key.update(json.dumps([title, to_dict(config), platform.python_version()], sort_keys=True).encode())
        key, before = self.key.hexdigest(), self.done.get(title, {})
        same = before.get("key") == key
        if same and before["finished"] and product.exists():
            console.print(f"[green]✓[/] {title}: reused from an earlier run, which took {before['seconds']:.0f} s")
            return before["figures"]
        console.print(f"[bold]▶ {title}[/]")
        if not same:  # what lies there was made from something else
            shutil.rmtree(product, ignore_errors=True)
            product.unlink(missing_ok=True)
        self._note(title, key=key, finished=False)
        began, cpu_began = time.monotonic(), time.process_time()
        figures = work()
        seconds = time.monotonic() - began
        self._note(
            title, key=key, finished=True, continued=same and not before["finished"], seconds=seconds,
            cpu_seconds=time.process_time() - cpu_began, peak_memory_gib=peak_memory_gib(), figures=figures,
        )  # fmt: skip
        console.print(f"[green]✓[/] {title}: {seconds:.0f} s")
        return figures

    def _note(self, title: str, **values: Any) -> None:
        self.done[title] = values
        write_json(self.path, self.done)


def run_demo(command: DemoCommand) -> dict[str, Any]:
    """Trains tokenizers and model, judges them on unseen data, and writes metrics.json and report.html.

    Returns:
      the contents of metrics.json.
    """
    output = Path(command.output)
    recipes = Path(command.recipes) if command.recipes else find_configs() / "demo"
    if command.fresh:
        shutil.rmtree(output, ignore_errors=True)
    paths = {
        "text": output / "text.model",
        "image": output / "image_tokenizer",
        "rows": output / "rows",
        "run": output / "run",
        "datasets": output / "datasets",
    }

    def recipe(cls: type, name: str, **overrides: Path) -> Any:
        arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        return read_config(cls, recipes / f"{name}.yaml", arguments)

    # All recipes are read first, so that a mistake in the last does not come up after minutes.
    text = recipe(TextTokenizerCommand, "text_tokenizer", output=paths["text"], datasets=paths["datasets"])
    image = recipe(ImageTokenizerCommand, "image_tokenizer", output=paths["image"], datasets=paths["datasets"])
    prepare = recipe(
        PrepareCommand, "prepare", text_tokenizer=paths["text"], image_tokenizer=paths["image"], output=paths["rows"],
        datasets=paths["datasets"],
    )  # fmt: skip
    train = recipe(TrainConfig, "train", data=paths["rows"], output=paths["run"])
    examination = recipe(EvaluationConfig, "evaluation")
    for name in ("python_reference", "python_stdlib"):
        if name not in [source.name for source in prepare.held_out]:
            raise ConfigError(f"{recipes}/prepare.yaml: held_out: the demo measures {name}, which is not listed")

    stages = _Stages(output)
    stages.run("train text tokenizer", text, paths["text"], lambda: commands.train_text_tokenizer(text))
    stages.run("train image tokenizer", image, paths["image"], lambda: commands.train_image_tokenizer(image))
    stages.run("prepare data", prepare, paths["rows"], lambda: commands.prepare(prepare))
    stages.run("train Chameleon", train, paths["run"], lambda: commands.train(train))
    metrics = stages.run(
        "judge and report", examination, output / "report.html",
        lambda: _judge(output, prepare, train, examination, stages.done),
    )  # fmt: skip
    console.print(f"\nOpen [bold]{output / 'report.html'}[/] in a browser.\n")
    return metrics


def _judge(
    output: Path, prepare: PrepareCommand, train: TrainConfig, examination: EvaluationConfig, stages: dict[str, Any]
) -> dict[str, Any]:
    from chameleon_jax.demo.evaluate import evaluate
    from chameleon_jax.demo.report import write_report
    from data_pipeline.loader import PreparedData

    began, cpu_began = time.monotonic(), time.process_time()
    model, data = load(train.output), PreparedData(train.data)
    evaluation = evaluate(model, data, examination, prepare.datasets)
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
