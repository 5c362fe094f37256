"""Parquet files and data sets of Hugging Face: every row is read, or rejected with its number and a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_files import picture_file, plain, read

from chameleon_jax.errors import ConfigError
from data_pipeline.forms import documents_of
from data_pipeline.records import Rejected
from data_pipeline.sources import ParquetSource, parquet

HF_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(seed: int) -> dict[str, Any]:
    return {"bytes": picture_file(seed), "path": f"{seed}.png"}


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **settings) -> str:
    """A Parquet file, or an Arrow file as `save_to_disk` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path, **settings)
    return str(path)


def rows_of(path: str | Path, **settings) -> list:
    return [plain(record) for record in read(ParquetSource(path=str(path), **settings))]


def pairs(numbers: range, kind: pa.DataType = HF_PICTURE) -> dict[str, Any]:
    pictures = [cell(number) if kind is HF_PICTURE else picture_file(number) for number in numbers]
    return {"photo": pa.array(pictures, kind), "text": [f"{number}." for number in numbers], "year": list(numbers)}


def test_pictures_as_hugging_face_writes_them(tmp_path):
    path = write(tmp_path / "kites.parquet", pairs(range(3)))
    assert rows_of(path) == [[0, "0."], [1, "1."], [2, "2."]]
    record = read(ParquetSource(path=path))[1]
    assert (record.id, record.place) == ("kites.parquet:1", "kites.parquet, row 1")
    assert record.fields == {"image": record.segments[0], "text": "1.", "year": "1"}
    assert record.segments[0].data == picture_file(1)


def test_pictures_as_bytes_and_as_paths(tmp_path):
    (tmp_path / "5.png").write_bytes(picture_file(5))
    assert rows_of(write(tmp_path / "a.parquet", {"jpg": [picture_file(1)], "caption": ["one"]})) == [[1, "one"]]
    assert rows_of(write(tmp_path / "b.parquet", {"file_name": ["5.png"], "caption": ["five"]})) == [[5, "five"]]
    by_path = pa.array([{"bytes": None, "path": "5.png"}], HF_PICTURE)
    assert rows_of(write(tmp_path / "c.parquet", {"image": by_path, "text": ["five"]})) == [[5, "five"]]


def test_lists_of_pictures_and_of_captions(tmp_path):
    pictures = pa.array([[cell(1), cell(2)], [cell(3)], []], pa.list_(HF_PICTURE))
    path = write(tmp_path / "a.parquet", {"images": pictures, "captions": [["x.", "x."], ["y."], ["z."]]})
    assert rows_of(path) == [[1, 2, "x."], [3, "y."], "column 'images' is empty"]


def test_conversations(tmp_path):
    says = [[{"from": "human", "value": "What is <image>?"}, {"from": "gpt", "value": "A kite."}]] * 2
    pictures = pa.array([[cell(1)], None], pa.list_(HF_PICTURE))
    path = write(tmp_path / "llava.parquet", {"images": pictures, "conversations": says})
    first, second = rows_of(path)
    assert first == [[["What is ", 1, "?"], ["A kite."]]]
    assert second == [[["What is <image>?"], ["A kite."]]], "without pictures, a mark inside a text is text"
    says = [[{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]]
    assert rows_of(write(tmp_path / "chat.parquet", {"messages": says})) == [[[["Hello?"], ["Yes."]]]]


def test_texts_and_pictures_in_turn(tmp_path):
    pictures = pa.array([[None, cell(1), None], [cell(2)]], pa.list_(HF_PICTURE))
    path = write(tmp_path / "a.parquet", {"images": pictures, "texts": [["First", None, "then"], [None]]})
    assert rows_of(path) == [["First", 1, "then"], [2]]
    asked = [[{"user": "What flies?", "assistant": "A kite.", "source": "coco"}]]
    pictures = pa.array([[cell(3)]], pa.list_(HF_PICTURE))
    path = write(tmp_path / "cauldron.parquet", {"images": pictures, "texts": asked})
    assert rows_of(path) == [[[[3, "What flies?"], ["A kite."]]]]


def test_text_alone(tmp_path):
    path = write(tmp_path / "text.parquet", {"text": ["one", None, "three"], "n": [1, 2, 3]})
    assert rows_of(path) == [["one"], "neither a picture nor a text", ["three"]]


def test_templates_need_no_caption(tmp_path):
    columns = {"photo": pa.array([cell(1)], HF_PICTURE), "name": ["kite"]}
    source = ParquetSource(path=write(tmp_path / "a.parquet", columns), form={"templates": ["{image}A {name}."]})
    (record,) = read(source)
    assert (plain(record), record.fields["name"]) == ([1], "kite")
    (document,) = documents_of(record, source, seed=0)
    assert plain(document) == [1, "A kite."]


def test_labels_are_captions_by_their_names(tmp_path):
    features = {"photo": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    path = write(tmp_path / "a.parquet", {"photo": pa.array([cell(1)], HF_PICTURE), "label": [1]}, features)
    assert rows_of(path, text_column="label") == [[1, "dog"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"text_column": "caption"},
            "text_column = 'caption': there is no such column; the columns are 'photo', 'words'",
        ),
        (
            {"image_column": "image"},
            "image_column = 'image': there is no such column; the columns are 'photo', 'words'",
        ),
        ({}, "text_column: must name the column of captions, one of 'photo', 'words'"),
    ],
)
def test_wrong_column_is_named_with_those_that_exist(tmp_path, settings, message):
    columns = {"photo": pa.array([cell(1)], HF_PICTURE), "words": ["one"]}
    with pytest.raises(ConfigError, match=message):
        ParquetSource(path=write(tmp_path / "a.parquet", columns), **settings).shards()


