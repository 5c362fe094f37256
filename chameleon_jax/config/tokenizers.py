"""Training of the text tokenizer and of the image tokenizer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from chameleon_jax.config.models import ImageTokenizerConfig
from chameleon_jax.config.reading import config, require, require_seed
from chameleon_jax.config.resuming import Adjustable
from chameleon_jax.config.training import OptimizerConfig, RunConfig


@config
class TextTokenizerConfig:
    """A SentencePiece byte-pair encoding."""

    vocab_size: int
    """Text pieces, the 256 bytes among them."""
    character_coverage: float = 0.9999
    """Share of all characters that get a piece of their own; the others are encoded as bytes."""
    max_lines: int = 1_000_000
    """Lines to train on, sampled at random if there are more."""
    seed: int = 0

    def __post_init__(self):
        require_seed(self.seed, bits=32)
        require(
            self.vocab_size > 257, "vocab_size", self.vocab_size, "must be above 257: 256 bytes and some characters"
        )
        require(self.max_lines > 100, "max_lines", self.max_lines, "must be above 100, SentencePiece's least")
        require(
            0.98 <= self.character_coverage <= 1,
            "character_coverage",
            self.character_coverage,
            "must be from 0.98 to 1, as SentencePiece asks",
        )


@config
class ImageTokenizerOptimizerConfig(OptimizerConfig):
    """The optimizer of an image tokenizer: that of a Transformer with defaults of its own."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "exponential", "linear", "constant"] = "cosine"
    warmup_steps: int = 50
    final_fraction: float = 0.05
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0


@config
class ImageTokenizerTrainConfig(RunConfig):
    """Training of the image tokenizer: a whole run."""

    _: dataclasses.KW_ONLY
    output: Adjustable[str] = ""
    """Folder for checkpoints, metrics.jsonl and, at the end, the tokenizer. `chameleon train-image-tokenizer` has this
    key beside `tokenizer`."""
    model: ImageTokenizerConfig
    batch_size: int
    """Pictures per step, over all devices."""
    optimizer: ImageTokenizerOptimizerConfig = ImageTokenizerOptimizerConfig()
    reconstruction: Literal["l1", "l2"] = "l2"
    commitment: float = 0.25
    """Weight of mean |sg(code) - z|^2, which keeps the encoder near its codes."""
    codebook_decay: float = 0.99
    restart_below: float = 0.05
    """A code whose use is below this share of the mean is restarted at a latent of the current batch."""

    moved_keys: ClassVar[dict[str, str]] = {
        name: f"optimizer.{name}"
        for name in ("learning_rate", "final_fraction", "warmup_steps", "b1", "b2", "clip_norm")
    }

    def __post_init__(self):
        super().__post_init__()
        require(self.commitment >= 0, "commitment", self.commitment, "must be 0 or more")
        require(0 < self.codebook_decay < 1, "codebook_decay", self.codebook_decay, "must be in (0, 1)")
        require(
            0 < self.restart_below < 1,
            "restart_below",
            self.restart_below,
            "must be in (0, 1): a code that is never used again would fade into NaN",
        )
