"""Every kind of source gives tokenizers their texts and pictures, and the same documents from the same data."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_files import kept_squares, picture_file
from tiny_models import random_picture

from chameleon_jax.config import TextTokenizerConfig, from_dict
from chameleon_jax.console.commands import train_text_tokenizer
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.text import SentencePieceTokenizer
from data_pipeline.config import TextTokenizerCommand
from data_pipeline.segments import read_texts
from data_pipeline.sources import SourceConfig

CAPTIONS = [f"The quick brown fox number {number} jumps over {9 - number} lazy dogs." for number in range(8)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[SourceConfig]:
    """The same pictures and captions in each of the layouts."""
    root = tmp_path_factory.mktemp("layouts")
    photos = root / "photos"
    photos.mkdir()
    pairs = [(f"{number}.png", picture_file(number), caption) for number, caption in enumerate(CAPTIONS)]
    for name, data, caption in pairs:
        (photos / name).write_bytes(data)
        (photos / name).with_suffix(".txt").write_text(caption)
    with open(photos / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "text"), *((name, caption) for name, _, caption in pairs)])
    lines = (json.dumps({"file_name": name, "text": caption}) + "\n" for name, _, caption in pairs)
    (photos / "metadata.jsonl").write_text("".join(lines))
    with tarfile.open(root / "pairs.tar", "w") as tar:
        for name, data, caption in pairs:
            for member, content in ((name, data), (name.replace("png", "txt"), caption.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    pictures = [{"bytes": data, "path": name} for name, data, _ in pairs]
    pq.write_table(pa.table({"image": pictures, "text": CAPTIONS}), root / "pairs.parquet")
    configs = [
        {"kind": "folder", "path": str(photos)},
        {"kind": "table", "path": str(photos / "table.csv")},
        {"kind": "table", "path": str(photos / "metadata.jsonl"), "name": "metadata"},
        {"kind": "webdataset", "path": str(root / "*.tar")},
        {"kind": "parquet", "path": str(root)},
    ]
    return [from_dict(SourceConfig, config) for config in configs]


def test_texts_and_pictures_are_the_same_in_every_layout(sources):
    expected = np.stack([np.asarray(random_picture(number)) for number in range(len(CAPTIONS))])
    for source in sources:
        assert read_texts([source], "") == CAPTIONS, source.name
        np.testing.assert_array_equal(kept_squares(source), expected, source.name)
        assert len(list(from_dict(SourceConfig, {"kind": source.kind, "path": source.path, "count": 3}).records())) == 3


def test_data_in_a_bucket_is_the_same(sources):
    import fsspec

    bucket = fsspec.filesystem("memory")
    for source in sources:
        path = source.path.removesuffix("/*.tar")
        folder = path if Path(path).is_dir() else str(Path(path).parent)
        bucket.put(f"{folder}/", f"/bucket/{source.name}/", recursive=True)
        there = f"memory://bucket/{source.name}{source.path.removeprefix(folder)}"
        remote = from_dict(SourceConfig, {"kind": source.kind, "name": source.name, "path": there})
        assert remote.shards() == source.shards(), "identities do not depend on where files lie"
        records = list(remote.records())
        assert [record.id for record in records] == [record.id for record in source.records()]
        assert [record.segments[1] for record in records] == CAPTIONS
        assert records[3].segments[0].open().tobytes() == random_picture(3).tobytes()


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_file_that_is_out_of_reach_is_no_damage(sources, kind, monkeypatch):
    """A unit that fails is run again; what is rejected is not."""
    from fsspec.implementations import memory

    source = next(source for source in sources if source.kind == kind)
    folder = source.path.removesuffix("/*.tar")
    memory.MemoryFileSystem().put(f"{folder}/", "/reach/", recursive=True)
    remote = from_dict(SourceConfig, {"kind": kind, "path": f"memory://reach{source.path.removeprefix(folder)}"})
    (shard,) = remote.shards()

    def fail(self, *size):
        raise OSError("connection lost")

    monkeypatch.setattr(memory.MemoryFile, "readinto", fail)
    monkeypatch.setattr(memory.MemoryFile, "read", fail)
    with pytest.raises((FileError, OSError), match="connection lost"):
        list(remote.read(shard))


def test_text_tokenizer_learns_from_every_kind_of_source(sources, datasets, tmp_path):
    digits = {"kind": "tfds", "dataset": "handwritten_digits", "split": "test[:20]", "segments": ["{png}", "{caption}"]}
    command = TextTokenizerCommand(
        output=str(tmp_path / "text.model"),
        tokenizer=TextTokenizerConfig(vocab_size=330),
        sources=(*sources, from_dict(SourceConfig, digits)),
        datasets=datasets,
    )
    figures = train_text_tokenizer(command)
    assert figures["bytes_of_text"] > len(sources) * len("".join(CAPTIONS))
    tokenizer = SentencePieceTokenizer(Path(command.output).read_bytes())
    assert tokenizer.decode(tokenizer.encode(CAPTIONS[3])) == CAPTIONS[3]


def test_image_tokenizer_reads_digits_through_tfds(datasets):
    digits = {"kind": "tfds", "dataset": "handwritten_digits", "split": "test[:20]", "segments": ["{png}", "{caption}"]}
    pixels = kept_squares(from_dict(SourceConfig, digits), 32, datasets)
    assert pixels.shape == (20, 32, 32, 3)
