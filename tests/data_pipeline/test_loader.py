"""A run stopped anywhere reads on exactly where it was, and damaged data is noticed before it is learnt from."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import pair, source, text, write_prepared
from tiny_models import scrambled_vocabulary

from chameleon_jax.batch import from_rows, row_dtype
from chameleon_jax.config import ConfigError, StageConfig
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.files import write_json
from data_pipeline import loader
from data_pipeline.loader import PreparedData
from data_pipeline.packing import pack, pieces_of
from data_pipeline.rows import Piece

VOCABULARY = scrambled_vocabulary(num_pieces=200, num_codes=16, seed=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Two pools of rows and a held-out one. Tests that change them copy the folder first."""
    mixed = [pair(number, 3 + number % 20, 4, VOCABULARY) for number in range(70)]
    prose = [text(number, 5 + 7 * number % 60, VOCABULARY) for number in range(80)]
    unseen = [pair(1000 + number, 30, 4, VOCABULARY) for number in range(9)]
    return write_prepared(
        tmp_path_factory.mktemp("prepared") / "rows",
        VOCABULARY,
        48,
        {"mixed": [source("mixed", mixed)], "prose": [source("prose", prose)]},
        {"unseen": [source("unseen", unseen)]},
    )


@pytest.fixture(scope="module")
def older(prepared, tmp_path_factory) -> Path:
    """The same rows as older versions wrote them: all arrays of a Batch, in one file of each source."""
    folder = tmp_path_factory.mktemp("older") / "rows"
    folder.mkdir()
    data = PreparedData(prepared)
    header = {key: data.header[key] for key in ("sequence_length", "vocab_size", "fingerprint")}
    header["format_version"] = 1
    for part in ("sources", "held_out"):
        header[part] = {name: dict(entry) for name, entry in data.header[part].items()}
        for name, entry in header[part].items():
            del entry["file_rows"]
            entry["files"] = [f"{part}-{name}-00000.arrayrecord"]
            writer = ArrayRecordWriter(str(folder / entry["files"][0]), "group_size:1")
            for row in data.rows(part, name):
                writer.write(row.tobytes())
            writer.close()
    write_json(folder / "dataset.json", header)
    return folder


def run(steps: int = 12, batch_size: int = 4, seed: int = 0, stages: tuple[StageConfig, ...] = ()) -> dict[str, Any]:
    """What `batches` must know of a training run."""
    stages = stages or (StageConfig(0.5, {"mixed": 1, "prose": 1}), StageConfig(0.5, {"mixed": 1}))
    return {"stages": stages, "steps": steps, "batch_size": batch_size, "seed": seed}


def assert_same_batches(left, right):
    for one, other in itertools.zip_longest(left, right):
        for field, other_field in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, other_field)


