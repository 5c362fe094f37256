"""Measures packing, loading and the memory of the loader, in CPU seconds: `python tests/benchmarks/rows.py`.

The documents are random ids in the proportions of the paper's first stage: text 2.9, pairs of about 1,071 tokens 1.5,
and documents with several pictures 0.4. Packing and loading use one and two threads of their own; other programs on the
machine change CPU seconds less than the clock, but they do change them: best of several repetitions.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "data_pipeline"))

from packed import write_prepared

from chameleon_jax.config import StageConfig
from chameleon_jax.tokens.vocabulary import Vocabulary
from data_pipeline.loader import PreparedData
from data_pipeline.mixture import Mixture
from data_pipeline.pools import PoolSource
from data_pipeline.tokenized import TokenizedDocument

VOCABULARY = Vocabulary.in_released_order(48000, 8192)
PICTURE = np.concatenate([[VOCABULARY.begin_image], VOCABULARY.image_ids[:1024], [VOCABULARY.end_image]])


def documents(kind: str, scale: float) -> Iterator[TokenizedDocument]:
    """Endless; lengths of texts are log-normal with a median of 400 tokens. `scale` shortens everything."""
    rng = np.random.default_rng(len(kind))
    picture = np.concatenate([PICTURE[: int(1025 / scale)], PICTURE[-1:]])
    for number in itertools.count():
        if kind == "text":
            parts = [VOCABULARY.text_ids[: int(np.exp(rng.normal(6, 1.1)) / scale) + 1]]
        else:
            pictures = 1 if kind == "pairs" else int(rng.integers(1, 6))
            mean = 45 if kind == "pairs" else 200
            parts = []
            for _ in range(pictures):
                parts += [picture, VOCABULARY.text_ids[: int(rng.poisson(mean) / scale)]]
        ids = np.concatenate([*parts, [VOCABULARY.eos]])
        yield TokenizedDocument(f"{kind}:{number}", ids, np.ones(len(ids), np.float32), np.zeros(0, int), 0, 0, number)


def stage_1(tokens: int, scale: float) -> list[PoolSource]:
    """Ready in memory, so that only packing is measured."""
    sources = []
    for kind, weight in (("text", 2.9), ("pairs", 1.5), ("interleaved", 0.4)):
        chosen, total = [], 0
        for document in documents(kind, scale):
            chosen.append(document)
            total += len(document.ids)
            if total > tokens * weight / 4.8:
                break
        sources.append(PoolSource(kind, weight, total, lambda chosen=chosen: iter(chosen)))
    return sources


def memory() -> float:
    """MiB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(length: int, tokens: int, folder: Path) -> None:
    sources = stage_1(tokens, 4096 / length)
    began = time.process_time()
    write_prepared(folder, VOCABULARY, length, {"web": sources})
    seconds = time.process_time() - began
    data = PreparedData(folder)
    entry = data.header["sources"]["web"]
    packed = entry["tokens"] + entry["documents"]
    shares = {name: each["tokens"] / entry["tokens"] / each["share"] - 1 for name, each in entry["sources"].items()}
    print(
        f"rows of {length}: packed {packed / seconds / 1e6:.1f} M tokens a CPU second; "
        f"{packed / entry['rows'] / length:.2%} full; shares off by at most {max(map(abs, shares.values())):.2%}; "
        f"{entry['texts_cut_to_fill']:,} cuts of {entry['sources']['text']['documents']:,} texts"
    )
    batch_size = 2**18 // length
    steps = 40
    stages, best = [StageConfig(1.0, {"web": 1.0})], (0.0, 0.0)
    for repetition in range(5):
        batches = data.batches(stages, steps * 5, batch_size, seed=1, start=repetition * steps)
        next(batches)
        cpu, clock = time.process_time(), time.perf_counter()
        for _ in itertools.islice(batches, steps - 1):
            pass
        read = (steps - 1) * batch_size * length / 1e6
        rates = read / (time.process_time() - cpu), read / (time.perf_counter() - clock)
        best = tuple(map(max, best, rates))
        batches.close()
    print(f"rows of {length}: loaded {best[0]:.0f} M tokens a CPU second, {best[1]:.0f} M a second by the clock")


def measure_memory(rows: int) -> None:
    before = memory()
    pool = {"web": {"rows": rows, "tokens": rows * 4096}}
    mixture = Mixture(pool, [StageConfig(1.0, {"web": 1.0})], 3 * rows, seed=0)
    for begin in range(0, 3 * rows, 3 * rows // 200):
        mixture.rows(np.arange(begin, min(begin + 2048, 3 * rows)))
    print(f"order of {rows:,} rows: {memory() - before:.1f} MiB more")


def measure_files(rows: int, folder: Path) -> None:
    """Readers of files of rows hold where each row begins."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from data_pipeline.row_files import Rows

    files = [folder / f"{number}.arrayrecord" for number in range(-(-rows // 2**19))]
    counts = [min(2**19, rows - 2**19 * number) for number in range(len(files))]
    for file, count in zip(files, counts, strict=True):
        writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        for _ in range(count):
            writer.write(b"\0" * 4)
        writer.close()
    before = memory()
    opened = Rows("rows", files, counts, 4096, lambda records: None)
    at_start, rng = memory(), np.random.default_rng(0)
    sizes = []
    for _ in range(5):
        opened.records(rng.integers(0, rows, 20000))
        sizes.append(f"{memory() - before:.0f}")
    print(f"files of {rows:,} rows: {at_start - before:.0f} MiB when opened; then {', '.join(sizes)} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        measure_files(arguments.rows, Path(tmp))
        measure_memory(10_000)
        measure_memory(arguments.rows)
        for length in (4096, 256):
            measure(length, arguments.tokens, Path(tmp) / str(length))


if __name__ == "__main__":
    main()
