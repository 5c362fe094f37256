"""Apache Beam runs the units of a job as the processes of this machine do. Run by `make test-beam`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import yaml

from chameleon_jax.config import to_dict
from chameleon_jax.config.reading import config
from chameleon_jax.console import commands
from chameleon_jax.console.cli import main
from chameleon_jax.console.commands import open_tokenizer
from chameleon_jax.errors import ChameleonError, ConfigError
from chameleon_jax.runtime.cloud import as_path, objects_in
from data_pipeline import units
from data_pipeline.accounting import TooManyRejected
from data_pipeline.config import PrepareCommand
from data_pipeline.prepare import prepare
from data_pipeline.records import Record, Rejected, Shard
from data_pipeline.sources import DocumentsSource, register_source

pytestmark = [pytest.mark.beam, pytest.mark.slow]

ERRORS: dict[str, Exception] = {}
"""What happens at the end of a file, by its name."""


@register_source
@config
class FragileSource(DocumentsSource):
    """Documents, until something happens."""

    kind: Literal["fragile"] = "fragile"

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        yield from super().read(shard, datasets)
        if shard.name in ERRORS:
            raise ERRORS[shard.name]


@pytest.fixture
def errors() -> Iterator[dict[str, Exception]]:
    yield ERRORS
    ERRORS.clear()


@pytest.fixture(scope="module")
def job(command, tmp_path_factory) -> PrepareCommand:
    """Pictures and text, in four files each of which has a line and a picture that cannot be used."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for number in range(4):
        lines = [json.dumps([f"File {number}: the fox said {line}. " * 3]) for line in range(20)]
        lines += ["no JSON", '["A picture: ", {"image": "broken.png"}]']
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    source = FragileSource(name="text", path=str(folder))
    return dataclasses.replace(command, sources=(source, command.sources[0]))


def by_beam(job: PrepareCommand, *options: str) -> dict:
    from data_pipeline.beam import run_units

    return prepare(
        job, open_tokenizer(job), run=functools.partial(run_units, options=["--runner=FnApiRunner", *options])
    )


def is_compared(name: str) -> bool:
    """All but the command, which names the output, and files of arrays: their names are random, and hashes of what they
    hold are compared."""
    return name != "prepare.json" and not name.startswith("tokenizer/image/params/")


def written(output: str | Path) -> dict[str, bytes]:
    """The files of a job."""
    files = {str(path.relative_to(output)): path for path in Path(output).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if is_compared(name)}


@pytest.fixture(scope="module")
def local(job, tmp_path_factory) -> Path:
    """Rows that processes of this machine made."""
    output = tmp_path_factory.mktemp("local") / "rows"
    prepare(dataclasses.replace(job, output=str(output)), open_tokenizer(job))
    return output


def test_same_bytes_as_on_this_machine_after_a_failed_unit(job, local, errors, tmp_path, capsys):
    errors["2.jsonl"] = OSError("disk on fire")
    own = dataclasses.replace(job, output=str(tmp_path / "rows"))
    message = r"^sources\.text: 2\.jsonl: OSError: disk on fire: 1 of 6 units failed; run the command again"
    for run in (by_beam, lambda job: prepare(job, open_tokenizer(job))):  # the second tries it again on this machine
        with pytest.raises(ChameleonError, match=message if run is by_beam else message.replace("of 6", "of 1")):
            run(own)
        capsys.readouterr()
        assert commands.prepare(own, status=True) == {"done": 5, "running": 0, "failed": 1, "waiting": 0}
        assert "failed: sources.text: 2.jsonl: OSError: disk on fire" in capsys.readouterr().err
    errors.clear()
    header = by_beam(own)
    assert header["sources"]["text"]["documents"] == 80
    found, expected = written(own.output), written(local)
    assert found.keys() == expected.keys()
    assert found == expected
    assert len(found["rejected.jsonl"].splitlines()) == 8
    assert commands.prepare(own, status=True) == {"done": 6, "running": 0, "failed": 0, "waiting": 0}


