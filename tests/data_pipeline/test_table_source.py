"""Tables of pictures and captions: every row is read, or rejected with its line and a reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from picture_files import picture_file, plain, read

from chameleon_jax.errors import ConfigError
from data_pipeline.records import Rejected
from data_pipeline.sources import TableSource, table


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "kites").mkdir()
    for number in range(10):
        (tmp_path / "kites" / f"{number}.png").write_bytes(picture_file(number))
    return tmp_path


def table_of(folder: Path, content: str | bytes, name: str = "table.csv", **settings) -> TableSource:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return TableSource(path=str(folder / name), **settings)


def rows_of(folder: Path, content: str | bytes, name: str = "table.csv", **settings) -> list:
    return [plain(record) for record in read(table_of(folder, content, name, **settings))]


def test_csv(folder):
    content = 'image,text,year\nkites/1.png,"A ""red"" kite,\nin two lines.",2019\n\nkites/2.png,Zürich,\n'
    assert rows_of(folder, content) == [[1, 'A "red" kite,\nin two lines.'], [2, "Zürich"]]
    record = read(table_of(folder, content))[1]
    assert (record.place, record.id) == ("table.csv, line 5", f"table.csv@{content.encode().index(b'kites/2')}")
    assert record.fields == {"image": record.segments[0], "text": "Zürich"}, "what is empty is not there"


def test_tsv_and_other_delimiters(folder):
    assert rows_of(folder, "file_name\tcaption\nkites/1.png\tA, b; c\n", "table.tsv") == [[1, "A, b; c"]]
    assert rows_of(folder, "image;text\nkites/1.png;A, b\n") == [[1, "A, b"]]
    assert rows_of(folder, "image~text\nkites/1.png~A, b\n", delimiter="~") == [[1, "A, b"]]


def test_metadata_jsonl_of_an_image_folder(folder):
    lines = [
        {"file_name": "kites/1.png", "text": "A kite.", "year": 2019},
        {"file_name": "kites/2.png", "text": "Two."},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    assert rows_of(folder, content, "metadata.jsonl") == [[1, "A kite."], [2, "Two."]]
    assert read(table_of(folder, content, "metadata.jsonl"))[0].fields["year"] == "2019"
    many = json.dumps({"image": ["kites/1.png", "kites/2.png"], "caption": ["Both.", "Both."]})
    assert rows_of(folder, many, "metadata.jsonl") == [[1, 2, "Both."]]
    bad = ["[]", '{"file_name": "kites/1.png"', '{"text": "no picture"}', '{"file_name": 3, "text": "a"}']
    read_ = rows_of(folder, content + "\n".join(bad), "metadata.jsonl")
    assert read_[:2] == [[1, "A kite."], [2, "Two."]]
    assert [reason.partition(":")[0] for reason in read_[2:]] == [
        'a line must be an object such as {"file_name"', "not valid JSON", "column 'file_name', null",
        "column 'file_name', 3",
    ]  # fmt: skip


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["table.csv", "metadata.jsonl"])
def test_encodings(folder, name, encoding, compress):
    text = (
        "image,text\r\nkites/1.png,Zürich\r\n" if name == "table.csv" else '{"image": "kites/1.png", "text": "Zürich"}'
    )
    assert rows_of(folder, compress(text.encode(encoding)), name) == [[1, "Zürich"]]


def test_encoding_that_a_config_names(folder):
    content = "image,text\nkites/1.png,Zürich\nkites/2.png,fine\n".encode("cp1252")
    first, second = rows_of(folder, content)
    assert first == "not valid utf-8; see the key `encoding`"
    assert second == [2, "fine"]
    assert rows_of(folder, content, encoding="cp1252") == [[1, "Zürich"], [2, "fine"]]
    for encoding, message in (("cp99999", "knows no such encoding"), ("utf-16", "must leave ASCII as it is")):
        with pytest.raises(ConfigError, match=f"encoding = '{encoding}': .*{message}"):
            TableSource(path="table.csv", encoding=encoding)


def test_columns_by_name(folder):
    content = "id,photo,says,text\n7,kites/1.png,A kite.,other\n"
    assert rows_of(folder, content, image_column="photo", text_column="says") == [[1, "A kite."]]
    assert rows_of(folder, "kites/1.png,A kite.\n", columns=["image", "text"]) == [[1, "A kite."]]
    assert rows_of(folder, "text,id\nOnly text.,3\n") == [["Only text."]]
    assert rows_of(folder, "image,id\nkites/1.png,3\n", uncaptioned="keep") == [[1]]


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        ("image,text", {"text_column": "caption"}, "text_column = 'caption': there is no such column; the columns are"),
        ("image,text", {"image_column": "jpg"}, "image_column = 'jpg': there is no such column; the columns are"),
        ("text,image,text,,", {}, "text_column = 'text': there are several such columns; the columns are"),
        ("image,says", {}, "text_column: must name the column of captions, one of 'image', 'says'"),
    ],
)
def test_wrong_column_is_named_with_those_that_exist(folder, header, settings, message):
    with pytest.raises(ConfigError, match=message):
        table_of(folder, f"{header}\nkites/1.png,A kite.\n", **settings).shards()


def test_bad_rows_do_not_take_others_with_them(folder):
    rows = [
        "kites/1.png,one",
        "kites/2.png",
        "kites/3.png,a,b",
        ",four",
        "kites/5.png,",
        'kites/6.png,"six"x',
        "kites/7.png,7",
    ]
    assert rows_of(folder, "\n".join(["image,text", *rows])) == [
        [1, "one"],
        "1 cells, but the table has 2 columns",
        "3 cells, but the table has 2 columns",
        "column 'image' is empty",
        "the picture has no caption ('uncaptioned: keep' keeps it)",
        "not valid CSV: ',' expected after '\"'; quotes in text are written twice, or turned off (quote: '')",
        [7, "7"],
    ]
    assert rows_of(folder, 'image,text\nkites/1.png,5" wide\n', quote="") == [[1, '5" wide']]


def test_quote_that_is_never_closed_is_no_caption(folder):
    read_ = read(table_of(folder, 'image,text\nkites/1.png,one\nkites/2.png,"two\nkites/3.png,three\n'))
    assert plain(read_[0]) == [1, "one"]
    assert read_[1] == Rejected(read_[1].id, "table.csv, line 3", read_[1].reason)
    assert "unexpected end of data" in read_[1].reason
    assert len(read_) == 2


def test_rows_longer_than_the_limit_are_rejected_and_skipped(folder, monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.jsonl.LONGEST_LINE", 40)
    content = f"image,text\nkites/1.png,{'a' * 50}\nkites/2.png,two\n"
    assert [each if isinstance(each, list) else each[:6] for each in rows_of(folder, content)] == ["longer", [2, "two"]]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", gzip.compress(b"image,text\nkites/1.png,one\n" * 99)[:-20]],
    ids=["empty", "blank lines", "cut off"],  # gzip notes the time, which must not be in the name of a test
)
def test_table_that_cannot_be_read_is_one_reject(folder, content):
    rejected = read(table_of(folder, content))[-1]
    assert isinstance(rejected, Rejected)
    assert "table.csv, all behind" in rejected.place


@pytest.mark.parametrize("name", ["table.csv", "metadata.jsonl"])
def test_shards_of_a_large_table_are_its_rows(folder, name, monkeypatch):
    rows = [{"image": f"kites/{n % 10}.png", "text": f'"{n}",\n{"ü" * (n % 7)}'} for n in range(50)]
    file = io.StringIO()
    if name == "table.csv":
        writer = csv.DictWriter(file, ["image", "text"])
        writer.writeheader()
        writer.writerows(rows)
    else:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    source = table_of(folder, file.getvalue(), name)
    whole = read(source)
    assert [record.fields["text"] for record in whole] == [row["text"].strip() for row in rows]
    monkeypatch.setattr(table, "PICTURES_PER_SHARD", 8)
    assert len(source.shards()) == 7
    assert len({shard.identity for shard in source.shards()}) == 7
    assert [(record.id, record.segments) for record in read(source)] == [(r.id, r.segments) for r in whole]
