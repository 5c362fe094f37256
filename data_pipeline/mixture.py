"""Mixtures of pools of rows: which row of which pool each row of a run is, as a pure function of its number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from chameleon_jax.config import ConfigError, StageConfig, require, stage_ends

BLOCK = 1 << 16
"""Rows after which the pattern of pools begins again."""


class _Stage(NamedTuple):
    """The pattern of a stage: which pool each row of a block is from, with the same density everywhere."""

    begin: int  # number of its first row in the run
    end: int  # number of the first row after it
    pools: np.ndarray  # uint16 [BLOCK]
    ranks: np.ndarray  # int32 [BLOCK], the number of earlier rows of the block that are from the same pool
    block_rows: np.ndarray  # int64 [pools], rows of each pool in a block
    before: np.ndarray  # int64 [pools], rows of each pool in earlier stages


class Mixture:
    """The rows of a training run.

    The weights of a stage are in tokens; divided by the mean tokens in a row of each pool, they give its share of the
    rows. Every pool is read from its first row to its last in an order that depends on the seed, the name of the pool
    and the epoch alone. It continues over stages, so that a run which reads as many rows as a pool has reads each of
    them once, whatever its stages and the other pools are.

    Attributes:
      pools: names of the pools that the run reads.
    """

    def __init__(self, pools: Mapping[str, Mapping[str, Any]], stages: Sequence[StageConfig], rows: int, seed: int):
        """Makes the mixture of a run of `rows` rows.

        Args:
          pools: `rows` and `tokens` of each pool, as in dataset.json.
          stages: mixtures with their shares of all rows.
          seed: of the shuffling.

        Raises:
          ConfigError: if there is no stage, one names a pool that was not prepared, or a weight is too small.
        """
        require(len(stages) > 0, "stages", [], f"must list a mixture of the prepared pools: {', '.join(pools)}")
        for number, stage in enumerate(stages):
            for name in stage.weights:
                if name not in pools:
                    raise ConfigError(
                        f"stages.{number}.weights.{name}: the prepared data has no such pool; it has {', '.join(pools)}"
                    )
        self.pools = sorted({name for stage in stages for name, weight in stage.weights.items() if weight > 0})
        self._rows, self._seed, self._length = np.array([pools[name]["rows"] for name in self.pools]), seed, rows
        mean_tokens = np.array([pools[name]["tokens"] for name in self.pools]) / self._rows
        self._stages: list[_Stage] = []
        begin, before = 0, np.zeros(len(self.pools), np.int64)
        for number, (stage, end) in enumerate(zip(stages, stage_ends(stages, rows), strict=True)):
            weights = np.array([stage.weights.get(name, 0) for name in self.pools])
            block_rows = _apportion(weights / mean_tokens)
            for name, weight, of_block in zip(self.pools, weights.tolist(), block_rows, strict=True):
                require(
                    weight == 0 or of_block > 0,
                    f"stages.{number}.weights.{name}",
                    weight,
                    f"is less than one of {BLOCK} rows; leave the pool out, or give it more",
                )
            self._stages.append(_Stage(begin, end, *_pattern(block_rows), block_rows, before))
            before = before + self.count(end)[-1]
            begin = end

    def __len__(self) -> int:
        return self._length

    def count(self, until: int | None = None) -> np.ndarray:
        """How many of the first `until` rows of the run (None: of all) are from each pool, int64 `[stages, pools]`."""
        counts = []
        for stage in self._stages:
            end = stage.end if until is None else min(max(until, stage.begin), stage.end)
            blocks, rest = divmod(end - stage.begin, BLOCK)
            counts.append(blocks * stage.block_rows + np.bincount(stage.pools[:rest], minlength=len(self.pools)))
        return np.stack(counts)

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pool, as an index of `pools`, and the row in it of each of the rows `numbers` of the run.

        Args:
          numbers: int64 `[n]`, from 0 to `len(self) - 1`.
        """
        found, order = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        stages = np.searchsorted([stage.begin for stage in self._stages], numbers, side="right") - 1
        for stage_number in np.unique(stages):
            stage, here = self._stages[stage_number], stages == stage_number
            blocks, places = np.divmod(numbers[here] - stage.begin, BLOCK)
            pools = stage.pools[places].astype(np.int64)
            found[here] = pools
            order[here] = stage.before[pools] + blocks * stage.block_rows[pools] + stage.ranks[places]
        epochs, order = np.divmod(order, self._rows[found])
        for pool in np.unique(found).tolist():
            for epoch in np.unique(epochs[found == pool]).tolist():
                here = (found == pool) & (epochs == epoch)
                order[here] = shuffled(order[here], int(self._rows[pool]), f"{self._seed}/{self.pools[pool]}/{epoch}")
        return found, order

    def check_epochs(self, most: Mapping[str, float]) -> None:
        """Raises `ConfigError` if the run reads a pool more often than `most` allows."""
        for name, limit in most.items():
            known = f"no stage reads such a pool; they read {', '.join(self.pools)}"
            require(name in self.pools, f"max_epochs.{name}", limit, known)
            pool = self.pools.index(name)
            read, rows = int(self.count()[:, pool].sum()), int(self._rows[pool])
            figures = f"the run would read {read / rows:.2f} epochs of it ({read:,} rows, it has {rows:,})"
            advice = "lower its weights or the steps, prepare more of it, or raise the limit"
            require(read <= limit * rows, f"max_epochs.{name}", limit, f"{figures}; {advice}")


