"""The image tokenizer's network beside the same in PyTorch with channels last, on a CPU: encode, decode, train.

The released sizes with random weights, in float32. Encoding is by transformers; it has no decoder, so that decoding and
the step of training (reconstruction loss, forward and backward, no optimizer) are by the plain torch network of
tests/data/make_transformers_fixtures.py, whose encoder agrees with that of transformers. Both run in this process, in
turns, so that what else the machine does meets both. Prints JSON. Processor seconds (of all cores together) hardly move
with the load of the machine, unlike the others. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/models")]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402
from test_vq_parity import fixtures, save_with_torch, write_config  # noqa: E402

from chameleon_jax.bench.environment import environment  # noqa: E402
from chameleon_jax.models.vq import VQModel  # noqa: E402
from chameleon_jax.runtime.compiler_options import convolution_options  # noqa: E402
from chameleon_jax.tokens.image import ImageTokenizer  # noqa: E402
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer  # noqa: E402

SIZES = fixtures.RELEASED_IMAGE_TOKENIZER
Sides = dict[str, Callable[[], Any]]


def both_tokenizers() -> tuple[ImageTokenizer, dict[str, torch.Tensor]]:
    weights = fixtures.random_vqgan(SIZES, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), SIZES)
        save_with_torch(Path(folder), weights)
        ours = read_image_tokenizer(folder)
    tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
    last = torch.channels_last
    return ours, {key: t.to(memory_format=last) if t.ndim == 4 else t for key, t in tensors.items()}


def channels_last(pixels: np.ndarray) -> torch.Tensor:
    """Of the shape that torch wants, in the memory as it lies."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def encode(ours: ImageTokenizer, tensors: dict[str, torch.Tensor], pixels: np.ndarray) -> Sides:
    from transformers.models.chameleon import ChameleonVQVAE, ChameleonVQVAEConfig

    model = ChameleonVQVAE(ChameleonVQVAEConfig(**SIZES)).eval()
    model.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("decoder.")})
    model = model.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def theirs() -> np.ndarray:
        *_, codes = model.quantize(model.quant_conv(model.encoder(channels_last(pixels))))
        return codes.numpy().reshape(len(pixels), -1)

    return {"chameleon_jax": lambda: ours.encode_pixels(pixels), "torch": theirs}


def decode(ours: ImageTokenizer, tensors: dict[str, torch.Tensor], codes: np.ndarray) -> Sides:
    @torch.no_grad()
    def theirs() -> np.ndarray:
        return fixtures.vqgan_pixels(tensors, SIZES, torch.from_numpy(codes)).permute(0, 2, 3, 1).numpy()

    return {"chameleon_jax": lambda: ours.decode_codes(codes), "torch": theirs}


def train(ours: ImageTokenizer, tensors: dict[str, torch.Tensor], pixels: np.ndarray) -> Sides:
    """Mean absolute error of the picture decoded from the latents, and its gradient by every parameter."""
    model = VQModel(dataclasses.replace(ours.config, resolution=pixels.shape[1]))

    def loss_of(params: Any, pixels: jax.Array) -> jax.Array:
        latents = model.apply({"params": params}, pixels, method="latents")
        return jnp.mean(jnp.abs(model.apply({"params": params}, latents, method="decode_latents") - pixels))

    options = convolution_options(jax.local_devices()[0], model.config.maps[0])
    step = jax.jit(jax.value_and_grad(loss_of), compiler_options=options)
    params, network = jax.device_put(ours.params), fixtures._Network(tensors, SIZES)

    def theirs() -> float:
        for tensor in tensors.values():
            tensor.requires_grad_(True).grad = None
        latents = network.conv("quant_conv", network.encoder(channels_last(pixels)))
        loss = (network.decoder(network.conv("post_quant_conv", latents)) - channels_last(pixels)).abs().mean()
        loss.backward()
        return float(loss.detach())

    return {"chameleon_jax": lambda: float(jax.block_until_ready(step(params, pixels))[0]), "torch": theirs}


def measure(sides: Sides, turns: int) -> dict[str, Any]:
    answers = {name: np.asarray(call()) for name, call in sides.items()}
    difference = np.abs(answers["chameleon_jax"] - answers["torch"])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, call in sides.items():
            began, processor = time.perf_counter(), time.process_time()
            call()
            seconds[name].append((time.perf_counter() - began, time.process_time() - processor))
    medians = {
        kind: {name: round(statistics.median(turn[which] for turn in each), 3) for name, each in seconds.items()}
        for which, kind in enumerate(("seconds", "processor_seconds"))
    }
    ratios = {f"{kind}_of_ours_to_torch": round(m["chameleon_jax"] / m["torch"], 3) for kind, m in medians.items()}
    return {**medians, **ratios, "largest_difference": float(difference.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("encode", "decode", "train"), help="one of the three alone")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=SIZES["resolution"])
    parser.add_argument("--train-resolution", type=int, default=128)
    parser.add_argument("--train-batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    SIZES["resolution"] = options.resolution  # the weights are those of any
    ours, tensors = both_tokenizers()
    rng, load = np.random.default_rng(0), os.getloadavg()
    side, grid = options.train_resolution, ours.config.grid
    pixels = rng.uniform(-1, 1, (1, options.resolution, options.resolution, 3)).astype(np.float32)
    several = rng.uniform(-1, 1, (options.train_batch, side, side, 3)).astype(np.float32)
    codes = rng.integers(0, ours.config.num_codes, (1, grid**2)).astype(np.int64)
    cases = {
        "encode": lambda: encode(ours, tensors, pixels),
        "decode": lambda: decode(ours, tensors, codes),
        "train": lambda: train(ours, tensors, several),
    }
    report = {name: measure(cases[name](), options.turns) for name in ([options.only] if options.only else cases)}
    print(
        json.dumps(
            {
                "benchmark": "image_tokenizer_vs_torch",
                "threads": options.threads,
                "train_batch": list(several.shape),
                **report,
                "load_average_before": load,
                "load_average_after": os.getloadavg(),
                **environment(("torch", "transformers")),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
