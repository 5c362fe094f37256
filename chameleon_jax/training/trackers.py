"""Sends metrics to TensorBoard and Weights & Biases, besides metrics.jsonl."""

from __future__ import annotations

import html
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from chameleon_jax.config import RunConfig, to_dict
from chameleon_jax.runtime.cloud import as_path, is_cloud
from chameleon_jax.runtime.files import absolute, write_text
from chameleon_jax.training.samples import Sample


class Tracker(Protocol):
    """Receives metrics by name. `close` writes whatever is still buffered."""

    def write(self, step: int, figures: dict[str, float]) -> None: ...

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None: ...

    def close(self) -> None: ...


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Flattens nested metrics: {"held_out": {"digits": {"loss": 2.0}}} gives ("held_out/digits/loss", 2.0).

    Items of a list are numbered from 00, like layers.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield from flat({f"{place:02d}": item for place, item in enumerate(value)}, f"{prefix}{name}/")
        else:
            yield prefix + name, float(value)


class TensorBoard:
    """Event files in `<output>/tensorboard`, for `tensorboard --logdir`."""

    def __init__(self, config: RunConfig):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(as_path(config.output) / "tensorboard"), max_queue=1000, flush_secs=30)

    def write(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        for name, segment in _named(samples):
            if isinstance(segment, str):
                self._writer.add_text(name, segment, step)
            else:
                self._writer.add_image(name, np.asarray(segment.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project WANDB_PROJECT (default: chameleon_jax), resumed when training is.

    Its id is random and stored in `<output>/wandb_id`, so that runs of several people do not collide; its name is that
    of the folder.
    """

    def __init__(self, config: RunConfig):
        import os

        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "chameleon_jax"),
            id=_run_id(as_path(config.output)),
            name="/".join(absolute(config.output).parts[-2:]),
            resume="allow",
            config=to_dict(config),
            dir=None if is_cloud(config.output) else config.output,
        )

    def write(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        shown = {
            name: self._wandb.Html(f"<pre>{html.escape(segment)}</pre>")
            if isinstance(segment, str)
            else self._wandb.Image(segment)
            for name, segment in _named(samples)
        }
        self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


def _run_id(output: Path) -> str:
    """The run's id at Weights & Biases, generated at the first start."""
    path = output / "wandb_id"
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    if (output / "wandb").is_dir():  # older versions derived the id from the path
        run_id = str(output.absolute()).replace("/", "-").strip("-")[-100:]
    else:
        run_id = secrets.token_hex(8)
    write_text(path, run_id + "\n")
    return run_id


def _named(samples: Sequence[Sample]) -> Iterator[tuple[str, Any]]:
    """The segments of the samples with names: "samples/01-1" is the first segment of the first sample."""
    for number, sample in enumerate(samples, start=1):
        for place, segment in enumerate(sample.document, start=1):
            yield f"samples/{number:02d}-{place}", segment


def open_trackers(config: RunConfig) -> list[Tracker]:
    """The trackers that the config names.

    Raises:
      ModuleNotFoundError: if the package of one is not installed.
    """
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [kinds[name](config) for name in config.trackers]
