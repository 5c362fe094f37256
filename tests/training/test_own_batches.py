"""Someone's own Batches can be trained on, with `train` or with a loop of their own, and end in a model that opens."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from chameleon_jax.config import ConfigError
from chameleon_jax.training import read_metrics, train
from chameleon_jax.training.transformer import TransformerTask

GUIDE = Path(__file__).parents[2] / "docs" / "training_from_python.md"


def assert_same_trees(left, right) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.slow
def test_guide_to_training_from_python(tmp_path, monkeypatch, compiled_once):
    """Its code runs as it stands: own Batches, a model that opens, an own loop that ends in the same parameters."""
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(block, found)
    assert_same_trees(found["model"].params, found["params"])
    assert_same_trees(found["own_state"].params, found["params"])
    assert [line["step"] for line in read_metrics(tmp_path / "out/mine/metrics.jsonl")] == [1, 2, 3, 4]

    # What the guide says about going on, and about held-out batches.
    batches = list(found["own_batches"](4))

    def broken():
        yield from batches[:2]
        raise OSError("the network is gone")

    config = dataclasses.replace(found["config"], output="out/resumed")
    with pytest.raises(OSError, match="the network is gone"):
        train(TransformerTask(config), broken())
    resumed = train(TransformerTask(config), iter(batches), held_out={"first": batches[:1]})
    assert_same_trees(resumed.params, found["params"])
    losses = read_metrics(tmp_path / "out/resumed/metrics.jsonl")[-1]["held_out"]["first"]
    assert losses["loss"] == losses["text_loss"] > 0

    with pytest.raises(ConfigError, match=r"^batch_size = 8: batch 0, counted from 0, has 6 rows$"):
        train(TransformerTask(dataclasses.replace(config, output="out/wrong")), found["own_batches"](1, rows=6))
