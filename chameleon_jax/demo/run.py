"""`chameleon demo` and `chameleon demo pictures`: the project's commands one after another, then a report.

Finished stages are reused if their configs and inputs are the same. Interrupted training is resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_jax.chameleon import Chameleon, load
from chameleon_jax.config import (
    ConfigError,
    DemoCommand,
    EvaluationConfig,
    PicturesDemoCommand,
    PicturesEvaluationConfig,
    TrainConfig,
    find_configs,
    read_config,
)
from chameleon_jax.project.stages import Stage, Stages, peak_memory_gib, training_stages
from chameleon_jax.runtime.cloud import is_cloud
from chameleon_jax.runtime.files import write_json
from chameleon_jax.runtime.folders import Kind
from chameleon_jax.runtime.progress import console
from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand

REPORT = Kind("a report of the demo", lambda path: b"Chameleon" in path.read_bytes())

Write = Callable[[Path, Chameleon, TrainConfig, Any, dict[str, float], dict[str, Any]], None]
"""Writes a report: its path, the model, how it was trained, the evaluation, all metrics, the stages."""


class Recipes(NamedTuple):
    text: TextTokenizerCommand
    image: ImageTokenizerCommand
    prepare: PrepareCommand
    train: TrainConfig
    evaluation: Any


def run_demo(command: DemoCommand) -> dict[str, Any]:
    """Trains tokenizers and model on digits and prose, evaluates them on held-out data, and writes metrics.json and
    report.html.

    Returns:
      the contents of metrics.json.
    """
    folder, recipes = _read_recipes(command, "demo", EvaluationConfig)
    for name in ("python_reference", "python_stdlib"):
        if name not in [source.name for source in recipes.prepare.held_out]:
            raise ConfigError(f"{folder}/prepare.yaml: held_out: the demo measures {name}, which is not listed")

    def evaluate(model: Chameleon) -> tuple[Any, Write]:
        from chameleon_jax.demo.digits.evaluate import evaluate
        from chameleon_jax.demo.digits.report import write_report
        from data_pipeline.loader import PreparedData

        data = PreparedData(recipes.train.data)
        return evaluate(model, data, recipes.evaluation, recipes.prepare.datasets), write_report

    return _run(command, "`chameleon demo`", recipes, evaluate)


def run_pictures(command: PicturesDemoCommand) -> dict[str, Any]:
    """The same as `run_demo`, on OpenMoji's pictures and their names in fourteen languages."""
    _, recipes = _read_recipes(command, "showcase", PicturesEvaluationConfig)

    def evaluate(model: Chameleon) -> tuple[Any, Write]:
        from chameleon_jax.demo.pictures.evaluate import evaluate
        from chameleon_jax.demo.pictures.report import write_report

        return evaluate(model, recipes.evaluation, recipes.prepare.datasets), write_report

    return _run(command, "`chameleon demo pictures`", recipes, evaluate)


def _read_recipes(command: DemoCommand, name: str, evaluation: type) -> tuple[Path, Recipes]:
    """The folder of the recipes, and all of them, so that a mistake in the last is found at once. Whatever they say,
    everything goes into the folder of the demo."""
    if is_cloud(command.output):
        raise ConfigError(f"output = {command.output!r}: the demo needs a folder on this machine")
    output, folder = Path(command.output), Path(command.recipes) if command.recipes else find_configs() / name
    text, image, rows, datasets = (output / each for each in ("text.model", "image_tokenizer", "rows", "datasets"))

    def recipe(cls: type, name: str, **overrides: Path) -> Any:
        return read_config(cls, folder / f"{name}.yaml", {key: str(path) for key, path in overrides.items()})

    recipes = Recipes(
        recipe(TextTokenizerCommand, "text_tokenizer", output=text, datasets=datasets),
        recipe(ImageTokenizerCommand, "image_tokenizer", output=image, datasets=datasets),
        recipe(PrepareCommand, "prepare", text_tokenizer=text, image_tokenizer=image, output=rows, datasets=datasets),
        recipe(TrainConfig, "train", data=rows, output=output / "run"),
        recipe(evaluation, "evaluation"),
    )
    sources = [source.name for source in recipes.prepare.sources]
    if not recipes.train.stages:  # which `chameleon train` would only say when the tokenizers are trained
        raise ConfigError(f"{folder}/train.yaml: stages: must list a mixture of {', '.join(sources)}")
    return folder, recipes


def _run(
    command: DemoCommand, name: str, recipes: Recipes, evaluate: Callable[[Chameleon], tuple[Any, Write]]
) -> dict[str, Any]:
    output = Path(command.output)
    stages = Stages(output, name)
    report = output / "report.html"
    judge = Stage(
        "judge and report", recipes.evaluation, report, REPORT,
        lambda: _judge(output, recipes.train, stages.done, evaluate),
    )  # fmt: skip
    *training, _ = recipes
    metrics = stages.run([*training_stages(*training), judge], command.fresh)
    console.print(f"\nOpen {report} in a browser.\n", style="bold")
    return metrics


def _judge(
    output: Path, train: TrainConfig, stages: dict[str, Any], evaluate: Callable[[Chameleon], tuple[Any, Write]]
) -> dict[str, Any]:
    began, cpu_began = time.monotonic(), time.process_time()
    model = load(train.output)
    evaluation, write_report = evaluate(model)
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
