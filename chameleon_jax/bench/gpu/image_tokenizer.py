"""`chameleon bench image-tokenizer` of the shipped recipes for one GPU: bfloat16, LPIPS and a discriminator."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

from chameleon_jax.bench.gpu.record import Record, unless_too_large
from chameleon_jax.bench.gpu.trace import summarise
from chameleon_jax.bench.image_tokenizer import measure_image_tokenizer_step
from chameleon_jax.config import BenchOptions, ImageTokenizerTrainConfig, find_configs, read_config
from data_pipeline.config import ImageTokenizerCommand

OPTIONS = BenchOptions(steps=3, repeats=3)
TINY = {
    "model.resolution": 32, "model.channels": 8, "model.channel_multipliers": [1, 2], "model.num_res_blocks": 1,
    "model.latent_channels": 4, "model.code_dim": 4, "model.num_codes": 16, "model.norm_groups": 4, "batch_size": 2,
    "discriminator.channels": 8, "discriminator.stages": 2, "perceptual.weight": 0.0,
}  # fmt: skip


def image_tokenizer(record: Record) -> None:
    """The stage: the step at 512 pixels and where its time goes, at 256 pixels, and with less remat."""

    def profiled() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
            figures = measure_image_tokenizer_step(_config(record, 512), OPTIONS, profile=folder)
            record.update(**figures, profile=summarise(folder, OPTIONS.steps))
        return _shown(figures)

    record.check("512 pixels", profiled, about=130)
    for side, remat in ((256, None), (512, "save_convolutions"), (512, "none")):
        config = _config(record, side, {"execution.remat": remat} if remat else {})
        name = f"{side} pixels, remat {config.execution.remat}"
        record.check(name, functools.partial(_measure, config), about=100)


def _measure(config: ImageTokenizerTrainConfig) -> dict[str, Any]:
    return unless_too_large(lambda: _shown(measure_image_tokenizer_step(config, OPTIONS)))


def _shown(figures: dict[str, Any]) -> dict[str, Any]:
    rate = figures["pictures_per_second"]["median"]
    return {
        "batch_size": figures["config"]["batch_size"], "pictures_per_second": rate, "mfu": figures["mfu"],
        "first_step_seconds": figures["first_step_seconds"], "memory": figures["memory"],
    }  # fmt: skip


def _config(record: Record, side: int, changes: dict[str, Any] | None = None) -> ImageTokenizerTrainConfig:
    """The recipe of that size, for one device: that of 512 pixels is for eight."""
    overrides = ({"batch_size": 16} if side == 512 else {}) | (changes or {}) | (TINY if record.rehearsal else {})
    overrides = {f"tokenizer.{key}": value for key, value in overrides.items()}
    return read_config(ImageTokenizerCommand, find_configs() / f"image_tokenizer_{side}.yaml", overrides).tokenizer
