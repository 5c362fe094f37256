"""What all sources of records have in common, and how a kind of source becomes known."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from chameleon_jax.config.reading import config, require, shortened, to_dict
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError
from data_pipeline.augment import AugmentConfig
from data_pipeline.filters import FilterConfig
from data_pipeline.forms import FormConfig
from data_pipeline.records import Record, Rejected, Shard

S = TypeVar("S", bound="type[SourceConfig]")

ENTRY_POINTS = "chameleon_jax.sources"
"""Group of entry points under which installed packages name the modules that register their kinds."""

FORMER_KEYS: dict[str, Any] = {
    "split": "train", "augment": False, "path": "", "prompt_loss": 0.0, "answer_end": "eos", "prompt_fit": "pad",
    "answer_fit": "crop", "exif": True, "seed": 0,
}  # fmt: skip
"""Keys that sources of every kind once had, with their defaults. Old YAML files and headers of prepared data contain
them, and fingerprints are still computed with them."""

NEWER_KEYS = ("augment", "filter", "form", "held_out", "part")
"""Keys that sources of every kind have since: left out of headers where they have their defaults, so that data that a
newer version prepares again has the fingerprint that it had."""

_KINDS: dict[str, type[SourceConfig]] = {}


def register_source(cls: S) -> S:
    """Class decorator that registers a kind of source under the default of its field `kind`.

    Raises:
      ValueError: if another class has the same kind.
    """
    other = _KINDS.get(cls.kind, cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):  # else it was reloaded
        raise ValueError(f"kind {cls.kind!r} of {cls.__qualname__} is that of {other.__module__}.{other.__qualname__}")
    _KINDS[cls.kind] = cls
    return cls


@functools.cache
def _load_entry_points() -> None:
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry_point.load()
        except Exception as error:  # whatever is wrong with it, it is not ours
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"kind: {entry_point.value} adds kinds, but cannot be imported: {reason}") from None


def settings_of(source: SourceConfig) -> dict[str, Any]:
    """A source as plain data for headers and fingerprints."""
    defaults = {field.name: field.default for field in dataclasses.fields(source) if field.name in NEWER_KEYS}
    return {
        name: value
        for name, value in to_dict(source).items()
        if name not in defaults or getattr(source, name) != defaults[name]
    }


def place_of(record_id: str) -> float:
    """A number in [0, 1) that is a hash of the id of a record; those below `held_out` are held out."""
    return int.from_bytes(hashlib.sha256(record_id.encode(errors="surrogatepass")).digest()[:6]) / 2**48


def _keys(cls: type[SourceConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


@config
class SourceConfig:
    """One source of records.

    Each kind is a subclass with keys of its own, decorated with `register_source`. Where a config has a SourceConfig, a
    mapping is read as the class that its key `kind` names.
    """

    kind: str
    """What the documents are and where they come from."""
    name: str = ""
    """What the mixture calls the source. Default: the kind."""
    count: int = 0
    """Use the first this many records of `part`; 0: all."""
    loss: Literal["all", "image", "text", "last_image"] = "all"
    """Tokens to train on, among those with a weight in the loss: 'image' are image codes and end of image, which teach
    an output layer to draw; 'last_image' are those of the last picture of a document, for pictures that are made of
    other pictures; 'text' are all others than 'image'."""
    filter: FilterConfig = FilterConfig()
    """Which records are used."""
    form: FormConfig = FormConfig()
    """How records become documents."""
    augment: AugmentConfig = AugmentConfig()
    """Changes each picture a little at random, for training only; true: a small shift, rotation, scaling and shear."""
    part: Literal["all", "train", "held_out"] = "all"
    """Which records are used: all, those to learn from, or those held out. A hash of its id decides for each record, so
    that none changes sides when others are added."""
    held_out: float = 0.1
    """Share of the records that parts 'train' and 'held_out' divide off."""

    def shards(self, datasets: str = "") -> list[Shard]:
        """The parts of this source that can be read apart, in order. Opens no more than it must to name them.

        Args:
          datasets: folder in which data sets may be kept once they are built.

        Raises:
          FileError: if there is nothing to read.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method `shards`")

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        """The records of a shard, the same ones in the same order every time; `Rejected` in place of those that cannot
        be read. A file that cannot be read any further ends with a `Rejected` for its rest."""
        raise NotImplementedError(f"{type(self).__name__} has no method `read`")

    def keeps(self, record_id: str) -> bool:
        """Whether a record belongs to `part`."""
        return self.part == "all" or (place_of(record_id) < self.held_out) == (self.part == "held_out")

    def kept(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        """`read`, without what does not belong to `part`."""
        return (record for record in self.read(shard, datasets) if self.keeps(record.id))

    def read_all(self, datasets: str = "") -> Iterator[Record | Rejected]:
        """The first `count` records of all shards, before forms and filters; a `Rejected` counts as one."""
        records = (record for shard in self.shards(datasets) for record in self.kept(shard, datasets))
        return itertools.islice(records, self.count or None)

    def records(self, datasets: str = "") -> Iterator[Record]:
        """The same where all are expected to be right.

        Raises:
          DocumentError: naming the first record that cannot be read.
        """
        for record in self.read_all(datasets):
            if isinstance(record, Rejected):
                raise DocumentError(f"{record.place}: {record.reason}")
            yield record

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        require(self.count >= 0, "count", self.count, "must be 0 or more")
        require(0 < self.held_out < 1, "held_out", self.held_out, "must be a share between 0 and 1")
        require(
            self.name.replace("_", "").replace("-", "").isalnum(),
            "name",
            self.name,
            "must consist of letters, digits, - and _ (it becomes part of file names)",
        )

    @classmethod
    def variant(cls, values: dict[str, Any]) -> type[SourceConfig]:
        """The class of the kind that `values` name; called by `from_dict`."""
        if cls is not SourceConfig:
            return cls
        kind = values.get("kind")
        if str(kind) not in _KINDS:
            _load_entry_points()
        if isinstance(kind, str) and kind in _KINDS:
            return _KINDS[kind]
        kinds = ", ".join(map(repr, sorted(_KINDS)))
        if "kind" not in values:
            raise ConfigError(f"kind: missing; must be one of {kinds}")
        nearest = difflib.get_close_matches(str(kind)[:100], _KINDS, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"kind = {shortened(kind)}: must be one of {kinds}{hint}")

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`values` without the keys of other kinds that have their former defaults; called by `from_dict`."""
        own = _keys(cls)
        values = {
            name: value
            for name, value in values.items()
            if name in own or name not in FORMER_KEYS or value != FORMER_KEYS[name]
        }
        for name in values.keys() - own:
            kinds = ", ".join(repr(kind) for kind, other in sorted(_KINDS.items()) if name in _keys(other))
            if kinds:
                raise ConfigError(f"{name}: kind {cls.kind!r} has no such key; it goes with {kinds}")
        return values


@config
class TurnKeys(SourceConfig):
    """Keys of the kinds that may give conversations. Only answers are trained on, unless `prompt_loss` says more."""

    prompt_loss: float = 0.0
    """Weight of the prompts in the loss, 0 to 1; answers have 1."""
    answer_end: Literal["separator", "eos"] = "eos"
    """Token after each answer of a conversation except the last, which always ends with end of sequence: the separator
    (end of turn) that also follows each prompt, or end of sequence, where generation stops."""
    prompt_fit: Literal["pad", "crop"] = "pad"
    """How pictures in prompts are made square; see `fit` of the preprocessing. The defaults are the paper's (section
    3): prompts keep the whole picture, answers its centre."""
    answer_fit: Literal["pad", "crop"] = "crop"
    """The same for pictures in answers."""

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.prompt_loss <= 1, "prompt_loss", self.prompt_loss, "must be from 0 to 1")
