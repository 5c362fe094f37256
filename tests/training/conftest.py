"""A tiny run: its config, and batches that are a function of their number."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from chameleon_jax.batch import Batch
from chameleon_jax.config import (
    CheckpointConfig,
    MeshConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
    TransformerConfig,
    from_dict,
    to_dict,
)
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training import loop, state, step
from chameleon_jax.training.transformer import TransformerTask

VOCABULARY, FIRST_IMAGE_ID, LENGTH, ROWS = 32, 20, 12, 8
UNRELATED = ("output", "data", "checkpoint", "log_every", "evaluate_every", "trackers", "samples", "fresh_image_head")
"""Keys of a config on which no program depends."""


def once(make: Callable) -> Callable:
    """`make`, called once for all configs that lead to the same program or numbers."""
    made: dict = {}

    @functools.wraps(make)
    def look_up(task: TransformerTask, *rest):
        config = task.config
        values = {**to_dict(config), **dict.fromkeys(UNRELATED)}
        values["bad_steps"] = config.bad_steps.gradient_norm
        if config.optimizer.schedule == "constant":
            values["steps"] = None
        key = str(values), None if task.is_image_id is None else task.is_image_id.tobytes(), *rest
        if key not in made:
            made[key] = make(task, *rest)
        return made[key]

    return look_up


@once
def first_arrays(task: TransformerTask) -> state.TrainState:
    return jax.tree.map(np.array, state.init_state(task, make_mesh(MeshConfig(data=1), jax.devices()[:1])))


class TinyRun:
    """Things that most tests of training need, as methods so that each test can say what differs."""

    is_image_id = np.arange(VOCABULARY) >= FIRST_IMAGE_ID

    @staticmethod
    def config(output: str = "", /, **changes) -> TrainConfig:
        """`changes` by dotted key, dots written as two underscores: `model__d_model=8`."""
        config = TrainConfig(
            data="none",
            output=str(output),
            model=TransformerConfig(
                vocab_size=VOCABULARY, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24
            ),
            steps=8,
            batch_size=ROWS,
            stages=(StageConfig(1.0, {"all": 1.0}),),
            optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=2),
            mesh=MeshConfig(),
            checkpoint=CheckpointConfig(every=2, keep=3),
            log_every=1,
        )
        values = to_dict(config)
        for key, value in changes.items():
            *parents, name = key.split("__")
            place = values
            for parent in parents:
                place = place[parent]
            place[name] = value
        return from_dict(TrainConfig, values)

    @classmethod
    def task(cls, config: TrainConfig) -> TransformerTask:
        return TransformerTask(config, cls.is_image_id)

    @staticmethod
    def batch(number: int = 0) -> Batch:
        """Rows of two documents and some padding; the first token of each document does not count."""
        rng = np.random.default_rng(number)
        ids = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
        first, second = rng.integers(3, 7, ROWS), rng.integers(2, 5, ROWS)
        place = np.arange(LENGTH)[None]
        segments = (place < first[:, None]).astype(np.int32)
        segments += 2 * ((place >= first[:, None]) & (place < (first + second)[:, None]))
        positions = np.where(segments == 2, place - first[:, None], place) * (segments > 0)
        weights = (segments > 0) & (positions > 0)
        return Batch(
            ids[:, :-1], ids[:, 1:], weights.astype(np.float32), positions.astype(np.int32), segments.astype(np.int32)
        )

    @classmethod
    def batches(cls, start: int, rows: np.ndarray = slice(None)) -> Iterator[Batch]:
        while True:
            yield Batch(*(values[rows] for values in cls.batch(start)))
            start += 1

    make_train_step = staticmethod(once(step.make_train_step))
    make_evaluation_step = staticmethod(once(step.make_evaluation_step))
    make_signals = staticmethod(once(step.make_signals))

    @staticmethod
    def init_state(task: TransformerTask, mesh: jax.sharding.Mesh, params: Any = None) -> state.TrainState:
        """A state before the first step, whose numbers are drawn once and put on each mesh."""
        if params is not None:
            return state.init_state(task, mesh, params)
        return jax.device_put(first_arrays(task), state.state_shardings(task, mesh))

    @classmethod
    @contextlib.contextmanager
    def compiled_once(cls) -> Iterator[None]:
        """Runs of one program share what is compiled and drawn, which is most of the time that they take."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("make_train_step", "make_evaluation_step", "make_signals", "init_state"):
                patch.setattr(loop, name, getattr(cls, name))
            yield


@pytest.fixture(scope="session")
def tiny():
    return TinyRun


@pytest.fixture
def compiled_once() -> Iterator[None]:
    with TinyRun.compiled_once():
        yield
