"""Configs of the commands that read sources: learning tokenizers, and preparing documents for training."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from chameleon_jax.config.reading import config, require, require_seed
from chameleon_jax.config.tokenizers import ImageTokenizerTrainConfig, TextTokenizerConfig
from data_pipeline.datasets import (  # noqa: F401  (the demos' kinds of sources)
    digit_documents,
    openmoji_documents,
    python_documents,
)
from data_pipeline.near_duplicates import NearDuplicatesConfig
from data_pipeline.sources import SourceConfig

LARGEST_RESOLUTION = 1 << 13


def _require_nothing_of_rows(*groups: tuple[SourceConfig, ...]) -> None:
    """Raises `ConfigError` for keys of sources that only matter in prepared rows."""
    for source in (source for group in groups for source in group):
        for field in dataclasses.fields(source):
            if field.name in ("loss", "prompt_loss", "answer_end", "prompt_fit", "answer_fit"):
                value = getattr(source, field.name)
                require(
                    value == field.default, f"{source.name}.{field.name}", value, "goes with `chameleon prepare` only"
                )


@config
class TextTokenizerCommand:
    """`chameleon train-text-tokenizer`: train a text tokenizer on the text of some sources."""

    output: str
    """File for the SentencePiece model."""
    tokenizer: TextTokenizerConfig
    sources: tuple[SourceConfig, ...]
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""

    def __post_init__(self):
        _require_nothing_of_rows(self.sources)


@config
class ImageTokenizerCommand:
    """`chameleon train-image-tokenizer`: train an image tokenizer on pictures that are prepared, or on those of some
    sources."""

    output: str
    """Folder for checkpoints, metrics.jsonl and, at the end, the tokenizer. A run that was interrupted there is
    resumed."""
    tokenizer: ImageTokenizerTrainConfig
    sources: tuple[SourceConfig, ...] = ()
    """All pictures of their documents are used. They are prepared first, in <output>/pictures."""
    held_out: tuple[SourceConfig, ...] = ()
    """Pictures on which PSNR and codebook use are measured."""
    data: str = ""
    """A folder that `chameleon prepare` wrote with keep 'pictures', instead of `sources` and `held_out`: several
    machines can share that work, and it is done once for many runs."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""

    moved_keys: ClassVar[dict[str, str]] = {
        "log_every": "tokenizer.log_every",
        **{f"tokenizer.{old}": f"tokenizer.{new}" for old, new in ImageTokenizerTrainConfig.moved_keys.items()},
    }

    def __post_init__(self):
        require(bool(self.data or self.sources), "sources", [], "must list at least one source, unless `data` is given")
        _require_nothing_of_rows(self.sources, self.held_out)


@config
class PoolConfig:
    """Sources that are packed together into one pool of rows."""

    name: str
    """What the stages of training call the pool."""
    sources: dict[str, float]
    """Weight of each source: its tokens in the pool, relative to those of the others. The pool ends when the first of
    them has no more documents."""
    epochs: dict[str, int] = dataclasses.field(default_factory=dict)
    """How often the documents of a source may be used in the pool. Default: once."""

    def __post_init__(self):
        require(
            self.name.replace("_", "").replace("-", "").isalnum(),
            "name",
            self.name,
            "must consist of letters, digits, - and _ (it becomes part of file names)",
        )
        require(
            len(self.sources) > 0 and min(self.sources.values()) > 0,
            "sources",
            self.sources,
            "must name at least one source, with weights above 0",
        )
        for name, epochs in self.epochs.items():
            require(name in self.sources, f"epochs.{name}", epochs, f"must be one of {', '.join(self.sources)}")
            require(epochs > 0, f"epochs.{name}", epochs, "must be at least 1")


