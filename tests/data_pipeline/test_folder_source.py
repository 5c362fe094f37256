"""A folder of pictures: every picture is read with its caption, or rejected with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from picture_files import picture_file, plain, read

from chameleon_jax.errors import FileError
from data_pipeline.sources import FolderSource, folder


def write(root: Path, files: dict[str, str | bytes | int]) -> str:
    """Files by name; a number is the picture of that seed."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        content = picture_file(content) if isinstance(content, int) else content
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(root)


def by_id(source: FolderSource) -> dict:
    return {record.id: plain(record) for record in read(source)}


def test_captions_in_text_files(tmp_path):
    path = write(
        tmp_path,
        {
            "b/17.PNG": 1, "b/17.txt": "A red kite.\n", "a.png": 2, "a.png.txt": "\ufeffOver the Jura.\nIn May.",
            "c.png": 3, "c.txt": "Zürich".encode("utf-16"), ".hidden.png": 4, "notes.md": "no picture",
        },
    )  # fmt: skip
    assert by_id(FolderSource(path=path)) == {
        "b/17.PNG": [1, "A red kite."], "a.png": [2, "Over the Jura.\nIn May."], "c.png": [3, "Zürich"],
    }  # fmt: skip
    (record,) = [record for record in read(FolderSource(path=path)) if record.id == "b/17.PNG"]
    assert record.fields["image"] == record.segments[0]
    assert (record.fields["text"], record.fields["folder_name"]) == ("A red kite.", "b")


def test_pictures_without_caption_are_rejected_or_kept(tmp_path):
    path = write(tmp_path, {"a.png": 1, "b.png": 2, "b.txt": " \n", "c.png": 3, "c.txt": "A kite."})
    reason = "the picture has no caption ('uncaptioned: keep' keeps it)"
    assert by_id(FolderSource(path=path)) == {"a.png": reason, "b.png": reason, "c.png": [3, "A kite."]}
    assert by_id(FolderSource(path=path, uncaptioned="keep")) == {"a.png": [1], "b.png": [2], "c.png": [3, "A kite."]}


def test_one_line_of_several_is_chosen_by_the_name(tmp_path):
    lines = ["A kite.", "A bird.", "Something red."]
    files = {f"{number}.png": number % 10 for number in range(30)}
    path = write(tmp_path, files | {f"{number}.txt": "\n\n".join(lines) for number in range(30)})
    chosen = [each[1] for each in by_id(FolderSource(path=path, lines="one")).values()]
    assert {chosen.count(line) for line in lines} <= set(range(4, 17))
    moved = shutil.copytree(tmp_path, tmp_path / "moved" / "again")
    assert [each[1] for each in by_id(FolderSource(path=str(moved), lines="one")).values()] == chosen


def test_captions_in_json_files(tmp_path):
    path = write(
        tmp_path,
        {
            "a.png": 1, "a.json": json.dumps({"caption": "A kite.", "place": "Jura", "year": 2019}),
            "b.png": 2, "b.json": json.dumps({"caption": ["Only one.", ""]}),
            "c.png": 3, "c.json": json.dumps({"title": "A kite."}),
            "d.png": 4, "d.json": "{", "e.png": 5, "e.json": "[]", "f.png": 6, "f.json": '{"caption": {}}',
        },
    )  # fmt: skip
    read_ = by_id(FolderSource(path=path, captions="json"))
    assert read_.pop("d.png").startswith("d.json: not valid JSON")
    assert read_ == {
        "a.png": [1, "A kite."], "b.png": [2, "Only one."],
        "c.png": "c.json: no key 'caption' (caption_key), but 'title'",
        "e.png": 'e.json: must be an object such as {"caption": "A red kite."}',
        "f.png": "f.json: {}: a caption is a text or a list of texts",
    }  # fmt: skip
    record = read(FolderSource(path=path, captions="json"))[0]
    assert (record.fields["place"], record.fields["year"]) == ("Jura", "2019")
    assert by_id(FolderSource(path=path, captions="json", caption_key="title"))["c.png"] == [3, "A kite."]


def test_captions_in_names(tmp_path):
    path = write(tmp_path, {"red_kites/IMG_17.png": 1, "a-black kite (2).png": 2, "0003.png": 3})
    assert by_id(FolderSource(path=path, captions="folder_name", uncaptioned="keep")) == {
        "red_kites/IMG_17.png": [1, "red kites"], "a-black kite (2).png": [2], "0003.png": [3],
    }  # fmt: skip
    assert by_id(FolderSource(path=path, captions="file_name", uncaptioned="keep")) == {
        "red_kites/IMG_17.png": [1, "IMG"], "a-black kite (2).png": [2, "a black kite"], "0003.png": [3],
    }  # fmt: skip


def test_large_folders_are_read_in_shards_that_change_only_with_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PICTURES_PER_SHARD", 4)
    files = {f"{number}.png": number for number in range(10)} | {f"{number}.txt": f"{number}" for number in range(10)}
    source = FolderSource(path=write(tmp_path, files))
    assert by_id(source) == {f"{number}.png": [number, f"{number}"] for number in range(10)}
    before = source.shards()
    assert [len(shard.files) for shard in before] == [8, 8, 4]
    assert FolderSource(path=str(shutil.copytree(tmp_path, tmp_path / "copy" / "copy"))).shards() == before
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "5.txt").write_text("six")
    same = [old == new for old, new in zip(before, source.shards(), strict=True)]
    assert same == [True, False, True]


def test_caption_files_that_are_no_text(tmp_path):
    path = write(tmp_path, {"a.png": 1, "a.txt": b"caf\xe9", "b.png": 2, "b.txt": "A\0kite", "c.png": 3, "c.txt": "é"})
    read_ = by_id(FolderSource(path=path))
    assert read_["a.png"] == "a.txt: not valid UTF-8 at byte 3"
    assert read_["b.png"].startswith("b.txt: 'A\\x00kite'…: holds a NUL")
    assert read_["c.png"] == [3, "é"]


def test_folder_without_pictures_is_named(tmp_path):
    write(tmp_path, {"a.txt": "A kite."})
    with pytest.raises(FileError, match="no pictures in this folder"):
        FolderSource(path=str(tmp_path)).shards()
