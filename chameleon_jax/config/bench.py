"""Measuring train steps, and generation."""

from __future__ import annotations

from typing import ClassVar, Literal

from chameleon_jax.config.generation import EngineConfig
from chameleon_jax.config.models import MOVED_KEYS, ExecutionConfig, LoRAConfig, TransformerConfig
from chameleon_jax.config.reading import config, require, require_seed
from chameleon_jax.config.training import MeshConfig, OptimizerConfig


@config
class BenchTrainConfig:
    """`chameleon bench train`: the full train step on rows of random ids."""

    model: TransformerConfig
    batch_size: int
    """Rows per step, over all devices."""
    length: int
    """Tokens per row."""
    documents: int = 4
    """Documents packed into each row, alternating between text and image codes."""
    padding: float = 0.02
    """Share of padding at the end of each row. It counts as tokens, since the hardware computes it too."""
    execution: ExecutionConfig = ExecutionConfig()
    lora: LoRAConfig = LoRAConfig()
    dropout: float = 0.0
    """Dropout rate on the output of each branch, before it is added to the residual stream."""
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    accumulation: int = 1
    """Gradient accumulation: parts of a batch that are computed one after another."""
    loss_chunk: int = 0
    """Positions of each row whose logits are computed at a time; 0: all at once."""
    compiler_options: Literal["auto", "none"] = "auto"
    """Compiler options of XLA for the steps: 'auto' takes those of `chameleon_jax/runtime/compiler_options.py` for the
    devices at hand, 'none' the defaults and XLA_FLAGS."""
    warmup: int = 2
    """Steps before the measurement; the first of them compiles."""
    steps: int = 10
    """Steps per repeat, dispatched without waiting in between."""
    repeats: int = 5
    """Measurements, of which the median counts."""
    seed: int = 0
    """Of the weights and of the rows."""

    moved_keys: ClassVar[dict[str, str]] = MOVED_KEYS

    def __post_init__(self):
        require_seed(self.seed)
        require(self.model.vocab_size is not None, "model.vocab_size", None, "must be a number here")
        for name in ("batch_size", "length", "documents", "accumulation", "warmup", "steps", "repeats"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        require(self.loss_chunk >= 0, "loss_chunk", self.loss_chunk, "must be 0 or more")
        for name in ("padding", "dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        tokens = self.length - int(self.length * self.padding)
        require(self.documents <= tokens, "documents", self.documents, f"must be at most the {tokens} tokens of a row")
        require(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            self.accumulation,
            f"must divide batch_size = {self.batch_size}",
        )


@config
class BenchOptions:
    """How `chameleon bench image-tokenizer` measures."""

    warmup: int = 2
    """Steps before the measurement; the first of them compiles."""
    steps: int = 10
    """Steps per repeat, dispatched without waiting in between."""
    repeats: int = 5
    """Measurements, of which the median counts."""

    def __post_init__(self):
        for name in ("warmup", "steps", "repeats"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")


@config
class BenchGenerateConfig:
    """`chameleon bench generate`: prefill, text and pictures with random weights."""

    model: TransformerConfig
    execution: ExecutionConfig = ExecutionConfig()
    engine: EngineConfig = EngineConfig()
    """How the engine decodes. `rows` is taken from the sweep below; with a `window` above 1, pictures are drawn without
    and with it."""
    rows: tuple[int, ...] = (1, 8)
    """Numbers of requests that run at once, each measured."""
    prompt: int = 128
    """Tokens of each prompt."""
    new_tokens: int = 128
    """Tokens of text that each request writes."""
    codes_per_image: int = 1024
    """Codes of each picture; 0 draws none."""
    text_guidance: float = 3.0
    """Guidance scale of pictures; 1 is off."""
    repeats: int = 3
    """Measurements, of which the median counts."""
    seed: int = 0
    """Of the weights, the prompts and the sampling."""

    def __post_init__(self):
        require_seed(self.seed)
        require(self.model.vocab_size is not None, "model.vocab_size", None, "must be a number here")
        require(len(self.rows) > 0 and min(self.rows) > 0, "rows", self.rows, "must be numbers of at least 1")
        require(self.prompt > 2, "prompt", self.prompt, "must be at least 3")
        require(self.new_tokens > 1, "new_tokens", self.new_tokens, "must be at least 2")
        require(self.repeats > 0, "repeats", self.repeats, "must be at least 1")
        require(self.codes_per_image >= 0, "codes_per_image", self.codes_per_image, "must be 0 or more")
