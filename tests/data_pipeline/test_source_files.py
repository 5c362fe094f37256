"""Files of a source: which ones, wherever they are; files of text; the pictures that records name."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import pytest
from tiny_models import random_picture

from chameleon_jax.config import ConfigError, from_dict
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from data_pipeline.records import Picture, Rejected
from data_pipeline.sources import DocumentsSource, SourceConfig, TextSource, text_files
from data_pipeline.sources.files import Pictures, expand_braces, identity, list_files


@pytest.fixture
def folder(tmp_path):
    for name in ("b.TXT", "a/c.txt", "a/d.txt", "a/.git/e.txt", ".f.txt", "g[1].txt", "h.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a/again").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["a/c.txt", "a/d.txt", "b.TXT", "g[1].txt"]),
        ("/", ["a/c.txt", "a/d.txt", "b.TXT", "g[1].txt"]),
        ("/a/*.txt", ["c.txt", "d.txt"]),
        ("/*/[c]*", ["a/c.txt", "link/c.txt"]),
        ("/h.md", ["h.md"]),
        ("/{a/{c,d},b}.[tT]*", ["a/c.txt", "a/d.txt", "b.TXT"]),
        ("/g[1].txt", ["g[1].txt"]),
    ],
)
def test_path_is_a_file_a_folder_or_a_pattern(folder, path, names, monkeypatch):
    found = list_files(f"{folder}{path}", ("*.txt",))
    assert [file.name for file in found] == names
    assert all(Path(file.path).read_text().endswith(os.path.basename(file.name)) for file in found)
    monkeypatch.chdir(folder)
    if path.strip("/"):
        assert [file.name for file in list_files(path[1:], ("*.txt",))] == names


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.txt", "gone.txt: no such file"),
        ("*.csv", "no file matches this pattern"),
        ("a", "no files *.csv in this folder"),
    ],
)
def test_path_of_nothing_is_named(folder, path, message):
    with pytest.raises(FileError) as caught:
        list_files(f"{folder}/{path}", ("*.csv",))
    assert str(caught.value).startswith(f"{folder}/{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s-{008..010}.tar", ["s-008.tar", "s-009.tar", "s-010.tar"]),
        ("s-{9..11}", ["s-9", "s-10", "s-11"]),
        ("{train,test}/{0..1}", ["train/0", "train/1", "test/0", "test/1"]),
        ("{one} {}", ["{one} {}"]),
        ("{one}{1..1}", ["{one}1"]),
    ],
)
def test_braces_stand_for_names_as_in_a_shell(path, expected):
    assert expand_braces(path) == expected


@pytest.mark.parametrize("numbers", ["0..999999999999", "7..3"])
def test_braces_for_no_files_or_for_more_than_there_can_be_are_refused(numbers):
    with pytest.raises(FileError, match=r"\{.*\} stands for [-\d,]+ files; must be from 1 to 1,000,000"):
        list_files(f"shard-{{{numbers}}}.tar")


def test_file_that_braces_ask_for_must_be_there(folder):
    with pytest.raises(FileError, match=f"^{folder}/a/e.txt: no such file"):
        list_files(f"{folder}/a/{{c,e}}.txt")


def test_identity_is_that_of_the_contents(tmp_path):
    content = bytearray(os.urandom(1 << 18))
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(content)
    assert identity(str(paths[0])) == identity(str(paths[1]))
    for place in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        paths[1].write_bytes(changed)
        assert identity(str(paths[0])) != identity(str(paths[1]))
    changed = bytearray(content)
    changed[70_000] ^= 1
    paths[1].write_bytes(changed)
    assert identity(str(paths[0]), whole=1 << 18) != identity(str(paths[1]), whole=1 << 18)
    paths[1].write_bytes(content + b"x")
    assert identity(str(paths[0])) != identity(str(paths[1]))


# ----------------------------------------------------------------------------------------------------------------------
# In a bucket
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder of records and a picture on this machine, and the same in fsspec's memory."""
    import fsspec

    (tmp_path / "set/pictures").mkdir(parents=True)
    random_picture(1).save(tmp_path / "set/pictures/kite.png")
    (tmp_path / "set/a.jsonl").write_text(json.dumps(["A kite: ", {"image": "pictures/kite.png"}]))
    (tmp_path / "set/b.jsonl").write_text('["b"]\n["c"]')
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/bucket/", recursive=True)
    yield tmp_path
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("path", ["set", "set/*.jsonl", "set/a.jsonl", "set/{a,b}.jsonl"])
def test_records_in_a_bucket_are_those_on_this_machine(bucket, path):
    here, there = DocumentsSource(path=f"{bucket}/{path}"), DocumentsSource(path=f"memory://bucket/{path}")
    assert there.shards() == here.shards()
    for one, other in zip(here.records(), there.records(), strict=True):
        assert (one.id, one.place, one.segments[0]) == (other.id, other.place, other.segments[0])
        assert [picture.open().tobytes() for picture in one.segments[1:]] == [
            picture.open().tobytes() for picture in other.segments[1:]
        ]


