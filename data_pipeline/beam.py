"""Runs the units of a job as an Apache Beam pipeline, with any of Beam's runners.

No data flows through the pipeline. Its elements are units: workers read, tokenize and write them as the processes of
one machine do, and the output folder says which are done and which have failed. What workers need is there too: the
tokenizer, and lists of the units.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.utils.shared import Shared

from chameleon_jax.errors import ChameleonError, ConfigError, FileError, printable
from chameleon_jax.runtime.cloud import as_path, on_disk
from chameleon_jax.runtime.files import new_file
from chameleon_jax.runtime.folders import Kind, new_folder
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import TOKENIZER_FILES, DocumentTokenizer
from data_pipeline.config import PrepareCommand
from data_pipeline.processes import encoder
from data_pipeline.units import Unit, UnitFailed, UnitFiles, note_failure, reason_of_failure, run, states

UNITS_AT_A_TIME = 1000
"""Units that a file lists. The pipeline holds only the names of these files, as runners limit its size: to 10 MB on
Dataflow."""
TOKENIZER = Kind("a tokenizer", lambda folder: (folder / "vocabulary.json").is_file(), TOKENIZER_FILES)


def run_units(
    units: Sequence[Unit], command: PrepareCommand, tokenizer: DocumentTokenizer | None, options: Sequence[str]
) -> list[UnitFailed]:
    """Runs units as a pipeline, and waits for its end. Returns why some have failed.

    Args:
      options: Beam's options, such as "--runner=DataflowRunner".

    Raises:
      ConfigError: if Beam refuses an option.
      ChameleonError: for what would make all units fail, such as a package that workers lack.
    """
    output = command.output
    pipeline = make_pipeline(units, command, tokenizer, options)
    before = states(units, output)
    for unit in units:
        if before[unit.key] == "failed":
            UnitFiles(output, unit.key).failed.unlink(missing_ok=True)
    runner = pipeline.options.view_as(StandardOptions).runner
    console.print(f"{output}: {runner} runs {len(units):,} units")
    broken = None
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        broken = error
    after = states(units, output)
    failed = [reason_of_failure(unit, output) for unit in units if after[unit.key] == "failed"]
    if broken:
        lines = str(broken).strip().splitlines() or [type(broken).__name__]
        unknown = "; ".join([printable(lines[-1], 1000), *failed[:1]])  # not every runner tells what its workers say
        reason = next((each for each in failed if each in str(broken)), unknown)
        raise ChameleonError(f"{reason}: the pipeline failed; what is done stays done") from broken
    failed += [
        f"{unit.place}: {unit.name}: the pipeline ended without it"
        for unit in units
        if after[unit.key] not in ("done", "failed")
    ]
    return [UnitFailed(reason) for reason in failed]


def make_pipeline(
    units: Sequence[Unit], command: PrepareCommand, tokenizer: DocumentTokenizer | None, options: Sequence[str]
) -> beam.Pipeline:
    """The pipeline that runs units. Writes the tokenizer and lists of the units into the output folder."""
    pipeline = _empty_pipeline(options)
    folder = as_path(command.output) / "units"
    if tokenizer is not None:
        with new_folder(folder / "tokenizer", TOKENIZER) as tmp:
            tokenizer.save(tmp)
    lists = []
    for begin in range(0, len(units), UNITS_AT_A_TIME):
        lists.append(str(folder / f"list-{len(lists):05d}.pickle"))
        with new_file(lists[-1]) as tmp:
            tmp.write_bytes(pickle.dumps(units[begin : begin + UNITS_AT_A_TIME]))
    (
        pipeline
        | "Lists" >> beam.Create(lists)
        | "Units" >> beam.FlatMap(_read_list)
        | "Spread" >> beam.Reshuffle()
        | "Run" >> beam.ParDo(RunUnit(command, str(folder / "tokenizer") if tokenizer is not None else ""))
    )
    return pipeline


def _empty_pipeline(options: Sequence[str]) -> beam.Pipeline:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = PipelineOptions(list(options))
            parsed.get_all_options()
            return beam.Pipeline(options=parsed)
    except (SystemExit, ValueError, ImportError) as error:  # argparse prints its message, and exits
        if isinstance(error, SystemExit) and not error.code:  # it printed its help
            raise
        lines = printed.getvalue().strip().splitlines() or [str(error)]
        raise ConfigError(f"Apache Beam: {lines[-1]}") from None


def _read_list(path: str) -> list[Unit]:
    return pickle.loads(as_path(path).read_bytes())


class _Opened:
    """A tokenizer, with what computes its codes."""

    def __init__(self, folder: str):
        try:
            self.tokenizer = DocumentTokenizer.load(on_disk(folder)) if folder else None
        except FileError as error:
            raise FileError(f"{error}; workers must see the output folder by this path, or in a bucket") from None
        self.encode = encoder(self.tokenizer)


class RunUnit(beam.DoFn):
    """Runs units, and counts what becomes of their records. Failures are noted beside the units that are done."""

    def __init__(self, command: PrepareCommand, tokenizer: str):
        """Args:
        tokenizer: the folder of the tokenizer, where workers find it; "" to keep pictures.
        """
        self.command, self.folder, self._shared = command, tokenizer, Shared()

    def setup(self) -> None:
        self._opened = self._shared.acquire(lambda: _Opened(self.folder))  # one for all threads of a process

    def process(self, unit: Unit) -> None:
        output = self.command.output
        files = UnitFiles(output, unit.key)
        if files.done.exists():  # it was in a bundle that failed later
            return
        try:
            counts = run(unit, self.command, self._opened.tokenizer, self._opened.encode)
        except UnitFailed as error:
            note_failure(unit, output, str(error))
            _count("units_failed", 1)
            return
        except Exception as error:  # the runner tries again, or ends the pipeline
            reason = str(error) if isinstance(error, ChameleonError) else f"{type(error).__name__}: {error}"
            failed = ChameleonError(f"{unit.place}: {unit.name}: {reason}")
            with contextlib.suppress(ChameleonError, OSError):
                note_failure(unit, output, str(failed))
            raise failed from error
        files.failed.unlink(missing_ok=True)
        _count("units_done", 1)
        for name, value in dataclasses.asdict(counts).items():
            if name != "reasons":
                _count(name, value)


def _count(name: str, value: int) -> None:
    Metrics.counter("chameleon", name).inc(value)
