"""Sources of documents, and the commands that learn tokenizers from them and prepare them for training."""

from __future__ import annotations

import dataclasses
from typing import Literal

from chameleon_jax.config.reading import config, require, require_seed
from chameleon_jax.config.training import ImageTokenizerTrainConfig, TextTokenizerConfig

DIGITS = ("digit_captions", "digit_questions", "digit_sums", "digit_counting")
TEXTS = ("python_reference", "python_stdlib")

KINDS_OF_KEYS = {
    "split": (*DIGITS, *TEXTS),
    "augment": DIGITS,
    "seed": DIGITS,
    "path": ("documents", "conversations"),
    **dict.fromkeys(("prompt_loss", "answer_end", "prompt_fit", "answer_fit"), ("conversations",)),
}
"""Which kinds of source know a key of `SourceConfig`; keys that are not named are for all kinds."""


@config
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
        "conversations",
    ]
    """The digit kinds make documents about real handwritten digits; python_reference is prose and python_stdlib code;
    'documents' reads your own JSON lines, 'conversations' too: prompts and answers, which alone are learnt from."""
    name: str = ""
    """What the mixture calls it. Default: the kind."""
    split: str = "train"
    """Split of an embedded data set, or a slice of one: train, test, train[:90%]."""
    count: int = 0
    """Documents to make. Digit kinds draw this many; other kinds stop after as many. 0: each item once."""
    augment: bool = False
    """Shift, turn and scale each picture a little. For training only."""
    path: str = ""
    """File of JSON lines, for the kinds 'documents' and 'conversations'."""
    loss: Literal["all", "image", "text"] = "all"
    """Tokens to learn from, as far as they are learnt from at all: 'image' are image codes and end of image, which
    teach an output layer to draw; 'text' is everything else."""
    prompt_loss: float = 0.0
    """Weight in the loss of the prompts of conversations, 0 to 1; answers have 1."""
    answer_end: Literal["separator", "eos"] = "eos"
    """Token that ends each answer of a conversation but the last, which always ends with end of sequence: the
    separator (end of turn) that stands after each prompt too, or end of sequence, which is where generation stops."""
    prompt_fit: Literal["pad", "crop"] = "pad"
    """How pictures in prompts of conversations become squares; see `fit` of the preprocessing. As in the paper
    (section 3): prompts keep the whole picture, answers its centre."""
    answer_fit: Literal["pad", "crop"] = "crop"
    """The same for pictures in answers."""
    exif: bool = True
    """Turn pictures of files as their EXIF data says, so that they stand as people see them. The released code does
    not; with false, the codes are those that it would give."""
    seed: int = 0

    def __post_init__(self):
        require_seed(self.seed)
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        require(self.count >= 0, "count", self.count, "must be 0 or more")
        require(
            self.name.replace("_", "").replace("-", "").isalnum(),
            "name",
            self.name,
            "must consist of letters, digits, - and _ (it becomes part of file names)",
        )
        require(
            (self.kind in KINDS_OF_KEYS["path"]) == bool(self.path),
            "path",
            self.path,
            "goes with the kinds 'documents' and 'conversations', and with them only",
        )
        require(self.exif or bool(self.path), "exif", self.exif, "goes with the kinds 'documents' and 'conversations'")
        require(0 <= self.prompt_loss <= 1, "prompt_loss", self.prompt_loss, "must be from 0 to 1")
        for field in dataclasses.fields(self):
            kinds, value = KINDS_OF_KEYS.get(field.name), getattr(self, field.name)
            require(
                kinds is None or self.kind in kinds or value == field.default,
                field.name,
                value,
                f"kind {self.kind!r} does not know it; it goes with {_listed(kinds or ())}",
            )


def _listed(kinds: tuple[str, ...]) -> str:
    *first, last = [repr(kind) for kind in kinds] or [""]
    return f"the kinds {', '.join(first)} and {last}" if first else f"kind {last}"


def _require_nothing_of_rows(*groups: tuple[SourceConfig, ...]) -> None:
    """Refuses keys of sources that mean something in prepared rows alone."""
    for source in (source for group in groups for source in group):
        for field in dataclasses.fields(source):
            if field.name in ("loss", "prompt_loss", "answer_end", "prompt_fit", "answer_fit"):
                value = getattr(source, field.name)
                require(
                    value == field.default, f"{source.name}.{field.name}", value, "goes with `chameleon prepare` only"
                )


@config
class TextTokenizerCommand:
    """`chameleon train-text-tokenizer`: learn text pieces from the text of some sources."""

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
    """`chameleon train-image-tokenizer`: learn image codes from the pictures of some sources."""

    output: str
    """Folder for the tokenizer and its metrics. An older one there is replaced; a folder with anything else in it is
    not."""
    tokenizer: ImageTokenizerTrainConfig
    sources: tuple[SourceConfig, ...]
    """All pictures of their documents are learnt from."""
    held_out: tuple[SourceConfig, ...] = ()
    """Pictures that PSNR and codebook use are measured on."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self):
        require(self.log_every > 0, "log_every", self.log_every, "must be at least 1")
        _require_nothing_of_rows(self.sources, self.held_out)


@config
class PrepareCommand:
    """`chameleon prepare`: Documents to packed rows of tokens, ahead of training."""

    output: str
    """Folder for the rows, the tokenizer and dataset.json. Older rows there are replaced; a folder with anything else
    in it is not."""
    sequence_length: int
    """Tokens a row."""
    sources: tuple[SourceConfig, ...]
    text_tokenizer: str = ""
    """File that `chameleon train-text-tokenizer` wrote, to join with `image_tokenizer`."""
    image_tokenizer: str = ""
    """Folder that `chameleon train-image-tokenizer` wrote, to join with `text_tokenizer`."""
    tokenizer: str = ""
    """Instead of these two: a model in any format (a folder, or hf://org/name), or the tokenizer's folder of one of
    ours. Ids stay as they are there, so that the model can be trained further on the rows."""
    held_out: tuple[SourceConfig, ...] = ()
    """Sources that training measures its loss on and never learns from."""
    datasets: str = "out/datasets"
    """Folder where embedded data sets are built."""

    def __post_init__(self):
        two = (self.text_tokenizer, self.image_tokenizer)
        require(
            all(two) if not self.tokenizer else not any(two),
            "tokenizer",
            self.tokenizer,
            "give either `tokenizer` (a model's folder) or both `text_tokenizer` and `image_tokenizer`; here they are "
            f"{self.text_tokenizer!r} and {self.image_tokenizer!r}",
        )
        require(self.sequence_length > 1, "sequence_length", self.sequence_length, "must be at least 2")
        for field in ("sources", "held_out"):
            names = [source.name for source in getattr(self, field)]
            require(
                len(set(names)) == len(names), field, names, "names must differ; set `name` where a kind is repeated"
            )
        require(len(self.sources) > 0, "sources", [], "must list at least one source")


@config
class ShowCommand:
    """`chameleon show`: rows of prepared data, for a person to read."""

    source: str = ""
    """Name of a prepared source, or held_out.NAME. Default: the first one."""
    output: str = ""
    """Folder to draw the pictures of the rows into, as PNG files. Default: they are only marked."""