@pytest.mark.usefixtures("bucket")
def test_what_is_not_in_the_bucket_is_named():
    with pytest.raises(FileError, match=r"memory://bucket/gone\.jsonl: no such file"):
        DocumentsSource(path="memory://bucket/gone.jsonl").shards()
    with pytest.raises(FileError, match=r"memory://bucket/set/\{a,gone\}\.jsonl: no such file"):
        DocumentsSource(path="memory://bucket/set/{a,gone}.jsonl").shards()
    with pytest.raises(DocumentError, match=r"memory://bucket/gone\.png: no such picture file"):
        Picture("memory://bucket/gone.png").open()


def test_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"need zstandard, .*pip install 'chameleon-jax\[zstd\]'"):
        list(DocumentsSource(path=str(tmp_path)).read_all())
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"s3://bucket/a\.jsonl: .*pip install 'chameleon-jax\[s3\]'"):
        DocumentsSource(path="s3://bucket/a.jsonl").shards()
    with pytest.raises(
        ConfigError, match=r"what://bucket/a\.jsonl: what:// is not known; expected gs://, s3:// or hf://"
    ):
        DocumentsSource(path="what://bucket/a.jsonl").shards()


# ----------------------------------------------------------------------------------------------------------------------
# Pictures that records name
# ----------------------------------------------------------------------------------------------------------------------


def test_pictures_are_paths_or_base64(tmp_path):
    path = tmp_path / "kite.png"
    random_picture(1).save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    named = [
        "kite.png",
        str(path),
        f"file://{path}",
        f"data:image/png;base64,{text}",
        text,
        text[:76] + "\n" + text[76:],
    ]
    long = tmp_path / ("Qk" * 50) / "kite.png"
    long.parent.mkdir()
    long.write_bytes(path.read_bytes())
    for value in [*named, str(long.relative_to(tmp_path))]:
        assert Pictures(str(tmp_path), "line 1")(value).open().tobytes() == random_picture(1).tobytes()


def test_pictures_of_other_machines_are_not_fetched():
    for value in ("https://example.com/a.png", "ftp://example.com/a.png", "memory://bucket/a.png"):
        with pytest.raises(DocumentError, match="is not fetched"):
            Pictures("folder", "line 1")(value)


def test_pictures_may_be_in_a_folder_of_their_own(tmp_path):
    (tmp_path / "pictures").mkdir()
    random_picture(1).save(tmp_path / "pictures/kite.png")
    (tmp_path / "a.jsonl").write_text('[{"image": "kite.png"}]')
    values = {"kind": "documents", "path": f"{tmp_path}/a.jsonl", "picture_folder": f"{tmp_path}/pictures"}
    (record,) = from_dict(SourceConfig, values).records()
    assert record.segments[0].open().tobytes() == random_picture(1).tobytes()


# ----------------------------------------------------------------------------------------------------------------------
# Texts
# ----------------------------------------------------------------------------------------------------------------------


def test_files_of_text_are_documents(tmp_path):
    (tmp_path / "src").mkdir()
    files = {
        "a.txt": "Schöne\r\nZeile\n".encode(), "b.txt": b"\xef\xbb\xbfb", "c.txt": "ö".encode("utf-16"),
        "d.txt": b"one\ntw\xff", "e.txt": b"one\n\0\n", "f.txt": b" \n", "g.txt": b"", "src/h.py": b"import h\n",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    records = list(TextSource(path=str(tmp_path)).read_all())
    assert [record[2] if isinstance(record, Rejected) else record.segments[0] for record in records] == [
        "Schöne\r\nZeile\n", "b", "ö", "not valid UTF-8", "holds a NUL byte: it is no text", "the file is empty",
        "the file is empty", "import h\n",
    ]  # fmt: skip
    assert [record.id for record in records] == list(files)
    assert [record.place for record in records[3:6]] == ["d.txt, line 2", "e.txt, line 2", "f.txt"]
    only_code = TextSource(path=f"{tmp_path}/**/*.py")
    assert [(record.id, record.fields) for record in only_code.records()] == [("src/h.py", {"path": "src/h.py"})]


@pytest.mark.parametrize("end", ["\n", " ", ""])
def test_long_text_is_cut_where_it_may_be(tmp_path, monkeypatch, end):
    monkeypatch.setattr(text_files, "LONGEST_TEXT", 100)
    text = "".join(f"Größe {number}".replace(" ", end or "_") + end for number in range(99))
    (tmp_path / "a.txt").write_text(text)
    records = list(TextSource(path=str(tmp_path / "a.txt")).records())
    texts = [record.segments[0] for record in records]
    assert "".join(texts) == text
    assert all(len(each.encode()) <= 100 and each.endswith(end) for each in texts)
    starts = [sum(len(each.encode()) for each in texts[:number]) for number in range(len(texts))]
    assert [record.id for record in records] == ["a.txt", *(f"a.txt@{start}" for start in starts[1:])]


def test_files_of_text_are_read_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "GROUP_FILES", 3)
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    source = TextSource(path=str(tmp_path))
    shards = source.shards()
    assert [shard.files for shard in shards] == [("0.txt", "1.txt", "2.txt"), ("3.txt", "4.txt", "5.txt"), ("6.txt",)]
    (tmp_path / "4.txt").write_text("text!4")
    assert [new == old for new, old in zip(source.shards(), shards, strict=True)] == [True, False, True]
    assert [record.segments[0] for record in source.records()][3:5] == ["text 3", "text!4"]
