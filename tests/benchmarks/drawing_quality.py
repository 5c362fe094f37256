"""What 8-bit weights and an 8-bit cache do to pictures: the notebooks' small model draws the same wishes, with the same
seeds, in float32 and narrower.

The model (notebooks/models/shapes) draws coloured shapes in corners. What a picture shows is judged from its pixels: of
each corner the nearest colour, and the shape that covers it best. Prints JSON. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "notebooks/models/shapes"
sys.path[:0] = [str(ROOT), str(MODEL.parent)]

import shapes  # noqa: E402

import chameleon_jax  # noqa: E402
from chameleon_jax.bench.environment import environment  # noqa: E402
from chameleon_jax.config import EngineConfig, GenerationConfig, SamplingConfig  # noqa: E402

INPUTS = {"q": (1,), "k": (1,), "v": (1,), "o": (1, 2), "gate": (1,), "up": (1,), "down": (1,), "output": (0,)}
"""Axes of a kernel's inputs; the others are its output channels, each of which has a scale."""
LENGTH = 128
"""Tokens to which prompts with their pictures are padded."""
ENGINES = {
    "float32": EngineConfig(),
    "int8 weights": EngineConfig(weights="int8"),
    "int8 cache": EngineConfig(cache="int8"),
}


def corner_of(pixels: np.ndarray, corner: int) -> np.ndarray:
    half = len(pixels) // 2
    row, column = divmod(corner, 2)
    return pixels[row * half : (row + 1) * half, column * half : (column + 1) * half]


def covered(region: np.ndarray) -> np.ndarray:
    """Which pixels are further from paper than from all colours."""
    palette = np.array([shapes.PAPER, *shapes.COLOURS.values()], float)
    return np.linalg.norm(region[:, :, None] - palette, axis=-1).argmin(axis=-1) > 0


def masks() -> dict[str, list[np.ndarray]]:
    """Of each kind of shape what it covers in its corner, in each colour."""
    return {
        kind: [
            covered(corner_of(np.asarray(shapes.draw((shapes.Shape(colour, kind, 0),)), float), 0))
            for colour in shapes.COLOURS
        ]
        for kind in shapes.SHAPES
    }


def seen(pixels: np.ndarray, known: dict[str, list[np.ndarray]]) -> set[shapes.Shape]:
    """The shapes of a picture."""
    found = set()
    for corner in range(4):
        region = corner_of(pixels.astype(float), corner)
        mask = covered(region)
        if mask.mean() < 0.1:
            continue
        colours = {
            name: np.linalg.norm(region[mask] - colour, axis=-1).mean() for name, colour in shapes.COLOURS.items()
        }
        overlap = {
            kind: max((mask & other).sum() / (mask | other).sum() for other in others) for kind, others in known.items()
        }
        found.add(shapes.Shape(min(colours, key=colours.get), max(overlap, key=overlap.get), corner))
    return found


def wishes(count: int) -> list[tuple[shapes.Scene, str]]:
    """Scenes of one to three shapes and the sentences that ask for them."""
    rng = random.Random(2)
    scenes = [shapes.random_scene(rng, rng.choice((1, 2, 2, 3))) for _ in range(count)]
    return [(scene, f"Draw {shapes.caption(scene, rng)}.") for scene in scenes]


def shows(wish: tuple[shapes.Scene, str], found: set[shapes.Shape]) -> bool:
    """Whether a picture has the shapes asked for and no others, and where the sentence says where, in their corners."""
    scene, sentence = wish
    if sorted(map(str, scene)) != sorted(map(str, found)):
        return False
    return set(scene) == found if " at the " in sentence else relation(scene) == relation(found, scene)


def relation(found: Any, order: Any = None) -> str | None:
    """Of two shapes, how the first stands to the second."""
    if len(found) != 2:
        return None
    first, second = ({str(shape): shape for shape in found}[str(shape)] for shape in order or found)
    return shapes.relation_of(first, second)


