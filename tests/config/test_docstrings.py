"""The texts below the fields of configs are part of what `help` shows."""

from __future__ import annotations

import inspect
import pydoc

import pytest

from chameleon_jax.config import CheckpointConfig, OptimizerConfig, TrainConfig
from chameleon_jax.config import docstrings as module
from chameleon_jax.config.reading import config
from data_pipeline import ConversationsSource


def shown(cls: type) -> str:
    return " ".join(pydoc.plain(pydoc.render_doc(cls)).replace("|", " ").split())


def test_help_explains_the_keys():
    text = shown(OptimizerConfig)
    assert "Optimizer and learning-rate schedule. The defaults are the paper's pre-training recipe" in text
    assert "clip_norm (float = 1.0): Gradients are clipped to this global norm." in text
    assert "keep (int = 3): Number of newest checkpoints to keep." in shown(CheckpointConfig), (
        "without a docstring of its own"
    )


def test_types_are_shown_as_people_write_them():
    text = " ".join(inspect.getdoc(TrainConfig).split())
    assert "steps (int): Total number of updates." in text
    assert "stages (tuple[StageConfig, ...] = ()): " in text
    assert "trackers (tuple[Literal['tensorboard', 'wandb'], ...] = ()): " in text
    assert "sequence_length (int | None = None): " in text


def test_help_explains_the_keys_that_are_inherited():
    text = shown(ConversationsSource)
    assert "path (str = ''): The file, a folder of such files, or a pattern" in text
    assert text.index("What the mixture calls the source") < text.index("Weight of the prompts in the loss")


def test_class_without_source_keeps_its_docstring():
    namespace = {"config": config}
    exec("@config\nclass Typed:\n    'Typed by hand.'\n    size: int = 1\n    'Not to be found.'\n", namespace)
    assert inspect.getdoc(namespace["Typed"]) == "Typed by hand."


def test_source_is_read_only_for_help(monkeypatch):
    monkeypatch.setattr(module.inspect, "getsource", lambda cls: pytest.fail("reads the source when a class is made"))

    @config
    class Own:
        """A config."""

        size: int = 1
        """In pixels."""

    assert Own(size=2) == Own(2)
