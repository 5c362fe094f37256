"""`chameleon train`: connects prepared data, the initial model and the training engine."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import TrainConfig, require, to_dict
from chameleon_jax.document import Document, open_image, parse_prompt
from chameleon_jax.errors import FileError
from chameleon_jax.models.lora import merge
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.distributed import is_first
from chameleon_jax.runtime.distributed import start as start_processes
from chameleon_jax.runtime.folders import check_folder
from chameleon_jax.runtime.host_memory import keep_freed_memory
from chameleon_jax.runtime.progress import console
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, Vocabulary
from chameleon_jax.training.checkpoint import stored_config
from chameleon_jax.training.feeding import HeldOut
from chameleon_jax.training.loop import train as run_training
from chameleon_jax.training.metrics import read_metrics
from chameleon_jax.training.prepared import (
    chat_template,
    learns_to_draw,
    prompt_fit,
    with_context_length,
    with_vocab_size,
)
from chameleon_jax.training.run_folder import check_run
from chameleon_jax.training.samples import Sample, Sampler
from chameleon_jax.training.state import model_params
from chameleon_jax.training.transformer import TransformerTask
from chameleon_jax.weights.adapters import ADAPTERS, add_adapters, write_adapters
from chameleon_jax.weights.checkpoint import Checkpoint
from chameleon_jax.weights.formats import open_checkpoint
from chameleon_jax.weights.hub import repository_of
from chameleon_jax.weights.initial import initial_params
from chameleon_jax.weights.native import MODEL, write_trained

if TYPE_CHECKING:
    from data_pipeline.loader import PreparedData


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains on prepared data and writes `<output>/model`.

    Returns:
      In the first process, the duration, the final losses on the held-out sources, and the path of the model.
    """
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
    config, load, initial = _open_initial(config, vocabulary)
    is_image_id = np.zeros(config.model.vocab_size, bool)
    is_image_id[: vocabulary.size] = vocabulary.modality == IMAGE
    held_out = {name: _held_out(data, name, config) for name in data.header["held_out"]}
    fit, of_fits = prompt_fit(data.header["sources"], config)
    template, of_templates = chat_template(data.header["sources"], config)
    for disagreement in filter(None, (of_fits, of_templates)):
        console.print(disagreement)
    sample = _sampler(config, data.tokenizer(), fit) if config.samples.every else None
    order = (config.stages, config.steps, config.batch_size, config.seed)
    data.mixture(*order).check_epochs(config.max_epochs)
    began = time.monotonic()
    task = TransformerTask(config, is_image_id)
    state = run_training(
        task,
        lambda start, rows: data.batches(*order, start=start, rows=rows),
        data_fingerprint=data.fingerprint,
        held_out=held_out,
        initial_params=load,
        rows_of_batch=data.rows_of_batch(*order),
        sample=sample,
    )
    drew = initial.image_head_trained if initial else None if config.initial else False
    if not config.lora.rank:  # adapters leave the output layer as it is
        drew = learns_to_draw(data.header["sources"], config) or drew
    params = model_params(task, state)
    if config.lora.rank:
        write_adapters(as_path(config.output) / "adapters", config.lora, params, config.initial)
    folder, tokenizer = as_path(config.output) / "model", data.folder / "tokenizer"
    template = template or (initial.chat_template if initial else None)
    write_trained(
        folder, config.model, config.lora, params, tokenizer, drew, fit, template,
        training=_training(config, data.header, int(state.step)) if is_first() else "",
        base_model=repository_of(config.initial or ""),
    )  # fmt: skip
    if not is_first():
        return {}
    return {
        "minutes": round((time.monotonic() - began) / 60, 2),
        "model_of_step" if config.checkpoint.best else "steps": int(state.step),
        **_last_held_out_losses(as_path(config.output)),
        "model": str(as_path(config.output) / "model"),
        **({"adapters": str(as_path(config.output) / "adapters")} if config.lora.rank else {}),
    }


def _training(config: TrainConfig, header: Mapping[str, Any], step: int) -> str:
    """What the model card says of the training, as Markdown. It names sources, and no paths."""
    rows = step * config.batch_size
    start = "from scratch"
    if config.initial:
        start = f"from `{repository_of(config.initial) or Path(config.initial).name}`"
    adapters = f", low-rank adapters of rank {config.lora.rank}" if config.lora.rank else ""
    lines = [
        f"Trained {start}{adapters}: {step:,} steps of {config.batch_size:,} rows of {config.sequence_length:,} tokens "
        f"({rows * config.sequence_length:,} places in all), {config.optimizer.name} with a peak learning rate of "
        f"{config.optimizer.learning_rate:g}.",
        "",
        "| data | documents | pictures | tokens |",
        "|---|---|---|---|",
    ]
    for name, entry in header["sources"].items():
        counts = (f"{entry[key]:,}" if key in entry else "" for key in ("documents", "pictures", "tokens"))
        lines.append(f"| {name} | {' | '.join(counts)} |")
    losses = _last_held_out_losses(as_path(config.output))
    if losses:
        lines += ["", "| held-out data | nats per token |", "|---|---|"]
        lines += [f"| {name.removeprefix('held_out.')} | {loss:.4g} |" for name, loss in losses.items()]
    return "\n".join(lines)


