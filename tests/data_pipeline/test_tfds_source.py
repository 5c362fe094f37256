"""Data sets of tensorflow-datasets: the embedded ones, and one with features of every kind."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from picture_files import encoded, kept_squares, picture_file, plain, read
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.config import from_dict
from chameleon_jax.errors import ConfigError
from data_pipeline.datasets import open_dataset
from data_pipeline.sources import SourceConfig, TfdsSource
from data_pipeline.sources import tfds as tfds_source


def test_embedded_digits(datasets):
    source = TfdsSource(dataset="handwritten_digits", split="test", segments=["{png}", " {caption} ({label})", "{{}}"])
    records = read(source, datasets)
    examples = list(open_dataset("handwritten_digits", "test", datasets))
    assert len(records) == len(examples) == 360
    for record, example in zip(records[:50], examples, strict=False):
        picture, text = record.segments
        assert picture.data == example["png"]
        assert text == f" {example['caption'].decode()} ({example['label']}){{}}"
        assert record.fields == {"png": picture, "caption": example["caption"].decode(), "label": str(example["label"])}
    assert (records[7].id, records[7].place) == ("test:7", "handwritten_digits, test, example 7")


def test_texts_from_features(datasets):
    """The same texts as the kind of the demo, which reads them itself."""
    own = from_dict(SourceConfig, {"kind": "python_reference", "split": "test"})
    source = TfdsSource(dataset="python_reference", split="test", segments=["{text}"])
    assert [record.segments for record in read(source, datasets)] == [
        record.segments for record in own.records(datasets)
    ]
    sliced = TfdsSource(dataset="python_reference", split="test[:5]", segments=["# {name}\n", "{text}"])
    assert len(read(sliced, datasets)) == 5
    assert read(sliced, datasets)[0].segments[0].startswith("# ")


def test_shards_are_ranges_of_examples(datasets, monkeypatch):
    source = TfdsSource(dataset="handwritten_digits", split="test", segments=["{png}"])
    whole = read(source, datasets)
    monkeypatch.setattr(tfds_source, "PICTURES_PER_SHARD", 100)
    assert [(shard.begin, shard.end) for shard in source.shards(datasets)] == [
        (0, 100),
        (100, 200),
        (200, 300),
        (300, 360),
    ]
    assert read(source, datasets) == whole


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> str:
    """A data set with features of every kind."""
    os.environ.setdefault("NO_GCE_CHECK", "true")
    import tensorflow_datasets as tfds

    class Zoo(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features
            return tfds.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {
                        "image": features.Image(),
                        "turned": features.Image(),
                        "label": features.ClassLabel(names=["cat", "dog"]),
                        "captions": features.Sequence(features.Text()),
                        "more": features.Sequence(features.Image()),
                        "about": {"year": np.int64, "thumbnail": features.Image()},
                        "objects": features.Sequence(
                            {"kind": features.ClassLabel(names=["ear", "tail"]), "crop": features.Image()}
                        ),
                        "vector": features.Tensor(shape=(3,), dtype=np.float32),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            exif = Image.Exif()
            exif[0x0112] = 6
            turned = encoded(random_picture(0, (32, 16)), exif=exif)
            file = lambda seed: io.BytesIO(picture_file(seed))  # noqa: E731
            for number in range(2):
                yield number, {
                    "image": file(number), "turned": io.BytesIO(turned), "label": number,
                    "captions": [f"{number}.", "Fur."], "more": [file(5), file(6)],
                    "about": {"year": 2019, "thumbnail": file(7)}, "vector": np.zeros(3, np.float32),
                    "objects": [{"kind": 1, "crop": file(8)}, {"kind": 0, "crop": file(9)}],
                }  # fmt: skip

    folder = str(tmp_path_factory.mktemp("zoo"))
    Zoo(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_features_of_every_kind(zoo):
    segments = [
        "A photo of a {label}: ",
        "{image}{captions}",
        "{more}",
        "{about/year} {about/thumbnail} {objects/kind}{objects/crop}",
    ]
    first, second = read(TfdsSource(dataset="zoo", data_dir=zoo, segments=segments))
    end = [5, 6, "2019 ", 7, " tailear", 8, 9]
    assert plain(first) == ["A photo of a cat: ", 0, "0.Fur.", *end]
    assert plain(second) == ["A photo of a dog: ", 1, "1.Fur.", *end]
    assert second.fields["label"] == "dog"
    assert second.fields["image"].data == picture_file(1)


def test_picture_of_an_example_is_turned_unless_told_not_to(zoo):
    settings = {"dataset": "zoo", "data_dir": zoo, "segments": ["{turned}"], "count": 1}
    turned, unturned = (kept_squares(TfdsSource(**settings, exif=exif))[0] for exif in (True, False))
    np.testing.assert_array_equal(turned, np.rot90(unturned, -1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "zoo_of_nobody"}, "dataset = 'zoo_of_nobody': cannot be opened: Dataset zoo_of_nobody not found"),
        ({"split": "test"}, "split = 'test': zoo has train: "),
        (
            {"segments": ["{images}"]},
            r"segments.0 = '{images}': the features are {image} \(Image\), .*{label}",
        ),
        ({"segments": ["{vector}"]}, r"segments.0 = '{vector}': the features are {image} \(Image\)"),
        ({"segments": []}, "segments = .*: must say what a document consists of: .*{image}"),
        ({"segments": ["{image"]}, "segments.0 = '{image': expected '}'"),
        ({"segments": ["{}"]}, "segments.0 = '{}': braces must hold the name of a feature"),
        ({"segments": ["{label:>3}"]}, "braces must hold the name of a feature"),
        ({"dataset": ""}, "dataset = '': must name a data set"),
    ],
)
def test_wrong_settings_are_named_with_what_there_is(zoo, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TfdsSource(**{"dataset": "zoo", "data_dir": zoo, "segments": ["{image}"], **settings}).shards()
    assert "\n" not in str(caught.value)
