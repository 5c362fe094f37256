"""Commands that are a few calls of the library: functions of their configs, which return figures to print."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from chameleon_jax.config import ConfigError, ConvertCommand
from chameleon_jax.console.evaluate import usable
from chameleon_jax.console.terminal import print_warnings
from chameleon_jax.evaluation.image_tokenizer import evaluate_image_tokenizers
from chameleon_jax.runtime.cloud import as_path, on_disk
from chameleon_jax.runtime.distributed import broadcast_from_first, is_first, place_in_cluster
from chameleon_jax.runtime.distributed import start as start_processes
from chameleon_jax.runtime.files import new_file
from chameleon_jax.runtime.folders import check_file, check_folder, new_folder
from chameleon_jax.runtime.host_memory import keep_freed_memory
from chameleon_jax.runtime.progress import bytes_bar, console
from chameleon_jax.tokens.documents import (
    IMAGE_TOKENIZER,
    TEXT_TOKENIZER,
    DocumentTokenizer,
    load_text_tokenizer,
    save_image_tokenizer,
)
from chameleon_jax.tokens.text import LONGEST_TEXT
from chameleon_jax.tokens.text import train_text_tokenizer as learn_text_tokenizer
from chameleon_jax.training.image_tokenizer import train_image_tokenizer as learn_image_tokenizer
from chameleon_jax.training.run_folder import check_run
from chameleon_jax.weights.checkpoint import load_image_tokenizer
from chameleon_jax.weights.formats import bytes_to_write, open_checkpoint, write_checkpoint
from chameleon_jax.weights.hub import is_remote
from chameleon_jax.weights.image_tokenizer import open_image_tokenizer, read_image_tokenizer, write_image_tokenizer
from chameleon_jax.weights.initial import initial_image_tokenizer
from chameleon_jax.weights.lpips import read_lpips
from chameleon_jax.weights.native import OpenedImageTokenizer
from chameleon_jax.weights.vqgan import why_not_released

if TYPE_CHECKING:
    from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, TextTokenizerCommand
    from data_pipeline.prepare import RunUnits


def train_text_tokenizer(command: TextTokenizerCommand) -> dict[str, Any]:
    """Learns text pieces and writes the SentencePiece model. Returns figures about it."""
    from data_pipeline.segments import read_texts

    check_file(command.output, TEXT_TOKENIZER)
    texts = read_texts(command.sources, command.datasets)
    try:
        tokenizer = learn_text_tokenizer(command.tokenizer, texts)
    except ValueError as error:
        raise ConfigError(f"tokenizer.{error}") from None
    with new_file(command.output) as tmp:
        tmp.write_bytes(tokenizer.model)
    size = sum(len(text.encode()) for text in texts)
    parts = (text[start : start + LONGEST_TEXT] for text in texts for start in range(0, len(text), LONGEST_TEXT))
    pieces = sum(len(tokenizer.encode(part)) for part in parts)
    return {"pieces": tokenizer.num_pieces, "bytes_of_text": size, "bytes_per_piece": round(size / pieces, 3)}


def train_image_tokenizer(command: ImageTokenizerCommand) -> dict[str, Any]:
    """Trains the VQGAN and writes `<output>/model`. Returns figures on the held-out pictures, in the first process."""
    from data_pipeline.picture_loader import PreparedPictures
    from data_pipeline.squares import squares_of_prepared

    config = dataclasses.replace(command.tokenizer, output=command.output)
    start_processes(config.distributed)
    check_run(config.output)
    folder = as_path(config.output) / "model"
    check_folder(folder, IMAGE_TOKENIZER)
    # Read before pictures are prepared for nothing.
    lpips = read_lpips(config.perceptual.vgg, config.perceptual.heads) if config.perceptual.weight else None
    initial = initial_image_tokenizer(config.initial, config.model) if config.initial else None
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if unreleased := why_not_released(config.model):
        console.print(
            f"note: tokenizer.model: with {unreleased} models are saved in format 'chameleon' alone, not in the "
            "released formats"
        )
    data = PreparedPictures(command.data or _keep_pictures(command), config.model.resolution)
    batch_size, limit = config.batch_size, config.evaluation_batches
    if len(data) < batch_size:
        console.print(
            f"note: tokenizer.batch_size = {batch_size}: there are only {len(data)} pictures, so that a batch holds "
            "some of them several times"
        )
    tokenizer = learn_image_tokenizer(
        config,
        lambda start, rows: data.batches(batch_size, config.seed, start=start, rows=rows),
        data_fingerprint=data.fingerprint,
        held_out={
            name: lambda rows, name=name: data.held_out_batches(name, batch_size, limit, rows) for name in data.held_out
        },
        initial=initial,
        lpips=lpips,
    )
    if not is_first():
        return {}
    with new_folder(folder, IMAGE_TOKENIZER) as tmp:
        save_image_tokenizer(tokenizer, tmp)
    if not data.held_out:
        return {"pictures": len(data)}
    squares = usable(squares_of_prepared(data.folder, data.resolution), str(data.folder), limit=0)
    return evaluate_image_tokenizers([tokenizer], squares).figures[0]


def _keep_pictures(command: ImageTokenizerCommand) -> str:
    """Prepares the pictures of the command's sources in the first process; returns the folder."""
    from data_pipeline.config import PrepareCommand
    from data_pipeline.prepare import prepare as keep_pictures

    folder = f"{command.output.rstrip('/')}/pictures"
    keep = PrepareCommand(
        folder, keep="pictures", resolution=command.tokenizer.model.resolution, sources=command.sources,
        held_out=command.held_out, datasets=command.datasets, max_rejected=1.0,
    )  # fmt: skip
    return broadcast_from_first(lambda: keep_pictures(keep, None) and folder)


