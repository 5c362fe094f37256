"""What a training run takes from the header of its prepared data (dataset.json)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from chameleon_jax.config import TrainConfig, require

VOCAB_MULTIPLE = 128
"""Embeddings of such a size lie well in every accelerator's tiles, and divide over the devices of most meshes."""


def with_vocab_size(config: TrainConfig, needed: int, known: int | None) -> TrainConfig:
    """The config with a number for `model.vocab_size`, if that was left open.

    Args:
      needed: ids that the prepared data uses.
      known: size of the model that the run goes on from or begins with, if there is one.

    Raises:
      ConfigError: if there are fewer than the data needs.
    """
    size = config.model.vocab_size
    if size is None:
        size = known or -(-needed // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(size >= needed, "model.vocab_size", size, f"the prepared data needs at least {needed}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def shares(config: TrainConfig) -> dict[str, float]:
    """Share of a run's rows that each source has; sources that no stage reads are not named."""
    found: dict[str, float] = {}
    for stage in config.stages:
        total = sum(stage.weights.values())
        for name, weight in stage.weights.items():
            if weight > 0:
                found[name] = found.get(name, 0.0) + stage.share * weight / total
    return found


def learns_to_draw(sources: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether image codes are learnt from in any source that a stage reads."""
    read = [sources[name] for name in shares(config) if name in sources]
    return any(source.get("image_tokens_learnt", source["image_tokens"]) for source in read)


def prompt_fit(sources: Mapping[str, Any], config: TrainConfig) -> tuple[Literal["crop", "pad"] | None, str]:
    """How pictures in the prompts that a run learns from became squares.

    Returns:
      the fit that most of the rows of conversations with pictures have, None if there are no such rows; and a line
      that says so where sources disagree, else ''.
    """
    rows: dict[str, float] = {}
    names: dict[str, list[str]] = {}
    for name, share in shares(config).items():
        source = sources.get(name, {})
        if source.get("source", {}).get("kind") == "conversations" and source.get("pictures"):
            fit = source["source"].get("prompt_fit", "pad")
            rows[fit] = rows.get(fit, 0.0) + share
            names.setdefault(fit, []).append(name)
    if not rows:
        return None, ""
    taken = max(rows, key=rows.__getitem__)
    if len(rows) == 1:
        return taken, ""
    others = ", ".join(f"{fit!r} in {', '.join(names[fit])}" for fit in names if fit != taken)
    return taken, (
        f"prompt_fit is {taken!r} in most rows of conversations ({', '.join(names[taken])}) and {others}: the model "
        f"remembers {taken!r} for the pictures of its prompts"
    )
