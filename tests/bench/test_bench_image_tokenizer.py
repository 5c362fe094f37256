"""`chameleon bench image-tokenizer`: what it prints, and the arithmetic that it counts."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.bench.image_tokenizer import measure_image_tokenizer_step
from chameleon_jax.config import BenchOptions, ImageTokenizerTrainConfig, from_dict
from chameleon_jax.console.cli import main
from chameleon_jax.models.discriminator import Discriminator
from chameleon_jax.models.flops import discriminator_flops, image_tokenizer_flops, lpips_flops
from chameleon_jax.models.perceptual import LPIPS

TOKENIZER = {
    "model": {"resolution": 8, "channels": 4, "channel_multipliers": [1], "num_res_blocks": 1, "latent_channels": 4,
              "code_dim": 4, "num_codes": 8, "norm_groups": 2, "attn_type": "none"},
    "steps": 100, "batch_size": 8,
}  # fmt: skip


def test_prints_figures_of_the_recipes_step_as_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("chameleon_jax.bench.train.matmul_flops", lambda dtype, size: 5e9)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"output": "none", "data": "none", "tokenizer": TOKENIZER}))
    arguments = ["--warmup", "1", "--steps", "2", "--repeats", "3", "--tokenizer.batch-size", "16"]
    assert main(["bench", "image-tokenizer", str(recipe), *arguments]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["options"] == {"warmup": 1, "steps": 2, "repeats": 3}
    assert figures["config"]["batch_size"] == 16
    assert len(figures["pictures_per_second"]["all"]) == 3
    rate = figures["pictures_per_second"]["median"]
    assert figures["step_seconds"] == pytest.approx(16 / rate, rel=0.1)
    config = from_dict(ImageTokenizerTrainConfig, TOKENIZER)
    assert figures["flops_per_picture"] == 3 * sum(image_tokenizer_flops(config.model))
    assert figures["mfu"] == pytest.approx(figures["flops_per_picture"] * 16 / figures["step_seconds"] / 5e9, rel=1e-2)
    assert figures["loss"]["last"] != figures["loss"]["first"], "it trains"
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_step_with_lpips_and_discriminator_is_measured_and_counted_without_their_files():
    values = TOKENIZER | {
        "model": TOKENIZER["model"] | {"resolution": 16},
        "perceptual": {"weight": 1.0, "vgg": "none.pth", "heads": "none.pth"},
        "discriminator": {"weight": 0.5, "channels": 4, "stages": 1},
    }
    config = from_dict(ImageTokenizerTrainConfig, values)
    figures = measure_image_tokenizer_step(config, BenchOptions(warmup=1, steps=1, repeats=1))
    tokenizer, perceptual = 3 * sum(image_tokenizer_flops(config.model)), 3 * lpips_flops(16)
    assert figures["flops_per_picture"] == tokenizer + perceptual + 7 * discriminator_flops(16, 4, 1)
    assert np.isfinite(figures["loss"]["last"])


def convolutions(function: Callable, *arguments) -> float:
    """FLOPs of the convolutions that JAX traces."""

    def flops_of(equation) -> float:
        if equation.primitive.name != "conv_general_dilated":
            return sum(
                sum(map(flops_of, each.jaxpr.eqns)) for each in equation.params.values() if hasattr(each, "jaxpr")
            )
        return 2.0 * equation.outvars[0].aval.size * int(np.prod(equation.invars[1].aval.shape[:-1]))

    return sum(map(flops_of, jax.make_jaxpr(function)(*arguments).eqns))


def test_flops_of_lpips_and_of_the_discriminator_are_those_of_their_convolutions():
    pixels = jnp.zeros((1, 32, 32, 3))
    lpips = jax.eval_shape(LPIPS().init, jax.random.key(0), pixels, pixels)
    assert convolutions(LPIPS().apply, lpips, pixels, pixels) == 2 * lpips_flops(32), "of two pictures"
    for channels, stages in ((4, 1), (8, 3)):
        judge = Discriminator(channels, stages)
        params = jax.eval_shape(judge.init, jax.random.key(0), pixels)
        assert convolutions(judge.apply, params, pixels) == discriminator_flops(32, channels, stages)
