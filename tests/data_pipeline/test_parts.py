"""Records to learn from and records held out."""

from __future__ import annotations

import dataclasses

import pytest

from chameleon_jax.config import ConfigError
from chameleon_jax.config.reading import config
from data_pipeline.records import Record, Rejected, Shard
from data_pipeline.sources import SourceConfig


@config
class Numbers(SourceConfig):
    kind: str = "numbers"
    stop: int = 1000

    def shards(self, datasets):
        return [Shard("one", "", 0, self.stop // 2), Shard("two", "", self.stop // 2, self.stop)]

    def read(self, shard, datasets):
        for number in range(shard.begin, shard.end):
            yield Record(f"{number}", f"number {number}", ("text",))


def ids(source: SourceConfig, **changes) -> set[str]:
    return {record.id for record in dataclasses.replace(source, **changes).records("")}


def test_parts_divide_the_records_and_none_changes_sides():
    source = Numbers()
    train, held_out = (ids(source, part=part, held_out=0.2) for part in ("train", "held_out"))
    assert train | held_out == ids(source)
    assert not train & held_out
    assert 150 < len(held_out) < 250
    assert held_out <= ids(source, part="held_out", held_out=0.2, stop=2000)
    assert ids(source, part="held_out", held_out=0.1) < held_out
    assert len(ids(source, part="held_out", held_out=0.2, count=7)) == 7


def test_what_cannot_be_read_belongs_to_a_part_too():
    class Broken(Numbers):
        def read(self, shard, datasets):
            return (Rejected(record.id, record.place, "broken") for record in super().read(shard, datasets))

    source = Broken(part="held_out")
    rejected = [item.id for shard in source.shards("") for item in source.kept(shard, "")]
    assert set(rejected) == ids(Numbers(), part="held_out")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_leaves_something_on_both_sides(share):
    with pytest.raises(ConfigError, match=r"held_out = .*: must be a share between 0 and 1"):
        Numbers(held_out=share)
