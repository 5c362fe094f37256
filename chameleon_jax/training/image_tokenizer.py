"""Runs that train the image tokenizer, on pictures in memory or in files.

See `image_tokenizer_task` for the losses.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.array_types import Array
from chameleon_jax.batch import Pictures
from chameleon_jax.config import ConfigError, ImageTokenizerTrainConfig, require
from chameleon_jax.runtime.distributed import is_first
from chameleon_jax.sharding import make_mesh, replicated
from chameleon_jax.tokens.image import RELEASED, ImageTokenizer, scale
from chameleon_jax.training.feeding import Batches, HeldOut, held_out_batches, local_rows, place
from chameleon_jax.training.image_tokenizer_task import ImageTokenizerTask
from chameleon_jax.training.loop import train
from chameleon_jax.training.samples import Sample, Sampler
from chameleon_jax.training.state import model_params
from chameleon_jax.training.task import Params

PICTURES_OF_FIRST_CODES = 512
"""Pictures of whose latents the codebook is made at first, in whole batches, if that many give enough of them."""


def pictures_in_order(pictures: np.ndarray, batch_size: int, seed: int) -> Batches:
    """Batches of pictures in a random order that is another one in each epoch: which ones a batch has depends on its
    number and the seed alone."""

    def batches(start: int, rows: np.ndarray) -> Iterator[Pictures]:
        epoch, order = -1, np.zeros(0, np.int64)
        for number in range(start, 2**62):
            chosen = []
            for at in (number * batch_size + rows).tolist():
                if at // len(pictures) != epoch:
                    epoch = at // len(pictures)
                    order = np.random.default_rng([seed, epoch]).permutation(len(pictures))
                chosen.append(order[at % len(pictures)])
            yield Pictures(pictures[chosen], np.ones(len(chosen), np.float32))

    return batches


def whole_batches(pictures: np.ndarray, batch_size: int) -> list[Pictures]:
    """All pictures once, in their order; what fills up the last batch has a weight of 0."""
    found = []
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size]
        filling = [(0, batch_size - len(part))]
        weights = np.pad(np.ones(len(part), np.float32), filling)
        found.append(Pictures(np.pad(part, [*filling, (0, 0), (0, 0), (0, 0)]), weights))
    return found


def first_params(
    task: ImageTokenizerTask,
    batches: Batches,
    target: Params,
    initial: ImageTokenizer | None = None,
    lpips: Params | None = None,
) -> Params:
    """Parameters before the first step.

    Args:
      target: shapes, types and shardings.
      initial: the tokenizer to start from. None: random parameters, with a codebook of latents of the first batches.
      lpips: the parameters of LPIPS, if `config.perceptual` has a weight.

    Raises:
      ConfigError: if something that the config asks for is not given.
    """
    config, shardings = task.config, jax.tree.map(lambda leaf: leaf.sharding, target)
    mesh = jax.tree.leaves(target)[0].sharding.mesh
    perceptual = shardings.pop("perceptual", None)
    for key, wanted, given in (("initial", config.initial, initial), ("perceptual", perceptual, lpips)):
        if wanted and given is None:
            raise ConfigError(f"{key}: its parameters are missing; see the arguments of train_image_tokenizer")

    def put(values: Any, sharding: jax.sharding.Sharding) -> Array:
        return jax.device_put(np.asarray(values), sharding)

    init_key, pick_key, noise_key = jax.random.split(jax.random.key(config.seed), 3)
    with jax.set_mesh(mesh):
        params = jax.jit(task.init_params, out_shardings=shardings)(init_key)
        if initial:
            params["model"] = jax.tree.map(put, initial.params, shardings["model"])
            use = config.batch_size * config.model.codes_per_image / config.model.num_codes
            follow = functools.partial(task.with_codebook, use=use)
        else:
            picked = _latents(task, batches, params, pick_key)

            def follow(params: Params) -> Params:
                """The codebook consists of latents with a little noise."""
                latents = jnp.concatenate(picked)
                chosen = jax.random.permutation(pick_key, latents)[: config.model.num_codes]
                spread = jnp.std(latents, axis=0) * 0.05
                return task.with_codebook(params, chosen + spread * jax.random.normal(noise_key, chosen.shape))

        params = jax.jit(follow, out_shardings=shardings, donate_argnums=0)(params)
    if perceptual:
        params["perceptual"] = jax.tree.map(put, lpips, perceptual)
    return params


def _latents(task: ImageTokenizerTask, batches: Batches, params: Params, key: Array) -> list[Array]:
    """Latents of the first batches, at least as many as codes."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    size, rows = task.config.batch_size, local_rows(mesh, task.config.batch_size)
    count = max(1, math.ceil(PICTURES_OF_FIRST_CODES / size))
    choose = jax.jit(task.latents_for_codes, static_argnums=3, out_shardings=replicated(mesh))
    return [
        choose(params, place(batch, task.batch_shardings(mesh), size, rows), jax.random.fold_in(key, number),
               -(-task.config.model.num_codes // count))
        for number, batch in zip(range(count), batches(0, rows), strict=False)
    ]  # fmt: skip


def train_image_tokenizer(
    config: ImageTokenizerTrainConfig,
    batches: Batches,
    *,
    data_fingerprint: str = "",
    held_out: Mapping[str, HeldOut] = MappingProxyType({}),
    initial: ImageTokenizer | None = None,
    lpips: Params | None = None,
) -> ImageTokenizer:
    """Trains a VQGAN in the folder `config.output`, resuming from its newest checkpoint if there is one.

    Args:
      batches: of `Pictures`, as a function; of pictures in memory, `pictures_in_order`.
      data_fingerprint, held_out: as for `loop.train`. The first pictures of `held_out` are those of `config.samples`.
      initial: what `config.initial` names, as `weights.initial.initial_image_tokenizer` reads it. The trained tokenizer
        prepares pictures as it does.
      lpips: the parameters of LPIPS, if `config.perceptual` has a weight, as `weights.lpips.read_lpips` reads them.

    Raises:
      ConfigError, TrainingError, FileError, Stopped: as `loop.train`.
    """
    task = ImageTokenizerTask(config)
    gather = jax.jit(task.model_params, out_shardings=replicated(make_mesh(config.mesh)))
    preprocessing = initial.preprocessing if initial else RELEASED

    def to_tokenizer(params: Params) -> ImageTokenizer:
        return ImageTokenizer(config.model, jax.device_get(gather(params)), preprocessing)

    state = train(
        task,
        batches,
        data_fingerprint=data_fingerprint,
        held_out=held_out,
        initial_params=lambda target: first_params(task, batches, target, initial, lpips),
        sample=reconstructions(config, held_out, to_tokenizer) if config.samples.every else None,
    )
    return to_tokenizer(model_params(task, state))


def reconstructions(
    config: ImageTokenizerTrainConfig, held_out: Mapping[str, HeldOut], to_tokenizer: Callable[[Params], ImageTokenizer]
) -> Sampler:
    """Shows the first pictures of each held-out source above what the tokenizer makes of them, as `config.samples`
    says.

    Args:
      held_out: as for `loop.train`.
      to_tokenizer: makes the tokenizer of the parameters; all processes call it.

    Raises:
      ConfigError: if nothing is held out.
    """
    require(len(held_out) > 0, "samples.every", config.samples.every, "must be 0 without held-out pictures to draw")
    rows = np.arange(min(config.samples.pictures, config.batch_size))
    pictures = {
        name: batch.pixels[batch.loss_weights > 0]
        for name, batches in held_out.items()
        for batch in itertools.islice(held_out_batches(batches, rows, config.batch_size), 1)
    }

    def sample(params: Params) -> list[Sample]:
        tokenizer = to_tokenizer(params)
        return [_sheet(name, each, tokenizer) for name, each in pictures.items()] if is_first() else []

    return sample


def _sheet(name: str, pictures: np.ndarray, tokenizer: ImageTokenizer) -> Sample:
    """Pictures uint8 `[n, h, w, 3]` above their reconstructions, with a little space between them."""
    from PIL import Image

    rebuilt = tokenizer.detokenize(tokenizer.encode_pixels(scale(pictures, tokenizer.preprocessing.style)))
    n, height, width, _ = pictures.shape
    gap = max(1, width // 32)
    sheet = Image.new("RGB", (n * (width + gap) - gap, 2 * height + gap), "white")
    for column, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (column * (width + gap), 0))
        sheet.paste(rebuilt[column], (column * (width + gap), height + gap))
    return Sample(f"{name}: pictures above their reconstructions", [sheet])
