"""`chameleon init` on folders as people have them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from photos import draw_photos

from chameleon_jax.config import from_dict, read_config
from chameleon_jax.console.cli import main
from chameleon_jax.project.init import COMMANDS, share_to_hold_out
from chameleon_jax.project.look import look
from chameleon_jax.project.sizes import choose
from data_pipeline.augment import AugmentConfig
from data_pipeline.config import PrepareCommand
from data_pipeline.sources import SourceConfig

CAPTION = "A red circle on pale paper."


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return draw_photos(tmp_path_factory.mktemp("photos") / "my photos", 60)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_files(folder: Path) -> dict[str, object]:
    return {name: read_config(cls, folder / f"{name}.yaml") for name, cls in COMMANDS.items()
            if (folder / f"{name}.yaml").exists()}  # fmt: skip


def records_of(source: SourceConfig) -> list[str]:
    return [record.id for record in source.records("")]


def test_sixty_photos_become_four_files(photos, tmp_path, capsys):
    before = contents(photos)
    assert main(["init", str(photos), "-o", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().out
    assert "60 pictures with captions in .txt files" in said
    assert f"chameleon run {tmp_path / 'mine'}" in said
    assert contents(photos) == before
    files = read_files(tmp_path / "mine")
    assert files.keys() == COMMANDS.keys()
    prepare, train = files["prepare"], files["train"]
    (learnt,), (held_out,) = prepare.sources, prepare.held_out
    seen, unseen = records_of(learnt), records_of(held_out)
    assert len(seen) + len(unseen) == 60
    assert not set(seen) & set(unseen)
    assert 4 <= len(unseen) <= 9
    assert (learnt.name, learnt.form.copies > 1, held_out.form.copies) == ("my_photos", True, 1)
    assert learnt.augment.flip
    assert held_out.augment == AugmentConfig()
    assert train.stages[0].weights == {"my_photos": 1}
    for name in ("train-text-tokenizer", "train-image-tokenizer"):
        assert [records_of(source) for source in files[name].sources] == [seen], name
    assert (train.data, prepare.text_tokenizer) == (prepare.output, files["train-text-tokenizer"].output)
    assert prepare.image_tokenizer == files["train-image-tokenizer"].output


def test_the_same_folder_gives_the_same_files(photos, tmp_path):
    assert main(["init", str(photos), "-o", str(tmp_path / "mine"), "-q"]) == 0
    first = contents(tmp_path / "mine")
    assert main(["init", str(photos), "-o", str(tmp_path / "mine"), "-q"]) == 0
    assert contents(tmp_path / "mine") == first


def _table(folder: Path) -> None:
    draw_photos(folder, 12, suffix="")
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "datei", "beschreibung"])
        writer.writerows([number, f"{number:03d}.jpg", f"{CAPTION} {number}"] for number in range(12))


def _lines(folder: Path) -> None:
    draw_photos(folder, 12, suffix="")
    lines = [json.dumps([{"image": f"{number:03d}.jpg"}, f" {CAPTION} {number}"]) for number in range(12)]
    (folder / "documents.jsonl").write_text("\n".join(lines))


def _chats(folder: Path) -> None:
    for name in ("one", "two"):
        chat = {
            "messages": [{"role": "user", "content": f"What is {name}?"}, {"role": "assistant", "content": CAPTION}]
        }
        (folder / f"{name}.jsonl").write_text("\n".join([json.dumps(chat)] * 6))


def _metadata(folder: Path) -> None:
    draw_photos(folder, 12, suffix="")
    rows = [{"file_name": f"{number:03d}.jpg", "text": f"{CAPTION} {number}"} for number in range(12)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _texts(folder: Path) -> None:
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"{CAPTION} The fox said {number} to the dog.\n" * 20)


def _json(folder: Path) -> None:
    draw_photos(folder, 12, suffix="")
    for number in range(12):
        (folder / f"{number:03d}.json").write_text(json.dumps({"prompt": f"{CAPTION} {number}", "width": 64}))


def _folders(folder: Path) -> None:
    for name in ("red_kites", "boats"):
        draw_photos(folder / name, 8, suffix="")


def _alone(folder: Path) -> None:
    draw_photos(folder, 12, suffix="")


@pytest.mark.parametrize(
    ("fill", "expected", "records", "text"),
    [
        (_table, {"kind": "table", "image_column": "datei", "text_column": "beschreibung"}, 12, CAPTION),
        (_lines, {"kind": "documents"}, 12, CAPTION),
        (_metadata, {"kind": "table"}, 12, CAPTION),
        (_chats, {"kind": "conversations"}, 12, CAPTION),
        (_texts, {"kind": "text"}, 12, "The fox said"),
        (_json, {"kind": "folder", "captions": "json", "caption_key": "prompt"}, 12, CAPTION),
        (_folders, {"kind": "folder", "captions": "folder_name"}, 16, "red kites"),
        (_alone, {"kind": "folder", "uncaptioned": "keep"}, 12, ""),
    ],
)
def test_what_is_there_is_found(tmp_path, fill, expected, records, text):
    folder, mine = tmp_path / "data", tmp_path / "mine"
    folder.mkdir()
    fill(folder)
    (found,) = look(folder)
    assert {name: value for name, value in found.source.items() if name != "path"} == expected
    assert (found.records, found.rejected) == (records, ())
    assert any(text in each for _, each in found.texts) == bool(text)
    assert main(["init", str(folder), "-o", str(mine)]) == 0
    prepare = read_files(mine)["prepare"]
    assert len(records_of(prepare.sources[0])) + len(records_of(prepare.held_out[0])) == records
    assert bool(prepare.image_tokenizer) == (fill not in (_chats, _texts))


def test_folders_that_are_not_ours_or_were_edited_are_left_alone(photos, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "letter.txt").write_text("Dear all")
    mine = tmp_path / "mine"
    assert main(["init", str(photos), "-o", str(mine)]) == 0
    edited = mine / "train.yaml"
    edited.write_text(edited.read_text().replace("batch_size", "# mine\nbatch_size"))
    before = contents(tmp_path)
    for output, message in (
        (theirs, "is not empty, and `chameleon init` did not write it"),
        (photos / "model", f"is inside {photos}"),
        (photos, f"is inside {photos}"),
        (mine, "train.yaml: was edited since"),
    ):
        assert main(["init", str(photos), "-o", str(output)]) == 1
        assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("names", [(), ("letter.odt",)])
def test_nothing_to_learn_from_is_said(tmp_path, capsys, names):
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / name).write_text("what")
    assert main(["init", str(tmp_path / "data"), "-o", str(tmp_path / "mine")]) == 2
    assert "holds nothing to learn from. Expected are pictures with captions" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_broken_picture_costs_no_more_than_itself(photos, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(photos, folder)
    (folder / "000.jpg").write_bytes(b"no picture")
    assert main(["init", str(folder), "-o", str(tmp_path / "mine")]) == 0


def test_sizes_grow_with_the_data_and_the_machine(photos):
    (few,) = look(photos)
    many = few._replace(records=1_000_000, exact=False, shorter_side=512)
    small, large, on_gpu = choose([few], True), choose([many], True), choose([many], False)
    assert small.copies > 1 == large.copies
    assert small.vocab_size < large.vocab_size
    for name in ("num_codes", "d_model", "steps", "resolution"):
        assert getattr(small, name) <= getattr(large, name) <= getattr(on_gpu, name), name
    assert on_gpu.d_model > large.d_model
    assert choose([few], True, devices=7).batch_size % 7 == 0
    assert share_to_hold_out(many) == pytest.approx(500 / 1_000_000)


def test_the_yaml_of_the_guide_is_complete_and_short():
    guide = (Path(__file__).parents[2] / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    (text,) = (block.split("```")[0] for block in guide.split("```yaml\n")[1:])
    assert len(text.splitlines()) <= 15
    assert from_dict(PrepareCommand, yaml.safe_load(text)).sources[0].kind == "folder"
