"""Sources of documents, and the commands that learn tokenizers from them and prepare them for training."""

from __future__ import annotations

import dataclasses
from typing import Literal

from chameleon_jax.config.reading import require
from chameleon_jax.config.training import ImageTokenizerTrainConfig, TextTokenizerConfig


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of Documents."""

    kind: Literal[
        "digit_captions",
        "digit_questions",
        "digit_sums",
        "digit_counting",
        "python_reference",
        "python_stdlib",
        "documents",
    ]
    """The digit kinds make documents about real handwritten digits; python_reference is prose and python_stdlib code;
    'documents' reads your own JSON lines."""
    name: str = ""
    """What the mixture calls it. Default: the kind."""
    split: str = "train"
    """Split of an embedded data set, or a slice of one: train, test, train[:90%]."""
    count: int = 0
    """Documents to make. Digit kinds draw this many; other kinds stop after as many. 0: each item once."""
    augment: bool = False
    """Shift, turn and scale each picture a little. For training only."""
    path: str = ""
    """File of JSON lines, for kind 'documents'."""
    seed: int = 0

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        require(self.count >= 0, "count", self.count, "must be 0 or more")
        require(
            self.name.replace("_", "").replace("-", "").isalnum(),
            "name",
            self.name,
            "must consist of letters, digits, - and _ (it becomes part of file names)",
        )
        require((self.kind == "documents") == bool(self.path), "path", self.path, "goes with kind 'documents' only")


@dataclasses.dataclass(frozen=True)
class TextTokenizerCommand:
    """`chameleon train-text-tokenizer`: learn text pieces from the text of some sources."""

    output: str
    """File for the SentencePiece model."""
    tokenizer: TextTokenizerConfig
    sources: tuple[SourceConfig, ...]
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""


@dataclasses.dataclass(frozen=True)
class ImageTokenizerCommand:
    """`chameleon train-image-tokenizer`: learn image codes from the pictures of some sources."""

    output: str
    """Folder for the tokenizer and its metrics."""
    tokenizer: ImageTokenizerTrainConfig
    sources: tuple[SourceConfig, ...]
    """All pictures of their documents are learnt from."""
    held_out: tuple[SourceConfig, ...] = ()
    """Pictures that PSNR and codebook use are measured on."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""
    log_every: int = 20


@dataclasses.dataclass(frozen=True)
class PrepareCommand:
    """`chameleon prepare`: Documents to packed rows of tokens, ahead of training."""

    text_tokenizer: str
    """File that `chameleon train-text-tokenizer` wrote."""
    image_tokenizer: str
    """Folder that `chameleon train-image-tokenizer` wrote."""
    output: str
    """Folder for the rows, the joined tokenizer and dataset.json."""
    sequence_length: int
    """Tokens a row."""
    sources: tuple[SourceConfig, ...]
    held_out: tuple[SourceConfig, ...] = ()
    """Sources that training measures its loss on and never learns from."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""

    def __post_init__(self):
        require(self.sequence_length > 1, "sequence_length", self.sequence_length, "must be at least 2")
        for field in ("sources", "held_out"):
            names = [source.name for source in getattr(self, field)]
            require(
                len(set(names)) == len(names), field, names, "names must differ; set `name` where a kind is repeated"
            )
        require(len(self.sources) > 0, "sources", [], "must list at least one source")
