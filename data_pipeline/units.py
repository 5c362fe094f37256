"""Units: the parts of a job that are tokenized on their own, wherever and in whatever order.

A unit is one shard of one source under one recipe, named by a hash of its inputs and settings. In the folder `units` of
the output it leaves up to three files: KEY.arrayrecord with its documents, KEY.rejected.jsonl with the records that
cannot be used, and KEY.json, which is written last and says that the unit is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, to_dict
from chameleon_jax.errors import ChameleonError, ConfigError, FileError, printable
from chameleon_jax.runtime.cloud import as_path, on_disk
from chameleon_jax.runtime.files import new_file, read_json, write_json
from chameleon_jax.runtime.headers import with_checksum
from chameleon_jax.runtime.locks import is_unused
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from data_pipeline.augment import OFF
from data_pipeline.counts import Counts
from data_pipeline.forms import FormConfig
from data_pipeline.kept_pictures import KeptPicture, keep_pictures
from data_pipeline.kept_pictures import from_bytes as picture_from_bytes
from data_pipeline.kept_pictures import to_bytes as picture_to_bytes
from data_pipeline.records import Record, Rejected, Shard
from data_pipeline.sources.files import GROUP_BYTES, GROUP_FILES
from data_pipeline.sources.source import SourceConfig, settings_of
from data_pipeline.tokenize import EncodeSquares, tokenize
from data_pipeline.tokenized import TokenizedDocument, from_bytes, to_bytes

if TYPE_CHECKING:
    from data_pipeline.config import PrepareCommand

FORMAT_VERSION = 1
"""Of what a unit writes. Raised when the same inputs give something else."""
FEW = 100
"""Shards up to which even small ones are units of their own, so that all cores have something to do."""
UNLOCKED_FOR = 60
"""Seconds after which a temporary file that nobody has locked is taken for that of a killed process."""
ELSEWHERE = ("name", "path", "picture_folder", "data_dir", "count")
"""Keys of sources that do not change what becomes of a record: names, and where files lie. `count` ends up in units."""

T = TypeVar("T")


class UnitFailed(ChameleonError):
    """A unit could not be read to its end. The others go on."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One shard of one source, or several small ones; or all of a source of which the first `limit` records are
    used."""

    part: str
    """sources or held_out"""
    source: SourceConfig
    shards: tuple[Shard, ...]
    limit: int
    """Records to read at most; 0: all."""
    key: str

    @property
    def place(self) -> str:
        """Its source, as messages and the header call it."""
        return f"{self.part}.{self.source.name}"

    @property
    def name(self) -> str:
        """Its shard, for people."""
        return self.shards[0].name + (f" to {self.shards[-1].name}" if len(self.shards) > 1 else "")


# ----------------------------------------------------------------------------------------------------------------------
# Planning
# ----------------------------------------------------------------------------------------------------------------------


def plan(command: PrepareCommand, recipe: str) -> list[Unit]:
    """The units of a job in order. Reads no more of the data than names, sizes and samples of its files.

    Args:
      recipe: what `recipe_of` returned.

    Raises:
      FileError: if a source has nothing to read.
    """
    planned: list[Unit] = []
    listed: dict[str, list[Shard]] = {}
    for part in ("sources", "held_out"):
        for source in getattr(command, part):
            files = _same_files(source)
            if files not in listed:
                listed[files] = source.shards(command.datasets)
            planned += [
                Unit(part, source, shards, limit, _key(source, shards, limit, recipe, command))
                for shards, limit in _limited(source, listed[files])
            ]
    return planned


def _same_files(source: SourceConfig) -> str:
    """The same for sources of the same shards, as those to learn from and those held out often are."""
    form = FormConfig(templates=source.form.templates)  # sources check that these name what there is
    plain = dataclasses.replace(source, name="any", part="all", held_out=0.1, loss="all", augment=OFF, form=form)
    return json.dumps(to_dict(plain), sort_keys=True)


def _limited(source: SourceConfig, shards: list[Shard]) -> Iterator[tuple[tuple[Shard, ...], int]]:
    """Which shards are read together, and how many of their records: one by one, if their first `count` records can be
    told apart without reading them."""
    if not source.count:
        yield from ((group, 0) for group in _groups(shards))
        return
    left = source.count
    for number, shard in enumerate(shards):
        if not shard.records or source.part != "all":
            yield tuple(shards[number:]), left
            return
        yield (shard,), left if left < shard.records else 0
        left -= shard.records
        if left <= 0:
            return


def _groups(shards: list[Shard]) -> Iterator[tuple[Shard, ...]]:
    """The shards of which each unit consists: one each, unless there are many small ones."""
    group: list[Shard] = []
    size = 0
    for shard in shards:
        own = shard.size if shard.size and len(shards) > FEW else GROUP_BYTES
        if group and (size + own > GROUP_BYTES or len(group) == GROUP_FILES):
            yield tuple(group)
            group, size = [], 0
        group.append(shard)
        size += own
    if group:
        yield tuple(group)


def _key(source: SourceConfig, shards: tuple[Shard, ...], limit: int, recipe: str, command: PrepareCommand) -> str:
    elsewhere = ELSEWHERE if command.keep == "tokens" else (*ELSEWHERE, "augment")  # when training reads them
    settings = {name: value for name, value in settings_of(source).items() if name not in elsewhere}
    inputs = [(shard.name, shard.identity, shard.begin, shard.end) for shard in shards]
    compared = [limit is not None for limit in (command.near_duplicates.text, command.near_duplicates.pictures)]
    values = [FORMAT_VERSION, settings, inputs, limit, recipe, command.seed, compared]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def recipe_of(command: PrepareCommand, tokenizer: DocumentTokenizer | None) -> str:
    """Differs for jobs that make something else of the same records: the hash of the tokenizer, if there is one."""
    return f"pictures for {command.resolution} pixels" if tokenizer is None else hash_of_tokenizer(tokenizer)


def hash_of_parts(tokenizer: DocumentTokenizer) -> dict[str, str | None]:
    """Hashes of text and image tokenizer, None for those that are missing."""
    text = hashlib.sha256(tokenizer.text.model).hexdigest() if tokenizer.text else None
    return {"text": text, "image": _hash_of_image_tokenizer(tokenizer.image)}


def hash_of_tokenizer(tokenizer: DocumentTokenizer) -> str:
    """Differs for tokenizers that give other ids for some document."""
    preprocessing = to_dict(tokenizer.image.preprocessing) if tokenizer.image else None
    values = [hash_of_parts(tokenizer), preprocessing, tokenizer.need("vocabulary").to_dict()]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _hash_of_image_tokenizer(tokenizer: ImageTokenizer | None) -> str | None:
    if tokenizer is None:
        return None
    sizes, plain = to_dict(tokenizer.config), to_dict(ImageTokenizerConfig())
    # Newer keys, omitted to keep the hash as it was.
    for key in ("attn_resolutions", "attn_type", "independent_patches"):
        if sizes[key] == plain[key]:
            del sizes[key]
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for leaf in jax.tree.leaves(tokenizer.params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Running
# ----------------------------------------------------------------------------------------------------------------------


class UnitFiles:
    """The files of a unit in the folder of a job."""

    def __init__(self, folder: str | Path, key: str):
        units = as_path(folder) / "units"
        self.documents = units / f"{key}.arrayrecord"
        self.rejected = units / f"{key}.rejected.jsonl"
        self.done = units / f"{key}.json"
        self.failed = units / f"{key}.failed"

    def all(self) -> list[Path]:
        """The mark of being done first."""
        return [self.done, self.failed, self.documents, self.rejected]


def run(
    unit: Unit,
    command: PrepareCommand,
    tokenizer: DocumentTokenizer | None,
    encode: EncodeSquares | None = None,
    report: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Reads, filters, forms and tokenizes the records of a unit, and writes its files into `command.output`.

    Args:
      tokenizer: None to keep pictures.
      encode: computes the codes of pictures. Default: the image tokenizer of `tokenizer`.
      report: called with the counts of the unit along the way.

    Raises:
      UnitFailed: if its source cannot be read to the end.
      ConfigError: if something is not installed that reading it needs.
      FileError: if the files cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    files, counts = UnitFiles(command.output, unit.key), Counts()
    writer = rejects = None
    digest, reported = hashlib.sha256(), 0.0
    items = _read(unit, command.datasets, counts)
    if tokenizer is None:
        made = keep_pictures(items, unit.source, command.resolution, command.seed, command.near_duplicates)
        # Training reads these files, one picture here, another there.
        options, as_bytes, keep = "group_size:1,uncompressed", picture_to_bytes, counts.keep_pictures
    else:
        vocabulary = tokenizer.vocabulary
        made = tokenize(items, unit.source, tokenizer, command.seed, encode, command.near_duplicates)
        options, as_bytes = "group_size:16", functools.partial(to_bytes, vocab_size=vocabulary.size)
        keep = functools.partial(counts.keep, modality=vocabulary.modality)
    with contextlib.ExitStack() as stack:
        for result in made:
            if isinstance(result, Rejected):
                if rejects is None:
                    tmp = stack.enter_context(new_file(files.rejected, tidy=False))
                    rejects = stack.enter_context(tmp.open("w", encoding="utf-8"))
                line = {"id": result.id, "source": unit.place, "place": result.place, "reason": result.reason}
                rejects.write(json.dumps({key: printable(value, 1000) for key, value in line.items()}) + "\n")
                counts.reject(result.reason)
                continue
            if writer is None and result:
                tmp = stack.enter_context(new_file(files.documents, tidy=False))
                writer = ArrayRecordWriter(str(tmp), options)
                stack.callback(writer.close)
            for document in result:
                content = as_bytes(document)
                digest.update(content)
                writer.write(content)
            keep(result)
            if (now := time.monotonic()) - reported > 0.2:
                report(counts)
                reported = now
    if counts.read != counts.kept + counts.rejected:
        raise AssertionError(f"{unit.place}, {unit.name}: {counts.read} records were read, but {counts}")
    mark = {
        "source": unit.place,
        "shard": unit.name,
        **dataclasses.asdict(counts),
        "documents_sha256": digest.hexdigest(),
    }
    with new_file(files.done, tidy=False) as tmp:
        tmp.write_text(json.dumps(with_checksum(mark)))
    return counts


def _read(unit: Unit, datasets: str, counts: Counts) -> Iterator[Record | Rejected]:
    """The records of a unit, counted."""
    for shard in unit.shards:
        try:
            for item in unit.source.kept(shard, datasets):
                counts.read += 1
                yield item
                if counts.read == unit.limit:
                    return
        except ConfigError:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, ChameleonError) else f"{type(error).__name__}: {error}"
            raise UnitFailed(f"{unit.place}: {shard.name}: {printable(reason, 500)}") from error


# ----------------------------------------------------------------------------------------------------------------------
# What is there
# ----------------------------------------------------------------------------------------------------------------------


def done_keys(folder: str | Path) -> set[str]:
    """Keys of the units that are done."""
    return {name.removesuffix(".json") for name in _names(folder) if re.fullmatch(r"[0-9a-f]{32}\.json", name)}


def states(units: Iterable[Unit], folder: str | Path) -> dict[str, str]:
    """Key → done, running, failed or waiting."""
    names = _names(folder)
    running = {
        name[1:33]
        for name in names
        if name.startswith(".") and name.endswith(".part") and not is_unused(as_path(folder) / "units" / name)
    }

    def state(key: str) -> str:
        if f"{key}.json" in names:
            return "done"
        if key in running:
            return "running"
        return "failed" if f"{key}.failed" in names else "waiting"

    return {unit.key: state(unit.key) for unit in units}


def remove_unfinished(folder: str | Path) -> None:
    """Removes what killed processes left, unless it is so new that another machine may be about to lock it."""
    for name in _names(folder):
        file = as_path(folder) / "units" / name
        if name.startswith(".") and name.endswith(".part") and is_unused(file):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > UNLOCKED_FOR:
                    file.unlink()


def _names(folder: str | Path) -> set[str]:
    units = as_path(folder) / "units"
    return {path.name for path in units.iterdir()} if units.is_dir() else set()


def note_failure(unit: Unit, folder: str | Path, reason: str) -> None:
    write_json(UnitFiles(folder, unit.key).failed, {"source": unit.place, "shard": unit.name, "reason": reason})


def reason_of_failure(unit: Unit, folder: str | Path) -> str:
    """What `note_failure` wrote."""
    return read_json(UnitFiles(folder, unit.key).failed)["reason"]


def counts_of(unit: Unit, folder: str | Path) -> Counts:
    """Counts of a unit that is done."""
    mark = read_json(UnitFiles(folder, unit.key).done)
    return Counts(**{field.name: mark[field.name] for field in dataclasses.fields(Counts)})


def documents_of_unit(unit: Unit, folder: str | Path, vocab_size: int) -> Iterator[TokenizedDocument]:
    """The documents of a unit that is done, in order.

    Raises:
      FileError: if they are damaged. The unit is then done no more.
    """
    return _stored(unit, folder, lambda content: from_bytes(content, vocab_size))


def pictures_of_unit(unit: Unit, folder: str | Path) -> Iterator[KeptPicture]:
    """The same for pictures."""
    return _stored(unit, folder, picture_from_bytes)


def _stored(unit: Unit, folder: str | Path, decode: Callable[[bytes], T]) -> Iterator[T]:
    from array_record.python.array_record_module import ArrayRecordReader

    files = UnitFiles(folder, unit.key)
    mark = read_json(files.done)
    if not mark["documents"]:
        return
    digest, reader = hashlib.sha256(), None
    try:
        reader = ArrayRecordReader(str(on_disk(files.documents)), "readahead_buffer_size:1M,max_parallelism:1")
        for _ in range(reader.num_records()):
            content = reader.read()
            digest.update(content)
            yield decode(content)
        if digest.hexdigest() != mark["documents_sha256"]:
            raise ValueError("it does not match its sha256")
    except (ValueError, RuntimeError, IndexError, FileError) as error:
        files.done.unlink(missing_ok=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileError(
            f"{files.documents}: damaged: {printable(reason, 200)}; run the command again, and it is made anew"
        ) from None
    finally:
        if reader is not None:
            with contextlib.suppress(RuntimeError):  # of a damaged file; it was explained already
                reader.close()


def mark_of(header: dict[str, Any]) -> str:
    """Hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
