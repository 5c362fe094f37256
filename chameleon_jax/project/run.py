"""`chameleon run`: all stages of a folder that `chameleon init` wrote, and a page at the end."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_jax.chameleon import load
from chameleon_jax.config import RunCommand, TrainConfig, read_config
from chameleon_jax.errors import FileError
from chameleon_jax.project.init import COMMANDS, MARKER
from chameleon_jax.project.stages import Stage, Stages, training_stages
from chameleon_jax.runtime.folders import Kind, read_marker
from chameleon_jax.runtime.progress import console
from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand

PAGE = Kind("a page of `chameleon run`", lambda path: b"chameleon run" in path.read_bytes())


class Project(NamedTuple):
    """The four YAML files of a folder."""

    text: TextTokenizerCommand
    image: ImageTokenizerCommand | None
    prepare: PrepareCommand
    train: TrainConfig


def run(command: RunCommand, *, folder: str) -> dict[str, Any]:
    """Trains the tokenizers and the model, and writes report.html. Finished stages are skipped, unless their YAML
    files or the files of their sources have changed. Returns figures of the model."""
    root = Path(folder).absolute()
    project = open_project(root)
    stages = Stages(root, "`chameleon run`", [MARKER, *(f"{name}.yaml" for name in COMMANDS)])
    report = root / "report.html"
    page = Stage(
        "look at the result", {"samples": command.samples}, report, PAGE,
        lambda: _report(report, project, command.samples, stages.done),
    )  # fmt: skip
    figures = stages.run([*training_stages(*project, data=_identities(project)), page], command.fresh)
    console.print(f"\nOpen {report} in a browser.\n", style="bold")
    return figures


def open_project(root: Path) -> Project:
    """Reads the YAML files of a folder; whatever they say, all results go into this folder.

    Raises:
      FileError: if `chameleon init` did not write the folder.
      ConfigError: naming the first mistake in one of them.
    """
    if not read_marker(root / MARKER):
        raise FileError(f"{root}: `chameleon init` did not write this folder; begin with it")

    def read(name: str, **places: str) -> Any:
        path = root / f"{name}.yaml"
        config = read_config(COMMANDS[name], path)
        for key, place in places.items():
            if Path(getattr(config, key)).absolute() != root / place:
                console.print(f"note: {path}: {key}: {root / place} is used instead of {getattr(config, key)}")
        return dataclasses.replace(config, **{key: str(root / place) for key, place in places.items()})

    has_pictures = (root / "train-image-tokenizer.yaml").exists()
    image = {"image_tokenizer": "image_tokenizer"} if has_pictures else {}
    return Project(
        read("train-text-tokenizer", output="text.model"),
        read("train-image-tokenizer", output="image_tokenizer") if has_pictures else None,
        read("prepare", text_tokenizer="text.model", **image, output="rows"),
        read("train", data="rows", output="run"),
    )


def _identities(project: Project) -> list[Any]:
    """Plain data that changes when the files of a source do."""
    groups = [project.text.sources, project.prepare.sources, project.prepare.held_out]
    if project.image:
        groups += [project.image.sources, project.image.held_out]
    known: dict[str, Any] = {}
    for source in (source for group in groups for source in group):
        key = repr(dataclasses.replace(source, part="all", name="same"))
        if key not in known:
            known[key] = [[shard.name, shard.identity] for shard in source.shards(project.prepare.datasets)]
    return list(known.values())


def _report(path: Path, project: Project, samples: int, stages: dict[str, Any]) -> dict[str, Any]:
    from chameleon_jax.console.data import of_run, of_sources, write_page
    from chameleon_jax.project.page import write_report
    from data_pipeline.loader import PreparedData

    began = time.monotonic()
    data = PreparedData(project.train.data)
    write_page(path.with_name("data.html"), data, [of_sources(data), *of_run(data, project.train)], samples=4)
    model = load(project.train.output)
    figures = write_report(path, model, project, samples, stages)
    done = [stage for stage in stages.values() if stage["finished"]]
    minutes = (sum(stage["seconds"] for stage in done) + time.monotonic() - began) / 60
    return {**figures, "minutes": round(minutes, 1), "page": str(path), "rows": str(path.with_name("data.html"))}
