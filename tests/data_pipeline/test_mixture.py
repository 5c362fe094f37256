"""The rows of a run are a pure function of their number."""

from __future__ import annotations

from collections import Counter

import grain
import numpy as np
import pytest

from chameleon_jax.config import ConfigError, StageConfig
from data_pipeline.mixture import mix

SIZES = {"apples": 30, "pears": 11, "plums": 50}


def sources() -> dict[str, grain.MapDataset]:
    return {name: grain.MapDataset.source([(name, row) for row in range(size)]) for name, size in SIZES.items()}


def everything(stages: list[StageConfig], rows: int, seed: int = 0) -> list[tuple[str, int]]:
    dataset = mix(sources(), stages, rows, seed)
    assert len(dataset) == rows
    return [tuple(dataset[index]) for index in range(rows)]


def test_row_depends_on_its_number_only():
    stages = [StageConfig(0.7, {"apples": 2, "pears": 1}), StageConfig(0.3, {"plums": 1})]
    rows = everything(stages, 200)
    again = mix(sources(), stages, 200, 0)
    for index in np.random.default_rng(0).permutation(200):
        assert tuple(again[int(index)]) == rows[index]


def test_shares_follow_the_weights():
    weights = {"apples": 5, "pears": 1, "plums": 4}
    counts = Counter(name for name, _ in everything([StageConfig(1, weights)], 1000))
    for name, weight in weights.items():
        assert abs(counts[name] - 100 * weight) <= 5


def test_source_of_weight_zero_is_not_read():
    names = {name for name, _ in everything([StageConfig(1, {"apples": 0, "pears": 1})], 100)}
    assert names == {"pears"}


def test_second_stage_begins_after_the_share_of_the_first():
    rows = everything([StageConfig(0.8, {"apples": 1, "pears": 1}), StageConfig(0.2, {"plums": 1})], 250)
    names = [name for name, _ in rows]
    assert set(names[:200]) == {"apples", "pears"}
    assert set(names[200:]) == {"plums"}


def test_stages_whose_shares_do_not_divide_fill_the_run():
    stages = [StageConfig(1 / 3, {"apples": 1}), StageConfig(1 / 3, {"pears": 1}), StageConfig(1 / 3, {"plums": 1})]
    names = [name for name, _ in everything(stages, 100)]
    assert Counter(names) == {"apples": 33, "pears": 34, "plums": 33}
    assert names == sorted(names)


def test_every_pass_reads_each_row_once_in_another_order():
    rows = [row for _, row in everything([StageConfig(1, {"apples": 1})], 90)]
    passes = [rows[start : start + 30] for start in (0, 30, 60)]
    for each in passes:
        assert sorted(each) == list(range(30))
    assert len({tuple(each) for each in passes}) == 3


def test_seed_changes_the_order():
    stage = [StageConfig(1, {"apples": 1, "plums": 1})]
    assert everything(stage, 60, seed=0) != everything(stage, 60, seed=1)


def test_source_that_was_not_prepared_is_named():
    stages = [StageConfig(0.5, {"apples": 1}), StageConfig(0.5, {"aples": 1})]
    with pytest.raises(ConfigError, match=r"stages\.1\.weights\.aples: .* it has apples, pears, plums"):
        mix(sources(), stages, 10, 0)
