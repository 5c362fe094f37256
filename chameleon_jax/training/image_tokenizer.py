"""Training of the image tokenizer: reconstruction and commitment losses, and restarts of dead codes.

The codebook is initialised from data and follows moving averages of the latents assigned to each code (van den Oord et
al. 2017, appendix A.1); dead codes are restarted at latents of the current batch. PSNR alone does not reveal a
collapsed codebook, so the perplexity of the codes and the number of restarts are always reported.

Legend: B batch, N codes, g side of the grid of codes, e code dimension.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.batch import Pictures
from chameleon_jax.config import ImageTokenizerTrainConfig, require
from chameleon_jax.models import vq
from chameleon_jax.models.flops import image_tokenizer_flops
from chameleon_jax.models.vq import VQModel, nearest_code
from chameleon_jax.runtime.compiler_options import compiler_options
from chameleon_jax.sharding import check_rows, make_mesh, picture_sharding, replicated, shardings_by_shape
from chameleon_jax.tokens.image import ImageTokenizer, scale
from chameleon_jax.training.feeding import Batches, HeldOut, local_rows, place
from chameleon_jax.training.loop import train
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.state import model_params
from chameleon_jax.training.task import Measures, Params, Part, Work

PICTURES_OF_FIRST_CODES = 512
"""Pictures of whose latents the codebook is made at first, in whole batches, if that many give enough of them."""


def psnr(a: Float[Array, "B h w c"], b: Float[Array, "B h w c"]) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each picture in dB, for values in [-1, 1] (peak-to-peak 2)."""
    error = jnp.mean(jnp.square(jnp.clip(a, -1, 1) - jnp.clip(b, -1, 1)), axis=(1, 2, 3))
    return 10 * jnp.log10(4.0 / jnp.maximum(error, 1e-10))


def perplexity(counts: Float[Array, "N"]) -> Float[Array, ""]:
    """exp of the entropy of how often codes occur: N if all are used equally, 1 if only one is."""
    share = counts / jnp.sum(counts)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0)))