def copy_of(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def test_batches_have_the_shapes_and_types_that_training_reads(prepared):
    batches = list(PreparedData(prepared).batches(**run()))
    assert len(batches) == 12
    for batch in batches:
        assert {field.shape for field in batch} == {(4, 48)}
        types = [field.dtype for field in batch]
        assert types == [np.int32, np.int32, np.float32, np.int32, np.int32]


def test_rows_are_the_packed_documents(prepared):
    """What is read back is what packing made, row for row."""
    documents = [text(number, 5 + 7 * number % 60, VOCABULARY) for number in range(80)]
    pieces = [
        piece
        for each in documents
        for piece in pieces_of(Piece(each.ids, each.weights), [48] if len(each.ids) > 48 else [], VOCABULARY)
    ]
    expected = list(pack(pieces, 48))
    rows = PreparedData(prepared).rows("sources", "prose")
    assert len(rows) == len(expected)
    for row, packed in zip(rows, expected, strict=True):
        places = np.cumsum([0, *(len(piece.ids) - 1 for piece in packed)])
        assert row["targets"][: places[-1]].tolist() == [token for piece in packed for token in piece.ids[1:]]
        assert row["inputs"][places[:-1]].tolist() == [VOCABULARY.bos] * len(packed)
        assert row["targets"][places[-1] :].tolist() == [VOCABULARY.pad] * (48 - places[-1])


def test_rows_of_older_versions_are_read_the_same(prepared, older):
    assert_same_batches(PreparedData(older).batches(**run()), PreparedData(prepared).batches(**run()))
    assert_same_batches(
        PreparedData(older).held_out_batches("unseen", 4), PreparedData(prepared).held_out_batches("unseen", 4)
    )


@pytest.mark.parametrize("hosts", [1, 2, 8])
def test_global_batches_do_not_depend_on_hosts_or_how_many_are_read_at_a_time(prepared, monkeypatch, hosts):
    config = run(steps=9, batch_size=8)
    whole = list(PreparedData(prepared).batches(**config))
    monkeypatch.setattr(loader, "TOKENS_AT_A_TIME", 48 * 8)
    parts = np.array_split(np.arange(8), hosts)
    readers = [PreparedData(prepared).batches(**config, rows=part) for part in parts]
    together = [
        type(batches[0])(*(np.concatenate(fields) for fields in zip(*batches, strict=True)))
        for batches in zip(*readers, strict=True)
    ]
    assert_same_batches(together, whole)


@pytest.mark.parametrize("start", [1, 5, 6, 11, 12])
def test_run_goes_on_where_it_stopped(prepared, start):
    config = run()
    whole = list(PreparedData(prepared).batches(**config))
    assert_same_batches(PreparedData(prepared).batches(**config, start=start), whole[start:])


def test_runs_with_one_seed_agree_and_with_another_do_not(prepared):
    data = PreparedData(prepared)
    assert_same_batches(data.batches(**run()), data.batches(**run()))
    first, other = next(data.batches(**run())), next(data.batches(**run(seed=1)))
    assert (first.inputs != other.inputs).any()


def test_second_stage_reads_its_own_sources(prepared):
    data = PreparedData(prepared)
    pictures = {data.rows("sources", "mixed")[row].tobytes() for row in range(len(data.rows("sources", "mixed")))}
    stages = (StageConfig(0.25, {"prose": 1}), StageConfig(0.75, {"mixed": 1}))
    batches = list(data.batches(**run(steps=8, stages=stages)))
    inputs_of_pictures = {np.frombuffer(row[: 48 * 4], np.int32).tobytes() for row in pictures}
    from_pictures = [[row.tobytes() in inputs_of_pictures for row in batch.inputs] for batch in batches]
    assert from_pictures == [[False] * 4] * 2 + [[True] * 4] * 6


@settings(max_examples=12)
@given(order=st.permutations(range(4)), at=st.integers(1, 3), start=st.integers(0, 11))
def test_processes_that_read_parts_of_a_batch_read_all_of_it(prepared, order, at, start):
    data, config = PreparedData(prepared), run()
    parts = [np.array(part) for part in (order[:at], order[at:])]
    readers = [data.batches(**config, start=start, rows=part) for part in parts]
    for whole, *pieces in itertools.zip_longest(data.batches(**config, start=start), *readers):
        for part, piece in zip(parts, pieces, strict=True):
            for field, own in zip(whole, piece, strict=True):
                np.testing.assert_array_equal(field[part], own)


@pytest.mark.parametrize("rows", [[], [0, 4], [-1]])
def test_rows_that_a_batch_has_not_are_refused(prepared, rows):
    with pytest.raises(ValueError, match="must be some of the numbers 0 to 3"):
        PreparedData(prepared).batches(**run(), rows=np.array(rows, int))


def test_rows_of_a_batch_can_be_looked_up(prepared):
    data, config = PreparedData(prepared), run(steps=40)
    sources = {name: data.rows("sources", name) for name in ("mixed", "prose")}
    for number, batch in enumerate(data.batches(**config)):
        rows = data.rows_of_batch(**config)(number)
        expected = from_rows(np.stack([sources[name][index] for name, index in rows]))
        assert_same_batches([batch], [expected])
        assert all(0 <= index < len(sources[name]) for name, index in rows)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss_weights", np.nan, "loss weights must be finite"),
        ("loss_weights", -0.5, "loss weights must be .* 0 or more"),
        ("inputs", -1, "inputs must be ids from 0 to"),
        ("targets", 100_000, "targets must be ids from 0 to"),
        (None, None, r"it has 100 bytes instead of 960"),
    ],
)
def test_damaged_row_of_an_older_version_is_named(older, tmp_path, field, value, message):
    def damage(record: bytes) -> bytes:
        if not field:
            return record[:100]
        row = np.frombuffer(record, row_dtype(48)).copy()
        row[field][0, 7] = value
        return row.tobytes()

    assert_damage_is_named(older, tmp_path, damage, message)


def test_damaged_row_is_named(prepared, tmp_path):
    assert_damage_is_named(prepared, tmp_path, lambda record: record[:-4], "it has \\d+ bytes instead of")
    assert_damage_is_named(prepared, tmp_path, lambda record: b"\0" * len(record), "the tables of its documents")


def assert_damage_is_named(prepared, tmp_path, damage, message):
    """Also in the middle of training, where the pool is gone through for the third time."""
    folder = shutil.copytree(prepared, tmp_path / "copy", dirs_exist_ok=True)
    (file,) = folder.glob("sources-mixed-*")
    rows = PreparedData(prepared).rows("sources", "mixed")
    records = rows.records(np.arange(len(rows)))
    records[5] = damage(records[5])
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    place = rf"{file.name}: row 5 of sources\.mixed is damaged: {message}.*; prepare again$"
    data = PreparedData(folder)
    with pytest.raises(FileError, match=place):
        data.rows("sources", "mixed")[5]
    config = run(steps=40, stages=(StageConfig(1, {"mixed": 1}),))
    numbers = [number for number in range(40) if ("mixed", 5) in data.rows_of_batch(**config)(number)]
    with pytest.raises(FileError, match=place):
        list(data.batches(**config, start=numbers[2]))