def test_beam_goes_on_where_another_worker_stopped_and_counts_what_it_does(job, local, tmp_path):
    from data_pipeline.beam import make_pipeline

    own, tokenizer = dataclasses.replace(job, output=str(tmp_path / "rows")), open_tokenizer(job)
    assert prepare(own, tokenizer, worker=(1, 3)) is None
    done = units.done_keys(own.output)
    before = {path: path.stat().st_mtime_ns for path in Path(own.output, "units").iterdir()}
    planned = units.plan(own, units.hash_of_tokenizer(tokenizer))
    assert len(done) == 2 < len(planned)
    result = make_pipeline(planned, own, tokenizer, ["--runner=FnApiRunner"]).run()
    result.wait_until_finish()
    total = units.Counts()
    for unit in planned:
        if unit.key not in done:
            total += units.counts_of(unit, own.output)
    expected = dataclasses.asdict(total) | {"units_done": 4}
    del expected["reasons"]
    assert {each.key.metric.name: each.committed for each in result.metrics().query()["counters"]} == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before
    by_beam(own)
    assert written(own.output) == written(local)


def test_too_many_rejected_records_fail_the_job(job, tmp_path):
    own = dataclasses.replace(job, output=str(tmp_path / "rows"), max_rejected=0.01)
    with pytest.raises(TooManyRejected, match=r"^sources\.text: 8 of 88 records .* The first: 0\.jsonl, line 21: "):
        by_beam(own)
    assert not (tmp_path / "rows" / "dataset.json").exists()
    assert commands.prepare(own, status=True)["done"] == 6


@pytest.mark.parametrize("error", [ConfigError("needs the package x"), ZeroDivisionError("by nothing")])
def test_what_fails_in_a_worker_is_one_line_with_the_name_of_the_unit(job, errors, tmp_path, error):
    errors["1.jsonl"] = error
    own = dataclasses.replace(job, output=str(tmp_path / "rows"))
    with pytest.raises(ChameleonError, match=r"^sources\.text: 1\.jsonl: .*(the package x|by nothing)") as raised:
        by_beam(own)
    assert "\n" not in str(raised.value)
    assert commands.prepare(own, status=True)["failed"] == 1
    errors.clear()
    by_beam(own)


def test_workers_in_other_processes_open_the_tokenizer_from_the_output(job, tmp_path, capsys):
    source = DocumentsSource(name="text", path=job.sources[0].path)
    own = dataclasses.replace(job, sources=(source, job.sources[1]))
    outputs = {name: str(tmp_path / name) for name in ("local", "beam")}
    prepare(dataclasses.replace(own, output=outputs["local"]), open_tokenizer(own))
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump(to_dict(own)))
    options = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    assert main(["prepare", str(file), "-o", outputs["beam"], "--runner", "FnApiRunner", "--", *options]) == 0
    assert written(outputs["beam"]) == written(outputs["local"])


def test_the_pipeline_stays_small_however_many_units_there_are(job, tmp_path):
    from data_pipeline.beam import make_pipeline

    own = dataclasses.replace(job, output=str(tmp_path / "rows"))
    unit, *_ = units.plan(own, "tokenizer")
    many = [dataclasses.replace(unit, key=f"{number:032x}") for number in range(20_000)]
    sizes = [
        len(make_pipeline(some, own, open_tokenizer(own), []).to_runner_api().SerializeToString())
        for some in (many[:10], many)
    ]
    assert sizes[1] < sizes[0] + 10_000 < 100_000


def test_units_and_rows_in_a_bucket(job, local, bucket):
    own = dataclasses.replace(job, output="gs://bucket/beam/rows")
    by_beam(own)
    names = filter(is_compared, objects_in(own.output))
    assert {name: (as_path(own.output) / name).read_bytes() for name in names} == {
        name: content for name, content in written(local).items() if not name.startswith("units/")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runner=NoRunner"], "Unexpected pipeline runner: NoRunner"),
        (["--direct_num_workers=many"], "argument --direct_num_workers: invalid int value: 'many'"),
    ],
)
def test_options_that_beam_refuses_are_named(job, tmp_path, options, message):
    with pytest.raises(ConfigError, match=f"^Apache Beam: .*{message}"):
        by_beam(dataclasses.replace(job, output=str(tmp_path / "rows")), *options)