def open_tokenizer(command: PrepareCommand) -> DocumentTokenizer:
    """The tokenizer that a command names: a model's with its ids as they are, or text and image tokenizer joined.

    Raises:
      FileError: if there is none, or it is damaged.
    """
    if not command.tokenizer:
        text = load_text_tokenizer(command.text_tokenizer)
        image = read_image_tokenizer(command.image_tokenizer) if command.image_tokenizer else None
        return DocumentTokenizer.join(text, image)
    folder = command.tokenizer if is_remote(command.tokenizer) else on_disk(command.tokenizer)
    if (Path(folder) / "vocabulary.json").is_file():
        return DocumentTokenizer.load(folder)
    checkpoint = open_checkpoint(folder)
    print_warnings(checkpoint.warnings)
    return checkpoint.load_tokenizer()


def prepare(
    command: PrepareCommand,
    *,
    worker: str = "",
    status: bool = False,
    runner: str = "",
    beam_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Tokenizes and packs all sources, or keeps their pictures. Returns totals over those to learn from.

    Args:
      worker: as "3/16", this worker's number and how many there are. Default: what the cluster says.
      status: only print what is done.
      runner: the Apache Beam runner that runs the units. Default: this machine does.
      beam_options: options of the runner.
    """
    from data_pipeline.prepare import PREPARED, print_status
    from data_pipeline.prepare import prepare as prepare_rows

    if status:
        return print_status(command)
    if beam_options and not runner:
        raise ConfigError(f"{beam_options[0]!r}: is one argument too many; only --runner has options that follow --")
    if worker and runner:
        raise ConfigError("--worker and --runner exclude each other: a runner has workers of its own")
    place = (1, 1) if runner else _worker(worker)
    run = _on_runner(runner, beam_options) if runner else None
    check_folder(command.output, PREPARED)
    tokenizer = open_tokenizer(command) if command.keep == "tokens" else None
    header = prepare_rows(command, tokenizer, place, run)
    if header is None:
        return {}
    if command.keep == "pictures":
        kept = {part: sum(entry["pictures"] for entry in header[part].values()) for part in ("sources", "held_out")}
        return {"pictures": kept["sources"], "pictures_held_out": kept["held_out"]}
    sources = header["sources"].values()
    always = ("documents", "pictures", "tokens", "image_tokens", "rows")
    keys = (*always, "conversations_skipped", "turns_dropped", "documents_cut", "pictures_cut_off")
    totals = {key: sum(source.get(key, 0) for source in sources) for key in keys}
    return {key: total for key, total in totals.items() if total or key in always}


def _on_runner(runner: str, options: Sequence[str]) -> RunUnits:
    from data_pipeline.beam import run_units

    return functools.partial(run_units, options=[f"--runner={runner}", *options])


def _worker(given: str) -> tuple[int, int]:
    """Number of this worker, from 1, and how many there are."""
    if not given:
        number, count = place_in_cluster()
        if count > 1:
            console.print(f"worker {number + 1} of {count}, as the cluster says; --worker 1/1 would do everything here")
        return number + 1, count
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", given)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--worker = {given!r}: expected its number and how many there are, from 1/16 to 16/16")
    return int(found[1]), int(found[2])


def convert(config: ConvertCommand, *, src: str, dst: str) -> dict[str, Any]:
    """Writes a model, or an image tokenizer alone, in another format. Returns what was written."""
    if image_tokenizer := open_image_tokenizer(src):
        return _convert_image_tokenizer(config, image_tokenizer, src, dst)
    checkpoint = open_checkpoint(src, config.image_tokenizer)
    print_warnings(checkpoint.warnings)
    began = time.monotonic()
    size = bytes_to_write(checkpoint, config.dtype)
    with bytes_bar(f"convert {checkpoint.folder.name}", size) as progress:
        write_checkpoint(checkpoint, dst, config.format, config.dtype, config.shards, progress)
    return {"written": dst, "gigabytes": size / 1e9, "seconds": time.monotonic() - began}


def _convert_image_tokenizer(
    config: ConvertCommand, opened: OpenedImageTokenizer, src: str, dst: str
) -> dict[str, Any]:
    for key in ("dtype", "shards", "image_tokenizer"):
        if getattr(config, key) is not None:
            raise ConfigError(
                f"{key} = {getattr(config, key)!r}: {src} is an image tokenizer alone, without a Transformer"
            )
    began = time.monotonic()
    tokenizer = load_image_tokenizer(*opened)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tokenizer.params))
    with bytes_bar(f"convert {Path(src).name}", size) as progress:
        write_image_tokenizer(tokenizer, dst, config.format, progress)
    return {"written": dst, "gigabytes": size / 1e9, "seconds": time.monotonic() - began}
