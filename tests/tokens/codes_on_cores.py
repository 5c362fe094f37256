"""Encodes pictures on so many cores, started by the tests: `python codes_on_cores.py 2 out.npz`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])  # JAX counts them when it starts
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from tiny_models import _random_like, random_picture  # noqa: E402

from chameleon_jax.config import ImageTokenizerConfig  # noqa: E402
from chameleon_jax.models import vq  # noqa: E402
from chameleon_jax.tokens.image import ImageTokenizer, scale  # noqa: E402

# So wide that most latents of `encode_pixels`, which uses all cores, differ between one and two (jaxlib 0.10.2).
CONFIG = ImageTokenizerConfig(
    resolution=64, channels=64, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=64, code_dim=32,
    num_codes=1024,
)  # fmt: skip
ImageTokenizer.batch = 4  # enough here; the program is that of this size
tokenizer = ImageTokenizer(CONFIG, _random_like(vq.abstract_params(CONFIG), seed=0, std=0.05))
squares = np.stack([np.asarray(random_picture(seed, (64, 64))) for seed in range(6)])
np.savez(
    sys.argv[2],
    codes=tokenizer.encode_squares(squares),
    latents=tokenizer._in_batches("latents", squares, scale, any_cores=True),
)