def _sampler(config: TrainConfig, tokenizer: DocumentTokenizer, fit: str | None) -> Sampler:
    """A function that answers the config's sample prompts with the current parameters; pictures in prompts are prepared
    like those of the training data. Raises `ConfigError` if a prompt cannot be answered."""
    if fit and tokenizer.image:
        tokenizer.image.preprocessing = dataclasses.replace(tokenizer.image.preprocessing, fit=fit)
    prompts, generation = config.samples.prompts, config.samples.generation
    require(jax.process_count() == 1, "samples.every", config.samples.every, "must be 0 where several processes train")
    documents = [parse_prompt(prompt.text, [open_image(file) for file in prompt.images]) for prompt in prompts]
    modes = sorted({prompt.mode for prompt in prompts})
    if "image" in modes or "interleaved" in modes:
        require(tokenizer.image is not None and tokenizer.image.can_decode, "samples.prompts", modes,
                f"{config.data} has no image decoder to draw with; use mode 'text'")  # fmt: skip
    options = {mode: dataclasses.replace(generation, mode=mode) for mode in modes}

    def sample(params: Any) -> list[Sample]:
        if config.lora.rank:
            params = jax.jit(functools.partial(merge, config=config.lora))(params)
        model = Chameleon(config.model, params, tokenizer, execution=config.execution, image_head_trained=True)
        answers: dict[int, Document] = {}
        for mode in modes:
            places = [place for place, prompt in enumerate(prompts) if prompt.mode == mode]
            written = model.generate_many([documents[place] for place in places], options[mode])
            answers |= zip(places, written, strict=True)
        return [
            Sample(f"Prompt {place + 1}", answers[place], (prompt.text, *prompt.images))
            for place, prompt in enumerate(prompts)
        ]

    return sample


def _last_held_out_losses(output: Path) -> dict[str, float]:
    """The most recent held-out losses in nats per token, such as {"held_out.digits.loss": 2.5, …}."""
    found = [line["held_out"] for line in read_metrics(output / "metrics.jsonl") if "held_out" in line]
    return {
        f"held_out.{source}.{name}": loss
        for source, losses in (found or [{}])[-1].items()
        for name, loss in losses.items()
    }


def _held_out(data: PreparedData, name: str, config: TrainConfig) -> HeldOut:
    data.rows("held_out", name)  # missing files are reported now rather than at the first evaluation
    return lambda rows: data.held_out_batches(name, config.batch_size, config.evaluation_batches, rows)


def _open_initial(
    config: TrainConfig, vocabulary: Vocabulary
) -> tuple[TrainConfig, Callable[[Any], Any] | None, Checkpoint | None]:
    """Opens the model that training starts from, if any.

    Returns:
      The config with vocabulary size and context length filled in, a function that loads the initial parameters, and
      the opened model. A run that resumes from a checkpoint no longer needs this model, so it is only an error when
      its parameters are loaded that it cannot be opened.
    """
    checkpoint = open_error = None
    if config.initial:
        try:
            checkpoint = open_checkpoint(config.initial)
        except FileError as error:
            open_error = error
    open_size = config.model.vocab_size is None
    known = to_dict(checkpoint.config) if checkpoint else {}
    if before := stored_config(as_path(config.output) / "checkpoints"):
        known |= before["model"]
    config = with_vocab_size(config, vocabulary.size, known.get("vocab_size"))
    config = with_context_length(config, known.get("context_length"))
    if open_size:
        console.print(
            f"model.vocab_size is {config.model.vocab_size:,}; the prepared data uses {vocabulary.size:,} ids."
        )

    def fail(target: Any) -> Any:
        raise open_error

    if checkpoint is None:
        return config, fail if open_error else None, None
    load = initial_params(checkpoint, config, vocabulary)
    if config.initial_adapters:
        load_base = load
        load = lambda target: add_adapters(load_base(target), config.model, config.initial_adapters)  # noqa: E731
    return config, load, checkpoint
