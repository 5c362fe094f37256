"""What the tests of sources share: picture files, and records as something to compare."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.document import decode_image
from chameleon_jax.tokens.image import to_square
from data_pipeline.kept_pictures import keep_pictures
from data_pipeline.near_duplicates import NOTHING
from data_pipeline.records import Picture, Record, Rejected
from data_pipeline.sources import SourceConfig


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@functools.cache
def picture_file(seed: int, kind: str = "PNG") -> bytes:
    """The file of `random_picture(seed)`."""
    return encoded(random_picture(seed), kind)


def read(source: SourceConfig, datasets: str = "") -> list[Record | Rejected]:
    """All records of all shards, which must be the same when they are read again and from JSON."""
    records = [record for shard in source.shards(datasets) for record in source.read(shard, datasets)]
    again = [record for shard in reversed(source.shards(datasets)) for record in source.read(shard, datasets)]
    assert sorted(records, key=lambda each: each.id) == sorted(again, key=lambda each: each.id)
    assert len({record.id for record in records}) == len(records)
    return records


def plain(record: Record | Rejected) -> list | str:
    """Texts of a record, and the seeds of its pictures; or the reason why it was rejected."""
    if isinstance(record, Rejected):
        return record.reason
    seeds = {random_picture(seed).tobytes(): seed for seed in range(10)}
    show = lambda part: seeds[part.open().convert("RGB").tobytes()] if isinstance(part, Picture) else part  # noqa: E731
    if record.turns:
        return [[[show(part) for part in side] for side in turn] for turn in record.turns]
    return [show(part) for part in record.segments]


def kept_squares(source: SourceConfig, side: int = 16, datasets: str = "") -> np.ndarray:
    """What an image tokenizer learns from, as squares uint8 `[n, side, side, 3]`."""
    results = keep_pictures(source.read_all(datasets), source, side, 0, NOTHING)
    kept = [picture for result in results if not isinstance(result, Rejected) for picture in result]
    exif = getattr(source, "exif", True)
    return np.stack([np.asarray(to_square(decode_image(picture.data, exif=exif), side)) for picture in kept])
