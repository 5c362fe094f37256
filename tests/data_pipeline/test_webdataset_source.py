"""Tars: every sample is read, or rejected with its name and a reason; a broken tar costs its rest."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from picture_files import picture_file, plain, read

from data_pipeline.records import Rejected
from data_pipeline.sources import WebDatasetSource, webdataset


def tar_of(members: dict[str, str | bytes | int | dict]) -> bytes:
    """Members by name; a number is the picture of that seed, and a mapping is JSON."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            content = (
                picture_file(content, "JPEG" if name.endswith("jpeg") else "PNG")
                if isinstance(content, int)
                else content
            )
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def read_tar(folder: Path, content: bytes, name: str = "kites.tar", **settings) -> list:
    (folder / name).write_bytes(content)
    return read(WebDatasetSource(path=str(folder / name), **settings))


PAIRS = {
    f"{number:06}.{suffix}": content
    for number in range(6)
    for suffix, content in (("png", number), ("txt", f"{number}."))
}


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("kites.tar", lambda data: data),
        ("kites.tar.gz", gzip.compress),
        ("kites.tgz", gzip.compress),
        ("kites.tar.zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_samples_are_members_of_one_name(tmp_path, name, compress):
    records = read_tar(tmp_path, compress(tar_of(PAIRS)), name)
    assert [plain(record) for record in records] == [[number, f"{number}."] for number in range(6)]
    assert [record.id for record in records] == [f"{name}:{number:06}" for number in range(6)]
    assert records[3].segments[0].name == f"{name}: 000003.png"
    assert records[3].segments[0].data == picture_file(3)


def test_tars_as_img2dataset_writes_them(tmp_path):
    about = {"caption": "A red kite.", "url": "https://example.org/17.jpg", "width": 16, "status": "success"}
    members = {"000000017.jpg": 1, "000000017.txt": "A red kite.", "000000017.json": about, "000000018.webp": 2}
    with_text, without = read_tar(tmp_path, tar_of({**members, "000000018.json": {"caption": None}}))
    assert plain(with_text) == [1, "A red kite."]
    assert {"url": about["url"], "width": "16", "image": with_text.segments[0]}.items() <= with_text.fields.items()
    assert plain(without).startswith("the picture has no caption")
    captions_in_json = {name: content for name, content in members.items() if name.endswith(("17.jpg", "17.json"))}
    assert [plain(record) for record in read_tar(tmp_path, tar_of(captions_in_json))] == [[1, "A red kite."]]


def test_names_with_folders_and_dots(tmp_path):
    members = {
        "./a/1.left.png": 1, "./a/1.right.png": 2, "./a/1.txt": "Both.", "b/1.png": 3, "b/1.cls": "kite",
        "b/._1.png": "x", "README": "nothing", "c.mp4": "film", "d.txt": "Text alone.",
    }  # fmt: skip
    records = {record.id: plain(record) for record in read_tar(tmp_path, tar_of(members), caption_key="")}
    assert records == {
        "kites.tar:a/1": [1, 2, "Both."],
        "kites.tar:b/1": "the picture has no caption ('uncaptioned: keep' keeps it)",
        "kites.tar:c": "neither a picture nor a text",
        "kites.tar:d": ["Text alone."],
    }
    (kite,) = [record for record in read_tar(tmp_path, tar_of(members), caption_key="cls") if record.id.endswith("b/1")]
    assert plain(kite) == [3, "kite"]


def test_conversations(tmp_path):
    says = [{"from": "human", "value": "<image>\nWhat flies?"}, {"from": "gpt", "value": "A kite."}]
    members = {
        "1.png": 1, "1.json": {"conversations": says, "image": "coco/000000000017.jpg"},
        "2.json": {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]},
        "3.png": 3, "3.json": {"conversations": [{"from": "human", "value": "<image><image>?"}, says[1]]},
    }  # fmt: skip
    one, two, three = map(plain, read_tar(tmp_path, tar_of(members)))
    assert one == [[[1, "\nWhat flies?"], ["A kite."]]]
    assert two == [[["Hello?"], ["Yes."]]]
    assert three.startswith("the messages have 2 image marks")


