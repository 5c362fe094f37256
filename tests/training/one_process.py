"""One process of a tiny run, started by the tests: `python one_process.py '{"output": …}'`.

Prints a hash of the state that it ends with. Exit status 1 with a message for our own errors, as the command line does.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

options = json.loads(sys.argv[1])
# As the tests compile (tests/conftest.py), on so many devices.
devices = f"--xla_force_host_platform_device_count={options.get('devices', 1)}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

sys.path[:0] = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(os.path.dirname(__file__)))]

from conftest import TinyRun  # noqa: E402

from chameleon_jax.errors import ChameleonError  # noqa: E402
from chameleon_jax.runtime.distributed import start  # noqa: E402
from chameleon_jax.training.loop import train  # noqa: E402


def batches(first, rows):
    for number, batch in enumerate(TinyRun.batches(first, rows), first):
        if number == options.get("stop_at"):
            raise ChameleonError(f"stopped before batch {number}")
        if (number, options.get("changes", {}).get("distributed__process")) == (options.get("refuse_at"), 1):
            jax.jit(lambda x: -x, compiler_options={"xla_no_such_option": True})(1.0)
        time.sleep(options.get("pause", 0.0))
        yield batch


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


try:
    config = TinyRun.config(options["output"], **options.get("changes", {}))
    start(config.distributed)
    if "fails_to_read" in options and jax.process_index() == 1:
        fail_to_read(*options["fails_to_read"])
    state = train(config, batches, TinyRun.is_image_id)
    if jax.process_count() == 1:
        print(digest(state))
except (ChameleonError, MemoryError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(1)