class TokenShare(NamedTuple):
    """Tokens of one source in one pool and stage, begin and end of sequence not counted."""

    stage: int
    pool: str
    source: str
    expected: float
    """Its share of the tokens of the stage by the weights."""
    actual: float
    """Its share by the rows that are read, with the mean tokens of the rows of a pool."""
    tokens: float
    text: float
    image: float
    epochs: float
    """How often the stage reads the pool."""


def token_shares(
    pools: Mapping[str, Mapping[str, Any]], stages: Sequence[StageConfig], mixture: Mixture, until: int | None = None
) -> list[TokenShare]:
    """What a run reads of each source, by stage.

    Args:
      pools: their entries in dataset.json.
      until: the number of rows that the run has read; None: all of it.
    """
    found = []
    for number, (stage, counts) in enumerate(zip(stages, mixture.count(until).tolist(), strict=True)):
        epochs = {name: rows / pools[name]["rows"] for name, rows in zip(mixture.pools, counts, strict=True)}
        total = sum(times * pools[name]["tokens"] for name, times in epochs.items())
        for name, times in epochs.items():
            weight = stage.weights.get(name, 0) / sum(stage.weights.values())
            for source, entry in pools[name].get("sources", {name: pools[name]}).items():
                tokens, text, image = (times * entry[key] for key in ("tokens", "text_tokens", "image_tokens"))
                expected = weight * entry.get("share", 1.0)
                found.append(
                    TokenShare(number, name, source, expected, tokens / max(total, 1), tokens, text, image, times)
                )
    return found


def _apportion(weights: np.ndarray) -> np.ndarray:
    """Divides a block among pools by the largest remainders, int64 `[pools]`."""
    exact = weights / weights.sum() * BLOCK
    rows = np.floor(exact).astype(np.int64)
    rows[np.argsort(rows - exact, kind="stable")[: BLOCK - rows.sum()]] += 1
    return rows


def _pattern(block_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pool of each row of a block, and its rank among those of its pool: row i of n stands at (i + 1/2) / n."""
    pools = np.repeat(np.arange(len(block_rows)), block_rows)
    ranks = np.concatenate([np.arange(rows) for rows in block_rows])
    order = np.argsort((ranks + 0.5) / block_rows[pools], kind="stable")
    return pools[order].astype(np.uint16), ranks[order].astype(np.int32)


def shuffled(numbers: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where a permutation of `range(size)` takes each of the numbers, int64 `[n]`.

    It is a Feistel network whose halves cover the next power of two, applied again to what falls outside (cycle
    walking), so that its cost does not depend on `size`. `grain.experimental.index_shuffle` does the same for one
    number at a time, and would take longer than reading a short row.
    """
    bits = max((size - 1).bit_length(), 6)  # fewer would not shuffle well
    low = bits // 2
    keys = np.frombuffer(hashlib.sha256(key.encode()).digest(), "<u8")
    numbers = np.asarray(numbers).astype(np.uint64)
    outside = np.arange(len(numbers))
    while len(outside):
        left, right = numbers[outside] >> np.uint64(low), numbers[outside] & np.uint64((1 << low) - 1)
        for first, second in (keys[:2], keys[2:], keys[1:3], keys[::3]):
            left ^= _hash(right + first) & np.uint64((1 << (bits - low)) - 1)
            right ^= _hash(left + second) & np.uint64((1 << low) - 1)
        numbers[outside] = left << np.uint64(low) | right
        outside = outside[numbers[outside] >= size]
    return numbers.astype(np.int64)


def _hash(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