def test_shards_are_row_groups(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", pairs(range(10)), row_group_size=2)
    assert len(ParquetSource(path=path).shards()) == 1
    monkeypatch.setattr(parquet, "PICTURES_PER_SHARD", 4)
    shards = ParquetSource(path=path).shards()
    assert [(shard.begin, shard.end) for shard in shards] == [(0, 4), (4, 8), (8, 10)]
    assert rows_of(path) == [[number, f"{number}."] for number in range(10)]


def test_data_set_folder_as_on_the_hub(tmp_path):
    for name, numbers in (
        ("train-00000-of-00002", range(2)),
        ("train-00001-of-00002", range(2, 4)),
        ("test-00000-of-00001", range(4, 6)),
    ):
        write(tmp_path / "data" / f"{name}.parquet", pairs(numbers))
    (tmp_path / "README.md").write_text("a data set")
    assert rows_of(tmp_path) == [[number, f"{number}."] for number in range(4)]
    assert rows_of(tmp_path, split="test") == [[number, f"{number}."] for number in range(4, 6)]
    assert rows_of(tmp_path / "data" / "test-*.parquet") == [[number, f"{number}."] for number in range(4, 6)]
    with pytest.raises(ConfigError, match=r"split = 'validation': .* has test, train"):
        ParquetSource(path=str(tmp_path), split="validation").shards()


def test_data_set_folder_of_save_to_disk(tmp_path):
    for split, numbers in (("train", range(3)), ("validation", range(3, 5))):
        write(tmp_path / split / "data-00000-of-00001.arrow", pairs(numbers))
        (tmp_path / split / "state.json").write_text("{}")
    assert rows_of(tmp_path) == [[number, f"{number}."] for number in range(3)]
    assert rows_of(tmp_path, split="validation") == [[3, "3."], [4, "4."]]
    assert rows_of(tmp_path / "validation") == [[3, "3."], [4, "4."]]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_file_is_read_as_far_as_it_is_whole(tmp_path, name):
    numbers = range(9)
    path = Path(write(tmp_path / name, pairs(numbers)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if name == "a.arrow" else whole[:4] + b"\xaa" * 2000 + whole[2004:])
    *records, rest = read(ParquetSource(path=str(path)))
    assert [plain(record) for record in records] == [[number, f"{number}."] for number in numbers[: len(records)]]
    assert isinstance(rest, Rejected)
    assert rest.place == f"{name}, row {len(records)} and all behind it"
    assert "cannot be read any further" in rest.reason


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all", b"ARROW1\0\0"])
def test_file_that_is_no_table_is_one_reject(tmp_path, content):
    write(tmp_path / "a.parquet", pairs(range(2)))
    (tmp_path / "b.parquet").write_bytes(content)
    *records, rest = read(ParquetSource(path=str(tmp_path)))
    assert [plain(record) for record in records] == [[0, "0."], [1, "1."]]
    assert isinstance(rest, Rejected)
    assert rest.place.startswith("b.parquet, row 0")


def test_row_group_is_read_page_by_page(tmp_path):
    """Their size is the writer's choice."""
    noise = np.random.default_rng(0)
    pictures = pa.array([{"bytes": noise.bytes(1 << 17), "path": ""} for _ in range(256)], HF_PICTURE)
    pages = {"row_group_size": 256, "write_batch_size": 8, "use_dictionary": False}
    source = ParquetSource(
        path=write(tmp_path / "large.parquet", {"image": pictures, "text": ["Noise."] * 256}, **pages)
    )
    del pictures
    (shard,) = source.shards()
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in source.read(shard))
    assert most < 16 << 20, "of 32 MiB"
