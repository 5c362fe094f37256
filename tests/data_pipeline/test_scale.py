"""Planning and preparing do not grow with what there is to read: counts and bytes, never a clock."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import scrambled_tokenizer

from chameleon_jax.config import ConfigError
from data_pipeline import units
from data_pipeline.config import PrepareCommand
from data_pipeline.forms import FormConfig
from data_pipeline.near_duplicates import NearDuplicatesConfig
from data_pipeline.prepare import prepare
from data_pipeline.sources import ConversationsSource, DocumentsSource, FolderSource, SourceConfig, WebDatasetSource
from data_pipeline.sources.files import GROUP_BYTES, GROUP_FILES, PICTURES_PER_SHARD

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads figures where Linux tells them")


def plan(source: SourceConfig) -> list[units.Unit]:
    return units.plan(PrepareCommand("rows", 64, (source,), tokenizer="any"), "")


# ----------------------------------------------------------------------------------------------------------------------
# Planning
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_files(tmp_path) -> Path:
    """More than a unit holds, of a line each; one of them is large."""
    for number in range(GROUP_FILES + 200):
        (tmp_path / f"{number:05d}.jsonl").write_text(f'["Text {number}."]\n')
    (tmp_path / "00500.jsonl").write_text(json.dumps(["Text 500.", "x" * GROUP_BYTES]))
    return tmp_path


def test_many_small_files_are_few_units_of_which_a_change_concerns_one(many_files, tmp_path_factory):
    source = DocumentsSource(path=str(many_files))
    planned = plan(source)
    assert [len(unit.shards) for unit in planned] == [500, 1, 699]
    names = [shard.name for unit in planned for shard in unit.shards]
    assert names == sorted(path.name for path in many_files.iterdir())
    records = [record for unit in planned for shard in unit.shards for record in source.read(shard)]
    assert [record.segments[0] for record in records] == [f"Text {number}." for number in range(GROUP_FILES + 200)]
    moved = shutil.copytree(many_files, tmp_path_factory.mktemp("moved") / "files")
    assert [unit.key for unit in plan(DocumentsSource(path=str(moved)))] == [unit.key for unit in planned]
    (moved / "00700.jsonl").write_text('["Text 7OO."]\n')
    changed = plan(DocumentsSource(path=str(moved)))
    assert [one.key == other.key for one, other in zip(changed, planned, strict=True)] == [True, True, False]


def test_few_small_files_are_units_of_their_own(tmp_path):
    """So that all cores have something to do."""
    for number in range(units.FEW):
        (tmp_path / f"{number}.jsonl").write_text('["Text."]\n')
    assert len(plan(DocumentsSource(path=str(tmp_path)))) == units.FEW


@on_linux
def test_little_is_read_of_many_pictures(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text("A kite.")
        with (tmp_path / f"{number}.jpg").open("wb") as file:
            file.truncate(1 << 20)

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    seen = FolderSource(name="seen", path=str(tmp_path), part="train", form=FormConfig(copies=2))
    unseen = FolderSource(name="unseen", path=str(tmp_path), part="held_out")
    before = read()
    planned = units.plan(PrepareCommand("rows", 64, (seen,), tokenizer="any", held_out=(unseen,)), "")
    assert [unit.place for unit in planned] == ["sources.seen", "held_out.unseen"]
    assert planned[0].shards == planned[1].shards
    assert read() - before < 200 * (13 << 10)  # 3 samples of 4 KiB and a caption each, once for both


@pytest.mark.parametrize("kind", [DocumentsSource, ConversationsSource])
def test_json_lines_are_cut_by_their_pictures_too(tmp_path, kind):
    def line(number: int) -> str:
        document = {"images": [f"pictures/{number}-{place}.jpg" for place in range(2)], "text": "Two kites."}
        turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Kites."}]
        return json.dumps(document if kind is DocumentsSource else {"messages": turns, "images": document["images"]})

    lines = [line(number) + "\n" for number in range(3000)]
    path = tmp_path / "kites.jsonl"
    path.write_text("".join(lines))
    source = kind(path=str(path))
    shards = source.shards()
    records = [list(source.read(shard)) for shard in shards]
    pictures = [sum(len(record.pictures) for record in some) for some in records]
    assert sum(pictures) == 6000
    assert max(pictures) <= PICTURES_PER_SHARD
    assert min(pictures[:-1]) >= PICTURES_PER_SHARD / 4
    ends = itertools.accumulate(map(len, lines), initial=0)
    assert [record.id for some in records for record in some] == [f"kites.jsonl@{at}" for at in list(ends)[:-1]]
    with path.open("a") as file:
        file.writelines(lines[:500])
    assert source.shards()[: len(shards) - 4] == shards[:-4]  # the samples of the last reach over their ends
    path.write_text('["Only text."]\n' * 10_000)
    assert len(source.shards()) == 1


# ----------------------------------------------------------------------------------------------------------------------
# What is missing is noticed before anything is done
# ----------------------------------------------------------------------------------------------------------------------


def test_missing_package_is_named_before_units_are_begun(tmp_path, monkeypatch):
    (tmp_path / "kites.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    tars = PrepareCommand(str(tmp_path / "rows"), 64, (WebDatasetSource(path=str(tmp_path)),), tokenizer="any")
    texts = dataclasses.replace(tars, near_duplicates=NearDuplicatesConfig(text=0.8))
    pictures = dataclasses.replace(tars, near_duplicates=NearDuplicatesConfig(pictures=4))
    for command, package, extra in (
        (texts, "datasketch", "dedup"), (pictures, "imagehash", "dedup"), (tars, "zstandard", "zstd"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=rf"{package}.*pip install 'chameleon-jax\[{extra}\]'"):
            prepare(command, scrambled_tokenizer())
        assert not Path(command.output).exists()


# ----------------------------------------------------------------------------------------------------------------------
# Preparing
# ----------------------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
import numpy as np
from PIL import Image
from tiny_models import scrambled_tokenizer
from data_pipeline.config import PrepareCommand
from data_pipeline.prepare import prepare
from data_pipeline.sources import FolderSource

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10

folder, tokenizer = Path(sys.argv[1]), scrambled_tokenizer()
noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8))
suffix = sys.argv[2]
photo = folder / f"photo{suffix}"
noise.resize((2000, 1500)).save(photo)
print(photo.stat().st_size >> 10)
before = peak()
for count in map(int, sys.argv[3:]):
    photos = folder / f"{count}"
    photos.mkdir()
    for number in range(count):
        os.link(photo, photos / f"{number}{suffix}")
    source = FolderSource(path=str(photos), uncaptioned="keep")
    header = prepare(PrepareCommand(f"{photos} rows", 64, (source,), tokenizer="any", processes=1), tokenizer)
    assert header["sources"]["folder"]["pictures"] == count
    print(peak() - before)
"""


@on_linux
@pytest.mark.parametrize(
    ("suffix", "few", "many"), [(".bmp", 4, 24), pytest.param(".jpg", 30, 300, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_large_pictures(tmp_path, suffix, few, many):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), suffix, str(few), str(many)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    kibibytes, peak_of_few, peak_of_many = map(int, output.split())
    assert (many - few) * kibibytes >> 10 > 64  # MiB of files alone
    assert peak_of_many < peak_of_few + 32
    assert peak_of_many < 1024
