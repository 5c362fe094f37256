"""Flips single bits in what we write, and counts what reading it makes of them: `python tests/damage/flips.py`.

A flip is found (the error names the file or its folder), harmless (everything that is read is as it was), or silent:
something else is read without a word. Which bits are flipped follows from the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import tiny_models

import chameleon_jax
from chameleon_jax.config import CheckpointConfig, MeshConfig, to_dict
from chameleon_jax.errors import ChameleonError
from chameleon_jax.sharding import make_mesh
from chameleon_jax.tokens.documents import load_text_tokenizer
from chameleon_jax.training.transformer import TransformerTask

KINDS = {"checkpoint": 300, "model": 120, "huggingface": 40, "meta": 40, "prepared": 120, "text.model": 80}
"""Flips of each kind in a run of all."""


def _tiny_run() -> Any:
    spec = importlib.util.spec_from_file_location("tiny_run", Path(__file__).parents[1] / "training" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TinyRun


def digest(*parts: Any) -> str:
    """Of texts, bytes and trees of arrays."""
    found = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(part):
            found.update(leaf if isinstance(leaf, bytes) else np.asarray(leaf).tobytes())
    return found.hexdigest()


def model() -> chameleon_jax.Chameleon:
    tokenizer = tiny_models.scrambled_tokenizer()
    config = tiny_models.transformer_for(tokenizer.vocabulary)
    return chameleon_jax.Chameleon(config, tiny_models.transformer_params(config), tokenizer)


def _tokenizer(tokenizer: Any) -> str:
    image = tokenizer.image
    values = [json.dumps(to_dict(image.config)), json.dumps(to_dict(image.preprocessing))] if image else []
    vocabulary = json.dumps(tokenizer.vocabulary.to_dict())
    return digest(tokenizer.text.piece_names, vocabulary, *values, image.params if image else None)


def read_model(folder: Path) -> str:
    loaded = chameleon_jax.load(folder)
    if loaded.tokenizer.image is None:
        raise ChameleonError(f"{folder}: {loaded.tokenizer.missing}")  # said when a picture is asked for
    return digest(json.dumps(to_dict(loaded.config)), loaded.params, _tokenizer(loaded.tokenizer))


def write_checkpoint(folder: Path) -> None:
    from chameleon_jax.training.checkpoint import Checkpoints
    from chameleon_jax.training.state import init_state

    config = _tiny_run().config()
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(
            init_state(TransformerTask(config), make_mesh(MeshConfig())), config, "the data", [{"loss_sum": 1.5}]
        )


def read_checkpoint(folder: Path) -> str:
    from chameleon_jax.training.checkpoint import Checkpoints
    from chameleon_jax.training.state import abstract_state

    config = _tiny_run().config()
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        found = checkpoints.restore(
            abstract_state(TransformerTask(config), make_mesh(MeshConfig())), config, "the data"
        )
    if found is None:
        raise ChameleonError(f"{folder}: no checkpoint")
    return digest(found[0], json.dumps(found[1]))


def write_prepared(folder: Path) -> None:
    from data_pipeline.config import PrepareCommand
    from data_pipeline.prepare import prepare
    from data_pipeline.sources import DocumentsSource

    texts = folder.with_name("texts.jsonl")
    lines = [[f"Line {number} of the story. " * (1 + number % 9)] for number in range(200)]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = DocumentsSource(name="prose", path=str(texts))
    command = PrepareCommand(output=str(folder), tokenizer="unused", sources=(source,), sequence_length=32)
    prepare(command, tiny_models.scrambled_tokenizer())


def read_prepared(folder: Path) -> str:
    from data_pipeline.loader import PreparedData

    data = PreparedData(folder)
    rows = data.rows("sources", "prose")
    content = [np.asarray(rows[number]).tobytes() for number in range(len(rows))]
    return digest(content, json.dumps(data.header), _tokenizer(data.tokenizer()))


def read_verified(folder: Path) -> str:
    """What other formats have is compared on demand."""
    from chameleon_jax.console.verify import verify

    wrong = [found for *_, found, sound in verify(folder) if not sound]
    if wrong:
        raise ChameleonError("; ".join(wrong))
    return ""


def write_export(format: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint

        tiny_models.released_model().save(folder.with_name("ours"))
        write_checkpoint(open_checkpoint(folder.with_name("ours")), folder, format)

    return write


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], str]]] = {
    "checkpoint": (write_checkpoint, read_checkpoint),
    "model": (lambda folder: model().save(folder), read_model),
    "huggingface": (write_export("huggingface"), read_verified),
    "meta": (write_export("meta"), read_verified),
    "prepared": (write_prepared, read_prepared),
    "text.model": (lambda path: path.write_bytes(tiny_models.text_tokenizer().model),
                   lambda path: digest(load_text_tokenizer(path).piece_names,
                                       json.dumps(load_text_tokenizer(path).scores))),
}  # fmt: skip


def flips(root: Path, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """Files, places and bits: by turns of any file, and of any byte."""
    rng = random.Random(seed)
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    for number in range(count):
        path = rng.choice(files) if number % 2 else rng.choices(files, sizes)[0]
        yield path.relative_to(root), rng.randrange(path.stat().st_size), rng.randrange(8)


def run(kind: str, count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Outcomes, and a line for each that is silent or does not name what is damaged."""
    write, read = READERS[kind]
    outcomes, bad = Counter({"found": 0, "harmless": 0, "silent": 0, "unnamed": 0}), []
    with tempfile.TemporaryDirectory(prefix="flips-") as folder:
        sound, copy = Path(folder) / "sound", Path(folder) / "copy"
        write(sound)
        expected = read(sound)
        for name, place, bit in flips(sound, count, seed):
            (shutil.copy if sound.is_file() else shutil.copytree)(sound, copy)
            file = copy if sound.is_file() else copy / name
            content = bytearray(file.read_bytes())
            content[place] ^= 1 << bit
            file.write_bytes(content)
            try:
                outcome = "harmless" if read(copy) == expected else "silent"
            except ChameleonError as error:
                outcome = "found" if str(copy) in str(error) else "unnamed"
            except Exception as error:
                outcome = f"unnamed ({type(error).__name__})"
            outcomes[outcome] += 1
            if outcome not in ("found", "harmless"):
                bad.append(f"{kind} {name} byte {place} bit {bit}: {outcome}")
            file.unlink()
            shutil.rmtree(copy, ignore_errors=True)
    return outcomes, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=list(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="of the number of flips")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for kind in options.kinds:
        outcomes, bad = run(kind, max(1, round(KINDS[kind] * options.share)), options.seed)
        print(kind, dict(outcomes), *bad, sep="\n  ", flush=True)
        failed |= bool(bad)
    return failed


if __name__ == "__main__":
    sys.exit(main())