def rounded(params: Any, bits: int) -> Any:
    """Parameters as integers of so many bits would hold them, with a scale for each output channel."""

    def round_kernel(path: tuple, kernel: jax.Array) -> jax.Array:
        if path[-1].key not in INPUTS:
            return kernel
        kernel = kernel.astype(jnp.float32)
        largest = 2 ** (bits - 1) - 1
        scale = jnp.max(jnp.abs(kernel), axis=INPUTS[path[-1].key], keepdims=True) / largest
        return jnp.round(kernel / scale) * scale

    return jax.tree_util.tree_map_with_path(round_kernel, params)


def draw(model: Any, sentences: list[str], temperature: float) -> list[Any]:
    """An answer to each sentence, a picture; its number is its seed."""
    image = SamplingConfig(temperature=temperature)
    options = [
        GenerationConfig(form="chat", mode="image", text_guidance=1.0, image=image, seed=seed)
        for seed in range(len(sentences))
    ]
    return model.generate_many(sentences, options)


def compare(drawn: list[Any], reference: list[Any], asked: list[tuple[shapes.Scene, str]]) -> dict[str, float]:
    known = masks()
    pixels, others = ([np.asarray(each.pictures[0], float) for each in answers] for answers in (drawn, reference))
    errors = [np.mean((one - other) ** 2) for one, other in zip(pixels, others, strict=True)]
    same = [np.mean(one.ids == other.ids) for one, other in zip(drawn, reference, strict=True)]
    return {
        "as_asked": np.mean([shows(wish, seen(each, known)) for wish, each in zip(asked, pixels, strict=True)]),
        "identical_pictures": np.mean([share == 1 for share in same]),
        "identical_codes": np.mean(same),
        "psnr": 10 * np.log10(255**2 / np.mean(errors)) if any(errors) else None,  # of the mean error
    }


def logit_error(model: Any, narrow: Any, answers: list[Any]) -> dict[str, float]:
    """Of the logits of image codes after what float32 drew."""
    columns, found = model.vocabulary.image_ids, []
    for answer in answers:
        ids, codes = np.concatenate([answer.prompt_ids, answer.ids]), len(answer.ids) - 1  # and the end of image
        first = len(answer.prompt_ids) - 1
        padded = np.pad(ids, (0, LENGTH - len(ids)))[None]  # one length: compiled once
        exact, rough = (
            np.asarray(each.logits(padded)[0, first : first + codes][:, columns], np.float64)
            for each in (model, narrow)
        )
        log_p, log_q = (each - np.log(np.exp(each).sum(axis=-1, keepdims=True)) for each in (exact, rough))
        error = (log_p - log_q).std() / log_p.std()
        found.append(
            (error, (np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), (exact.argmax(-1) == rough.argmax(-1)).mean())
        )
    return dict(zip(("of_standard_deviation", "divergence", "same_likeliest"), np.mean(found, axis=0), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.7])
    options = parser.parse_args()
    asked = wishes(options.pictures)
    sentences = [sentence for _, sentence in asked]
    model, narrow = chameleon_jax.load(MODEL), {bits: chameleon_jax.load(MODEL) for bits in (8, 4)}
    for bits, each in narrow.items():
        each.params = rounded(model.params, bits)
    known = masks()
    judged = np.mean([shows(wish, seen(np.asarray(shapes.draw(wish[0])), known)) for wish in asked])
    report: dict[str, Any] = {"benchmark": "drawing_quality", "pictures": options.pictures, "judge_of_true": judged}
    for temperature in options.temperature:
        drawn: dict[str, list[Any]] = {}
        for name, settings in ENGINES.items():
            model.engine_config = settings
            drawn[name] = draw(model, sentences, temperature)
        drawn["int4 weights"] = draw(narrow[4], sentences, temperature)
        report[f"temperature {temperature}"] = {
            name: compare(answers, drawn["float32"], asked) for name, answers in drawn.items()
        }
    report["logits"] = {f"int{bits}": logit_error(model, each, drawn["float32"][:64]) for bits, each in narrow.items()}
    print(json.dumps({**report, **environment()}, indent=2, default=float))


if __name__ == "__main__":
    main()
