"""Conversion between formats of weights, and its measurement."""

from __future__ import annotations

from typing import Literal

from chameleon_jax.config.models import DType, TransformerConfig
from chameleon_jax.config.reading import config, require


@config
class ConvertCommand:
    """`chameleon convert`: write a model, or an image tokenizer alone, in another format."""

    format: Literal["chameleon", "huggingface", "meta"]
    """'chameleon': ours. 'huggingface': what transformers reads. 'meta': what Meta's code reads."""
    dtype: DType | None = None
    """Type of the Transformer's parameters; null leaves it as it is. The image tokenizer is always float32."""
    shards: int | None = None
    """Files of Meta's format (its model-parallel size); null takes one for each row of QK-norm."""
    image_tokenizer: str | None = None
    """Folder to take the image tokenizer from, such as `tokenizer` of Meta's release: Hugging Face's releases have no
    image decoder. Or one that `chameleon train-image-tokenizer` wrote, with the codes of the model's own."""

    def __post_init__(self):
        require(self.shards is None or self.shards > 0, "shards", self.shards, "must be at least 1")


@config
class PushCommand:
    """`chameleon push`: send a model to the Hugging Face Hub."""

    private: bool = False
    """Create the repository as a private one. One that is public already is refused."""
    dry_run: bool = False
    """Only list the files that would be sent. Nobody is asked, and nobody need be logged in."""


@config
class InspectCommand:
    """`chameleon inspect`: describe or verify a folder."""

    json: bool = False
    """One JSON object instead of lines for people."""
    verify: bool = False
    """Read everything in PATH (a model, prepared data, a run, a tokenizer) and compare it with its checksums,
    instead of describing it."""


@config
class BenchCommand:
    """`chameleon bench weights`: measure converting and loading."""

    model: TransformerConfig = TransformerConfig(
        d_model=2048, num_layers=16, num_heads=16, num_kv_heads=16, mlp_dim=5632
    )
    """Sizes of the model. The default has 1.1 billion parameters."""
    repeats: int = 3
    """Number of repeats; medians are reported."""
    folder: str = "out/bench"
    """Folder for scratch files, which are removed at the end."""

    def __post_init__(self):
        require(self.model.vocab_size is not None, "model.vocab_size", None, "must be a number here")
        require(self.repeats > 0, "repeats", self.repeats, "must be at least 1")
