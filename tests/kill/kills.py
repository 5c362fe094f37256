"""Processes killed at every step of replacing, and commands killed at random moments: nothing is lost or different.

    python tests/kill/kills.py                                       every step of replacing; seconds
    python tests/kill/kills.py --train 40 --prepare 30 --convert 30  and so many kills at random; half an hour
    python tests/kill/kills.py --units 4                             preparing from nothing, four kills in a row
    python tests/kill/kills.py --tokenizer 10                        an image tokenizer with a discriminator; 4 minutes

Prints a line of JSON: kills, and how often an output was lost, held anything else than the old or the new, or something
was left beside it after the next start. Exit status 1 unless these are 0.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import jax  # noqa: E402

from chameleon_jax.runtime import folders, locks  # noqa: E402
from chameleon_jax.runtime.files import write_text  # noqa: E402

Counts = collections.Counter
NAMES = ("prepare", "units", "train", "tokenizer", "convert")
"""Commands that are killed at random moments."""


def fork(work: Callable[[], None], output: Path | None = None) -> int:
    """Starts `work` in a copy of this process; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        target = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        status = int(work() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    """0 if it ended well, -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(child: int, seconds: float) -> int:
    """Kills a process unless it ends before; returns its status."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return status_of(child)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# ----------------------------------------------------------------------------------------------------------------------
# At every step of replacing
# ----------------------------------------------------------------------------------------------------------------------

STEPS = (
    (os, "open"), (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "fsync"),
    (folders, "_swap"), (shutil, "rmtree"), (locks.fcntl, "flock"),
)  # fmt: skip
"""What changes the disk."""


def die_at(number: int, when: str) -> None:
    """Has this process killed before or after the call with this number, from 0, of any of `STEPS`."""
    calls = itertools.count()

    def deadly(step: Callable) -> Callable:
        def call(*arguments, **options):
            mine = next(calls) == number
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return step(*arguments, **options)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for module, name in STEPS:
        setattr(module, name, deadly(getattr(module, name)))


def write_folder(path: Path, text: str) -> None:
    kind = folders.Kind("pages", lambda folder: (folder / "1").exists(), ("1", "more/2"))
    with folders.new_folder(path, kind) as tmp:
        (tmp / "more").mkdir()
        for name in ("1", "more/2"):
            (tmp / name).write_text(text)


IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where flushing to disk takes no time. A process that is killed loses nothing of what it wrote to either."""


def kill_at_every_step(write: Callable[[Path, str], None], wanted: Callable[[str], dict], can_swap: bool) -> Counts:
    """Replaces "old" by "new", killed one call later each time, until it is over before it is killed."""
    counts = Counts()
    for number, when in ((number, when) for number in itertools.count() for when in ("before", "after")):
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
            place, log = Path(folder) / "place", Path(folder) / "log"
            place.mkdir()
            path = place / "it"

            def work(path: Path = path, number: int = number, when: str = when) -> None:
                if not can_swap:
                    folders._swap = lambda one, other: False
                die_at(number, when)
                write(path, "new")

            write(path, "old")
            status = status_of(fork(work, log))
            assert status in (0, -signal.SIGKILL), log.read_text()
            if status == 0:
                return counts
            counts["kills"] += 1
            folders.recover(path)  # as every reader does
            counts["lost"] += not path.exists()
            found = {f"it/{name}": text for name, text in contents(path).items()} if path.is_dir() else (
                {"it": path.read_text()} if path.exists() else {})  # fmt: skip
            counts["different"] += found not in (wanted("old"), wanted("new"))
            write(path, "newer")
            counts["left"] += contents(place) != wanted("newer") or os.listdir(place) != ["it"]


def aimed() -> Counts:
    folder = lambda text: {"it/1": text, "it/more/2": text}  # noqa: E731
    counts = kill_at_every_step(write_folder, folder, can_swap=True)
    counts += kill_at_every_step(write_folder, folder, can_swap=False)
    return counts + kill_at_every_step(write_text, lambda text: {"it": text}, can_swap=True)


# ----------------------------------------------------------------------------------------------------------------------
# At random moments of whole commands
# ----------------------------------------------------------------------------------------------------------------------


def digest(folder: Path) -> str:
    """What rows, a model or an image tokenizer hold, whatever the order in which it was written."""
    from chameleon_jax.chameleon import load
    from chameleon_jax.weights.image_tokenizer import open_image_tokenizer, read_image_tokenizer
    from data_pipeline.loader import PreparedData

    if not (folder / "dataset.json").exists():
        import jax
        import numpy as np

        model = read_image_tokenizer(folder) if open_image_tokenizer(folder) else load(folder)
        return hashlib.sha256(
            b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model.params))
        ).hexdigest()
    data = PreparedData(folder)
    rows = (row.tobytes() for part in ("sources", "held_out") for name in data.header[part]
            for row in data.rows(part, name))  # fmt: skip
    return data.fingerprint + hashlib.sha256(b"".join(rows)).hexdigest()


def digest_elsewhere(folder: Path) -> str | None:
    """`digest` in a process of its own, as this one must not start JAX; None if the folder cannot be read."""
    with tempfile.NamedTemporaryFile() as file:
        fork_status = status_of(fork(lambda: Path(file.name).write_text(digest(folder)) and 0))
        return Path(file.name).read_text() if fork_status == 0 else None


class Story:
    """A command that writes `output`, killed at random moments.

    Attributes:
      arguments: of `chameleon`, for each of the results that it writes in turns.
      seconds: how long it takes.
    """

    def __init__(self, place: Path, output: str, arguments: list[list[str]], goes_on: bool, fresh: bool, result=""):
        self.place, self.output, self.arguments = place, place / output, arguments
        self.goes_on, self.fresh = goes_on, fresh
        self.result = place / output / result
        self.expected, self.seconds = [], 0.0
        for turn in range(len(arguments)):
            found = set()
            for _ in range(1 + goes_on):  # the first may compile what the others read
                began = time.monotonic()
                self.finish(turn)
                self.seconds = time.monotonic() - began
                found.add(digest_elsewhere(self.result))
                if goes_on or fresh:
                    shutil.rmtree(self.output)
            assert None not in found
            assert len(found) == 1
            self.expected += found

    def start(self, turn: int) -> int:
        from chameleon_jax.console.cli import main

        return fork(lambda: main(self.arguments[turn]), self.place.parent / f"{self.place.name}.log")

    def finish(self, turn: int) -> None:
        status = status_of(self.start(turn))
        assert status == 0, (status, (self.place.parent / f"{self.place.name}.log").read_text()[-2000:])

    def kill(self, times: int, rng: random.Random) -> Counts:
        counts = Counts()
        while counts["kills"] < times:
            turn = counts["kills"] % len(self.arguments)
            for _ in range(min(4, times - counts["kills"]) if self.goes_on else 1):
                status = kill_after(self.start(turn), rng.uniform(0, self.seconds))
                counts["kills"] += status == -signal.SIGKILL
            if not (self.goes_on or self.fresh):
                counts["lost"] += not self.output.exists()
            if self.output.exists() and not self.goes_on:
                counts["different"] += digest_elsewhere(self.output) not in self.expected
            if not (self.fresh and self.output.exists()):  # such a target is refused once it is there
                self.finish(turn)
            counts["different"] += digest_elsewhere(self.result) != self.expected[turn]
            counts["left"] += len(list(self.place.rglob("*.part"))) + len(list(self.place.rglob("*.lock")))
            counts["left"] += os.listdir(self.place) != [self.output.name]
            if self.goes_on or self.fresh:
                shutil.rmtree(self.output)
        return counts


def stories(base: Path, names: Collection[str]) -> dict[str, Story]:
    """Commands by name, with tiny inputs. What they import is imported here, once for all processes."""
    import yaml
    from tiny_models import text_tokenizer

    for module in ("chameleon_jax.console.commands", "chameleon_jax.console.train", "data_pipeline.prepare"):
        importlib.import_module(module)

    def write_inputs() -> None:
        from tiny_models import image_tokenizer, released_model

        from chameleon_jax.tokens.documents import save_image_tokenizer

        (base / "text.model").write_bytes(text_tokenizer().model)
        save_image_tokenizer(image_tokenizer(), base / "image")
        if "convert" in names:
            released_model(image_head_trained=True).save(base / "hf", "huggingface")

    assert status_of(fork(write_inputs, base / "inputs.log")) == 0, (base / "inputs.log").read_text()
    prepare = []
    for name in ("first", "second"):
        (base / name).mkdir()
        for part in range(5):
            lines = [json.dumps([f"The {name} fox said {part} {number} to the dog. " * 3]) for number in range(60)]
            (base / name / f"{part}.jsonl").write_text("\n".join(lines))
        source = {"kind": "documents", "name": "prose", "path": str(base / name)}
        values = {
            "output": str(base / "prepare" / "rows"), "sequence_length": 48, "text_tokenizer": str(base / "text.model"),
            "image_tokenizer": str(base / "image"), "sources": [source],
        }  # fmt: skip
        (base / f"{name}.yaml").write_text(yaml.safe_dump(values))
        prepare.append(["prepare", str(base / f"{name}.yaml")])
    train = {
        "data": str(base / "rows"), "output": str(base / "train" / "run"), "steps": 40, "batch_size": 4, "log_every": 2,
        "model": {"vocab_size": 1024, "d_model": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8,
                  "mlp_dim": 32},
        "stages": [{"share": 1.0, "weights": {"prose": 1.0}}], "checkpoint": {"every": 2},
        "optimizer": {"warmup_steps": 4},
    }  # fmt: skip
    (base / "train.yaml").write_text(yaml.safe_dump(train))
    for name in NAMES:
        (base / name).mkdir()
    if "tokenizer" in names:
        _write_pictures(base)

    def write_rows() -> int:
        from chameleon_jax.console.cli import main

        return main([*prepare[0], "--output", str(base / "rows")])

    if "train" in names:
        assert status_of(fork(write_rows, base / "rows.log")) == 0, (base / "rows.log").read_text()[-2000:]
    convert = ["convert", str(base / "hf"), str(base / "convert" / "model"), "--format", "chameleon"]
    made = {
        "prepare": lambda: Story(
            base / "prepare", "rows", [[*words, "--processes", "1"] for words in prepare], goes_on=False, fresh=False
        ),
        # From nothing, as often as it takes.
        "units": lambda: Story(
            base / "units", "rows", [[*prepare[0], "--output", str(base / "units" / "rows")]], goes_on=True, fresh=False
        ),
        "train": lambda: Story(
            base / "train", "run", [["train", str(base / "train.yaml")]], goes_on=True, fresh=False, result="model"
        ),
        # Also while it prepares its pictures.
        "tokenizer": lambda: Story(
            base / "tokenizer",
            "run",
            [["train-image-tokenizer", str(base / "tokenizer.yaml")]],
            goes_on=True,
            fresh=False,
            result="model",
        ),
        "convert": lambda: Story(base / "convert", "model", [convert], goes_on=False, fresh=True),
    }
    return {name: made[name]() for name in names}


def _write_pictures(base: Path) -> None:
    """Pictures, and how to train an image tokenizer on them."""
    import numpy as np
    import yaml
    from PIL import Image

    (base / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).resize((16, 16)).save(base / "pictures" / f"{number}.png")
    source = {"kind": "folder", "path": str(base / "pictures"), "uncaptioned": "keep"}
    model = {
        "resolution": 16, "space_to_depth": 4, "channels": 4, "channel_multipliers": [1], "num_res_blocks": 1,
        "latent_channels": 4, "code_dim": 4, "num_codes": 16, "norm_groups": 1, "attn_type": "none",
    }  # fmt: skip
    tokenizer = {
        "model": model, "steps": 16, "batch_size": 4, "log_every": 2, "checkpoint": {"every": 2},
        "optimizer": {"warmup_steps": 4}, "discriminator": {"weight": 0.5, "channels": 4, "stages": 1, "lecam": 0.1,
        "optimizer": {"warmup_steps": 4}},
    }  # fmt: skip
    values = {"output": str(base / "tokenizer" / "run"), "sources": [source], "tokenizer": tokenizer}
    (base / "tokenizer.yaml").write_text(yaml.safe_dump(values))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in NAMES:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="KILLS", help="at random moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = {"replacing": aimed()}
    asked = {name: getattr(options, name) for name in NAMES if getattr(options, name)}
    if asked:
        with tempfile.TemporaryDirectory() as place:
            if not jax.config.jax_compilation_cache_dir:
                jax.config.update("jax_compilation_cache_dir", f"{place}/compiled")
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            for name, story in stories(Path(place), asked).items():
                report[name] = story.kill(asked[name], random.Random(options.seed))
    report = {name: {key: counts[key] for key in ("kills", "lost", "different", "left")}
              for name, counts in report.items()}  # fmt: skip
    print(json.dumps(report))
    return int(any(counts[key] for counts in report.values() for key in ("lost", "different", "left")))


if __name__ == "__main__":
    sys.exit(main())
