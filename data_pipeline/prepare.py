"""The offline job: from sources to packed rows in ArrayRecord files, with all that training needs beside them.

Units are tokenized into the folder `units` of the output, by any number of processes and machines; then they are packed
into rows, which takes little time and needs no tokenizer. A job that was stopped goes on where it was. Where pictures
are kept instead of tokens, the files of units are what training reads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import ConfigError, to_dict
from chameleon_jax.errors import ChameleonError, FileError
from chameleon_jax.runtime.cloud import as_path, is_cloud
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from chameleon_jax.runtime.files import append_text, new_file, write_json
from chameleon_jax.runtime.folders import Kind, check_folder, new_folder, read_marker, recover
from chameleon_jax.runtime.headers import FORMAT_VERSION, with_checksum
from chameleon_jax.runtime.locks import only_writer
from chameleon_jax.runtime.progress import console, progress_bar
from chameleon_jax.tokens.documents import TOKENIZER_FILES, DocumentTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary
from data_pipeline import accounting, units
from data_pipeline.config import PoolConfig, PrepareCommand
from data_pipeline.counts import Counts
from data_pipeline.duplicates import find_duplicates
from data_pipeline.kept_pictures import KeptPicture
from data_pipeline.near_duplicates import NOTHING, check_installed, near_duplicates, split_signature
from data_pipeline.picture_shards import link_or_copy, write_pictures
from data_pipeline.pools import PoolSource, check_figures, pools_of, write_pool
from data_pipeline.processes import run_units
from data_pipeline.rows import PREPARED_VERSION
from data_pipeline.sources.source import settings_of
from data_pipeline.tokenized import TokenizedDocument
from data_pipeline.units import Unit, UnitFailed, UnitFiles

_DATASET, _JOB = {"format_version", "fingerprint", "sources"}, {"format_version", "tokenizer", "command"}
RunUnits = Callable[[Sequence[Unit], PrepareCommand, DocumentTokenizer | None], list[UnitFailed]]
"""Runs units wherever it likes, and returns why some have failed."""
PREPARED = Kind(
    "prepared data",
    lambda folder: (
        read_marker(folder / "dataset.json").keys() >= _DATASET or read_marker(folder / "prepare.json").keys() >= _JOB
    ),
    (
        "dataset.json",
        "prepare.json",
        "rejected.jsonl",
        ".*.part",
        "units/*",
        "sources-*.arrayrecord",
        "held_out-*.arrayrecord",
        *(f"tokenizer/{pattern}" for pattern in TOKENIZER_FILES),
    ),
)


def prepare(
    command: PrepareCommand,
    tokenizer: DocumentTokenizer | None,
    worker: tuple[int, int] = (1, 1),
    run: RunUnits | None = None,
) -> dict[str, Any] | None:
    """Tokenizes and packs all sources, or keeps their pictures, in `command.output`.

    What is complete there stays until the new rows are. After an interruption, the same call goes on.

    Args:
      tokenizer: the tokenizer that the command names; it is saved beside the rows. None with keep 'pictures'.
      worker: number of this worker, from 1, and how many there are. Each tokenizes its share of the units; the one
        that finds all of them done packs.
      run: runs the units, as `beam.run_units` does. Default: processes of this machine run them.

    Returns:
      the contents of dataset.json; None if units of other workers are not done yet.

    Raises:
      ConfigError: if one picture does not fit a row, a package is missing, or a source has nothing to train on.
      ChameleonError: if too many records of a source cannot be used, or units failed. The others stay done.
    """
    if tokenizer is not None:
        _check_length(command, tokenizer)
    check_installed(command.near_duplicates)
    recover(command.output)
    check_folder(command.output, PREPARED)
    recipe = units.recipe_of(command, tokenizer)
    planned = units.plan(command, recipe)
    is_alone = worker[1] == 1
    with explain_disk_errors(command.output), contextlib.ExitStack() as stack:
        _begin(command, recipe)
        if is_alone and not is_cloud(command.output):
            lock = Path(command.output, "units", ".lock")
            lock.parent.mkdir(exist_ok=True)
            stack.enter_context(only_writer(lock, command.output))
        units.remove_unfinished(command.output)
        done = units.done_keys(command.output)
        share = planned[worker[0] - 1 :: worker[1]]
        waiting = {unit.key: unit for unit in share if unit.key not in done}
        try:
            failed = (run or _run_here)(list(waiting.values()), command, tokenizer) if waiting else []
            _check_failed(failed, len(waiting))
        except FileError:  # unless others did all of this share meanwhile, and packed
            if {unit.key for unit in planned} - units.done_keys(command.output):
                raise
        missing = {unit.key for unit in planned} - units.done_keys(command.output)
        if missing:
            console.print(f"{command.output}: {len(missing)} units of other workers are missing; the last one packs.")
            return None
        by_source = accounting.counts_by_source(planned, command.output)
        accounting.print_table(by_source, command.keep)
        accounting.check_rejected(by_source, planned, command)
        if not is_alone and not is_cloud(command.output):
            lock = Path(os.path.realpath(command.output) + ".packing.lock")
            stack.enter_context(only_writer(lock, command.output, wait=True))
        return _pack(command, tokenizer, planned, by_source, is_alone)


def _check_length(command: PrepareCommand, tokenizer: DocumentTokenizer) -> None:
    tokenizer.need("vocabulary")
    length = command.sequence_length
    if tokenizer.image is not None and length < tokenizer.image_block:
        raise ConfigError(
            f"sequence_length = {length}: must be at least {tokenizer.image_block}, the tokens of one picture "
            f"({tokenizer.codes_per_image} codes, begin and end)"
        )


def _begin(command: PrepareCommand, recipe: str) -> None:
    """Marks the folder as one of ours, and says if the tokenizer is another one than before."""
    path = as_path(command.output) / "prepare.json"
    before = read_marker(path)
    if before.get("tokenizer") not in (None, recipe):
        what = "the tokenizer" if command.keep == "tokens" else "what is kept"
        console.print(f"{command.output}: {what} is not that of the last run; all units are made anew.")
    header = {"format_version": FORMAT_VERSION, "tokenizer": recipe, "command": to_dict(command)}
    with new_file(path, tidy=False) as tmp:  # other workers may be writing theirs
        tmp.write_text(json.dumps(header, indent=2) + "\n")


def _run_here(
    waiting: Sequence[Unit], command: PrepareCommand, tokenizer: DocumentTokenizer | None
) -> list[UnitFailed]:
    """Runs units in processes of this machine, with a progress bar."""
    failed: list[UnitFailed] = []
    total, running, began = Counts(), {}, time.monotonic()
    with progress_bar("keep pictures" if tokenizer is None else "tokenize", len(waiting)) as bar:
        done = 0

        def show() -> None:
            now = [total, *running.values()]
            documents, pictures = sum(each.documents for each in now), sum(each.pictures for each in now)
            seconds = max(time.monotonic() - began, 1e-9)
            bar.update(
                done, documents=f"{documents:,}", documents_per_s=f"{documents / seconds:,.0f}",
                pictures_per_s=f"{pictures / seconds:,.0f}",
            )  # fmt: skip

        def report(unit: Unit, counts: Counts) -> None:
            running[unit.key] = counts
            show()

        for unit, result in run_units(waiting, command, tokenizer, report):
            running.pop(unit.key, None)
            if isinstance(result, UnitFailed):
                failed.append(result)
                units.note_failure(unit, command.output, str(result))
            else:
                total += result
                UnitFiles(command.output, unit.key).failed.unlink(missing_ok=True)
            done += 1
            show()
    return failed


def _check_failed(failed: Sequence[UnitFailed], of: int) -> None:
    if failed:
        more = f" (and {len(failed) - 1} more; --status lists them)" if len(failed) > 1 else ""
        raise ChameleonError(
            f"{failed[0]}{more}: {len(failed)} of {of} units failed; run the command again to retry them"
        )


def print_status(command: PrepareCommand) -> dict[str, int]:
    """Prints the state of the units of the last run in `command.output`. Returns totals.

    Raises:
      FileError: if there was none.
    """
    path = as_path(command.output) / "prepare.json"
    before = read_marker(path)
    if not before.keys() >= _JOB:
        raise FileError(f"{path}: no such file; nothing was prepared there yet")
    return accounting.print_status(units.plan(command, before["tokenizer"]), command.output)


# ----------------------------------------------------------------------------------------------------------------------
# Packing
# ----------------------------------------------------------------------------------------------------------------------


def _pack(
    command: PrepareCommand,
    tokenizer: DocumentTokenizer | None,
    planned: Sequence[Unit],
    counts: Mapping[str, Counts],
    is_alone: bool,
) -> dict[str, Any]:
    """Writes the rows and all beside them, and replaces what was there before."""
    output = command.output
    made_from = units.mark_of({"units": [unit.key for unit in planned], "settings": _settings(command)})
    before = read_marker(as_path(output) / "dataset.json")
    if not is_alone and before.get("made_from") == made_from:
        return before  # another worker packed
    skipped = _find_duplicates(planned, command, tokenizer)
    with new_folder(output, PREPARED) as folder:
        accounting.join_rejected(planned, output, folder / "rejected.jsonl")
        if tokenizer is None:
            header = write_pictures(command, planned, skipped, folder)
        else:
            header = _write_rows(command, tokenizer, planned, counts, skipped, folder)
        header["fingerprint"] = _fingerprint(header)
        header["made_from"] = made_from
        _keep_units(planned, output, folder)
        write_json(folder / "prepare.json", read_marker(as_path(output) / "prepare.json"))
        write_json(folder / "dataset.json", with_checksum(json.loads(json.dumps(header))))
    return header


def _settings(command: PrepareCommand) -> dict[str, Any]:
    """What else the result depends on, beside units."""
    settings = to_dict(command)
    names = ["sequence_length", "too_long", "duplicates", "near_duplicates", "pools"]
    if command.keep == "pictures":
        names += ["keep", "sources", "held_out"]
    return {name: settings[name] for name in names}


def _write_rows(
    command: PrepareCommand,
    tokenizer: DocumentTokenizer,
    planned: Sequence[Unit],
    counts: Mapping[str, Counts],
    skipped: dict[tuple[str, str], np.ndarray],
    folder: Path,
) -> dict[str, Any]:
    """Writes rows and tokenizer; returns the header."""
    vocabulary = tokenizer.vocabulary
    header: dict[str, Any] = {
        "format_version": PREPARED_VERSION,
        "sequence_length": command.sequence_length,
        "vocab_size": vocabulary.size,
        "pad": vocabulary.pad,
        "sources": {},
        "held_out": {},
    }
    tokenizer.save(folder / "tokenizer")
    for part, pool in _pools(command):
        header[part][pool.name] = _write_pool(part, pool, command, planned, counts, skipped, vocabulary, folder)
    return {**header, "tokenizer": units.hash_of_parts(tokenizer)}


def _pools(command: PrepareCommand) -> Iterator[tuple[str, PoolConfig]]:
    """The pools of both parts; what is held out is never packed together."""
    yield from (("sources", pool) for pool in pools_of(command))
    yield from (("held_out", PoolConfig(source.name, {source.name: 1.0})) for source in command.held_out)


def _write_pool(
    part: str,
    pool: PoolConfig,
    command: PrepareCommand,
    planned: Sequence[Unit],
    counts: Mapping[str, Counts],
    skipped: dict[tuple[str, str], np.ndarray],
    vocabulary: Vocabulary,
    folder: Path,
) -> dict[str, Any]:
    """Packs one pool; returns its entry in dataset.json, with the settings of its sources."""
    configs = {source.name: source for source in getattr(command, part)}

    def reject(source: str, document: str, reason: str) -> None:
        line = {"id": document, "source": f"{part}.{source}", "place": document, "reason": reason}
        append_text(folder / "rejected.jsonl", json.dumps(line) + "\n")

    sources = []
    for name, weight in pool.sources.items():
        own = [unit for unit in planned if unit.place == f"{part}.{name}"]
        tokens = counts[f"{part}.{name}"].text_tokens + counts[f"{part}.{name}"].image_tokens
        read = functools.partial(_documents, own, command.output, vocabulary.size, skipped)
        sources.append(PoolSource(name, weight, tokens, read, pool.epochs.get(name, 1)))
    entry = write_pool(
        f"{part}-{pool.name}", sources, command.sequence_length, vocabulary, command.too_long, folder, reject
    )
    for name, figures in entry.get("sources", {pool.name: entry}).items():
        figures["source"] = settings_of(configs[name if "sources" in entry else next(iter(pool.sources))])
        check_figures(f"{part}.{name}", figures, command.sequence_length)
    return entry


def _documents(
    own: Sequence[Unit], folder: str, vocab_size: int, skipped: dict[tuple[str, str], np.ndarray]
) -> Iterator[TokenizedDocument]:
    for unit in own:
        skip = set(skipped.get((unit.place, unit.key), np.zeros(0, np.int64)).tolist())
        for number, document in enumerate(units.documents_of_unit(unit, folder, vocab_size)):
            if number not in skip:
                yield document


def _find_duplicates(
    planned: Sequence[Unit], command: PrepareCommand, tokenizer: DocumentTokenizer | None
) -> dict[tuple[str, str], np.ndarray]:
    """Source and key of each unit → places of its documents that are not used."""
    ordered = sorted(planned, key=lambda unit: unit.part != "held_out")
    found = [np.zeros(0, np.int64) for _ in ordered]

    def read(unit: Unit) -> Iterator[TokenizedDocument | KeptPicture]:
        if tokenizer is None:
            return units.pictures_of_unit(unit, command.output)
        return units.documents_of_unit(unit, command.output, tokenizer.vocabulary.size)

    kept = "documents" if tokenizer is not None else "pictures"
    if command.duplicates == "drop":
        found = find_duplicates((document.digest for document in read(unit)) for unit in ordered)
        if total := sum(map(len, found)):
            console.print(f"{command.output}: {total:,} {kept} are the same as others, and not used")
    if command.near_duplicates != NOTHING:
        near = _find_near_duplicates(ordered, command, read)
        if total := sum(len(np.setdiff1d(*each)) for each in zip(near, found, strict=True)):
            console.print(f"{command.output}: {total:,} {kept} are nearly the same as others, and not used")
        found = [np.union1d(*each) for each in zip(near, found, strict=True)]
    return {(unit.place, unit.key): places for unit, places in zip(ordered, found, strict=True)}


def _find_near_duplicates(
    ordered: Sequence[Unit],
    command: PrepareCommand,
    read: Callable[[Unit], Iterator[TokenizedDocument | KeptPicture]],
) -> list[np.ndarray]:
    """Places of the documents, of each unit, that are made of records which are nearly the same as others."""
    records = []  # for each document, which record it is made of
    settings = command.near_duplicates

    def signatures() -> Iterator[tuple[int, bytes, bytes]]:
        number = -1
        for unit in ordered:
            own = []
            for document in read(unit):
                if document.number == 0:
                    number += 1
                    yield number, *split_signature(document.signature, settings)
                own.append(number)
            records.append(np.array(own, np.int64))

    dropped = near_duplicates(signatures(), settings)
    return [np.flatnonzero(np.isin(own, dropped)) for own in records]


def _keep_units(planned: Sequence[Unit], output: str, folder: Path) -> None:
    """Takes the units of this job over into the new folder; those of other settings go with the old one."""
    if is_cloud(output):
        return
    (folder / "units").mkdir()
    for key in {unit.key for unit in planned}:
        for file in UnitFiles(output, key).all():
            if file.exists():
                link_or_copy(file, folder / "units" / file.name)


def _fingerprint(header: dict[str, Any]) -> str:
    """Identifies the rows and what they were made from, wherever that lies."""

    def without_paths(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: without_paths(each) for key, each in value.items() if key not in ("path", "picture_folder")}

    return units.mark_of({**header, **{part: without_paths(header[part]) for part in ("sources", "held_out")}})
