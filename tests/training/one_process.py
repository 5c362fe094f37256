"""One process of a tiny run, started by the tests: `python one_process.py '{"output": …}'`.

Prints a hash of the state that it ends with. Exit status 1 with a message for our own errors, as the command line does.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.config import (
    DiscriminatorConfig,
    ImageTokenizerConfig,
    ImageTokenizerTrainConfig,
    ReconstructionsConfig,
    RunConfig,
)
from chameleon_jax.errors import ChameleonError
from chameleon_jax.runtime.distributed import start
from chameleon_jax.training.image_tokenizer import pictures_in_order, train_image_tokenizer, whole_batches
from chameleon_jax.training.loop import train


def run(options: dict[str, Any]) -> int:
    """Trains as the options say, and returns the exit status. JAX must not have looked for devices yet."""
    # As the tests compile (tests/conftest.py), on so many devices; the next process finds every program compiled.
    devices = f"--xla_force_host_platform_device_count={options.get('devices', 1)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import TinyRun

    def batches(first, rows):
        for number, batch in enumerate(TinyRun.batches(first, rows), first):
            if number == options.get("stop_at"):
                raise ChameleonError(f"stopped before batch {number}")
            if (number, options.get("changes", {}).get("distributed__process")) == (options.get("refuse_at"), 1):
                jax.jit(lambda x: -x, compiler_options={"xla_no_such_option": True})(1.0)
            time.sleep(options.get("pause", 0.0))
            yield batch

    try:
        config = TinyRun.config(options["output"], **options.get("changes", {}))
        start(config.distributed)
        if options.get("image_tokenizer"):
            return train_tokenizer(config, options.get("pause", 0.0))
        if "fails_to_read" in options and jax.process_index() == 1:
            fail_to_read(*options["fails_to_read"])
        state = train(TinyRun.task(config), batches)
        if jax.process_count() == 1:
            print(digest(state))
    except (ChameleonError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def train_tokenizer(run: RunConfig, pause: float) -> int:
    """Trains an image tokenizer against a discriminator as long as the run, and shows reconstructions on the way."""
    model = ImageTokenizerConfig(
        resolution=8, space_to_depth=2, channels=4, channel_multipliers=(1,), num_res_blocks=1, latent_channels=8,
        code_dim=4, num_codes=16, norm_groups=1, attn_type="none",
    )  # fmt: skip
    config = ImageTokenizerTrainConfig(
        output=run.output, model=model, steps=run.steps, batch_size=8, optimizer={"warmup_steps": 2},
        discriminator=DiscriminatorConfig(weight=0.5, channels=4, stages=1, lecam=0.1, optimizer={"warmup_steps": 2}),
        restart_below=0.4, samples=ReconstructionsConfig(every=7), checkpoint=run.checkpoint, log_every=run.log_every,
        mesh=run.mesh, distributed=run.distributed,
    )  # fmt: skip
    blocks = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), np.uint8)
    pictures = np.kron(blocks, np.ones((1, 2, 2, 1), np.uint8))
    in_order = pictures_in_order(pictures[8:], 8, 0)

    def batches(start, rows):
        for each in in_order(start, rows):
            time.sleep(pause)
            yield each

    print(digest(train_image_tokenizer(config, batches, held_out={"unseen": whole_batches(pictures[:8], 8)}).params))
    return 0


def run_logged(options: dict[str, Any], log: Path) -> None:
    """`run` in a process forked for it; what it prints goes to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.exit(run(options))


def fail_to_read(step, reason):
    """Makes this process fail at the arrays of a checkpoint that the others can read."""
    from chameleon_jax.training import checkpoint

    read = checkpoint._read_state

    def read_or_fail(path, wanted):
        if path.name == str(step):
            raise KeyError("Failed to load") from (MemoryError() if reason == "memory" else ValueError(reason))
        return read(path, wanted)

    checkpoint._read_state = read_or_fail


def digest(state) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