def update_codebook(
    config: ImageTokenizerTrainConfig,
    counts: Float[Array, "N"],
    sums: Float[Array, "N e"],
    used: Float[Array, "N"],
    used_sums: Float[Array, "N e"],
    restarts: Float[Array, "N e"],
) -> tuple[Float[Array, "N e"], Float[Array, "N"], Float[Array, "N e"], Array]:
    """One step of the moving averages; dead codes are restarted.

    A code is dead if its average use per batch is below `restart_below` times the mean use.

    Args:
      counts, sums: moving averages of the number of latents of each code, and of their sum.
      used, used_sums: the same of this batch.
      restarts: a latent for each code to restart at.

    Returns:
      codebook, counts, sums, and the number of restarted codes.
    """
    counts = config.codebook_decay * counts + (1 - config.codebook_decay) * used
    sums = config.codebook_decay * sums + (1 - config.codebook_decay) * used_sums
    fresh = jnp.sum(used) / counts.shape[0]  # the mean use, so that a restarted code is not declared dead again at once
    dead = counts < config.restart_below * fresh
    counts = jnp.where(dead, fresh, counts)
    sums = jnp.where(dead[:, None], restarts * fresh, sums)
    return sums / counts[:, None], counts, sums, jnp.sum(dead)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTokenizerTask:
    """A `Task` on Pictures. Its parameters are those of the model, and the moving averages that the codebook follows:
    {"model": …, "codebook_average": {"counts": [N], "sums": [N, e]}}."""

    config: ImageTokenizerTrainConfig

    @property
    def _model(self) -> VQModel:
        return VQModel(self.config.model)

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        check_rows(self.config, mesh)
        for axis in ("sequence", "tensor"):
            # Not over height either: XLA (jax 0.9) computes wrong gradients of strided convolutions sharded over it.
            require(mesh.shape[axis] == 1, f"mesh.{axis}", mesh.shape[axis],
                    "must be 1: an image tokenizer is sharded over data and fsdp")  # fmt: skip

    def checked(self, mesh: jax.sharding.Mesh) -> ImageTokenizerTask:
        return self

    def on(self, mesh: jax.sharding.Mesh, batch: Pictures) -> ImageTokenizerTask:
        return self

    def check_batch(self, mesh: jax.sharding.Mesh, batch: Pictures) -> None:
        side = self.config.model.resolution
        require(batch.pixels.shape[1:] == (side, side, 3), "model.resolution", side,
                f"the pictures are {' x '.join(map(str, batch.pixels.shape[1:]))}")  # fmt: skip

    # Parameters

    def init_params(self, key: Array) -> Params:
        """With a codebook of random numbers, which `first_params` replaces."""
        side = self.config.model.resolution
        params = self._model.init(key, jnp.zeros((1, side, side, 3)))["params"]
        return self._with_codebook(params, params["codebook"])

    def _with_codebook(self, params: Params, codebook: Array) -> Params:
        return {"model": {**params, "codebook": codebook}, "codebook_average": _averages(codebook)}

    def abstract_params(self) -> Params:
        params = vq.abstract_params(self.config.model)
        return {"model": params, "codebook_average": jax.eval_shape(_averages, params["codebook"])}

    def params_shardings(self, mesh: jax.sharding.Mesh) -> Params:
        return shardings_by_shape(self.abstract_params(), mesh)

    def batch_shardings(self, mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
        return picture_sharding(mesh)

    def first_params(
        self, mesh: jax.sharding.Mesh, target: Params, given: Callable[[Params], Params] | None
    ) -> Params | None:
        return given(target) if given else None

    def latents_for_codes(self, params: Params, batch: Pictures, key: Array, count: int) -> Float[Array, "n e"]:
        """`count` latents of a batch, chosen at random."""
        z = self._model.apply({"params": params["model"]}, _pixels(batch), method="latents")
        return jax.random.choice(key, z.reshape(-1, z.shape[-1]), (count,))

    # What is trained

    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config.optimizer, self.config.steps)

    def is_trained(self, path: tuple[str, ...]) -> bool:
        return path[0] == "model" and path[1] != "codebook"

    def mask(self, tree: Params) -> Params:
        return tree

    def update_frozen(
        self, frozen: Params, statistics: Mapping[str, Array], key: Array | None
    ) -> tuple[Params, dict[str, Array]]:
        average = frozen["codebook_average"]
        codebook, counts, sums, restarted = update_codebook(
            self.config,
            average["counts"],
            average["sums"],
            *(statistics[name] for name in ("used", "sums", "restarts")),
        )
        figures = {"perplexity": perplexity(statistics["used"]), "restarted_codes": restarted}
        return {"model": {"codebook": codebook}, "codebook_average": {"counts": counts, "sums": sums}}, figures

    # The loss

    def key(self, step: Array) -> Array:
        """Of the latents at which codes are restarted."""
        return jax.random.fold_in(jax.random.key(self.config.seed), step)

    def weight(self, batch: Pictures) -> Array:
        return jnp.sum(batch.loss_weights)

    def loss(self, params: Params, batch: Pictures, key: Array | None, part: Part) -> tuple[Array, Measures]:
        config, variables, pixels = self.config, {"params": params["model"]}, _pixels(batch)
        codebook = params["model"]["codebook"]
        z = self._model.apply(variables, pixels, method="latents")
        codes = nearest_code(z, codebook)
        q = jax.lax.stop_gradient(jnp.take(codebook, codes, axis=0))
        # Straight-through estimator: the value is q, the gradient goes to z.
        output = self._model.apply(variables, z + jax.lax.stop_gradient(q - z), method="decode_latents")
        error = pixels - output
        error = jnp.abs(error) if config.reconstruction == "l1" else jnp.square(error)
        of_pictures = {
            "reconstruction": jnp.mean(error, axis=(1, 2, 3)),
            "commitment": jnp.mean(jnp.square(z - q), axis=(1, 2, 3)),
            "psnr_db": psnr(output, pixels),
        }
        weights = batch.loss_weights
        sums = {f"{name}_sum": jnp.sum(values * weights) for name, values in of_pictures.items()}
        total = jnp.sum(weights) if part.total_weight is None else part.total_weight
        loss = (sums["reconstruction_sum"] + config.commitment * sums["commitment_sum"]) / jnp.maximum(total, 1)
        rows = {"row_loss_sum": of_pictures["reconstruction"] * weights, "row_weight_sum": weights}
        statistics = self._statistics(jax.lax.stop_gradient(z), codes, key, part)
        sums = jax.lax.stop_gradient({**sums, "weight_sum": jnp.sum(weights)})
        return loss, Measures(sums, {}, jax.lax.stop_gradient(rows), statistics)

    def _statistics(
        self, z: Float[Array, "B g g e"], codes: Int[Array, "B g g"], key: Array | None, part: Part
    ) -> dict[str, Array]:
        """What `update_codebook` needs, as sums over the parts of a batch."""
        if key is None:  # of an evaluation
            return {}
        N, B, g = self.config.model.num_codes, len(z), self.config.model.grid
        latents, flat = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
        row_key, place_key = jax.random.split(key)
        row = jax.random.randint(row_key, (N,), 0, B * part.count)  # of the whole batch, whatever its parts are
        place = jax.random.randint(place_key, (N,), 0, g * g)
        restarts = latents[row // part.count * g * g + place]
        return {
            "used": jnp.zeros((N,)).at[flat].add(1.0),
            "sums": jnp.zeros((N, latents.shape[1])).at[flat].add(latents),
            "restarts": jnp.where((row % part.count == part.number)[:, None], restarts, 0.0),
        }

    def compiler_options(self, mesh: jax.sharding.Mesh) -> dict[str, bool | int | str]:
        return compiler_options(mesh, self.config.compiler_options, remat_outside_loop=False)

    # Reports

    def signals(self, params: Params) -> dict[str, Array]:
        return {}

    def summary(self, steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        totals = {name: sum(step[name] for step in steps) for name in steps[0]}
        return {
            **self.means(totals),
            "perplexity": totals["perplexity"] / len(steps),
            "restarted_codes": int(totals["restarted_codes"]),
        }

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        weight = max(float(sums["weight_sum"]), 1.0)
        means = {name: float(sums[f"{name}_sum"]) / weight for name in ("reconstruction", "commitment", "psnr_db")}
        return {"loss": means["reconstruction"] + self.config.commitment * means["commitment"], **means}

    def progress(self, line: Mapping[str, Any]) -> dict[str, str]:
        return {"PSNR": f"{line['psnr_db']:.1f} dB", "perplexity": f"{line['perplexity']:,.0f}"}

    def work(self, batch: Pictures) -> Work:
        amount = self.config.batch_size
        return Work("pictures", amount, 3.0 * amount * sum(image_tokenizer_flops(self.config.model)))


def _averages(codebook: Float[Array, "N e"]) -> dict[str, Array]:
    """The moving averages of a codebook each of whose codes was used once."""
    # The step donates its state, so no two of its arrays may share a buffer.
    return {"counts": jnp.ones(codebook.shape[:1]), "sums": jnp.copy(codebook)}


def _pixels(batch: Pictures) -> Float[Array, "B h w 3"]:
    """Pictures in [-1, 1]."""
    return jnp.asarray(batch.pixels, jnp.float32) / 127.5 - 1


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


def first_params(task: ImageTokenizerTask, batches: Batches, target: Params) -> Params:
    """Initial parameters. The codebook consists of latents of the first batches with a little noise."""
    config, shardings = task.config, jax.tree.map(lambda leaf: leaf.sharding, target)
    mesh = jax.tree.leaves(target)[0].sharding.mesh
    init_key, pick_key, noise_key = jax.random.split(jax.random.key(config.seed), 3)
    rows, size = local_rows(mesh, config.batch_size), config.batch_size
    N = config.model.num_codes
    count = max(1, math.ceil(PICTURES_OF_FIRST_CODES / size))
    with jax.set_mesh(mesh):
        params = jax.jit(task.init_params, out_shardings=shardings)(init_key)
        choose = jax.jit(task.latents_for_codes, static_argnums=3, out_shardings=replicated(mesh))
        picked = [
            choose(params, place(batch, task.batch_shardings(mesh), size, rows), jax.random.fold_in(pick_key, number),
                   -(-N // count))
            for number, batch in zip(range(count), batches(0, rows), strict=False)
        ]  # fmt: skip

        def with_codebook(params: Params, picked: list[Array]) -> Params:
            latents = jnp.concatenate(picked)
            chosen = jax.random.permutation(pick_key, latents)[:N]
            spread = jnp.std(latents, axis=0) * 0.05
            codebook = chosen + spread * jax.random.normal(noise_key, chosen.shape)
            return task._with_codebook(params["model"], codebook)

        return jax.jit(with_codebook, out_shardings=shardings, donate_argnums=0)(params, picked)


def train_image_tokenizer(
    config: ImageTokenizerTrainConfig,
    batches: Batches,
    *,
    data_fingerprint: str = "",
    held_out: Mapping[str, HeldOut] = MappingProxyType({}),
) -> ImageTokenizer:
    """Trains a VQGAN in the folder `config.output`, resuming from its newest checkpoint if there is one.

    Args:
      batches: of `Pictures`, as a function; of pictures in memory, `pictures_in_order`.
      data_fingerprint, held_out: as for `loop.train`.

    Raises:
      ConfigError, TrainingError, FileError, Stopped: as `loop.train`.
    """
    task = ImageTokenizerTask(config)
    state = train(
        task,
        batches,
        data_fingerprint=data_fingerprint,
        held_out=held_out,
        initial_params=lambda target: first_params(task, batches, target),
    )
    gather = jax.jit(lambda params: params["model"], out_shardings=replicated(make_mesh(config.mesh)))
    return ImageTokenizer(config.model, jax.device_get(gather(model_params(task, state))))


def measure_image_tokenizer(tokenizer: ImageTokenizer, batches: Iterable[Pictures]) -> dict[str, float]:
    """Mean PSNR of reconstructions, the share of codes that occur, and their perplexity.

    Args:
      batches: pictures that have a loss weight of 0 are not measured.
    """
    total, pictures, counts = 0.0, 0, np.zeros(tokenizer.config.num_codes, np.int64)
    for batch in batches:
        pixels = scale(batch.pixels[np.flatnonzero(batch.loss_weights)])
        codes = tokenizer.encode_pixels(pixels)
        total += float(jnp.sum(psnr(jnp.asarray(tokenizer.decode_codes(codes)), jnp.asarray(pixels))))
        pictures += len(pixels)
        counts += np.bincount(codes.reshape(-1), minlength=len(counts))
    return {
        "reconstruction_psnr_db": total / pictures,
        "codebook_used": float(np.mean(counts > 0)),
        "codebook_perplexity": float(perplexity(jnp.asarray(counts, jnp.float32))),
    }