def test_texts_and_pictures_in_turn(tmp_path):
    texts = ["First", None, "then", None]
    members = {
        "1.a.png": 1, "1.b.png": 2, "1.json": {"texts": texts, "images": [None, "1.b.png", None, "1.a.png"]},
        "2.a.png": 3, "2.b.png": 4, "2.json": {"texts": texts, "images": [None, "https://a/1", None, "https://a/2"]},
        "3.png": 5, "3.json": {"texts": texts, "images": [None, "3.png", None, "gone.png"]},
        "4.png": 6, "4.json": {"texts": [{"user": "What flies?", "assistant": "A kite.", "source": "coco"}]},
    }  # fmt: skip
    one, two, three, four = map(plain, read_tar(tmp_path, tar_of(members)))
    assert one == ["First", 2, "then", 1]
    assert two == ["First", 3, "then", 4], "pictures of other names are taken in order"
    assert "images" in three
    assert four == [[[6, "What flies?"], ["A kite."]]]


def test_a_name_that_comes_again_is_another_sample(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("1.png", "1.png", "2.txt", "1.txt"):
            content = picture_file(1) if name == "1.png" else b"A kite."
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    records = {record.id: plain(record) for record in read_tar(tmp_path, file.getvalue())}
    assert records == {
        "kites.tar:1": "two members 1.png", "kites.tar:2": ["A kite."], "kites.tar:1#2": ["A kite."],
    }  # fmt: skip


def test_members_that_cannot_be_used_cost_their_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "LONGEST_LINE", 100)
    members = {"1.png": 1, "1.txt": b"caf\xe9", "2.txt": "a" * 101, "3.json": "{", "4.json": "[]", "5.txt": "five"}
    *reasons, last = map(plain, read_tar(tmp_path, tar_of(members)))
    assert [reason.split(" at ")[0].split(": Exp")[0] for reason in reasons] == [
        "1.txt: not valid UTF-8", "2.txt has 101 bytes; up to 100 are read", "3.json: not valid JSON",
        "4.json: must be an object",
    ]  # fmt: skip
    assert last == ["five"]


def damaged(tar: bytes, place: int) -> bytes:
    return tar[:place] + b"\xaa" * 64 + tar[place + 64 :]


@pytest.mark.parametrize(
    ("break_", "intact"),
    [
        (lambda tar: tar[: tar.index(b"000003.png") + 600], 3),  # within a member
        (lambda tar: tar[: tar.index(b"000003.png") + 100], 2),  # within a header: 2 may have gone on
        (lambda tar: damaged(tar, tar.index(b"000003.png") + 120), 2),  # a header that is none
        (lambda tar: gzip.compress(tar)[:-3000], None),
        (lambda tar: b"", 0),
        (lambda tar: b"no tar" * 1000, 0),
        (lambda tar: picture_file(1), 0),
    ],
)
def test_broken_tar_is_read_as_far_as_it_is_whole(tmp_path, break_, intact):
    *whole, rest = read_tar(tmp_path, break_(tar_of(PAIRS)))
    expected = [[number, f"{number}."] for number in range(6)]
    assert [plain(record) for record in whole] == expected[: len(whole) if intact is None else intact]
    assert isinstance(rest, Rejected)
    assert rest.id == "kites.tar:end"
    assert rest.place.startswith("kites.tar: all")


def test_header_that_claims_to_be_huge_is_not_read(tmp_path):
    member = tarfile.TarInfo("1.png")
    member.type, member.size = tarfile.XHDTYPE, 1 << 40
    (rest,) = read_tar(tmp_path, member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert "a header of 1,099,511,627,776 bytes" in rest.reason


def test_tar_is_never_whole_in_memory(tmp_path):
    members = {f"{number:03}.{suffix}": bytes(1 << 20) for number in range(24) for suffix in ("png",)}
    (tmp_path / "large.tar").write_bytes(tar_of({**members, **{f"{number:03}.txt": "Dark." for number in range(24)}}))
    source = WebDatasetSource(path=str(tmp_path / "large.tar"), uncaptioned="keep")
    (shard,) = source.shards()
    tracemalloc.start()
    assert sum(len(record.segments) for record in source.read(shard)) == 48
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
