"""The ways of learning the codebook, side by side: small image tokenizers, 64 x 64 pixels to 64 of 1,024 codes.

Each way (`tokenizer.codebook`) trains the same network on the same pictures in the same order, without perceptual or
adversarial losses, in a process of its own, and is measured on every tenth picture, which no way has seen. PICTURES is
a folder of them. Prints JSON. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.bench.environment import environment
from chameleon_jax.config import ImageTokenizerTrainConfig, from_dict

WAYS = ("ema", "rotation", "learned", "sim_vq", "ibq")
CONFIG = {
    "model": {
        "resolution": 64, "space_to_depth": 4, "channels": 32, "channel_multipliers": [1, 2], "num_res_blocks": 1,
        "latent_channels": 64, "code_dim": 16, "num_codes": 1024, "norm_groups": 8,
    },
    "batch_size": 32,
    "optimizer": {"learning_rate": 1e-3},
}  # fmt: skip


def measure(folder: str, way: str, steps: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Trains one way, and measures it on the pictures that are held out."""
    from PIL import Image

    from chameleon_jax.evaluation.image_tokenizer import evaluate_image_tokenizers
    from chameleon_jax.training.image_tokenizer import pictures_in_order, train_image_tokenizer
    from data_pipeline.squares import Square

    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    side = CONFIG["model"]["resolution"]
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in paths])
    held_out = np.arange(len(pictures)) % 10 == 0
    with tempfile.TemporaryDirectory(prefix="chameleon-") as output:
        values = CONFIG | {"steps": steps, "codebook": way, "output": f"{output}/run"} | changes
        config = from_dict(ImageTokenizerTrainConfig, values)
        began, processor = time.perf_counter(), time.process_time()
        tokenizer = train_image_tokenizer(config, pictures_in_order(pictures[~held_out], config.batch_size, 0))
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
    figures = evaluate_image_tokenizers([tokenizer], map(Square, map(str, range(len(pictures))), pictures[held_out]))
    return {"codebook": way, "steps": steps, "pictures": int(np.sum(~held_out)), "seconds": round(seconds, 1),
            "processor_seconds": round(processor, 1), **figures.figures[0]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="PICTURES", help="a folder of pictures")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--change", type=json.loads, default={}, metavar="JSON", help="other keys of `tokenizer`")
    options = parser.parse_args()
    found = []
    for way in options.ways:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found.append(process.submit(measure, options.pictures, way, options.steps, options.change).result())
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"ways": found, "config": CONFIG | options.change, **environment()}, indent=2))


if __name__ == "__main__":
    main()