def test_unknown_source_is_named(prepared):
    config = run(stages=(StageConfig(1, {"mixd": 1}),))
    with pytest.raises(ConfigError, match=r"stages\.0\.weights\.mixd: .*mixed, prose"):
        next(PreparedData(prepared).batches(**config))
    with pytest.raises(ConfigError, match=r"^stages = \[\]: must list a mixture of .*: mixed, prose$"):
        PreparedData(prepared).batches(**{**config, "stages": ()})


def test_held_out_rows_come_once_and_padding_does_not_count(prepared):
    data = PreparedData(prepared)
    rows = data.rows("held_out", "unseen")
    batches = list(data.held_out_batches("unseen", batch_size=4))
    assert len(rows) % 4 != 0, "the last batch must have something to fill up"
    assert len(batches) == -(-len(rows) // 4)
    read = np.concatenate([batch.inputs for batch in batches])
    np.testing.assert_array_equal(read[: len(rows)], np.stack([rows[index]["inputs"] for index in range(len(rows))]))
    weights = np.concatenate([batch.loss_weights for batch in batches])
    segments = np.concatenate([batch.segment_ids for batch in batches])
    assert (weights[len(rows) :] == 0).all()
    assert (segments[len(rows) :] == 0).all()
    assert weights.sum() == sum(rows[index]["loss_weights"].sum() for index in range(len(rows)))
    (first,) = data.held_out_batches("unseen", batch_size=2, limit=1)
    np.testing.assert_array_equal(first.inputs, read[:2])
    # A process that holds some rows of a batch reads no others.
    mine = [batch.inputs for batch in data.held_out_batches("unseen", 4, rows=np.asarray([1, 3]))]
    np.testing.assert_array_equal(np.concatenate(mine), read.reshape(-1, 4, 48)[:, [1, 3]].reshape(-1, 48))


def test_held_out_source_that_was_not_prepared_is_named(prepared):
    with pytest.raises(ConfigError, match=r"held_out\.prose: .*unseen"):
        PreparedData(prepared).held_out_batches("prose", 4)


def test_folder_without_rows_says_what_to_run(tmp_path):
    with pytest.raises(FileError, match="chameleon prepare"):
        PreparedData(tmp_path / "nothing")
    (tmp_path / "half").mkdir()
    with pytest.raises(FileError, match="half: holds no prepared data"):
        PreparedData(tmp_path / "half")


def test_newer_format_is_refused(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    header = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**header, "format_version": 99, "sha256": None}))
    with pytest.raises(FileError, match=r"dataset\.json: format_version 99 is newer"):
        PreparedData(folder)


def test_missing_rows_are_noticed(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    header = json.loads((folder / "dataset.json").read_text())
    header["sources"]["prose"]["file_rows"][0] += 1
    del header["sha256"]
    (folder / "dataset.json").write_text(json.dumps(header))
    with pytest.raises(FileError, match=r"sources\.prose has \d+ rows, dataset\.json says \d+"):
        PreparedData(folder).rows("sources", "prose")


def test_a_flipped_byte_in_a_file_of_rows_ends_training_in_one_line_with_file_and_row(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    path = next(folder.glob("sources-prose-*.arrayrecord"))
    expected, content, named = rows_of(folder), path.read_bytes(), 0
    for place in range(0, len(content), len(content) // 40):
        flipped = bytearray(content)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        try:
            found = rows_of(folder)
        except FileError as error:
            named += str(path) in str(error) and "\\n" not in str(error) and len(str(error)) < 500
        else:
            assert found == expected  # between the records, and behind them
            named += 1
    assert named == len(range(0, len(content), len(content) // 40))


def rows_of(folder: Path) -> list[bytes]:
    rows = PreparedData(folder).rows("sources", "prose")
    return [row.tobytes() for row in rows]


@pytest.mark.parametrize("damage", ["deleted", "empty", "cut in half"])
def test_damaged_file_of_rows_is_named(prepared, tmp_path, damage):
    folder = copy_of(prepared, tmp_path)
    (file,) = folder.glob("sources-prose-*")
    if damage == "deleted":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if damage == "cut in half" else b"")
    with pytest.raises(FileError, match="prose"):
        PreparedData(folder).rows("sources", "prose")


def test_damaged_header_is_named(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    content = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"dataset\.json: cannot be read as JSON"):
        PreparedData(folder)
