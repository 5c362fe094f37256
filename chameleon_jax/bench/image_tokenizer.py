"""Pictures a second, TFLOP/s and MFU of the image tokenizer's full train step, with the losses that its config names.

`measure_image_tokenizer_step` needs nothing but jax, flax, optax and numpy, so that it runs on any machine with an
accelerator.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chameleon_jax.batch import Pictures
from chameleon_jax.bench.environment import environment
from chameleon_jax.bench.train import measure_steps, peak_flops, rates, utilisation
from chameleon_jax.config import BenchOptions, ImageTokenizerTrainConfig, to_dict
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training.image_tokenizer_task import ImageTokenizerTask
from chameleon_jax.training.task import Params

if TYPE_CHECKING:
    from data_pipeline.config import ImageTokenizerCommand


def bench_image_tokenizer(
    command: ImageTokenizerCommand, options: BenchOptions, *, profile: str = ""
) -> dict[str, Any]:
    """Measures; returns what `chameleon bench image-tokenizer` prints. No file that the config names is read."""
    return measure_image_tokenizer_step(command.tokenizer, options, profile=profile)


def measure_image_tokenizer_step(
    config: ImageTokenizerTrainConfig, options: BenchOptions, *, profile: str = ""
) -> dict[str, Any]:
    """Steps on random pictures, with random parameters, those of LPIPS included.

    Raises:
      ConfigError: if the config does not fit the devices.
      ChameleonError: if the loss is not a number.
    """
    mesh, task = make_mesh(config.mesh), ImageTokenizerTask(config)
    task.check_mesh(mesh)
    batch = random_pictures(config)
    seconds, measured = measure_steps(task, mesh, batch, options, _params(task, mesh), profile=profile)
    work, step = task.work(batch), statistics.median(seconds) / options.steps
    return {
        "bench": "image-tokenizer",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(task.abstract_params()["model"])),
        "pictures_per_second": rates(options.steps * work.amount, seconds),
        "step_seconds": round(step, 5),
        "flops_per_picture": work.flops / work.amount,
        **utilisation(work.flops / step, *peak_flops(config.execution.compute_dtype)),
        **measured,
        "compiler_options": task.compiler_options(mesh),
        "options": to_dict(options),
        "config": to_dict(config),
        **environment(),
    }


def random_pictures(config: ImageTokenizerTrainConfig) -> Pictures:
    """A batch of noise."""
    shape = (config.batch_size, config.model.resolution, config.model.resolution, 3)
    pixels = np.random.default_rng(config.seed).integers(0, 256, shape, np.uint8)
    return Pictures(pixels, np.ones(config.batch_size, np.float32))


def _params(task: ImageTokenizerTask, mesh: jax.sharding.Mesh) -> Params:
    """Random parameters on the mesh, from NumPy: to compile what the modules draw takes a GPU's compiler a minute."""
    rng = np.random.default_rng(task.config.seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim > 1:
            return rng.standard_normal(leaf.shape, np.float32) * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
        return np.full(leaf.shape, path[-1].key in ("scale", "counts"), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, task.abstract_params())
    return jax.device_put(params, task.params_shardings(mesh))
