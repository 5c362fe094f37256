"""Metrics to TensorBoard and to Weights & Biases, beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from chameleon_jax.config import TrainConfig, to_dict


class Tracker(Protocol):
    """Something that takes figures by name; `close` writes out what is still in memory."""

    def write(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested figures with one name each: {"held_out": {"digits": {"loss": 2.0}}} gives ("held_out/digits/loss", 2.0).

    The items of a list are numbered from 00, as layers are.
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

    def __init__(self, config: TrainConfig):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(config.output) / "tensorboard"), max_queue=1000, flush_secs=30)

    def write(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project WANDB_PROJECT (default: chameleon_jax). A run that goes on is continued there too."""

    def __init__(self, config: TrainConfig):
        import os

        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "chameleon_jax"),
            id=str(Path(config.output).absolute()).replace("/", "-").strip("-")[-100:],
            resume="allow",
            config=to_dict(config),
            dir=config.output,
        )

    def write(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(config: TrainConfig) -> list[Tracker]:
    """Those that the config names.

    Raises:
      ModuleNotFoundError: if the package of one is not installed.
    """
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [kinds[name](config) for name in config.trackers]
