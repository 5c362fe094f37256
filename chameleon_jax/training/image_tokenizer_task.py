"""Training of the image tokenizer: a VQGAN (Esser et al. 2021).

The loss of a batch is the reconstruction error, a perceptual distance, what the way of learning the codebook adds
(`codebooks.py`), and the loss against a discriminator (`adversarial.py`). PSNR alone does not reveal a collapsed
codebook, so the perplexity of the codes, the share of them that a batch uses, and restarts are always reported.

Legend: B batch, N codes, g side of the grid of codes, e code dimension.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from chameleon_jax.array_types import Array, Float, Int
from chameleon_jax.batch import Pictures
from chameleon_jax.config import DiscriminatorConfig, ImageTokenizerTrainConfig, require
from chameleon_jax.models import vq
from chameleon_jax.models.discriminator import Discriminator
from chameleon_jax.models.flops import discriminator_flops, image_tokenizer_flops, lpips_flops
from chameleon_jax.models.perceptual import LPIPS
from chameleon_jax.models.vq import VQModel
from chameleon_jax.runtime.compiler_options import compiler_options
from chameleon_jax.sharding import check_rows, picture_sharding, shardings_by_shape
from chameleon_jax.training.adversarial import (
    ScoreAverages,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    picture_scores,
    r1_penalty,
    update_averages,
)
from chameleon_jax.training.codebook_losses import code_entropies, entropy_loss
from chameleon_jax.training.codebooks import CHUNK, codebook_decay, perplexity, quantize, update_codebook
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.task import Measures, Params, Part, Work


def psnr(a: Float[Array, "B h w c"], b: Float[Array, "B h w c"]) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each picture in dB, for values in [-1, 1] (peak-to-peak 2)."""
    error = jnp.mean(jnp.square(jnp.clip(a, -1, 1) - jnp.clip(b, -1, 1)), axis=(1, 2, 3))
    return 10 * jnp.log10(4.0 / jnp.maximum(error, 1e-10))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTokenizerTask:
    """A `Task` on Pictures. Its parameters are

    - "model": those of the VQModel;
    - "averages", of a codebook that follows moving averages: {"counts": `[N]`, "sums": `[N, e]`};
    - "projection", of 'sim_vq': the matrix `[e, e]` that makes codes of the rows of the model's codebook;
    - "perceptual": those of LPIPS, which never change;
    - "discriminator"; and "scores": the moving averages of its scores, and the number of steps.
    """

    config: ImageTokenizerTrainConfig

    @property
    def _model(self) -> VQModel:
        return VQModel(self.config.model, self.config.execution)

    @property
    def _lpips(self) -> LPIPS:
        return LPIPS(self.config.perceptual.dtype)

    @property
    def _discriminator(self) -> Discriminator:
        config = self.config.discriminator
        return Discriminator(config.channels, config.stages, config.norm, config.dtype)

    @property
    def _is_adversarial(self) -> bool:
        return self.config.discriminator.weight > 0

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        check_rows(self.config, mesh)
        for axis in ("sequence", "tensor"):
            # Not over height either: XLA (jax 0.10) computes wrong gradients of strided convolutions sharded over it.
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
        """With a codebook of random numbers, and without those of LPIPS: see `first_params`."""
        side = self.config.model.resolution
        pixels = jnp.zeros((1, side, side, 3))
        params = self.with_codebook({"model": self._model.init(key, pixels)["params"]})
        if self.config.codebook == "sim_vq":
            params["projection"] = {"kernel": jnp.eye(self.config.model.code_dim)}
        if self._is_adversarial:
            params["discriminator"] = self._discriminator.init(jax.random.fold_in(key, 1), pixels)["params"]
            params["scores"] = {"real": jnp.zeros(()), "fake": jnp.zeros(()), "steps": jnp.zeros((), jnp.int32)}
        return params

    def with_codebook(self, params: Params, codebook: Array | None = None, use: float = 1.0) -> Params:
        """`params` with this codebook, and averages as if each code was used `use` times a batch."""
        if codebook is None:
            codebook = params["model"]["codebook"]
        params = {**params, "model": {**params["model"], "codebook": codebook}}
        if self.config.has_averages:
            # The step donates its state, so no two of its arrays may share a buffer.
            params["averages"] = {"counts": jnp.full(codebook.shape[:1], use), "sums": jnp.copy(codebook) * use}
        return params

    def abstract_params(self) -> Params:
        config = self.config
        params = {"model": vq.abstract_params(config.model)}
        with_averages = jax.eval_shape(self.with_codebook, params)
        rest = _abstract_rest(config.perceptual.weight > 0, config.discriminator if self._is_adversarial else None)
        if config.codebook == "sim_vq":
            rest = {**rest, "projection": {"kernel": jax.ShapeDtypeStruct((config.model.code_dim,) * 2, jnp.float32)}}
        return {**with_averages, **rest}

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

    def model_params(self, params: Params) -> Params:
        """The parameters of the VQModel, with a codebook of plain codes."""
        table = params["model"]["codebook"]
        if self.config.codebook == "sim_vq":
            table = jnp.matmul(table, params["projection"]["kernel"], precision="highest")
        return {**params["model"], "codebook": table}

    # What is trained

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        optimizer = make_optimizer(config.optimizer, config.steps)
        if not self._is_adversarial:
            return optimizer
        both = {"tokenizer": optimizer, "discriminator": make_optimizer(config.discriminator.optimizer, config.steps)}

        def labels(params: Params) -> Params:
            names = {part: part if part in both else "tokenizer" for part in params}
            return {part: jax.tree.map(lambda _, name=name: name, params[part]) for part, name in names.items()}

        return optax.partition(both, labels)

    def is_trained(self, path: tuple[str, ...]) -> bool:
        if path[0] != "model":
            return path[0] == "discriminator" or (path[0] == "projection" and self.config.trainable == "all")
        if self.config.trainable == "decoder":
            return path[1] in ("decoder", "post_quant_conv")
        return path[1] != "codebook" or self.config.codebook in ("learned", "ibq")

    def mask(self, tree: Params) -> Params:
        return tree

    def update_frozen(
        self, frozen: Params, statistics: Mapping[str, Array], step: Array
    ) -> tuple[Params, dict[str, Array]]:
        config, used, frozen = self.config, statistics["used"], dict(frozen)
        figures = {"perplexity": perplexity(used), "codes_used": jnp.mean(used > 0)}
        if "restarts" in statistics:
            codebook, counts, sums, figures["restarted_codes"] = update_codebook(
                config, codebook_decay(config, step), frozen["averages"]["counts"], frozen["averages"]["sums"],
                *(statistics[name] for name in ("used", "sums", "restarts")),
            )  # fmt: skip
            frozen["averages"] = {"counts": counts, "sums": sums}
            frozen["model"] = {**frozen["model"], "codebook": codebook}
        if self._is_adversarial:
            scores = frozen["scores"]
            means = (statistics[name] / statistics["weight"] for name in ("real", "fake"))
            averages = update_averages(_score_averages(scores), *means, config.discriminator.lecam_decay)
            frozen["scores"] = {**averages._asdict(), "steps": scores["steps"] + 1}
        return frozen, figures

    # The loss

    def key(self, step: Array) -> Array:
        """Of the latents at which codes are restarted."""
        return jax.random.fold_in(jax.random.key(self.config.seed), step)

    def weight(self, batch: Pictures) -> Array:
        return jnp.sum(batch.loss_weights)

    def loss(self, params: Params, batch: Pictures, key: Array | None, part: Part) -> tuple[Array, Measures]:
        """Without the adversarial losses if `key` is None, in evaluations."""
        config, model, pixels, weights = self.config, self.model_params(params), _pixels(batch), batch.loss_weights
        B, g, e = len(pixels), config.model.grid, config.model.code_dim
        own = jnp.sum(weights)
        total = jnp.maximum(own if part.total_weight is None else part.total_weight, 1)
        z = self._model.apply({"params": model}, pixels, method="latents").reshape(B, g * g, e)
        quantized = quantize(config, z, model["codebook"])
        statistics = self._statistics(jax.lax.stop_gradient(z), quantized.codes, key, part)

        def decode(kernel: Array) -> Array:
            """Pictures, as a function of the kernel of the last convolution."""
            decoder = {**model["decoder"], "conv_out": {**model["decoder"]["conv_out"], "kernel": kernel}}
            variables = {"params": {**model, "decoder": decoder}}
            return self._model.apply(variables, quantized.output.reshape(B, g, g, e), method="decode_latents")

        def compare(output: Array) -> tuple[Array, dict[str, Array]]:
            error = pixels - output
            error = jnp.abs(error) if config.reconstruction == "l1" else jnp.square(error)
            values = {"reconstruction": jnp.mean(error, axis=(1, 2, 3))}
            loss = values["reconstruction"]
            if config.perceptual.weight:
                values["perceptual"] = self._lpips.apply({"params": params["perceptual"]}, pixels, output)
                loss += config.perceptual.weight * values["perceptual"]
            return jnp.sum(loss * weights) / total, {**values, "loss": loss}

        output = decode(model["decoder"]["conv_out"]["kernel"])
        if self._is_adversarial and key is not None:
            loss, values, scores = self._adversarial(params, pixels, output, weights, total, compare, decode)
            statistics |= scores
        else:
            loss, values = compare(output)
        values["loss"] += quantized.loss
        loss += jnp.sum(quantized.loss * weights) / total
        if config.entropy:
            codebook = jax.lax.stop_gradient(model["codebook"]) if config.has_averages else model["codebook"]
            entropies = code_entropies(z, codebook, config.temperature, math.gcd(CHUNK, g * g))
            loss += (own / total) * config.entropy * entropy_loss(*entropies, weights)
        values |= {"commitment": quantized.error, "psnr_db": psnr(output, pixels)}
        sums = {f"{name}_sum": jnp.sum(each * weights) for name, each in values.items()} | {"weight_sum": own}
        rows = {"row_loss_sum": values["reconstruction"] * weights, "row_weight_sum": weights}
        return loss, jax.lax.stop_gradient(Measures(sums, {}, rows, statistics))

    def _adversarial(
        self,
        params: Params,
        pixels: Float[Array, "B h w 3"],
        output: Float[Array, "B h w 3"],
        weights: Float[Array, "B"],
        total: Array,
        compare: Callable[[Array], tuple[Array, dict[str, Array]]],
        decode: Callable[[Array], Array],
    ) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """The loss of the pictures with the part against the discriminator, and the discriminator's own.

        The gradients of both parts with respect to the pictures are computed here, once: they serve the adaptive
        weight, and the backward pass through the model begins at their weighted sum.
        """
        config, scores = self.config.discriminator, params["scores"]
        started = (scores["steps"] >= config.start_step).astype(jnp.float32)
        judge = lambda params, x: self._discriminator.apply({"params": params}, x)  # noqa: E731
        fixed, constant = jax.lax.stop_gradient((params["discriminator"], output))

        def fool(output: Array) -> tuple[Array, Array]:
            loss = generator_loss(judge(fixed, output), config.loss)
            return jnp.sum(loss * weights) / total, loss

        (loss, values), pull = jax.value_and_grad(compare, has_aux=True)(constant)
        (adversarial, fooling), push = jax.value_and_grad(fool, has_aux=True)(constant)
        factor = jnp.ones(())
        if config.adaptive:
            kernel = jax.lax.stop_gradient(params["model"]["decoder"]["conv_out"]["kernel"])
            of_kernel = jax.vjp(decode, kernel)[1]
            factor = adaptive_weight(of_kernel(pull)[0], of_kernel(push)[0])
        weight = started * config.weight * factor
        surrogate = jnp.sum(jax.lax.stop_gradient(pull + weight * push) * output)
        # The value is that of the losses, the gradient that of the surrogate.
        loss = jax.lax.stop_gradient(loss + weight * adversarial - surrogate) + surrogate

        real, fake = judge(params["discriminator"], pixels), judge(params["discriminator"], constant)
        own = discriminator_loss(real, fake, config.loss)
        values |= {"adversarial": fooling, "discriminator": own, "adaptive_weight": jnp.full_like(own, factor)}
        if config.r1:
            own += config.r1 * r1_penalty(functools.partial(judge, params["discriminator"]), pixels)
        if config.lecam:
            own += config.lecam * lecam_penalty(real, fake, _score_averages(scores))
        loss += started * jnp.sum(own * weights) / total
        means = {"real": picture_scores(real), "fake": picture_scores(fake)}
        statistics = {name: jnp.sum(each * weights) for name, each in means.items()} | {"weight": jnp.sum(weights)}
        return loss, values, statistics

    def _statistics(
        self, z: Float[Array, "B n e"], codes: Int[Array, "B n"], key: Array | None, part: Part
    ) -> dict[str, Array]:
        """What `update_frozen` needs of codes and latents, as sums over the parts of a batch."""
        if key is None:  # of an evaluation
            return {}
        N, (B, n, e) = self.config.model.num_codes, z.shape
        latents, flat = z.reshape(-1, e), codes.reshape(-1)
        statistics = {"used": jnp.zeros((N,)).at[flat].add(1.0)}
        if self.config.has_averages and self.config.trainable == "all":
            row_key, place_key = jax.random.split(key)
            row = jax.random.randint(row_key, (N,), 0, B * part.count)  # of the whole batch, whatever its parts are
            place = jax.random.randint(place_key, (N,), 0, n)
            restarts = latents[row // part.count * n + place]
            statistics["sums"] = jnp.zeros((N, e)).at[flat].add(latents)
            statistics["restarts"] = jnp.where((row % part.count == part.number)[:, None], restarts, 0.0)
        return statistics

    def compiler_options(self, mesh: jax.sharding.Mesh) -> dict[str, bool | int | str]:
        config = self.config
        return compiler_options(
            mesh,
            config.compiler_options,
            remat_outside_loop=config.execution.remat != "none",
            largest_map=config.model.maps[0],
        )

    # Reports

    def signals(self, params: Params) -> dict[str, Array]:
        return {}

    def summary(self, steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        total = lambda name: sum(step[name] for step in steps)  # noqa: E731
        figures = self.means({name: total(name) for name in steps[0] if name.endswith("_sum")})
        figures |= {name: total(name) / len(steps) for name in ("perplexity", "codes_used")}
        return figures | ({"restarted_codes": int(total("restarted_codes"))} if "restarted_codes" in steps[0] else {})

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        weight = max(float(sums["weight_sum"]), 1.0)
        names = ("loss", "reconstruction", "perceptual", "commitment", "adversarial", "discriminator",
                 "adaptive_weight", "psnr_db")  # fmt: skip
        return {name: float(sums[f"{name}_sum"]) / weight for name in names if f"{name}_sum" in sums}

    def progress(self, line: Mapping[str, Any]) -> dict[str, str]:
        return {"PSNR": f"{line['psnr_db']:.1f} dB", "perplexity": f"{line['perplexity']:,.0f}"}

    def work(self, batch: Pictures) -> Work:
        """Of the model and of the networks that judge it, without what the penalty R1 adds."""
        config, side = self.config, self.config.model.resolution
        encode, decode = image_tokenizer_flops(config.model)
        flops = 3 * decode + (3 if config.trainable == "all" else 1) * encode
        if config.perceptual.weight:  # forward for both pictures, backward for one
            flops += 3 * lpips_flops(side)
        if self._is_adversarial:  # forward for both, backward to the picture, backward for both to the parameters
            flops += 7 * discriminator_flops(side, config.discriminator.channels, config.discriminator.stages)
        return Work("pictures", config.batch_size, flops * config.batch_size)


@functools.lru_cache(maxsize=16)
def _abstract_rest(perceptual: bool, discriminator: DiscriminatorConfig | None) -> Params:
    """Shapes of the parameters that are not the model's."""
    rest: Params = {}
    if perceptual:
        pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        rest["perceptual"] = jax.eval_shape(LPIPS().init, jax.random.key(0), pixels, pixels)["params"]
    if discriminator:
        module = Discriminator(discriminator.channels, discriminator.stages, discriminator.norm)
        pixels = jax.ShapeDtypeStruct((1, *(3 << discriminator.stages,) * 2, 3), jnp.float32)
        rest["discriminator"] = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        rest["scores"] = {"real": scalar, "fake": scalar, "steps": jax.ShapeDtypeStruct((), jnp.int32)}
    return rest


def _score_averages(scores: Mapping[str, Array]) -> ScoreAverages:
    return ScoreAverages(scores["real"], scores["fake"])


def _pixels(batch: Pictures) -> Float[Array, "B h w 3"]:
    """Pictures in [-1, 1]."""
    return jnp.asarray(batch.pixels, jnp.float32) / 127.5 - 1
