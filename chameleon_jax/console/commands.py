"""What the subcommands of `chameleon` do, as functions of their configs. `cli.py` parses and prints, `demo` joins."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chameleon_jax.chameleon import Chameleon, load
from chameleon_jax.config import (
    ConfigError,
    ConvertCommand,
    GenerationConfig,
    InspectCommand,
    LoRAConfig,
    TrainConfig,
    require,
)
from chameleon_jax.console.terminal import can_show_images, half_blocks
from chameleon_jax.console.verify import verify
from chameleon_jax.document import Document, open_image, parse_prompt
from chameleon_jax.errors import LONGEST_MESSAGE, DamagedFile, FileError, printable
from chameleon_jax.models.lora import merge
from chameleon_jax.runtime.cloud import as_path, on_disk
from chameleon_jax.runtime.distributed import is_first
from chameleon_jax.runtime.distributed import start as start_processes
from chameleon_jax.runtime.files import new_file
from chameleon_jax.runtime.folders import check_file, check_folder, check_writable, new_folder
from chameleon_jax.runtime.host_memory import keep_freed_memory
from chameleon_jax.runtime.progress import bytes_bar, console, progress_bar
from chameleon_jax.tokens.documents import (
    IMAGE_TOKENIZER,
    TEXT_TOKENIZER,
    DocumentTokenizer,
    load_image_tokenizer,
    load_text_tokenizer,
    save_image_tokenizer,
)
from chameleon_jax.tokens.image import resize_and_crop, scale
from chameleon_jax.tokens.text import LONGEST_TEXT
from chameleon_jax.tokens.text import train_text_tokenizer as learn_text_tokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, Vocabulary
from chameleon_jax.training.checkpoint import stored_config
from chameleon_jax.training.feeding import HeldOut
from chameleon_jax.training.image_tokenizer import measure_image_tokenizer
from chameleon_jax.training.image_tokenizer import train_image_tokenizer as learn_image_tokenizer
from chameleon_jax.training.loop import train as run_training
from chameleon_jax.training.metrics import MetricsFile, read_metrics
from chameleon_jax.training.prepared import learns_to_draw, prompt_fit, with_vocab_size
from chameleon_jax.training.run_folder import check_run
from chameleon_jax.training.samples import Sampler
from chameleon_jax.training.state import model_params
from chameleon_jax.weights.adapters import ADAPTERS, add_adapters, write_adapters
from chameleon_jax.weights.describe import describe
from chameleon_jax.weights.formats import bytes_to_write, open_checkpoint, write_checkpoint
from chameleon_jax.weights.hub import is_remote
from chameleon_jax.weights.initial import initial_params
from chameleon_jax.weights.native import MODEL, write_trained
from chameleon_jax.weights.vqgan import why_not_released

if TYPE_CHECKING:
    from PIL.Image import Image

    from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, ShowCommand, TextTokenizerCommand
    from data_pipeline.loader import PreparedData
    from data_pipeline.sources import SourceConfig


def train_text_tokenizer(command: TextTokenizerCommand) -> dict[str, Any]:
    """Learns text pieces and writes the SentencePiece model. Returns figures about it."""
    check_file(command.output, TEXT_TOKENIZER)
    documents = itertools.chain.from_iterable(source.documents(command.datasets) for source in command.sources)
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
    parts = (text[start : start + LONGEST_TEXT] for text in texts for start in range(0, len(text), LONGEST_TEXT))
    pieces = sum(len(tokenizer.encode(part)) for part in parts)
    return {"pieces": tokenizer.num_pieces, "bytes_of_text": size, "bytes_per_piece": round(size / pieces, 3)}


def _pictures(sources: tuple[SourceConfig, ...], datasets: str, resolution: int) -> np.ndarray:
    """All pictures of some sources, cropped to squares, uint8 `[n, resolution, resolution, 3]`."""
    pixels = []
    with progress_bar("read pictures", None) as bar:
        for source in sources:
            for document in source.documents(datasets):
                images = [segment for segment in document if not isinstance(segment, str)]
                pixels += [np.asarray(resize_and_crop(image, resolution)) for image in images]
                bar.update(len(pixels))
    if not pixels:
        raise ConfigError("sources: their documents hold no pictures")
    return np.stack(pixels)


def train_image_tokenizer(command: ImageTokenizerCommand) -> dict[str, Any]:
    """Trains the VQGAN and writes its folder, with metrics.jsonl inside. Returns figures on the held-out pictures."""
    config = command.tokenizer
    if unreleased := why_not_released(config.model):
        console.print(
            f"note: tokenizer.model: with {unreleased} models are saved in format 'chameleon' alone, not in the "
            "released formats"
        )
    with new_folder(command.output, IMAGE_TOKENIZER) as folder:
        pictures = _pictures(command.sources, command.datasets, config.model.resolution)
        held_out = command.held_out
        unseen = _pictures(held_out, command.datasets, config.model.resolution) if held_out else pictures
        metrics = MetricsFile(folder / "metrics.jsonl", 0)
        with progress_bar("train image tokenizer", config.steps) as bar:

            def log(step: int, figures: dict[str, float]) -> None:
                metrics.write(step, **figures)
                bar.update(step, psnr=f"{figures['psnr_db']:.1f} dB", perplexity=f"{figures['perplexity']:.0f}")

            tokenizer = learn_image_tokenizer(config, pictures, log, command.log_every)
        save_image_tokenizer(tokenizer, folder)
    return measure_image_tokenizer(tokenizer, scale(unseen))


def open_tokenizer(command: PrepareCommand) -> DocumentTokenizer:
    """The tokenizer that a command names: a model's with its ids as they are, or text and image tokenizer joined.

    Raises:
      FileError: if there is none, or it is damaged.
    """
    if not command.tokenizer:
        text, image = load_text_tokenizer(command.text_tokenizer), load_image_tokenizer(command.image_tokenizer)
        return DocumentTokenizer.join(text, image)
    folder = command.tokenizer if is_remote(command.tokenizer) else on_disk(command.tokenizer)
    if (Path(folder) / "vocabulary.json").is_file():
        return DocumentTokenizer.load(folder)
    checkpoint = open_checkpoint(folder)
    for warning in checkpoint.warnings:
        print(f"warning: {printable(warning, LONGEST_MESSAGE)}", file=sys.stderr)
    return checkpoint.load_tokenizer()


def prepare(command: PrepareCommand) -> dict[str, Any]:
    """Tokenizes and packs all sources. Returns totals over those to learn from."""
    from data_pipeline.prepare import PREPARED
    from data_pipeline.prepare import prepare as run

    check_folder(command.output, PREPARED)
    sources = run(command, open_tokenizer(command))["sources"].values()
    always = ("documents", "pictures", "tokens", "image_tokens", "rows")
    keys = (*always, "conversations_skipped", "turns_dropped", "documents_cut", "pictures_cut_off")
    totals = {key: sum(source.get(key, 0) for source in sources) for key in keys}
    return {key: total for key, total in totals.items() if total or key in always}


def show(config: ShowCommand, data: str, *, rows: Sequence[str] = ()) -> dict[str, Any]:
    """Prints rows of prepared data, what is learnt from told apart, and draws their pictures if asked to."""
    from data_pipeline.loader import PreparedData
    from data_pipeline.unpacking import unpack

    if config.output:
        check_writable(config.output)
    prepared = PreparedData(data)
    tokenizer = prepared.tokenizer(with_image=bool(config.output))
    name = config.source or next(iter(prepared.header["sources"]))
    part = "held_out" if name.startswith("held_out.") else "sources"
    name = name.removeprefix("held_out.")
    known = [*prepared.header["sources"], *(f"held_out.{other}" for other in prepared.header["held_out"])]
    require(name in prepared.header[part], "source", config.source, f"was not prepared; there is {', '.join(known)}")
    source = prepared.rows(part, name)
    numbers = _row_numbers(rows, len(source))
    print("bold is learnt from, dim is not" if sys.stdout.isatty() else "what stands in ⟦ ⟧ is learnt from")
    for number in numbers:
        row = source[number]
        documents = unpack(row, tokenizer)
        print(
            f"\n{name}, row {number}: {len(documents)} documents, {np.count_nonzero(row['segment_ids'])} of "
            f"{prepared.sequence_length} tokens, {np.count_nonzero(row['loss_weights'])} of them learnt from"
        )
        files = (as_path(config.output) / f"{part}-{name}-{number}-{nth}.png" for nth in itertools.count(1))
        for spans in documents:
            texts = (
                (_as_text(span.content, tokenizer, files if config.output else None), span.weight) for span in spans
            )
            runs = itertools.groupby(texts, lambda pair: pair[1])
            print("".join(_weighed("".join(text for text, _ in run), weight) for weight, run in runs))
    return {}


def _as_text(content: str | np.ndarray, tokenizer: DocumentTokenizer, files: Iterator[Path] | None) -> str:
    """Text as it is; of a picture, given as ids, a mark. It is drawn into the next of `files`, if there are any."""
    if isinstance(content, str):
        return content
    if files is None:
        return "[picture]"
    if len(content) != tokenizer.codes_per_image:
        return f"[picture of {len(content)} instead of {tokenizer.codes_per_image} codes]"
    (image,) = tokenizer.need("image").detokenize(tokenizer.vocabulary.code_of_id[content[None]])
    _write_picture(image, file := next(files))
    return f"[picture: {file}]"


def _row_numbers(given: Sequence[str], count: int) -> list[int]:
    """Numbers of rows, from texts such as '3,17' or '[3, 17]'; the first row without any."""
    words = ",".join(given or ["0"]).strip("[]").split(",")
    numbers = [int(word) if word.strip().isdecimal() else -1 for word in words]
    allowed = f"must be numbers from 0 to {count - 1} with commas between them, as in 3,17"
    require(all(0 <= number < count for number in numbers), "rows", ",".join(given), allowed)
    return numbers


def _steers_nothing(text: str) -> str:
    """Text of many lines with what would steer the terminal spelled out."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def _weighed(text: str, weight: float) -> str:
    """Text with its weight in the loss made visible."""
    text = _steers_nothing(text)
    if sys.stdout.isatty():
        return f"\x1b[{1 if weight == 1 else 2 if weight == 0 else 0}m{text}\x1b[0m"
    return text if weight == 0 else f"⟦{text}⟧" if weight == 1 else f"⟦{weight:.3g} x {text}⟧"


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains on prepared data and writes `<output>/model`. Returns how long it took, the losses on the held-out
    sources at the end, and where the model is; nothing in processes other than the first."""
    from data_pipeline.loader import PreparedData

    start_processes(config.distributed)
    check_run(config.output)
    check_folder(as_path(config.output) / "model", MODEL)
    check_folder(as_path(config.output) / "adapters", ADAPTERS)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    require(bool(config.data), "data", config.data, "must name a folder that `chameleon prepare` wrote")
    data = PreparedData(config.data)
    require(
        config.sequence_length in (None, data.sequence_length),
        "sequence_length",
        config.sequence_length,
        f"must be {data.sequence_length}, the length of the rows in {config.data}, or null",
    )
    config = dataclasses.replace(config, sequence_length=data.sequence_length)
    vocabulary = data.tokenizer(with_image=False).vocabulary
    config, initial, drew = _open_initial(config, vocabulary)
    is_image_id = np.zeros(config.model.vocab_size, bool)
    is_image_id[: vocabulary.size] = vocabulary.modality == IMAGE
    held_out = {name: _held_out(data, name, config) for name in data.header["held_out"]}
    fit, disagreement = prompt_fit(data.header["sources"], config)
    if disagreement:
        console.print(disagreement)
    sample = _sampler(config, data.tokenizer(), fit) if config.samples.every else None
    order = (config.stages, config.steps, config.batch_size, config.seed)
    began = time.monotonic()
    state = run_training(
        config,
        lambda start, rows: data.batches(*order, start=start, rows=rows),
        is_image_id,
        data_fingerprint=data.fingerprint,
        held_out=held_out,
        initial_params=initial,
        rows_of_batch=data.rows_of_batch(*order),
        sample=sample,
    )
    if not config.model.lora.rank:  # adapters leave the output layer as it is
        drew = learns_to_draw(data.header["sources"], config) or drew
    params = model_params(config, state)
    if config.model.lora.rank:
        write_adapters(as_path(config.output) / "adapters", config.model, params, config.initial)
    write_trained(as_path(config.output) / "model", config.model, params, data.folder / "tokenizer", drew, fit)
    if not is_first():
        return {}
    return {
        "minutes": round((time.monotonic() - began) / 60, 2),
        "model_of_step" if config.checkpoint.best else "steps": int(state.step),
        **_last_held_out_losses(as_path(config.output)),
        "model": str(as_path(config.output) / "model"),
        **({"adapters": str(as_path(config.output) / "adapters")} if config.model.lora.rank else {}),
    }


def _sampler(config: TrainConfig, tokenizer: DocumentTokenizer, fit: str | None) -> Sampler:
    """Gives what a model in training writes after the prompts of the config, with their pictures prepared as those it
    learns from; refuses at once what it could not."""
    if fit and tokenizer.image:
        tokenizer.image.preprocessing = dataclasses.replace(tokenizer.image.preprocessing, fit=fit)
    prompts, generation = config.samples.prompts, config.samples.generation
    require(jax.process_count() == 1, "samples.every", config.samples.every, "must be 0 where several processes train")
    documents = [parse_prompt(prompt.text, [open_image(file) for file in prompt.images]) for prompt in prompts]
    modes = sorted({prompt.mode for prompt in prompts})
    if "image" in modes or "interleaved" in modes:
        require(tokenizer.image is not None and tokenizer.image.can_decode, "samples.prompts", modes,
                f"{config.data} has no image decoder to draw with; use mode 'text'")  # fmt: skip
    if "image" in modes:
        needed, given = tokenizer.image_block - 1, generation.max_new_tokens
        enough = given is None or given >= needed
        require(enough, "samples.generation.max_new_tokens", given, f"one picture needs {needed}")

    def sample(params: Any) -> list[Document]:
        model_config = dataclasses.replace(config.model, lora=LoRAConfig())
        if config.model.lora.rank:
            params = jax.jit(functools.partial(merge, config=config.model.lora))(params)
        model = Chameleon(model_config, params, tokenizer, image_head_trained=True)
        answers: dict[int, Document] = {}
        for mode in modes:
            places = [place for place, prompt in enumerate(prompts) if prompt.mode == mode]
            how = dataclasses.replace(generation, mode=mode)
            answers |= zip(places, model.generate_many([documents[place] for place in places], how), strict=True)
        return [answers[place] for place in range(len(prompts))]

    return sample


def _last_held_out_losses(output: Path) -> dict[str, float]:
    """The losses that the last line of metrics with any gives, in nats per token: {"held_out.digits.loss": 2.5, …}."""
    found = [line["held_out"] for line in read_metrics(output / "metrics.jsonl") if "held_out" in line]
    return {
        f"held_out.{source}.{name}": loss
        for source, losses in (found or [{}])[-1].items()
        for name, loss in losses.items()
    }


def _held_out(data: PreparedData, name: str, config: TrainConfig) -> HeldOut:
    data.rows("held_out", name)  # files that are missing are an error now rather than at the first evaluation
    return lambda rows: data.held_out_batches(name, config.batch_size, config.evaluation_batches, rows)


def _open_initial(
    config: TrainConfig, vocabulary: Vocabulary
) -> tuple[TrainConfig, Callable[[Any], Any] | None, bool | None]:
    """The config with the size of the vocabulary, what gives a run its first parameters, and whether the model they are
    from learned to draw (None: unknown).

    A run that goes on from a checkpoint does not need that model any more: that it is gone is an error only when its
    parameters are asked for.
    """
    checkpoint = gone = None
    if config.initial:
        try:
            checkpoint = open_checkpoint(config.initial)
        except FileError as error:
            gone = error
    open_size = config.model.vocab_size is None
    if open_size and (before := stored_config(as_path(config.output) / "checkpoints")):
        known = before["model"]["vocab_size"]
    else:
        known = checkpoint.config.vocab_size if checkpoint else None
    config = with_vocab_size(config, vocabulary.size, known)
    if open_size:
        console.print(
            f"model.vocab_size is {config.model.vocab_size:,}; the prepared data uses {vocabulary.size:,} ids."
        )

    def fail(target: Any) -> Any:
        raise gone

    if checkpoint is None:
        return config, fail if gone else None, None if gone else False
    load = initial_params(checkpoint, config, vocabulary)
    if config.initial_adapters:
        plain = load
        load = lambda target: add_adapters(plain(target), config.model, config.initial_adapters)  # noqa: E731
    return config, load, checkpoint.image_head_trained


def generate(
    config: GenerationConfig,
    model: str,
    prompt: str = "",
    *,
    image: Sequence[str] = (),
    output: Sequence[str] = (),
    adapters: Sequence[str] = (),
) -> dict[str, Any]:
    """Continues a prompt; prints text, writes pictures as PNG files into `output` and shows them if it can."""
    document = parse_prompt(prompt, [open_image(file) for file in image])
    folder = as_path(output[-1] if output else "out/generated")
    check_writable(folder)
    answer = load(model, adapters=adapters[-1] if adapters else None).generate(document, config)
    for segment in answer:
        if isinstance(segment, str):
            print(_steers_nothing(segment) if sys.stdout.isatty() else segment)
            continue
        path = _free_name(folder)
        _write_picture(segment, path)
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
        print(f"warning: {printable(warning, LONGEST_MESSAGE)}", file=sys.stderr)
    began = time.monotonic()
    size = bytes_to_write(checkpoint, config.dtype)
    with bytes_bar(f"convert {checkpoint.folder.name}", size) as progress:
        write_checkpoint(checkpoint, target, config.format, config.dtype, config.shards, progress)
    return {"written": target, "gigabytes": size / 1e9, "seconds": time.monotonic() - began}


def inspect(config: InspectCommand, path: str) -> dict[str, Any]:
    """Prints what a model folder holds, or with `verify` what is damaged in a folder of any kind.

    Raises:
      DamagedFile: after the last line, if anything is.
    """
    if config.verify:
        return _verify(path, config.json)
    found = describe(open_checkpoint(path))
    if config.json:
        print(json.dumps(found, indent=2))
        return {}
    width = max(map(len, found)) + 2
    for name, value in found.items():
        lines = value if isinstance(value, list) else [value]
        for place, line in enumerate(lines):
            print(f"{name if place == 0 else '':<{width}}{printable(line, LONGEST_MESSAGE)}")
    return {}


def _verify(path: str, as_json: bool) -> dict[str, Any]:
    damaged, results = 0, []
    for place, found, sound in verify(path):
        damaged += not sound
        results.append({"path": place, "sound": sound, "found": found})
        if not as_json:
            line = found if found.startswith(place) else f"{place}: {found}"
            print(printable(f"{'sound' if sound else 'DAMAGED':<9}{line}", LONGEST_MESSAGE))
    if as_json:
        print(json.dumps(results, indent=2))
    if damaged:
        raise DamagedFile(f"{path}: {damaged} of {len(results)} parts are damaged, or cannot be read")
    return {}


def _write_picture(image: Image, path: Path) -> None:
    with new_file(path) as aside:
        image.save(aside, "PNG")


def _free_name(folder: Path) -> Path:
    """The first of 0001.png, 0002.png, … that is not there yet."""
    return next(path for path in (folder / f"{n:04d}.png" for n in itertools.count(1)) if not path.exists())
