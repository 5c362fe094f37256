"""Batches of kept pictures are a function of seed and number alone, and take the same memory however many there are."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.config import ConfigError, from_dict
from chameleon_jax.errors import FileError
from data_pipeline.config import PrepareCommand
from data_pipeline.loader import PreparedData
from data_pipeline.picture_loader import PreparedPictures
from data_pipeline.prepare import prepare

SIDE, SIZE = 16, 6
"""Sides of pictures, and of a batch."""


def folder_of(path: Path, numbers: range, **settings) -> dict:
    path.mkdir()
    for number in numbers:
        random_picture(number, (SIDE, SIDE)).save(path / f"{number:03}.png")
    return {"kind": "folder", "name": path.name, "path": str(path), "uncaptioned": "keep", **settings}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """23 pictures, of which those from 15 on may be mirrored, and 8 held out."""
    root = tmp_path_factory.mktemp("kept")
    plain, flipped = folder_of(root / "plain", range(15)), folder_of(root / "flipped", range(15, 23))
    prepare(from_dict(PrepareCommand, {
        "output": str(root / "out"), "keep": "pictures", "resolution": SIDE, "processes": 1,
        "sources": [plain, {**flipped, "augment": {"flip": True}}],
        "held_out": [folder_of(root / "unseen", range(30, 38))],
    }), None)  # fmt: skip
    return root / "out"


def pixels(number: int) -> np.ndarray:
    return np.asarray(random_picture(number, (SIDE, SIDE)))


def which(square: np.ndarray) -> tuple[int, bool]:
    """Which picture a square shows, and whether it is mirrored."""
    known = {}
    for number in range(40):
        known[pixels(number)[:, ::-1].tobytes()] = number, True
        known[pixels(number).tobytes()] = number, False
    return known[square.tobytes()]


@pytest.fixture(scope="module")
def run_of_three_epochs(kept) -> list[tuple[int, bool]]:
    steps = -(-3 * 23 // SIZE)
    batches = itertools.islice(PreparedPictures(kept, SIDE).batches(SIZE, 7), steps)
    return [which(square) for batch in batches for square in batch.pixels]


def test_each_epoch_has_every_picture_once_in_an_order_of_its_own(run_of_three_epochs):
    epochs = [[number for number, _ in run_of_three_epochs[begin : begin + 23]] for begin in (0, 23, 46)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_pictures_are_changed_anew_in_each_epoch_if_their_source_says_so(run_of_three_epochs):
    mirrored = [{number for number, is_mirrored in run_of_three_epochs[begin : begin + 23] if is_mirrored}
                for begin in (0, 23, 46)]  # fmt: skip
    assert set.union(*mirrored) <= set(range(15, 23))
    assert len(set(map(frozenset, mirrored))) == 3
    assert all(0 < len(epoch) < 8 for epoch in mirrored)


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize(("start", "hosts"), [(5, 1), (9, 3)])
def test_run_goes_on_where_it_stopped_on_any_number_of_hosts(kept, run_of_three_epochs, start, hosts, memory):
    data, steps = PreparedPictures(kept, SIDE, memory), -(-3 * 23 // SIZE)
    rows = np.array_split(np.arange(SIZE), hosts)
    parts = [data.batches(SIZE, 7, start=start, rows=own) for own in rows]
    for number, *batches in zip(range(start, steps), *parts, strict=False):
        squares = np.concatenate([batch.pixels for batch in batches])
        assert [which(square) for square in squares] == run_of_three_epochs[number * SIZE :][:SIZE]
        assert np.concatenate([batch.loss_weights for batch in batches]).tolist() == [1.0] * SIZE


def test_another_seed_is_another_order(kept, run_of_three_epochs):
    batch = next(PreparedPictures(kept, SIDE).batches(SIZE, 8))
    assert [which(square) for square in batch.pixels] != run_of_three_epochs[:SIZE]


def test_what_is_held_out_comes_once_and_what_fills_up_the_last_batch_does_not_count(kept):
    data = PreparedPictures(kept, SIDE)
    batches = list(data.held_out_batches("unseen", 3))
    weights = np.concatenate([batch.loss_weights for batch in batches])
    assert weights.tolist() == [1.0] * 8 + [0.0]
    seen = [which(square)[0] for batch in batches for square in batch.pixels[batch.loss_weights > 0]]
    assert seen == list(range(30, 38))
    (last,) = itertools.islice(data.held_out_batches("unseen", 3, rows=np.array([1, 2])), 2, None)
    assert last.loss_weights.tolist() == [1.0, 0.0]
    assert len(list(data.held_out_batches("unseen", 3, limit=2))) == 2


def test_lower_resolutions_are_cropped_from_the_same_pictures_and_higher_ones_are_refused(kept):
    batch = next(PreparedPictures(kept, 8).batches(SIZE, 7))
    assert batch.pixels.shape == (SIZE, 8, 8, 3)
    with pytest.raises(ConfigError, match=r"resolution = 32: the pictures in .* for up to 16 pixels; prep"):
        PreparedPictures(kept, 32)


def test_fewer_pictures_than_a_batch_repeat(kept):
    batch = next(PreparedPictures(kept, SIDE).batches(50))
    assert sorted(Counter(which(square)[0] for square in batch.pixels).values()) == [2] * 19 + [3] * 4


def test_damaged_picture_is_named(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "copy")
    (file,) = folder.glob("sources-plain-*")
    reader = ArrayRecordReader(str(file))
    records = [reader.read() for _ in range(reader.num_records())]
    for damage, message in (
        (records[5][:-40], "the picture cannot be decoded: .*"),
        (b"\0" * 9, "no picture has 9 .*"),
    ):
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for record in [*records[:5], damage, *records[6:]]:
            writer.write(record)
        writer.close()
        with pytest.raises(
            FileError, match=rf"{file.name}: picture 5 of sources\.plain is damaged: {message}; prep"
        ) as e:
            list(itertools.islice(PreparedPictures(folder, SIDE).batches(SIZE), 4))
        assert "\n" not in str(e.value)


def test_missing_and_other_files_are_named(kept, prepared, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "copy")
    file = next(folder.glob("held_out-*"))
    file.unlink()
    with pytest.raises(FileError, match=rf"{file.name}: no such file; prepare again"):
        PreparedPictures(folder, SIDE)
    with pytest.raises(FileError, match=r"holds rows of tokens; run `chameleon prepare` with keep: pictures into"):
        PreparedPictures(prepared, SIDE)
    with pytest.raises(FileError, match=r"holds pictures; run `chameleon prepare` with keep: tokens into"):
        PreparedData(kept)
    with pytest.raises(FileError, match="holds no prepared data"):
        PreparedPictures(tmp_path, SIDE)


SCRIPT = """
import itertools
import sys
from pathlib import Path

