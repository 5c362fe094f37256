"""Training of the image tokenizer: reconstruction and commitment losses, and restarts of dead codes.

The codebook is initialised from data and follows moving averages of the latents assigned to each code (van den Oord et
al. 2017, appendix A.1); dead codes are restarted at latents of the current batch. PSNR alone does not reveal a
collapsed codebook, so the fraction of codes in use and their perplexity are always reported.

Legend: B batch, N codes, e code dimension, M = B * codes per picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.config import ImageTokenizerTrainConfig
from chameleon_jax.errors import TrainingError
from chameleon_jax.models.vq import VQModel, nearest_code
from chameleon_jax.tokens.image import ImageTokenizer, scale


class ImageTokenizerState(NamedTuple):
    """The state of training. `counts` and `sums` are the moving averages that define the codebook."""

    step: Array  # []
    params: Any
    opt_state: Any
    counts: Array  # [N]
    sums: Array  # [N, e]


def make_optimizer(config: ImageTokenizerTrainConfig) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.steps, config.learning_rate * config.final_fraction
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule, config.b1, config.b2))


@functools.partial(jax.jit, static_argnums=0)
def init_state(config: ImageTokenizerTrainConfig, pixels: Float[Array, "B h w 3"]) -> ImageTokenizerState:
    """Initial parameters. The codebook consists of latents of `pixels` with a little noise."""
    model = VQModel(config.model)
    init_key, pick_key, noise_key = jax.random.split(jax.random.key(config.seed), 3)
    params = model.init(init_key, pixels[:1])["params"]
    latents = model.apply({"params": params}, pixels, method="latents").reshape(-1, config.model.code_dim)
    picks = jax.random.randint(pick_key, (config.model.num_codes,), 0, latents.shape[0])
    spread = jnp.std(latents, axis=0) * 0.05
    codebook = latents[picks] + spread * jax.random.normal(noise_key, (config.model.num_codes, latents.shape[1]))
    params = {**params, "codebook": codebook}
    counts = jnp.ones((config.model.num_codes,))
    # The step donates its state, so no two of its arrays may share a buffer.
    sums = jnp.copy(codebook)
    return ImageTokenizerState(jnp.zeros((), jnp.int32), params, make_optimizer(config).init(params), counts, sums)


def update_codebook(
    config: ImageTokenizerTrainConfig,
    key: Array,
    counts: Float[Array, "N"],
    sums: Float[Array, "N e"],
    latents: Float[Array, "M e"],
    codes: Int[Array, "M"],
) -> tuple[Float[Array, "N e"], Float[Array, "N"], Float[Array, "N e"], Array]:
    """One step of the moving averages; dead codes are restarted.

    A code is dead if its average use per batch is below `restart_below` times the mean use.

    Returns:
      codebook, counts, sums, and the number of restarted codes.
    """
    N = counts.shape[0]
    used = jnp.zeros((N,)).at[codes].add(1.0)
    used_sums = jnp.zeros_like(sums).at[codes].add(latents)
    counts = config.codebook_decay * counts + (1 - config.codebook_decay) * used
    sums = config.codebook_decay * sums + (1 - config.codebook_decay) * used_sums

    dead = counts < config.restart_below * latents.shape[0] / N
    picks = jax.random.randint(key, (N,), 0, latents.shape[0])
    fresh = latents.shape[0] / N  # the mean use, so that a restarted code is not declared dead again at once
    counts = jnp.where(dead, fresh, counts)
    sums = jnp.where(dead[:, None], latents[picks] * fresh, sums)
    return sums / counts[:, None], counts, sums, jnp.sum(dead)


def codebook_perplexity(codes: Int[Array, "..."], num_codes: int) -> Float[Array, ""]:
    """exp of the entropy of the code frequencies: `num_codes` if all are used equally, 1 if only one is."""
    share = jnp.zeros((num_codes,)).at[codes.reshape(-1)].add(1.0) / codes.size
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(share), 0.0)))


def psnr(a: Float[Array, "B h w c"], b: Float[Array, "B h w c"]) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each picture in dB, for values in [-1, 1] (peak-to-peak 2)."""
    error = jnp.mean(jnp.square(jnp.clip(a, -1, 1) - jnp.clip(b, -1, 1)), axis=(1, 2, 3))
    return 10 * jnp.log10(4.0 / jnp.maximum(error, 1e-10))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    config: ImageTokenizerTrainConfig, state: ImageTokenizerState, pixels: Float[Array, "B h w 3"]
) -> tuple[ImageTokenizerState, dict[str, Array]]:
    """One step on a batch of pictures in [-1, 1]. Its randomness depends only on the seed and the step."""
    model = VQModel(config.model)

    def loss_fn(params):
        z = model.apply({"params": params}, pixels, method="latents")
        codes = nearest_code(z, params["codebook"])
        q = jax.lax.stop_gradient(jnp.take(params["codebook"], codes, axis=0))
        commitment = jnp.mean(jnp.square(z - q))
        # Straight-through estimator: the value is q, the gradient goes to z.
        output = model.apply({"params": params}, z + jax.lax.stop_gradient(q - z), method="decode_latents")
        error = pixels - output
        reconstruction = jnp.mean(jnp.abs(error) if config.reconstruction == "l1" else jnp.square(error))
        loss = reconstruction + config.commitment * commitment
        return loss, (reconstruction, commitment, z, codes, output)

    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    reconstruction, commitment, z, codes, output = aux
    updates, opt_state = make_optimizer(config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    codebook, counts, sums, restarted = update_codebook(
        config, key, state.counts, state.sums, z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    )
    params = {**params, "codebook": codebook}
    metrics = {
        "loss": loss,
        "reconstruction": reconstruction,
        "commitment": commitment,
        "psnr_db": jnp.mean(psnr(output, pixels)),
        "perplexity": codebook_perplexity(codes, config.model.num_codes),
        "restarted_codes": restarted,
    }
    return ImageTokenizerState(state.step + 1, params, opt_state, counts, sums), metrics


def train_image_tokenizer(
    config: ImageTokenizerTrainConfig,
    pictures: np.ndarray,
    log: Callable[[int, dict[str, float]], None],
    log_every: int,
) -> ImageTokenizer:
    """Trains a VQGAN, with the pictures in a new random order in each epoch.

    Args:
      pictures: uint8 `[n, resolution, resolution, 3]`.
      log: called with the step and its metrics every `log_every` steps and after the last.

    Raises:
      TrainingError: if the loss is not finite.
    """
    rng = np.random.default_rng(config.seed)

    def batches() -> Iterator[np.ndarray]:
        while True:
            order = rng.permutation(max(len(pictures), config.batch_size)) % len(pictures)
            for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
                yield scale(pictures[order[start : start + config.batch_size]])

    sample = pictures[rng.integers(0, len(pictures), min(len(pictures), 512))]
    state = init_state(config, jnp.asarray(scale(sample)))
    for step, batch in zip(range(1, config.steps + 1), batches()):  # noqa: B905
        state, metrics = train_step(config, state, jnp.asarray(batch))
        if step % log_every == 0 or step == config.steps:
            figures = {name: round(float(value), 6) for name, value in metrics.items()}
            if not np.isfinite(figures["loss"]):
                raise TrainingError(
                    f"the image tokenizer's loss is no longer a number at step {step}; lower tokenizer.learning_rate "
                    f"= {config.learning_rate}"
                )
            log(step, figures)
    return ImageTokenizer(config.model, jax.device_get(state.params))


def measure_image_tokenizer(tokenizer: ImageTokenizer, pixels: np.ndarray) -> dict[str, float]:
    """PSNR of reconstructions, the share of codes that occur, and their perplexity.

    Args:
      pixels: float32 `[n, h, w, 3]` in [-1, 1].
    """
    codes = tokenizer.encode_pixels(pixels)
    error = psnr(jnp.asarray(tokenizer.decode_codes(codes)), jnp.asarray(pixels))
    return {
        "reconstruction_psnr_db": float(jnp.mean(error)),
        "codebook_used": len(np.unique(codes)) / tokenizer.config.num_codes,
        "codebook_perplexity": float(codebook_perplexity(jnp.asarray(codes), tokenizer.config.num_codes)),
    }
