"""Pictures that are kept for an image tokenizer: the files as they are, the same however the job is run."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from picture_files import encoded
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.config import ConfigError, from_dict
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.image import to_square
from data_pipeline.config import PrepareCommand
from data_pipeline.kept_pictures import from_bytes, keep_pictures, to_bytes
from data_pipeline.near_duplicates import NOTHING
from data_pipeline.picture_loader import PreparedPictures
from data_pipeline.prepare import prepare
from data_pipeline.records import Picture, Record
from data_pipeline.sources import DocumentsSource, SourceConfig

SIDE = 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Five files of lines that name ten pictures each, one of them damaged, in the formats of most data sets."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(50):
        kind = ("png", "jpeg", "webp")[number % 3]
        random_picture(number, (20 + number % 5, 24)).save(folder / f"{number}.{kind}", quality=95)
        with open(folder / f"{number // 10}.jsonl", "a") as lines:
            lines.write(json.dumps([{"image": f"{number}.{kind}"}, f"Picture {number}."]) + "\n")
    (folder / "7.jpeg").write_bytes((folder / "7.jpeg").read_bytes()[:-200])
    return folder


def job(photos: Path, output: Path, **settings) -> PrepareCommand:
    source = {"kind": "documents", "name": "photos", "path": str(photos), "held_out": 0.2}
    return from_dict(PrepareCommand, {
        "output": str(output), "keep": "pictures", "resolution": SIDE, "processes": 1,
        "sources": [{**source, "part": "train"}], "held_out": [{**source, "part": "held_out"}], **settings,
    })  # fmt: skip


def written(output: Path) -> dict[str, bytes]:
    """What a job says of its units and its pictures, which includes hashes of all of them; and names of files."""
    files = [path for path in output.rglob("*") if path.is_file() and path.name != "prepare.json"]
    return {str(file.relative_to(output)): b"" if file.suffix == ".arrayrecord" else file.read_bytes()
            for file in files}  # fmt: skip


@pytest.fixture(scope="module")
def in_one_go(photos, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("in one go") / "kept"
    prepare(job(photos, output), None)
    return output


def kept_data(image_file: bytes) -> bytes:
    """What is kept of one picture."""
    record = Record("id", "a place", (Picture("a picture", image_file),))
    ((kept,),) = keep_pictures([record], DocumentsSource(path="anywhere"), SIDE, 0, NOTHING)
    assert from_bytes(to_bytes(kept)) == kept
    return kept.data


def test_common_files_of_moderate_size_stay_as_they_are():
    picture = random_picture(0, (2 * SIDE, 100))
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encoded(picture, kind)
        assert kept_data(data) == data
    for kind in ("BMP", "GIF", "TIFF", "PPM"):
        kept = Image.open(io.BytesIO(kept_data(encoded(picture, kind))))
        assert kept.format == "PNG"
        assert kept.convert("RGB").tobytes() == Image.open(io.BytesIO(encoded(picture, kind))).convert("RGB").tobytes()


def test_large_pictures_are_shrunk_to_twice_the_resolution():
    photo = random_picture(0, (300, 200))
    turned = Image.Exif()
    turned[0x0112] = 6
    kept = Image.open(io.BytesIO(kept_data(encoded(photo, "JPEG", quality=95, exif=turned))))
    assert (kept.format, kept.size) == ("JPEG", (2 * SIDE, 3 * SIDE)), "and upright"
    error = np.asarray(to_square(kept, SIDE), int) - np.asarray(to_square(photo.rotate(-90, expand=True), SIDE), int)
    assert np.abs(error).mean() < 3


def test_files_that_carry_more_than_pixels_lose_it():
    data = encoded(random_picture(0), "JPEG", comment=bytes(5000))
    assert len(kept_data(data)) < 2000


def test_damaged_pictures_are_reported_and_all_others_kept(in_one_go):
    rejected = json.loads((in_one_go / "rejected.jsonl").read_text())
    assert rejected["place"] == "0.jsonl, line 8"
    assert "7.jpeg: the picture cannot be decoded" in rejected["reason"]
    data = PreparedPictures(in_one_go, SIDE)
    (held_out,) = data.header["held_out"].values()
    assert len(data) + held_out["pictures"] == 49
    assert 3 < held_out["pictures"] < 20


def test_pictures_are_the_same_however_many_threads_keep_them(photos, in_one_go, tmp_path):
    prepare(job(photos, tmp_path / "kept", processes=3), None)
    assert written(tmp_path / "kept") == written(in_one_go)


def test_workers_share_the_work_and_files_that_moved_are_the_same(photos, in_one_go, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "moved")
    own = job(moved, tmp_path / "kept")
    assert prepare(own, None, worker=(2, 2)) is None
    assert not (tmp_path / "kept" / "dataset.json").exists()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "units").glob("*.arrayrecord")}
    header = prepare(own, None, worker=(1, 2))
    assert header["fingerprint"] == PreparedPictures(in_one_go, SIDE).fingerprint
    units = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "units").glob("*.arrayrecord")}
    assert 0 < len(done) < len(units)
    assert done.items() <= units.items(), "what was done stays done"


def test_augmentation_is_changed_without_reading_pictures_again(photos, in_one_go, tmp_path):
    output = shutil.copytree(in_one_go, tmp_path / "kept")
    before = {path.name: path.stat().st_mtime_ns for path in (output / "units").iterdir()}
    own = job(photos, output)
    (source,) = own.sources
    flipped = from_dict(SourceConfig, {"kind": "documents", "path": source.path, "name": "photos", "part": "train",
                                       "held_out": 0.2, "augment": {"flip": True}})  # fmt: skip
    header = prepare(dataclasses.replace(own, sources=(flipped,)), None)
    assert {path.name: path.stat().st_mtime_ns for path in (output / "units").iterdir()} == before
    assert header["fingerprint"] != PreparedPictures(in_one_go, SIDE).fingerprint
    assert (
        header["sources"]["photos"]["sha256"] == PreparedPictures(in_one_go, SIDE).header["sources"]["photos"]["sha256"]
    )


def test_disk_holds_pictures_once(in_one_go):
    for file in in_one_go.glob("*.arrayrecord"):
        assert file.stat().st_nlink == 2, "the unit's file and the one that training reads are the same"


def test_what_is_damaged_is_made_anew(photos, in_one_go, tmp_path):
    output = shutil.copytree(in_one_go, tmp_path / "kept")
    file = next(output.glob("units/*.arrayrecord"))
    content = bytearray(file.read_bytes())
    content[content.index(b".jsonl") + 40] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match=rf"{file.name}: damaged: .*; run the command again, and it is made anew"):
        prepare(job(photos, output), None)
    prepare(job(photos, output), None)
    assert written(output) == written(in_one_go)


@pytest.mark.parametrize("settings", [{"duplicates": "drop"}, {"near_duplicates": {"pictures": 0}}])
def test_duplicates_are_dropped_and_none_of_what_is_held_out_is_trained_on(tmp_path, settings):
    for name, numbers in {"seen": (1, 2, 3, 2), "unseen": (3,)}.items():
        (tmp_path / name).mkdir()
        for place, number in enumerate(numbers):
            random_picture(number).save(tmp_path / name / f"{place}.png")
    folder = lambda name: {"kind": "folder", "name": name, "path": str(tmp_path / name), "uncaptioned": "keep"}  # noqa: E731
    prepare(job(tmp_path, tmp_path / "kept", sources=[folder("seen")], held_out=[folder("unseen")], **settings), None)
    data = PreparedPictures(tmp_path / "kept", SIDE)
    batch = next(data.batches(2))
    assert {pixels.tobytes() for pixels in batch.pixels} == {random_picture(number).tobytes() for number in (1, 2)}
    assert len(data) == 2


def test_source_without_pictures_is_named(photos, tmp_path):
    (tmp_path / "text.jsonl").write_text('["Just text."]\n')
    with pytest.raises(ConfigError, match=r"^sources\.documents: has no pictures$"):
        prepare(job(photos, tmp_path / "kept", sources=[{"kind": "documents", "path": str(tmp_path)}]), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"empty: no files .* in this folder"):
        prepare(job(photos, tmp_path / "kept", sources=[{"kind": "folder", "path": str(tmp_path / "empty")}]), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": None}, "resolution = None: must be given with keep 'pictures', from 1 to 8192"),
        ({"resolution": 9000}, "resolution = 9000: must be given"),
        ({"sequence_length": 64}, "sequence_length = 64: goes with keep 'tokens' only"),
        ({"tokenizer": "out/model"}, "tokenizer = 'out/model': goes with keep 'tokens' only"),
        ({"near_duplicates": {"text": 0.8}}, "near_duplicates.text = 0.8: goes with keep 'tokens' only"),
        ({"keep": "tokens"}, "resolution = 16: goes with keep 'pictures' only"),
        ({"sources": []}, r"sources = \[\]: must list at least one source"),
    ],
)
def test_keys_that_do_not_go_together_are_named(photos, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        job(photos, tmp_path, **settings)


def test_threads_leave_standard_output_to_all(datasets, tmp_path):
    output, digits = sys.stdout, {"kind": "digit_captions", "count": 1200}
    own = job(tmp_path, tmp_path / "kept", sources=[digits], held_out=[], processes=2, datasets=datasets)
    header = prepare(own, None)
    assert [len(header["sources"]["digit_captions"]["files"]), sys.stdout] == [2, output]
