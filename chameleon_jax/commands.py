"""What the subcommands of `chameleon` do, as functions of their configs. `cli.py` parses and prints, `demo` joins."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.chameleon import Chameleon, load
from chameleon_jax.config import (
    BenchCommand,
    ConfigError,
    ConvertCommand,
    GenerationConfig,
    ImageTokenizerCommand,
    InspectCommand,
    PrepareCommand,
    SourceConfig,
    TextTokenizerCommand,
    TrainConfig,
    require,
)
from chameleon_jax.document import open_image, parse_prompt
from chameleon_jax.files import new_file, new_folder
from chameleon_jax.progress import bytes_bar, progress_bar
from chameleon_jax.terminal import can_show_images, half_blocks
from chameleon_jax.tokens.documents import save_image_tokenizer
from chameleon_jax.tokens.image import resize_and_crop, scale
from chameleon_jax.tokens.text import train_text_tokenizer as learn_text_tokenizer
from chameleon_jax.tokens.vocabulary import IMAGE
from chameleon_jax.training.image_tokenizer import measure_image_tokenizer
from chameleon_jax.training.image_tokenizer import train_image_tokenizer as learn_image_tokenizer
from chameleon_jax.training.loop import train as run_training
from chameleon_jax.training.metrics import MetricsFile
from chameleon_jax.weights.describe import describe
from chameleon_jax.weights.formats import bytes_to_write, open_checkpoint, write_checkpoint


def train_text_tokenizer(command: TextTokenizerCommand) -> dict[str, Any]:
    """Learns text pieces and writes the SentencePiece model. Returns figures about it."""
    from data_pipeline.sources import open_source

    documents = itertools.chain.from_iterable(open_source(source, command.datasets) for source in command.sources)
    texts = [segment for document in documents for segment in document if isinstance(segment, str) and segment]
    if not texts:
        raise ConfigError("sources: their documents hold no text")
    try:
        tokenizer = learn_text_tokenizer(command.tokenizer, texts)
    except ValueError as error:
        raise ConfigError(f"tokenizer.{error}") from None
    with new_file(command.output) as aside:
        aside.write_bytes(tokenizer.model)
    size = sum(len(text.encode()) for text in texts)
    pieces = sum(len(tokenizer.encode(text)) for text in texts)
    return {"pieces": tokenizer.num_pieces, "bytes_of_text": size, "bytes_per_piece": round(size / pieces, 3)}


def _pictures(sources: tuple[SourceConfig, ...], datasets: str, resolution: int) -> np.ndarray:
    """All pictures of some sources, cropped to squares, uint8 `[n, resolution, resolution, 3]`."""
    from data_pipeline.sources import open_source

    pixels = []
    with progress_bar("read pictures", None) as bar:
        for source in sources:
            for document in open_source(source, datasets):
                images = [segment for segment in document if not isinstance(segment, str)]
                pixels += [np.asarray(resize_and_crop(image, resolution)) for image in images]
                bar.update(len(pixels))
    if not pixels:
        raise ConfigError("sources: their documents hold no pictures")
    return np.stack(pixels)


def train_image_tokenizer(command: ImageTokenizerCommand) -> dict[str, Any]:
    """Trains the VQGAN and writes its folder, with metrics.jsonl inside. Returns figures on the held-out pictures."""
    config = command.tokenizer
    pictures = _pictures(command.sources, command.datasets, config.model.resolution)
    unseen = _pictures(command.held_out, command.datasets, config.model.resolution) if command.held_out else pictures
    with new_folder(command.output) as folder:
        metrics = MetricsFile(folder / "metrics.jsonl", 0)
        with progress_bar("train image tokenizer", config.steps) as bar:

            def log(step: int, figures: dict[str, float]) -> None:
                metrics.write(step, **figures)
                bar.update(step, psnr=f"{figures['psnr_db']:.1f} dB", perplexity=f"{figures['perplexity']:.0f}")

            tokenizer = learn_image_tokenizer(config, pictures, log, command.log_every)
        save_image_tokenizer(tokenizer, folder)
    return measure_image_tokenizer(tokenizer, scale(unseen))


def prepare(command: PrepareCommand) -> dict[str, Any]:
    """Tokenizes and packs all sources. Returns totals over those to learn from."""
    from data_pipeline.prepare import prepare as run

    sources = run(command)["sources"].values()
    keys = ("documents", "pictures", "tokens", "image_tokens", "rows")
    return {key: sum(source[key] for source in sources) for key in keys}


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains on prepared data and writes `<output>/model`. Returns how long it took."""
    from data_pipeline.loader import PreparedData

    data = PreparedData(config.data)
    require(
        config.sequence_length in (None, data.sequence_length),
        "sequence_length",
        config.sequence_length,
        f"must be {data.sequence_length}, the length of the rows in {config.data}, or null",
    )
    tokenizer = data.tokenizer()
    vocabulary = tokenizer.vocabulary
    require(
        config.model.vocab_size >= vocabulary.size,
        "model.vocab_size",
        config.model.vocab_size,
        f"the prepared data needs at least {vocabulary.size}",
    )
    is_image_id = np.zeros(config.model.vocab_size, bool)
    is_image_id[: vocabulary.size] = vocabulary.modality == IMAGE
    held_out = {
        name: data.held_out_batches(name, config.batch_size, config.evaluation_batches)
        for name in data.header["held_out"]
    }
    began = time.monotonic()
    state = run_training(
        config,
        lambda start: data.batches(config, start),
        is_image_id,
        data_fingerprint=data.fingerprint,
        held_out=held_out,
    )
    drew = any(source["image_tokens"] for source in data.header["sources"].values())
    model = Chameleon(config.model, state.params, tokenizer, image_head_trained=drew)
    model.save(Path(config.output) / "model")
    return {"minutes": round((time.monotonic() - began) / 60, 2), "steps": int(state.step)}


