"""Embedded data sets, built once from installed packages: nothing is downloaded, and TensorFlow is not needed.

The builders are tensorflow-datasets' own, with ArrayRecord files, which it writes and reads without TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import ConfigError
from chameleon_jax.runtime.cloud import is_cloud
from chameleon_jax.runtime.disk_errors import explain_disk_errors
from data_pipeline.records import Shard
from data_pipeline.sources.files import identity

NAMES = ("handwritten_digits", "python_reference", "python_stdlib", "openmoji/64px", "openmoji/128px")
EXAMPLES_PER_SHARD = 1000


_building = threading.Lock()


@contextlib.contextmanager
def building() -> Iterator[None]:
    """For the builders of tensorflow-datasets, which announce a "download" on standard output where there is none:
    silent, and for one thread at a time, as standard output is that of all."""
    with _building, contextlib.redirect_stdout(io.StringIO()):
        yield


def open_dataset(name: str, split: str, folder: str | Path) -> Sequence[dict[str, Any]]:
    """Examples of an embedded data set with random access; builds it under `folder` if it is not there yet.

    Args:
      name: one of `NAMES`.
      split: "train", "test", that of another name where there is one, or a slice such as "train[:90%]".
    """
    if is_cloud(folder):
        raise ConfigError(f"datasets = {str(folder)!r}: must be a folder on this machine; it is a cache")
    # tfds otherwise asks a cloud bucket, which only delays where there is no network.
    os.environ.setdefault("NO_GCE_CHECK", "true")
    import tensorflow_datasets as tfds

    from data_pipeline.datasets.handwritten_digits import HandwrittenDigits
    from data_pipeline.datasets.openmoji import OpenMoji
    from data_pipeline.datasets.python_text import PythonReference, PythonStdlib

    tfds.disable_progress_bar()
    name, _, config = name.partition("/")
    builders = {builder.name: builder for builder in (HandwrittenDigits, PythonReference, PythonStdlib, OpenMoji)}
    with explain_disk_errors(folder), building():
        builder = builders[name](config=config or None, data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
    try:
        return builder.as_data_source(split)
    except (ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(f"split = {split!r}: {name} has {', '.join(builder.info.splits)}: {reason}") from None


def shards_of(name: str, split: str, folder: str | Path, count: int = 0) -> list[Shard]:
    """Shards of `EXAMPLES_PER_SHARD` documents each, one for each example of a split or `count`."""
    examples = open_dataset(name, split, folder)
    files = sorted(Path(examples.dataset_info.data_dir).glob("*.array_record*"))
    contents = hashlib.sha256(" ".join(identity(str(file)) for file in files).encode()).hexdigest()
    total = count or len(examples)
    return [
        Shard(f"{begin}", contents, begin, end, end - begin)
        for begin in range(0, total, EXAMPLES_PER_SHARD)
        for end in [min(begin + EXAMPLES_PER_SHARD, total)]
    ]


def in_turn(shard: Shard, total: int, seed: int, stream: int) -> Iterator[tuple[int, int, np.random.Generator]]:
    """For each document of a shard its number, which of `total` pictures it begins with, and random numbers.

    All pictures are gone through in a new random order each time. Random numbers depend on seed, stream and the number
    of the document, so that each can be made apart.
    """
    turn, order = -1, np.zeros(0, np.int64)
    for number in range(shard.begin, shard.end):
        if number // total != turn:
            turn = number // total
            order = np.random.default_rng([seed, stream, turn, 1]).permutation(total)
        yield number, int(order[number % total]), np.random.default_rng([seed, stream, number])
