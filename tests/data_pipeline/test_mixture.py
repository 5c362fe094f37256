"""The rows of a run are a pure function of their number."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from chameleon_jax.config import ConfigError, StageConfig
from data_pipeline.mixture import BLOCK, Mixture, shuffled, token_shares

POOLS = {
    "apples": {"rows": 300, "tokens": 300 * 100},
    "pears": {"rows": 110, "tokens": 110 * 50},
    "plums": {"rows": 500, "tokens": 500 * 100},
}


def everything(stages: list[StageConfig], rows: int, seed: int = 0, pools: dict = POOLS) -> list[tuple[str, int]]:
    mixture = Mixture(pools, stages, rows, seed)
    found, numbers = mixture.rows(np.arange(rows))
    return [(mixture.pools[pool], number) for pool, number in zip(found.tolist(), numbers.tolist(), strict=True)]


def of(name: str, rows: list[tuple[str, int]]) -> list[int]:
    return [number for pool, number in rows if pool == name]


def test_row_depends_on_its_number_only():
    stages = [StageConfig(0.7, {"apples": 2, "pears": 1}), StageConfig(0.3, {"plums": 1})]
    rows, mixture = everything(stages, 2000), Mixture(POOLS, stages, 2000, 0)
    order = np.random.default_rng(0).permutation(2000)
    for part in np.array_split(order, 7):
        found, numbers = mixture.rows(part)
        assert [(mixture.pools[pool], number) for pool, number in zip(found, numbers, strict=True)] == [
            rows[number] for number in part
        ]


def test_shares_of_tokens_follow_the_weights_everywhere():
    weights = {"apples": 5, "pears": 1, "plums": 4}  # a row of pears has half the tokens, so twice the rows
    rows = everything([StageConfig(1, weights)], 1100)
    for begin in range(0, 1100, 110):
        counts = Counter(name for name, _ in rows[begin : begin + 110])
        assert counts == pytest.approx({"apples": 50, "pears": 20, "plums": 40}, abs=1.5)


def test_pattern_continues_over_blocks():
    pools = {"a": {"rows": 10**6, "tokens": 10**6}, "b": {"rows": 10**6, "tokens": 10**6}}
    mixture = Mixture(pools, [StageConfig(1, {"a": 2, "b": 1})], 3 * BLOCK, 0)
    found, _ = mixture.rows(np.arange(BLOCK - 3000, BLOCK + 3000))
    assert np.bincount(found).tolist() == pytest.approx([4000, 2000], abs=2)
    assert mixture.count().tolist() == [pytest.approx([2 * BLOCK, BLOCK], abs=3)]


def test_pool_of_weight_zero_is_not_read():
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


@pytest.mark.parametrize(
    "stages",
    [
        [StageConfig(0.8, {"apples": 1}), StageConfig(0.2, {"apples": 1})],
        [StageConfig(0.3, {"apples": 1, "plums": 1}), StageConfig(0.5, {"plums": 3, "apples": 1}),
         StageConfig(0.2, {"apples": 1})],
    ],
)  # fmt: skip
def test_epoch_over_several_stages_reads_each_row_once(stages):
    rows = everything(stages, 1000)
    order = of("apples", rows)
    passes = [order[begin : begin + 300] for begin in range(0, len(order) - 299, 300)]
    assert passes
    for each in passes:
        assert sorted(each) == list(range(300))
    assert len({tuple(each) for each in passes}) == len(passes)


def test_other_pools_and_stages_leave_the_order_of_a_pool():
    alone = of("pears", everything([StageConfig(1, {"pears": 1})], 500))
    for stages in (
        [StageConfig(1, {"apples": 1, "pears": 1, "plums": 3})],
        [StageConfig(0.5, {"pears": 1, "apples": 1}), StageConfig(0.5, {"plums": 1, "pears": 2})],
    ):
        order = of("pears", everything(stages, 500))
        assert order == alone[: len(order)]


def test_each_seed_has_another_order():
    orders = {shuffled(np.arange(40), 64, f"{seed}/web/0").tobytes() for seed in range(10_001)}
    assert len(orders) == 10_001
    stage = [StageConfig(1, {"apples": 1, "plums": 1})]
    assert len({tuple(everything(stage, 60, seed)) for seed in (0, 1, 2, 1000, 2**63 - 1)}) == 5


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1000, 4097])
def test_shuffle_is_a_permutation(size):
    order = shuffled(np.arange(size), size, "key")
    assert sorted(order.tolist()) == list(range(size))
    assert shuffled(np.arange(size)[::-1], size, "key").tolist() == order[::-1].tolist()


def test_shuffle_prefers_no_place():
    """Chi-squared, of where the first of 50 goes and how far from the second; its mean is 49, its standard deviation
    10."""
    orders = np.stack([shuffled(np.arange(2), 50, f"{seed}/pool/0") for seed in range(2000)])
    distance = (orders[:, 1] - orders[:, 0]) % 50
    for counts in (np.bincount(orders[:, 0], minlength=50), np.bincount(distance, minlength=50)[1:]):
        expected = 2000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 100


def test_memory_does_not_grow_with_the_rows():
    pools = {"web": {"rows": 10**9, "tokens": 4 * 10**12}}
    mixture = Mixture(pools, [StageConfig(1, {"web": 1})], 10**10, 0)
    _, numbers = mixture.rows(np.arange(10**10 - 1000, 10**10))
    assert len(set(numbers.tolist())) == 1000
    assert 0 <= numbers.min() < numbers.max() < 10**9


def test_what_was_not_prepared_is_named():
    stages = [StageConfig(0.5, {"apples": 1}), StageConfig(0.5, {"aples": 1})]
    with pytest.raises(ConfigError, match=r"stages\.1\.weights\.aples: .* it has apples, pears, plums"):
        Mixture(POOLS, stages, 10, 0)
    with pytest.raises(ConfigError, match=r"stages\.0\.weights\.pears = 1e-06: is less than one of 65536 rows"):
        Mixture(POOLS, [StageConfig(1, {"apples": 1, "pears": 1e-6})], 10, 0)


def test_more_epochs_than_allowed_are_refused_with_the_figures():
    mixture = Mixture(POOLS, [StageConfig(1, {"apples": 1, "plums": 1})], 1000, 0)
    mixture.check_epochs({"apples": 1.7, "plums": 1})
    with pytest.raises(ConfigError, match=r"max_epochs\.apples = 1\.5: .* 1\.67 epochs of it \(500 rows, it has 300\)"):
        mixture.check_epochs({"plums": 1, "apples": 1.5})
    with pytest.raises(
        ConfigError, match=r"max_epochs\.pears = 1: no stage reads such a pool; they read apples, plums"
    ):
        mixture.check_epochs({"pears": 1})


def test_shares_of_tokens_by_stage_pool_and_source():
    web = {
        "rows": 100, "tokens": 1000, "sources": {
            "text": {"share": 0.75, "tokens": 760, "text_tokens": 750, "image_tokens": 0},
            "pairs": {"share": 0.25, "tokens": 240, "text_tokens": 40, "image_tokens": 190},
        },
    }  # fmt: skip
    chat = {"rows": 50, "tokens": 1000, "text_tokens": 900, "image_tokens": 50}
    pools, stages = {"web": web, "chat": chat}, [StageConfig(0.5, {"web": 1}), StageConfig(0.5, {"web": 1, "chat": 1})]
    mixture = Mixture(pools, stages, 300, 0)
    found = token_shares(pools, stages, mixture)
    assert [(each.stage, each.pool, each.source) for each in found] == [
        (stage, *of) for stage in (0, 1) for of in (("chat", "chat"), ("web", "text"), ("web", "pairs"))
    ]
    assert [each.expected for each in found] == pytest.approx([0, 0.75, 0.25, 0.5, 0.375, 0.125])
    assert [each.actual for each in found] == pytest.approx([0, 0.76, 0.24, 0.5, 0.38, 0.12])
    assert [each.tokens for each in found] == pytest.approx([0, 1140, 360, 1000, 760, 240])
    assert [each.image for each in found] == pytest.approx([0, 0, 285, 50, 0, 190])
    assert [each.epochs for each in found] == pytest.approx([0, 1.5, 1.5, 1, 1, 1])
    half = token_shares(pools, stages, mixture, until=75)
    assert [each.tokens for each in half] == pytest.approx([0, 570, 180, 0, 0, 0])
