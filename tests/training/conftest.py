"""A tiny run: its config, and batches that are a function of their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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

VOCABULARY, FIRST_IMAGE_ID, LENGTH, ROWS = 32, 20, 12, 8


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


@pytest.fixture(scope="session")
def tiny():
    return TinyRun


@pytest.fixture(scope="session")
def compiled_steps() -> dict:
    """Compiled steps by what they depend on."""
    return {}


@pytest.fixture
def compiled_once(monkeypatch, compiled_steps) -> None:
    """Runs of one program share what is compiled, which is most of the time that they take."""
    from chameleon_jax.training import loop

    made = compiled_steps
    unrelated = ("output", "data", "checkpoint", "log_every", "evaluate_every", "trackers", "samples")

    def shared(make: Callable) -> Callable:
        def look_up(config: TrainConfig, *rest):
            values = {**to_dict(config), **dict.fromkeys(unrelated)}
            values["bad_steps"] = config.bad_steps.gradient_norm
            if config.optimizer.schedule == "constant":
                values["steps"] = None
            key = make, str(values), *(each.tobytes() if isinstance(each, np.ndarray) else each for each in rest)
            if key not in made:
                made[key] = make(config, *rest)
            return made[key]

        return look_up

    for name in ("make_train_step", "make_evaluation_step", "make_signals"):
        monkeypatch.setattr(loop, name, shared(getattr(loop, name)))