from data_pipeline.picture_loader import PreparedPictures

data = PreparedPictures(sys.argv[1], 32, memory=1 << 20)
pictures = 0
for batch in itertools.islice(data.batches(50), len(data) // 50):
    pictures += len(batch.pixels)
assert pictures == len(data)
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("few", "many"), [(500, 3_000), pytest.param(1_000, 10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, few, many):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "noise.png")
    for count in (few, many):
        (tmp_path / f"{count}").mkdir()
        for number in range(count):
            os.link(tmp_path / "noise.png", tmp_path / f"{count}" / f"{number}.png")
        source = {"kind": "folder", "path": str(tmp_path / f"{count}"), "uncaptioned": "keep"}
        command = {"output": str(tmp_path / f"{count} kept"), "keep": "pictures", "resolution": 32, "sources": [source]}
        prepare(from_dict(PrepareCommand, command), None)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    peak_of_few, peak_of_many = (  # in processes of their own: a second pass over the same adds some MiB by itself
        int(subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / f"{count} kept")], capture_output=True,
                           text=True, check=True, env=environment).stdout) >> 10
        for count in (few, many)
    )  # fmt: skip
    mebibytes = (many - few) * (tmp_path / "noise.png").stat().st_size >> 20
    assert mebibytes > 25, "of the files; decoded they take as much again"
    assert peak_of_many < peak_of_few + 5
