"""What a training run derives from the header of its prepared data (dataset.json)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from chameleon_jax.config import TrainConfig, require
from chameleon_jax.tokens.chat import TEMPLATE_OF_END, ChatTemplate

VOCAB_MULTIPLE = 128
"""Vocabulary sizes are rounded up to a multiple of this, which suits accelerators' tiles and most meshes."""


def with_vocab_size(config: TrainConfig, needed: int, known: int | None) -> TrainConfig:
    """The config with `model.vocab_size` filled in if it is None.

    Args:
      needed: number of ids that the prepared data uses.
      known: vocabulary size of the checkpoint or the initial model, if there is one.

    Raises:
      ConfigError: if it is smaller than the data needs.
    """
    size = config.model.vocab_size
    if size is None:
        size = known or -(-needed // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(size >= needed, "model.vocab_size", size, f"the prepared data needs at least {needed}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def with_context_length(config: TrainConfig, known: int | None) -> TrainConfig:
    """The config with `model.context_length` filled in if it is None.

    Args:
      known: context length of the initial model, if there is one.

    Raises:
      ConfigError: if it is shorter than the rows, `config.sequence_length`.
    """
    rows, length = config.sequence_length, config.model.context_length
    if length is None:
        length = max(rows, known or 0)
    require(length >= rows, "model.context_length", length, f"the rows of the prepared data have {rows} tokens")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, context_length=length))


def shares(config: TrainConfig) -> dict[str, float]:
    """The share of each pool in the tokens of a run, without pools that no stage reads."""
    found: dict[str, float] = {}
    for stage in config.stages:
        total = sum(stage.weights.values())
        for name, weight in stage.weights.items():
            if weight > 0:
                found[name] = found.get(name, 0.0) + stage.share * weight / total
    return found


class _SourceRead(NamedTuple):
    name: str
    figures: Mapping[str, Any]
    share: float  # of the tokens of the run


def _sources_read(pools: Mapping[str, Any], config: TrainConfig) -> Iterator[_SourceRead]:
    """The sources of the pools that a run reads. The entry of a pool of one source is that of the source."""
    for pool, share in shares(config).items():
        if pool in pools:
            for name, figures in pools[pool].get("sources", {pool: pools[pool]}).items():
                yield _SourceRead(name, figures, share * figures.get("share", 1.0))


def learns_to_draw(pools: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether any source that a stage reads trains the model on image codes."""
    read = [source.figures for source in _sources_read(pools, config)]
    return any(figures.get("image_tokens_learnt", figures["image_tokens"]) for figures in read)


def prompt_fit(pools: Mapping[str, Any], config: TrainConfig) -> tuple[Literal["crop", "pad"] | None, str]:
    """How pictures in the prompts of a run's data were made square.

    Returns:
      the fit of most tokens of conversations with pictures, None if there are none; and a message if sources disagree,
      else ''.
    """
    read = [source for source in _sources_read(pools, config) if source.figures.get("pictures")]
    taken, disagreement = _of_most_conversations("prompt_fit", "pad", read)
    return taken, f"{disagreement}: the model remembers {taken!r} for the pictures of its prompts" * bool(disagreement)


def chat_template(pools: Mapping[str, Any], config: TrainConfig) -> tuple[ChatTemplate | None, str]:
    """How the turns of a run's conversations were joined.

    Returns:
      the template of most tokens of conversations, None if there are none; and a message if sources disagree, else ''.
    """
    end, disagreement = _of_most_conversations("answer_end", "eos", _sources_read(pools, config))
    return TEMPLATE_OF_END.get(end), f"{disagreement}: the model remembers {end!r} for its chats" * bool(disagreement)


def _of_most_conversations(key: str, default: str, read: Iterable[_SourceRead]) -> tuple[Any | None, str]:
    """The value of a key in most tokens of conversations, None without any; and which sources differ, or ''."""
    tokens: dict[str, float] = {}
    names: dict[str, list[str]] = {}
    for source in read:
        settings = source.figures.get("source", {})
        if settings.get("kind") == "conversations" or source.figures.get("conversations"):
            value = settings.get(key, default)
            tokens[value] = tokens.get(value, 0.0) + source.share
            names.setdefault(value, []).append(source.name)
    if not tokens:
        return None, ""
    taken = max(tokens, key=tokens.__getitem__)
    if len(tokens) == 1:
        return taken, ""
    others = ", ".join(f"{value!r} in {', '.join(names[value])}" for value in names if value != taken)
    return taken, f"{key} is {taken!r} in most tokens of conversations ({', '.join(names[taken])}) and {others}"
