"""Which stages are done again when their configs change."""

from __future__ import annotations

import dataclasses

import pytest

from chameleon_jax.project.stages import Stage, Stages
from chameleon_jax.runtime.folders import Kind
from chameleon_jax.training.run_folder import RUN

WRITTEN = Kind("a text of this test", lambda path: True)


def config(name: str, **values):
    """A config class with these fields and defaults, and one required field."""
    fields = [("size", int), *((key, type(value), dataclasses.field(default=value)) for key, value in values.items())]
    return dataclasses.make_dataclass(name, fields)


OLD = config("Recipe", rate=0.5)
NEW = config("Recipe", rate=0.5, noise=0.0)


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ({"a": [OLD(3)]}, {"a": [NEW(3)]}, False),  # a newer version knows one more key
        (OLD(3), OLD(3, rate=0.5), False),
        (OLD(3), NEW(3, noise=0.1), True),
        (OLD(3), OLD(4), True),
        (OLD(3), config("Other", rate=0.5)(3), True),  # other defaults, perhaps
        (OLD(3, rate=0.1), NEW(3), True),
        ({"a": OLD(3)}, {"b": OLD(3)}, True),
        ("text", "texts", True),
    ],
)
def test_a_stage_is_done_again_if_its_config_says_something_else(tmp_path, before, after, again):
    done = []

    def work() -> dict[str, int]:
        done.append("x")
        (tmp_path / "product").write_text("made")
        return {"times": len(done)}

    for value in (before, before, after):
        figures = Stages(tmp_path, "this test").run([Stage("write", value, tmp_path / "product", WRITTEN, work)], False)
    assert (len(done), figures) == (1 + again, {"times": 1 + again})


def test_time_before_a_stop_counts(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("chameleon_jax.project.stages.time.monotonic", lambda: next(clock))
    run = tmp_path / "run"

    def train(stops: bool) -> dict[str, int]:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        if stops:
            raise KeyboardInterrupt
        (run / "model").mkdir()
        return {}

    def seconds(stops: bool) -> float:
        stages = Stages(tmp_path, "this test")
        try:
            stages.run([Stage("train", OLD(3), run, RUN, lambda: train(stops))], False)
        except KeyboardInterrupt:
            assert stops
        return Stages(tmp_path, "this test").done["train"]["seconds"]

    assert [seconds(True), seconds(True), seconds(False)] == [20, 40, 60]


def test_training_goes_on_if_its_model_is_gone(tmp_path):
    run, found = tmp_path / "run", []

    def train() -> dict[str, int]:
        found.append((run / "checkpoints").exists())
        for name in ("checkpoints", "model"):
            (run / name).mkdir(parents=True, exist_ok=True)
        return {}

    def stages() -> Stages:
        stages = Stages(tmp_path, "this test")
        stages.run([Stage("train", OLD(3), run, RUN, train)], False)
        return stages

    assert not stages().done["train"]["continued"]
    (run / "model").rmdir()
    assert stages().done["train"]["continued"]
    stages()
    assert found == [False, True]
