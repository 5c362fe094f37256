"""Kind 'tfds': any data set of tensorflow-datasets whose files are ArrayRecord or Parquet. TensorFlow is not needed.

    dataset: oxford_flowers102
    segments: ["{image}", "A photo of a {label}."]

Names in braces are features: pictures, texts, numbers; of class labels, their names. Features in features are written
with a slash ({objects/label}), and a brace that is text is written twice.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import string
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError
from data_pipeline.records import Picture, Record, Rejected, Segment, Shard
from data_pipeline.sources.files import PICTURES_PER_SHARD, identity
from data_pipeline.sources.json_text import check_text
from data_pipeline.sources.source import SourceConfig, register_source

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_EXAMPLES_AT_A_TIME = 32
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
"""First bytes of picture files that a feature of bytes may hold, beside those of WebP."""


@register_source
@config
class TfdsSource(SourceConfig):
    """A data set of tensorflow-datasets."""

    kind: Literal["tfds"] = "tfds"
    dataset: str = ""
    """Its name, such as coco_captions, or coco_captions/2014:1.1.0. Must be given."""
    split: str = "train"
    """Split of the data set, or a slice of one: train, test, train[:90%]."""
    segments: tuple[str, ...] = ()
    """What a document consists of: texts with the names of features in braces. Must be given, or `form.templates`."""
    data_dir: str = ""
    """The folder of data sets. Default: `datasets` of the command."""
    exif: bool = True
    """Rotate pictures as their EXIF data says, so that they stand as people see them."""

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.dataset), "dataset", self.dataset, "must name a data set of tensorflow-datasets")
        for number, segment in enumerate(self.segments):
            _parts(segment, f"segments.{number}")

    def shards(self, datasets: str = "") -> list[Shard]:
        builder, examples = self._open(datasets)
        self._check_segments(builder.info.features)
        digest = hashlib.sha256()
        for part in builder.info.splits[self.split].file_instructions:
            digest.update(f"{identity(os.fspath(part.filename))} {part.skip} {part.take}\n".encode())
        return [
            Shard(f"{self.split}@{begin}", digest.hexdigest(), begin, min(begin + PICTURES_PER_SHARD, len(examples)))
            for begin in range(0, len(examples), PICTURES_PER_SHARD)
        ]

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record | Rejected]:
        builder, examples = self._open(datasets)
        features = builder.info.features
        for begin in range(shard.begin, shard.end, _EXAMPLES_AT_A_TIME):
            numbers = range(begin, min(begin + _EXAMPLES_AT_A_TIME, shard.end))
            for number, example in zip(numbers, examples.__getitems__(list(numbers)), strict=True):
                id, place = f"{self.split}:{number}", f"{self.dataset}, {self.split}, example {number}"
                try:
                    yield self._record(id, place, features, example)
                except DocumentError as error:
                    yield Rejected(id, place, str(error))

    def _open(self, datasets: str) -> tuple[tfds.core.DatasetBuilder, Sequence[dict[str, Any]]]:
        """The builder and the examples of the split, with pictures still encoded.

        Raises:
          ConfigError: if there is no such data set or split, or it cannot be read without TensorFlow.
        """
        # tfds otherwise asks a cloud bucket, which only delays where there is no network.
        os.environ.setdefault("NO_GCE_CHECK", "true")
        import tensorflow_datasets as tfds

        import data_pipeline.datasets.handwritten_digits
        import data_pipeline.datasets.openmoji
        import data_pipeline.datasets.python_text

        folder = self.data_dir or datasets or None
        tfds.disable_progress_bar()
        with data_pipeline.datasets.building():
            try:
                builder = tfds.builder(self.dataset, data_dir=folder)
                if not builder.is_prepared():
                    builder = tfds.builder(self.dataset, data_dir=folder, file_format="array_record")
                    builder.download_and_prepare()
            except Exception as error:
                raise ConfigError(f"dataset = {self.dataset!r}: cannot be opened: {_reason(error)}") from None
        try:
            return builder, builder.as_data_source(self.split, decoders=_decoders(builder.info.features))
        except NotImplementedError as error:
            raise ConfigError(f"dataset = {self.dataset!r}: cannot be read: {_reason(error)}") from None
        except (ValueError, AssertionError) as error:
            splits = ", ".join(builder.info.splits)
            raise ConfigError(f"split = {self.split!r}: {self.dataset} has {splits}: {_reason(error)}") from None

    def _check_segments(self, features: Any) -> None:
        """Raises `ConfigError` if the segments name features that there are not."""
        names = {name: feature for name, feature in _leaves(features) if _has_segments(feature)}
        known = ", ".join(f"{{{name}}} ({type(feature).__name__})" for name, feature in names.items())
        require(
            bool(self.segments or self.form.templates),
            "segments",
            self.segments,
            f"must say what a document consists of: {known}",
        )
        for number, segment in enumerate(self.segments):
            unknown = [name for _, name in _parts(segment) if name is not None and name not in names]
            require(not unknown, f"segments.{number}", segment, f"the features are {known}")

    def _record(self, id: str, place: str, features: Any, example: dict[str, Any]) -> Record:
        leaves = [(name, feature) for name, feature in _leaves(features) if _has_segments(feature)]
        values = {name: _values(name, feature, example, place) for name, feature in leaves}
        segments: list[Segment] = []
        for text, name in itertools.chain.from_iterable(map(_parts, self.segments)):
            for value in [text, *(values[name] if name else ())]:
                if isinstance(value, str) and segments and isinstance(segments[-1], str):
                    segments[-1] += value
                elif value:
                    segments.append(value)
        fields = {name: value[0] for name, value in values.items() if len(value) == 1 and value[0]}
        if not segments and not (fields and self.form.templates):
            raise DocumentError("the document is empty")
        return Record(id, place, tuple(segments), fields=fields)


def _parts(segment: str, key: str = "segments") -> list[tuple[str, str | None]]:
    """A template as texts, each with the name of the feature behind it. Raises `ConfigError` if it is not valid."""
    try:
        parts = list(string.Formatter().parse(segment))
    except ValueError as error:
        raise ConfigError(f"{key} = {segment!r}: {error}; a brace that is text is written twice") from None
    for _, name, form, conversion in parts:
        plain = name != "" and not form and not conversion
        require(plain, key, segment, "braces must hold the name of a feature and nothing else")
    return [(text, name) for text, name, _, _ in parts]


def _leaves(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Features by name, those in others with a slash; of sequences, the feature of their items."""
    for name, feature in features.items():
        while type(feature).__name__ == "Sequence":
            feature = feature.feature
        if hasattr(feature, "items"):
            yield from _leaves(feature, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", feature


def _has_segments(feature: Any) -> bool:
    """Whether values of a feature can stand in documents: pictures, labels, texts, numbers."""
    return type(feature).__name__ == "Image" or hasattr(feature, "int2str") or feature.shape == ()


def _decoders(features: Any) -> dict[str, Any]:
    """Decoders that leave pictures as they are stored."""
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        def decode_batch_example_np(self, example: Any) -> Any:
            return example

    decoders: dict[str, Any] = {}
    for name, feature in _leaves(features):
        if isinstance(feature, tfds.features.Image):
            *parents, last = name.split("/")
            inner = decoders
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = Encoded()
    return decoders


def _values(name: str, feature: Any, example: Any, place: str) -> list[Segment]:
    """The values of a feature, of which a sequence has any number."""
    for each in name.split("/"):
        example = example[each]
    found = example.ravel().tolist() if isinstance(example, np.ndarray) and example.ndim else example
    values: list[Segment] = []
    for number, value in enumerate(found if isinstance(found, list) else [found], start=1):
        if hasattr(feature, "int2str"):
            values += [feature.int2str(int(value))] if value >= 0 else []
        elif isinstance(value, bytes):
            is_picture = type(feature).__name__ == "Image" or value.startswith(_SIGNATURES) or value[8:12] == b"WEBP"
            values.append(Picture(f"{place}, {name} {number}", value) if is_picture else _decode(value, name))
        elif isinstance(value, (int, float, np.number, str)):
            values.append(str(value))
    return values


def _decode(value: bytes, name: str) -> str:
    try:
        return check_text(value.decode())
    except UnicodeDecodeError:
        raise DocumentError(f"{name}: neither text in UTF-8 nor a picture") from None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