def generate(
    config: GenerationConfig, model: str, prompt: str = "", *, image: Sequence[str] = (), output: Sequence[str] = ()
) -> dict[str, Any]:
    """Continues a prompt; prints text, writes pictures as PNG files into `output` and shows them if it can."""
    document = parse_prompt(prompt, [open_image(file) for file in image])
    folder = Path(output[-1] if output else "out/generated")
    answer = load(model).generate(document, config)
    for segment in answer:
        if isinstance(segment, str):
            print(segment)
            continue
        path = _free_name(folder)
        with new_file(path) as aside:
            segment.save(aside, "PNG")
        if can_show_images():
            print(half_blocks(segment))
        print(f"[picture: {path}]")
    if not answer:
        print("[the model ended the document at once]")
    return {}


def convert(config: ConvertCommand, source: str, target: str) -> dict[str, Any]:
    """Writes a model in another format. Returns what was written."""
    checkpoint = open_checkpoint(source, config.image_tokenizer)
    for warning in checkpoint.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    began = time.monotonic()
    size = bytes_to_write(checkpoint, config.dtype)
    with bytes_bar(f"convert {checkpoint.folder.name}", size) as progress:
        write_checkpoint(checkpoint, target, config.format, config.dtype, config.shards, progress)
    return {"written": target, "gigabytes": size / 1e9, "seconds": time.monotonic() - began}


def inspect(config: InspectCommand, path: str) -> dict[str, Any]:
    """Prints what a model folder holds."""
    found = describe(open_checkpoint(path))
    if config.json:
        print(json.dumps(found, indent=2))
        return {}
    width = max(map(len, found)) + 2
    for name, value in found.items():
        lines = value if isinstance(value, list) else [value]
        for place, line in enumerate(lines):
            print(f"{name if place == 0 else '':<{width}}{line}")
    return {}


def bench(config: BenchCommand, what: str) -> dict[str, Any]:
    """Measures and prints JSON."""
    from chameleon_jax.bench.weights import bench_weights

    benches = {"weights": bench_weights}
    if what not in benches:
        raise ConfigError(f"{what!r} cannot be measured; there are {', '.join(benches)}")
    print(json.dumps(benches[what](config), indent=2))
    return {}


def _free_name(folder: Path) -> Path:
    """The first of 0001.png, 0002.png, … that is not there yet."""
    return next(path for path in (folder / f"{n:04d}.png" for n in itertools.count(1)) if not path.exists())