@config
class PrepareCommand:
    """`chameleon prepare`: tokenize documents and pack them into rows, ahead of training; or keep their pictures, for
    an image tokenizer to learn from."""

    output: str
    """Folder for the rows, the tokenizer and dataset.json, and for what an interrupted run has done. Older rows there
    are replaced once the new ones are complete; a folder with anything else in it is not."""
    sequence_length: int | None = None
    """Tokens a row."""
    sources: tuple[SourceConfig, ...] = ()
    keep: Literal["tokens", "pictures"] = "tokens"
    """What is kept of the documents: 'tokens' in rows, for `chameleon train`; or 'pictures' as they are in their files,
    for `chameleon train-image-tokenizer`, which crops and augments them anew in each epoch."""
    resolution: int | None = None
    """With keep 'pictures': the largest resolution, in pixels, that image tokenizers will be trained at. Pictures whose
    shorter side is more than twice that are shrunk."""
    text_tokenizer: str = ""
    """File that `chameleon train-text-tokenizer` wrote, to join with `image_tokenizer`."""
    image_tokenizer: str = ""
    """Folder that `chameleon train-image-tokenizer` wrote, or an image tokenizer of Meta's, taming-transformers' or
    transformers' format, to join with `text_tokenizer`. Only pictures need it."""
    tokenizer: str = ""
    """Instead of these two: a model in any format (a folder, or hf://org/name), or the tokenizer's folder of one of
    ours. Ids stay as they are there, so that the model can be trained further on the rows."""
    held_out: tuple[SourceConfig, ...] = ()
    """Sources that training evaluates on and never trains on."""
    pools: tuple[PoolConfig, ...] = ()
    """Sources to pack together. Text then fills the room that pictures leave in the rows, and one pool of rows has all
    sources in a fixed ratio. Each source that no pool names is a pool of its own, under its own name."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""
    seed: int = 0
    """Of what is chosen at random for each record."""
    processes: int = 0
    """Processes that read and tokenize; 0: one for each core. The rows are the same with any number."""
    max_rejected: float = 0.1
    """Share of a source that may be unusable; with more, nothing is packed. rejected.jsonl lists these records."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Whether of documents with the same text and pictures, in all sources, only the first is used. What is held out
    counts as first, so that none of it is trained on."""
    near_duplicates: NearDuplicatesConfig = NearDuplicatesConfig()
    """The same for documents that are nearly the same; off by default."""
    too_long: Literal["split", "reject"] = "split"
    """What becomes of documents longer than a row. Conversations are not among them: they lose turns at their end."""

    def __post_init__(self):
        require_seed(self.seed)
        require(self.processes >= 0, "processes", self.processes, "must be 0 or more")
        require(0 <= self.max_rejected <= 1, "max_rejected", self.max_rejected, "must be from 0 to 1")
        self._check_pictures() if self.keep == "pictures" else self._check_tokens()
        for field in ("sources", "held_out"):
            names = [source.name for source in getattr(self, field)]
            require(
                len(set(names)) == len(names), field, names, "names must differ; set `name` where a kind is repeated"
            )
        require(len(self.sources) > 0, "sources", [], "must list at least one source")
        self._check_pools()

    def _check_pictures(self) -> None:
        require(self.resolution is not None and 0 < self.resolution <= LARGEST_RESOLUTION, "resolution",
                self.resolution, f"must be given with keep 'pictures', from 1 to {LARGEST_RESOLUTION}")  # fmt: skip
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("sequence_length", "text_tokenizer", "image_tokenizer", "tokenizer", "pools", "too_long"):
            require(getattr(self, name) == defaults[name], name, getattr(self, name), "goes with keep 'tokens' only")
        require(self.near_duplicates.text is None, "near_duplicates.text", self.near_duplicates.text,
                "goes with keep 'tokens' only")  # fmt: skip
        _require_nothing_of_rows(self.sources, self.held_out)

    def _check_tokens(self) -> None:
        require(self.resolution is None, "resolution", self.resolution, "goes with keep 'pictures' only")
        two = (self.text_tokenizer, self.image_tokenizer)
        require(
            bool(self.text_tokenizer) if not self.tokenizer else not any(two),
            "tokenizer",
            self.tokenizer,
            "give either `tokenizer` (a model's folder), or `text_tokenizer` and, where there are pictures, "
            f"`image_tokenizer`; here they are {self.text_tokenizer!r} and {self.image_tokenizer!r}",
        )
        length = self.sequence_length
        require(length is not None and length > 1, "sequence_length", length, "must be at least 2")

    def _check_pools(self) -> None:
        sources = [source.name for source in self.sources]
        for number, pool in enumerate(self.pools):
            for name in pool.sources:
                known = f"no such source; it must be one of {', '.join(sources)}"
                require(name in sources, f"pools.{number}.sources.{name}", pool.sources[name], known)
        listed = {name for pool in self.pools for name in pool.sources}
        names = [pool.name for pool in self.pools] + [name for name in sources if name not in listed]
        require(
            len(set(names)) == len(names),
            "pools",
            [pool.name for pool in self.pools],
            "names must differ, also from those of sources that are pools of their own",
        )


@config
class DataCommand:
    """`chameleon data`: what is in prepared data, and rows of it to look at."""

    source: str = ""
    """With --rows: name of a prepared source, or held_out.NAME. Default: the first one."""
    output: str = ""
    """With --rows: folder to draw the pictures of the rows into, as PNG files. Default: they are only marked."""
    page: str = ""
    """File for a page of sample rows. Default: beside the rows, as in out/demo/rows.html; 'none' writes none."""
    samples: int = 4
    """Rows of each source on the page."""

    def __post_init__(self):
        require(self.samples > 0, "samples", self.samples, "must be at least 1")
