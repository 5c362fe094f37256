"""`chameleon demo`: runs the project's commands one after another, then evaluates the model and writes a report.

Finished stages are reused if their configs and inputs are the same. Interrupted training is resumed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from chameleon_jax.chameleon import load
from chameleon_jax.config import ConfigError, DemoCommand, EvaluationConfig, TrainConfig, find_configs, read_config
from chameleon_jax.project.stages import Stage, Stages, peak_memory_gib, training_stages
from chameleon_jax.runtime.cloud import is_cloud
from chameleon_jax.runtime.files import write_json
from chameleon_jax.runtime.folders import Kind
from chameleon_jax.runtime.progress import console
from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand

REPORT = Kind("a report of the demo", lambda path: b"Chameleon" in path.read_bytes())


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

    stages = Stages(output, "`chameleon demo`")
    report = output / "report.html"
    judge = Stage(
        "judge and report", evaluation_config, report, REPORT,
        lambda: _judge(output, prepare, train, evaluation_config, stages.done),
    )  # fmt: skip
    metrics = stages.run([*training_stages(text, image, prepare, train), judge], command.fresh)
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
