"""How fast documents are read and tokenized on one core, in CPU seconds, beside bare SentencePiece and bare Pillow.

    python tests/benchmarks/preparing.py [--megabytes 16] [--pictures 200]

Text is the Python documentation and library that come with Python, as JSON lines of 2,000 characters; pictures are
JPEGs of 640 x 480, cropped to 512. All ways take turns, and medians are compared. Last, two processes tokenize as much
text as one did, by the clock, for which nothing else must run on the machine. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pydoc_data.topics
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from tiny_models import image_tokenizer  # noqa: E402

from chameleon_jax.config import TextTokenizerConfig  # noqa: E402
from chameleon_jax.tokens.documents import DocumentTokenizer  # noqa: E402
from chameleon_jax.tokens.image import ImageTokenizer  # noqa: E402
from chameleon_jax.tokens.text import SentencePieceTokenizer, train_text_tokenizer  # noqa: E402
from data_pipeline import units  # noqa: E402
from data_pipeline.config import PrepareCommand  # noqa: E402
from data_pipeline.processes import run_units  # noqa: E402
from data_pipeline.sources import DocumentsSource  # noqa: E402
from data_pipeline.tokenize import tokenize  # noqa: E402

UNITS = 16
"""Into which the text is divided to measure how it scales."""


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def in_turns(*works: Callable[[], object], times: int = 3) -> list[float]:
    """Median CPU seconds of each."""
    measured = [[seconds(work) for work in works] for _ in range(times)]
    return [statistics.median(each) for each in zip(*measured, strict=True)]


def texts(megabytes: int) -> list[str]:
    """Prose and code that come with Python, in parts of 2,000 characters, repeated if there is not enough."""
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    whole = [*pydoc_data.topics.topics.values(), *(path.read_text(errors="ignore") for path in library)]
    parts = [text[start : start + 2000] for text in whole for start in range(0, len(text), 2000)]
    size = sum(len(part.encode()) for part in parts)
    share = megabytes * 1e6 / size
    return (parts * math.ceil(share))[: round(share * len(parts))]


def unused(model: bytes) -> DocumentTokenizer:
    """A tokenizer that knows no words yet."""
    return DocumentTokenizer.join(SentencePieceTokenizer(model), image_tokenizer())


def scaling(parts: list[str], model: bytes, folder: str) -> float:
    """Units that two processes tokenize a second, relative to one. Starting them does not count."""
    tokenizer = unused(model)
    Path(folder, "parts").mkdir()
    for number in range(UNITS):
        lines = "".join(json.dumps([part]) + "\n" for part in parts[number::UNITS])
        Path(folder, "parts", f"{number}.jsonl").write_text(lines)
    rates = []
    for processes in (1, 2):
        source = DocumentsSource(path=f"{folder}/parts")
        command = PrepareCommand(f"{folder}/{processes}", 4096, (source,), tokenizer="any", processes=processes)
        running = run_units(units.plan(command, ""), command, tokenizer, lambda unit, counts: None)
        done = [time.perf_counter() for _ in running]
        rates.append((UNITS - processes) / (done[-1] - done[processes - 1]))
    return rates[1] / rates[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=16, help="of text")
    parser.add_argument("--pictures", type=int, default=200)
    options = parser.parse_args()
    parts = texts(options.megabytes)
    text = train_text_tokenizer(TextTokenizerConfig(vocab_size=8192, max_lines=50_000), parts[:2000])
    tokenizer = DocumentTokenizer.join(text, image_tokenizer())
    size = sum(len(part.encode()) for part in parts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.jsonl")
        path.write_text("".join(json.dumps([part]) + "\n" for part in parts))
        command = PrepareCommand(f"{folder}/rows", 4096, (DocumentsSource(path=str(path)),), tokenizer="any")
        planned = units.plan(command, "")
        units_seconds, new_seconds, bare_seconds = in_turns(
            lambda: [units.run(unit, command, tokenizer) for unit in planned],
            lambda: [units.run(unit, command, unused(text.model)) for unit in planned],
            lambda: [np.asarray(text._processor.encode(part), np.int32) for part in parts],
        )
        scaled = scaling(parts, text.model, folder)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

        rng = np.random.default_rng(0)
        files = []
        for _ in range(8):
            noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize(
                (640, 480), Image.Resampling.BICUBIC
            )
            noise.save(file := io.BytesIO(), "JPEG", quality=90)
            files.append(file.getvalue())
        pictures = Path(folder, "pictures.jsonl")
        for number in range(options.pictures):
            Path(folder, f"{number}.jpg").write_bytes(files[number % len(files)])
        pictures.write_text("".join(json.dumps([{"image": f"{n}.jpg"}]) + "\n" for n in range(options.pictures)))
        source = DocumentsSource(path=str(pictures))
        tokenizer.image = ImageTokenizer.__new__(ImageTokenizer)
        tokenizer.image.__dict__ |= image_tokenizer().__dict__ | {"config": _WithResolution()}

        def bare() -> None:
            for number in range(options.pictures):
                image = Image.open(Path(folder, f"{number}.jpg"))
                scale = 512 / min(image.size)
                image = image.resize([round(scale * side) for side in image.size], Image.Resampling.LANCZOS)
                left = (image.width - 512) // 2
                np.asarray(image.crop((left, 0, left + 512, 512)))

        codes = lambda squares: np.zeros((len(squares), 4), np.int32)  # noqa: E731
        read_seconds, pillow_seconds = in_turns(
            lambda: [None for _ in tokenize(source.records(), source, tokenizer, encode=codes)], bare
        )
    report = {
        "text_mb_per_cpu_s": round(size / units_seconds, 2),
        "text_of_new_words_mb_per_cpu_s": round(size / new_seconds, 2),
        "sentencepiece_alone_mb_per_cpu_s": round(size / bare_seconds, 2),
        "two_processes_to_one_on_a_quiet_machine": round(scaled, 2),
        "pictures_per_cpu_s": round(options.pictures / read_seconds),
        "pillow_alone_pictures_per_cpu_s": round(options.pictures / pillow_seconds),
        "of_pillow": round(pillow_seconds / read_seconds, 3),
        "peak_memory_gib": round(memory, 2),
    }
    print(json.dumps(report))


class _WithResolution:
    """Sizes of an image tokenizer that is not there; only squares of pictures are made for it."""

    resolution, codes_per_image, num_codes = 512, 4, 16


if __name__ == "__main__":
    main()
