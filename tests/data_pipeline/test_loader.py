"""A run stopped anywhere reads on exactly where it was, and damaged data is noticed before it is learnt from."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
from tiny_models import TRANSFORMER

from chameleon_jax.config import CheckpointConfig, ConfigError, OptimizerConfig, StageConfig, TrainConfig
from chameleon_jax.files import FileError
from data_pipeline.loader import PreparedData
from data_pipeline.packing import Piece, cut, pack


def run_config(
    steps: int = 12, batch_size: int = 4, seed: int = 0, stages: tuple[StageConfig, ...] = ()
) -> TrainConfig:
    return TrainConfig(
        data="unused",
        output="unused",
        model=TRANSFORMER,
        steps=steps,
        batch_size=batch_size,
        stages=stages or (StageConfig(0.5, {"mixed": 1, "prose": 1}), StageConfig(0.5, {"mixed": 1})),
        optimizer=OptimizerConfig(warmup_steps=0),
        checkpoint=CheckpointConfig(every=10),
        seed=seed,
    )


def assert_same_batches(left, right):
    for one, other in itertools.zip_longest(left, right):
        for field, other_field in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, other_field)


def copy_of(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def test_batches_have_the_shapes_and_types_that_training_reads(prepared):
    batches = list(PreparedData(prepared).batches(run_config()))
    assert len(batches) == 12
    for batch in batches:
        assert {field.shape for field in batch} == {(4, 48)}
        types = [field.dtype for field in batch]
        assert types == [np.int32, np.int32, np.float32, np.int32, np.int32]


def test_rows_are_the_packed_documents(prepared, command):
    """What is read back is what packing made, row for row."""
    data = PreparedData(prepared)
    tokenizer = data.tokenizer()
    documents = [[f"The fox said {number} to the dog. " * (1 + number % 3)] for number in range(60)]
    vocabulary = tokenizer.vocabulary
    whole = [np.append(ids, vocabulary.eos) for ids in tokenizer.encode_many(documents)]
    pieces = [piece for ids in whole for piece in cut(Piece(ids, np.ones(len(ids))), 48, vocabulary)]
    expected = list(pack(pieces, 48, vocabulary))
    rows = data.rows("sources", "prose")
    assert len(rows) == len(expected)
    for index, row in enumerate(expected):
        assert rows[index].tobytes() == row.tobytes()


@pytest.mark.parametrize("start", [1, 5, 6, 11, 12])
def test_run_goes_on_where_it_stopped(prepared, start):
    config = run_config()
    whole = list(PreparedData(prepared).batches(config))
    assert_same_batches(PreparedData(prepared).batches(config, start), whole[start:])


def test_runs_with_one_seed_agree_and_with_another_do_not(prepared):
    data = PreparedData(prepared)
    assert_same_batches(data.batches(run_config()), data.batches(run_config()))
    first, other = next(data.batches(run_config())), next(data.batches(run_config(seed=1)))
    assert (first.inputs != other.inputs).any()


def test_second_stage_reads_its_own_sources(prepared):
    data = PreparedData(prepared)
    pictures = {data.rows("sources", "mixed")[row].tobytes() for row in range(len(data.rows("sources", "mixed")))}
    stages = (StageConfig(0.25, {"prose": 1}), StageConfig(0.75, {"mixed": 1}))
    batches = list(data.batches(run_config(steps=8, stages=stages)))
    inputs_of_pictures = {np.frombuffer(row[: 48 * 4], np.int32).tobytes() for row in pictures}
    from_pictures = [[row.tobytes() in inputs_of_pictures for row in batch.inputs] for batch in batches]
    assert from_pictures == [[False] * 4] * 2 + [[True] * 4] * 6


def test_unknown_source_is_named(prepared):
    config = run_config(stages=(StageConfig(1, {"mixd": 1}),))
    with pytest.raises(ConfigError, match=r"stages\.0\.weights\.mixd: .*mixed, prose"):
        next(PreparedData(prepared).batches(config))


def test_held_out_rows_come_once_and_padding_does_not_count(prepared):
    data = PreparedData(prepared)
    rows = data.rows("held_out", "unseen")
    batches = data.held_out_batches("unseen", batch_size=4)
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
    (folder / "dataset.json").write_text(json.dumps({**header, "format_version": 99}))
    with pytest.raises(FileError, match=r"dataset\.json: format_version 99 is newer"):
        PreparedData(folder)


def test_missing_rows_are_noticed(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    header = json.loads((folder / "dataset.json").read_text())
    header["sources"]["prose"]["rows"] += 1
    (folder / "dataset.json").write_text(json.dumps(header))
    with pytest.raises(FileError, match=r"sources\.prose has \d+ rows, dataset\.json says \d+"):
        PreparedData(folder).rows("sources", "prose")


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
