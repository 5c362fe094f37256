"""A job is the same however it is run: by one process or many, here or there, in one go or not."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import joined_tokenizer, random_picture, scrambled_tokenizer

from chameleon_jax.config.reading import config
from chameleon_jax.console import commands
from chameleon_jax.errors import ChameleonError, FileError
from chameleon_jax.runtime.folders import check_folder
from chameleon_jax.runtime.locks import only_writer
from data_pipeline import units
from data_pipeline.accounting import TooManyRejected
from data_pipeline.config import PrepareCommand
from data_pipeline.counts import kind_of_reason
from data_pipeline.duplicates import find_duplicates
from data_pipeline.loader import PreparedData
from data_pipeline.prepare import PREPARED
from data_pipeline.prepare import prepare as prepare_rows
from data_pipeline.records import Picture, Record, Rejected, Shard
from data_pipeline.sources import DocumentsSource, SourceConfig, register_source


@pytest.fixture(scope="module")
def job(command, tmp_path_factory) -> PrepareCommand:
    """Text in five files, some of it unusable, beside documents with pictures."""
    folder = tmp_path_factory.mktemp("job")
    for number in range(5):
        lines = [json.dumps([f"File {number}: the fox said {line}. " * 3]) for line in range(20)]
        (folder / f"{number}.jsonl").write_text("\n".join([*lines, "no JSON"]) + "\n")
    text = DocumentsSource(name="text", path=str(folder))
    return dataclasses.replace(command, sources=(text, command.sources[0]))


def prepare(job: PrepareCommand, output: Path, **settings) -> dict | None:
    """Returns the contents of dataset.json."""
    worker = settings.pop("worker", (1, 1))
    job = dataclasses.replace(job, output=str(output), **settings)
    return prepare_rows(job, joined_tokenizer(), worker)


def written(output: Path) -> dict[str, bytes]:
    """What a job says of its units and its rows, which includes hashes of all of them."""
    files = [output / "dataset.json", output / "rejected.jsonl", *(output / "units").iterdir()]
    return {path.name: path.read_bytes() for path in files if path.suffix != ".arrayrecord"}


@pytest.fixture(scope="module")
def in_one_go(job, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("in one go") / "rows"
    prepare(job, output)
    return output


def test_rows_are_the_same_by_one_process_and_by_two(job, in_one_go, tmp_path):
    prepare(job, tmp_path / "rows", processes=2)
    assert written(tmp_path / "rows") == written(in_one_go)


def test_workers_share_the_units_in_any_order(job, in_one_go, tmp_path, capsys):
    assert prepare(job, tmp_path / "rows", worker=(3, 3)) is None
    assert "5 units of other workers are missing" in capsys.readouterr().err
    assert prepare(job, tmp_path / "rows", worker=(1, 3)) is None
    assert not (tmp_path / "rows" / "dataset.json").exists()
    assert prepare(job, tmp_path / "rows", worker=(2, 3))["fingerprint"] == PreparedData(in_one_go).fingerprint
    assert written(tmp_path / "rows") == written(in_one_go)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_two_machines_may_run_the_same_unit_at_once(job, tmp_path):
    """As when one that was thought lost comes back. Their process ids may be the same, as in containers."""
    job = dataclasses.replace(job, output=str(tmp_path))
    tokenizer, unit = scrambled_tokenizer(), units.plan(job, "")[0]
    both_have_written = threading.Barrier(2, timeout=60)

    def run(_: int) -> units.Counts:
        first = iter([both_have_written.wait])
        return units.run(unit, job, tokenizer, report=lambda counts: next(first, lambda: 0)())

    with ThreadPoolExecutor(2) as machines:
        one, other = machines.map(run, range(2))
    assert one == other == units.counts_of(unit, tmp_path)
    assert len(list(units.documents_of_unit(unit, tmp_path, tokenizer.vocabulary.size))) == one.documents == 20
    files = units.UnitFiles(tmp_path, unit.key)
    assert {*(tmp_path / "units").iterdir()} == {files.done, files.documents, files.rejected}


def test_rows_are_the_same_if_two_machines_have_the_same_number(job, in_one_go, tmp_path):
    with ThreadPoolExecutor(3) as machines:
        list(machines.map(lambda number: prepare(job, tmp_path / "rows", worker=(number, 2)), (1, 1, 2)))
    assert written(tmp_path / "rows") == written(in_one_go)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_second_machine_that_would_do_everything_is_told_of_the_first(job, tmp_path):
    job = dataclasses.replace(job, output=str(tmp_path / "rows"))
    (tmp_path / "rows" / "units").mkdir(parents=True)
    (tmp_path / "rows" / "prepare.json").write_text('{"format_version": 1, "tokenizer": null, "command": {}}')
    refused = pytest.raises(FileError, match=r"rows: is being written by process \d+ on .*; wait until it has ended")
    with only_writer(tmp_path / "rows" / "units" / ".lock", "the first"), refused:
        prepare_rows(job, scrambled_tokenizer())


def test_workers_that_start_at_once_do_not_take_each_others_first_file_for_somebody_elses(job, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / ".prepare.json.17.part").touch()
    check_folder(tmp_path / "rows", PREPARED)
    with pytest.raises(FileError, match=r"it holds '\.prepare\.json\.17\.part'"):
        check_folder(tmp_path / "rows")


def test_too_many_rejected_records_fail_the_job_and_what_is_done_stays_done(job, tmp_path):
    message = r"^sources\.text: 5 of 105 records .*max_rejected = 0\.01: 5 x not valid JSON.*first: 0\.jsonl, line 21: "
    with pytest.raises(TooManyRejected, match=message):
        prepare(job, tmp_path / "rows", max_rejected=0.01)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rows" / "units").iterdir()}
    assert prepare(job, tmp_path / "rows", max_rejected=0.1) is not None
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rows" / "units").iterdir()}
    assert done == after
    rejected = [json.loads(line) for line in (tmp_path / "rows" / "rejected.jsonl").read_text().splitlines()]
    assert [line["place"] for line in rejected] == [f"{number}.jsonl, line 21" for number in range(5)]
    assert {line["source"] for line in rejected} == {"sources.text"}


def test_units_are_named_by_what_changes_them(job, tmp_path):
    def keys(job: PrepareCommand, tokenizer: str = "tokenizer") -> list[str]:
        return [unit.key for unit in units.plan(job, tokenizer)]

    def text(**changes) -> PrepareCommand:
        return dataclasses.replace(job, sources=(dataclasses.replace(job.sources[0], **changes),), held_out=())

    before = keys(text())
    assert len(set(before)) == len(before) == 5
    shutil.copytree(job.sources[0].path, tmp_path / "moved")
    assert keys(text(name="other", path=str(tmp_path / "moved"))) == before
    assert not {*keys(dataclasses.replace(text(), seed=1)), *keys(text(loss="text")), *keys(text(), "new")} & {*before}
    (tmp_path / "moved" / "3.jsonl").write_text('["changed"]\n')
    changed = keys(text(path=str(tmp_path / "moved")))
    assert [key for key in changed if key not in before] == [changed[3]]
    (first,) = units.plan(text(count=30), "tokenizer")  # how many records a file has is only known once it is read
    assert (len(first.shards), first.limit) == (5, 30)


def test_only_so_many_records_are_used(job, tmp_path):
    text = dataclasses.replace(job.sources[0], count=23)
    entry = prepare(dataclasses.replace(job, sources=(text,), held_out=()), tmp_path / "rows")["sources"]["text"]
    assert entry["documents"] == 22  # the 21st cannot be used


def test_what_is_damaged_is_made_anew(job, in_one_go, tmp_path):
    shutil.copytree(in_one_go, tmp_path / "rows")
    file = max((tmp_path / "rows" / "units").glob("*.arrayrecord"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(ChameleonError, match=r"arrayrecord: damaged: .*; run the command again"):
        prepare(job, tmp_path / "rows")
    prepare(job, tmp_path / "rows")
    assert written(tmp_path / "rows") == written(in_one_go)


def test_another_tokenizer_makes_all_units_anew_and_that_is_said(job, in_one_go, tmp_path, capsys):
    shutil.copytree(in_one_go, tmp_path / "rows")
    text = dataclasses.replace(job, sources=job.sources[:1], held_out=(), output=str(tmp_path / "rows"))
    prepare_rows(text, scrambled_tokenizer())
    assert "the tokenizer is not that of the last run" in capsys.readouterr().err
    assert len(list((tmp_path / "rows" / "units").glob("*.json"))) == 5  # those of the other one are gone


def test_duplicates_are_dropped_and_none_of_what_is_held_out_is_trained_on(job, tmp_path):
    (tmp_path / "a.jsonl").write_text('["one"]\n["two"]\n["one"]\n')
    (tmp_path / "b.jsonl").write_text('["three"]\n["two"]\n["held out"]\n')
    (tmp_path / "c.jsonl").write_text('["held out"]\n')
    source = lambda name: DocumentsSource(name=name, path=str(tmp_path / f"{name}.jsonl"))  # noqa: E731
    own = dataclasses.replace(job, sources=(source("a"), source("b")), held_out=(source("c"),))
    for duplicates, expected in (("keep", [3, 3, 1]), ("drop", [2, 1, 1])):
        header = prepare(own, tmp_path / "rows", duplicates=duplicates)
        entries = [*header["sources"].values(), *header["held_out"].values()]
        assert [entry["documents"] for entry in entries] == expected


def test_records_that_are_nearly_the_same_leave_with_all_their_copies(job, tmp_path):
    pytest.importorskip("datasketch")
    text = " ".join(f"word{number}" for number in range(200))
    for name, texts in {
        "first": [text, "Another text altogether."],
        "second": [f"{text} more", "And one more."],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps([each]) + "\n" for each in texts))
    sources = tuple(
        DocumentsSource(name=name, path=str(tmp_path / f"{name}.jsonl"), form={"copies": 2})
        for name in ("first", "second")
    )
    own = dataclasses.replace(job, sources=sources, held_out=())
    figures = {}
    for limit in (None, 0.9):
        header = prepare(own, tmp_path / "rows", near_duplicates={"text": limit}, processes=1)
        figures[limit] = [entry["documents"] for entry in header["sources"].values()]
    assert figures == {None: [4, 4], 0.9: [4, 2]}


@given(st.lists(st.lists(st.integers(0, 9).map(lambda value: value << 60 | 5)), max_size=5), st.integers(1, 9))
def test_duplicates_are_found_in_parts_as_at_once(groups, at_a_time):
    seen, expected = set(), []
    for group in groups:
        expected.append([])
        for place, digest in enumerate(group):
            if digest in seen:
                expected[-1].append(place)
            seen.add(digest)
    assert [places.tolist() for places in find_duplicates(groups, at_a_time)] == expected


# ----------------------------------------------------------------------------------------------------------------------
# A kind of source in memory
# ----------------------------------------------------------------------------------------------------------------------

RECORDS: dict[str, list[Record | Rejected | Exception]] = {}
"""What each shard of kind 'in_memory' gives."""


@register_source
@config
class InMemorySource(SourceConfig):
    kind: Literal["in_memory"] = "in_memory"

    def shards(self, datasets: str = "") -> list[Shard]:
        return [Shard(name, name) for name in RECORDS]

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        for record in RECORDS[shard.name]:
            if isinstance(record, Exception):
                raise record
            yield record


def png(seed: int) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        random_picture(seed).save(file.name)
        return Path(file.name).read_bytes()


PICTURES = [png(seed) for seed in range(4)]
segment = st.one_of(
    st.text(min_size=1, max_size=20),
    st.sampled_from(["▁", "</s>", "<eoss>", " ", "\x00", "\ud800", "a \ufeff b"]),
    st.integers(0, 3).map(lambda number: Picture(f"{number}.png", PICTURES[number])),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", PICTURES[0][:-30]]).map(lambda data: Picture("broken.png", data)),
)
record = st.one_of(st.lists(segment, max_size=4).map(tuple), st.just("rejected"))


def as_text(segment: str | Picture) -> str:
    return segment if isinstance(segment, str) else "\ue000"


def is_usable(segment: str | Picture) -> bool:
    if isinstance(segment, Picture):
        return segment.data in PICTURES
    try:
        return bool(segment.encode()) or True
    except UnicodeEncodeError:
        return False


@settings(max_examples=60)
@given(st.lists(record, max_size=12))
def test_every_record_becomes_a_document_or_a_line_with_its_reason(records):
    """Documents decode to every text exactly and to every picture as its codes draw it."""
    tokenizer = scrambled_tokenizer()
    RECORDS.clear()
    RECORDS["all"] = [
        Rejected(str(number), f"line {number}", "no reason") if segments == "rejected"
        else Record(str(number), f"line {number}", segments)
        for number, segments in enumerate(records)
    ]  # fmt: skip
    usable = [
        number for number, segments in enumerate(records)
        if segments != "rejected" and any(segments) and all(map(is_usable, segments))
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        job = PrepareCommand(folder, 64, (InMemorySource(),), tokenizer="any")
        (unit,) = units.plan(job, "")
        counts = units.run(unit, job, tokenizer)
        assert (counts.read, counts.kept) == (len(records), len(usable))
        assert counts.rejected == len(records) - len(usable) == sum(counts.reasons.values())
        rejected = units.UnitFiles(folder, unit.key).rejected
        lines = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
        documents = list(units.documents_of_unit(unit, folder, tokenizer.vocabulary.size))
        assert units.counts_of(unit, folder) == counts
    assert sorted([*usable, *(int(line["id"]) for line in lines)]) == list(range(len(records)))
    assert all(line["reason"] for line in lines)
    assert [int(document.id) for document in documents] == usable
    for document in documents:
        given_segments = records[int(document.id)]
        pictures = [segment for segment in given_segments if isinstance(segment, Picture)]
        assert document.ids[-1] == tokenizer.vocabulary.eos
        found = tokenizer.decode(document.ids[:-1])
        assert "".join(each if isinstance(each, str) else "\ue000" for each in found) == "".join(
            map(as_text, given_segments)
        )
        codes = tokenizer.image.tokenize([picture.open() for picture in pictures])
        drawn = [each.tobytes() for each in found if not isinstance(each, str)]
        assert drawn == [image.tobytes() for image in tokenizer.image.detokenize(codes)]


def test_failed_units_are_named_and_retried_by_the_same_command(job, tmp_path, capsys):
    RECORDS.clear()
    RECORDS.update(
        {name: [Record(name, f"{name}, line 1", (f"Text of {name}.",))] for name in "abc"}, b=[OSError("disk on fire")]
    )
    own = dataclasses.replace(job, sources=(InMemorySource(),), held_out=(), output=str(tmp_path / "rows"))
    with pytest.raises(ChameleonError, match=r"^sources\.in_memory: b: OSError: disk on fire: 1 of 3 units failed"):
        commands.prepare(own)
    assert commands.prepare(own, status=True) == {"done": 2, "running": 0, "failed": 1, "waiting": 0}
    assert "failed: sources.in_memory: b: OSError: disk on fire" in capsys.readouterr().err
    RECORDS["b"] = [Record("b", "b, line 1", ("Text of b.",))]
    assert commands.prepare(own)["documents"] == 3
    assert commands.prepare(own, status=True) == {"done": 3, "running": 0, "failed": 0, "waiting": 0}


@pytest.mark.parametrize("given_worker", ["3", "0/3", "4/3", "a/b"])
def test_worker_is_a_number_of_so_many(job, given_worker):
    with pytest.raises(ChameleonError, match=r"--worker = '.*': expected its number and how many there are"):
        commands.prepare(job, worker=given_worker)


@pytest.mark.parametrize("limit", [0, 4 << 10, 100 << 10])
def test_full_disk_is_named_and_the_job_goes_on_when_there_is_room(job, in_one_go, tmp_path, limit):
    """The system limits the size of files, which fails as a full disk does, wherever the limit is met."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(FileError, match=f"^{re.escape(str(tmp_path / 'rows'))}.*File too large"):
            prepare(job, tmp_path / "rows")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "rows" / "dataset.json").exists()
    prepare(job, tmp_path / "rows")
    assert written(tmp_path / "rows") == written(in_one_go)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("/tmp/58.jpg: not a format that can be read (PNG, JPEG2000)", "not a format that can be read (PNG, JPEG2000)"),
        ("17 x 9,000 pixels; the shorter side has 17", "N x N pixels; the shorter side has N"),
    ],
)
def test_reasons_are_counted_without_what_differs_from_record_to_record(reason, kind):
    assert kind_of_reason(reason) == kind
