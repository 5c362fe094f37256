"""Training of the text tokenizer and of the image tokenizer."""

from __future__ import annotations

from typing import Literal

from chameleon_jax.config.models import ImageTokenizerConfig
from chameleon_jax.config.reading import config, require, require_seed


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
class ImageTokenizerTrainConfig:
    """Training of the image tokenizer: model, losses, codebook upkeep, schedule."""

    model: ImageTokenizerConfig
    steps: int
    batch_size: int
    """Pictures a step."""
    learning_rate: float = 1e-3
    final_fraction: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int = 50
    b1: float = 0.9
    b2: float = 0.99
    clip_norm: float = 1.0
    reconstruction: Literal["l1", "l2"] = "l2"
    commitment: float = 0.25
    """Weight of mean |sg(code) - z|^2, which keeps the encoder near its codes."""
    codebook_decay: float = 0.99
    restart_below: float = 0.05
    """A code whose use is below this share of the mean is restarted at a latent of the current batch."""
    seed: int = 0

    def __post_init__(self):
        require_seed(self.seed)
        for name in ("steps", "batch_size", "learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(
            self.warmup_steps < self.steps, "warmup_steps", self.warmup_steps, f"must be below steps = {self.steps}"
        )
        require(0 < self.codebook_decay < 1, "codebook_decay", self.codebook_decay, "must be in (0, 1)")
        require(
            0 < self.restart_below < 1,
            "restart_below",
            self.restart_below,
            "must be in (0, 1): a code that is never used again would fade into NaN",
        )
