"""Training of the Transformer on packed rows: of all parameters, of adapters, or of the image head alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from chameleon_jax.array_types import Array
from chameleon_jax.batch import Batch
from chameleon_jax.config import BenchTrainConfig, ExecutionConfig, TrainConfig
from chameleon_jax.config.reading import require
from chameleon_jax.models.attention import backend_for
from chameleon_jax.models.flops import (
    adapter_parameters,
    forward_flops_per_token,
    matmul_parameters,
    train_flops_per_token,
)
from chameleon_jax.models.lora import is_adapter
from chameleon_jax.models.transformer import Transformer, abstract_params, readout
from chameleon_jax.runtime.compiler_options import compiler_options
from chameleon_jax.sharding import batch_sharding, check_length, check_mesh, params_shardings
from chameleon_jax.training.attention_check import check_attention
from chameleon_jax.training.losses import chunked_token_losses, per_modality, token_losses, weighted_loss
from chameleon_jax.training.optimizer import make_optimizer
from chameleon_jax.training.state import init_state, state_shardings
from chameleon_jax.training.task import Measures, Params, Part, Work
from chameleon_jax.training.trainable import join, split


@dataclasses.dataclass(frozen=True, eq=False)
class TransformerTask:
    """A `Task` (see there) on Batches of tokens."""

    config: TrainConfig
    is_image_id: np.ndarray | None = None
    """bool `[vocab_size]`, which ids are image codes; their loss is reported separately. Default: none."""

    @functools.cached_property
    def _is_image_id(self) -> np.ndarray:
        return np.zeros(self.config.model.vocab_size, bool) if self.is_image_id is None else self.is_image_id

    def _is_image_id_for(self, key: str) -> np.ndarray:
        """`_is_image_id`, for a key of the config that does nothing if no id is an image code."""
        value = getattr(self.config, key)
        require(bool(self._is_image_id.any()), key, value, "needs to know which ids are image codes")
        return self._is_image_id

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        check_mesh(self.config, mesh)

    def checked(self, mesh: jax.sharding.Mesh) -> TransformerTask:
        """The task with an attention backend that computes right values on these devices."""
        config = self.config
        return self._with(check_attention(config.model, config.execution, mesh, config.sequence_length))

    def _with(self, execution: ExecutionConfig) -> TransformerTask:
        return dataclasses.replace(self, config=dataclasses.replace(self.config, execution=execution))

    def on(self, mesh: jax.sharding.Mesh, batch: Batch) -> TransformerTask:
        """The task with the attention backend for these devices and this row length."""
        config = self.config
        backend = backend_for(config.model, config.execution, mesh, batch.inputs.shape[1])
        return self._with(dataclasses.replace(config.execution, attention=backend))

    def check_batch(self, mesh: jax.sharding.Mesh, batch: Batch) -> None:
        check_length(self.config, mesh, batch.inputs.shape[1])

    # Parameters

    def _boxed(self) -> Any:
        """Shapes, types and logical axes of the parameters."""
        return abstract_params(self.config.model, self.config.execution.param_dtype, self.config.lora)

    def abstract_params(self) -> Params:
        return nn.unbox(self._boxed())

    def params_shardings(self, mesh: jax.sharding.Mesh) -> Params:
        return params_shardings(self._boxed(), mesh)

    def batch_shardings(self, mesh: jax.sharding.Mesh) -> Any:
        return batch_sharding(mesh)

    def init_params(self, key: Array) -> Params:
        model = Transformer(self.config.model, self.config.execution, self.config.lora)
        params = nn.unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])
        return {**params, "output": params["embed"].T} if self.config.tie_embeddings else params

    def fresh_adapters(self, mesh: jax.sharding.Mesh) -> Params:
        """The adapters before the first step, which do not change the model."""
        shardings, _ = split(state_shardings(self, mesh).params, self)
        init = jax.jit(lambda key: split(self.init_params(key), self)[0], out_shardings=shardings)
        with jax.set_mesh(mesh):
            return init(jax.random.key(self.config.seed))

    def first_params(
        self, mesh: jax.sharding.Mesh, target: Params, given: Callable[[Params], Params] | None
    ) -> Params | None:
        """With fresh adapters and a fresh image head where the config asks for them."""
        config = self.config
        require(
            given is None or not config.tie_embeddings,
            "tie_embeddings",
            config.tie_embeddings,
            "must be false with parameters to start from: it makes one matrix of two from the first step on",
        )
        if given is None and not config.fresh_image_head:
            return None
        if given is None:
            params = init_state(self, mesh).params
        elif config.lora.rank:
            params = join(self.fresh_adapters(mesh), given(split(target, self)[1]))
        else:
            params = given(target)
        if config.fresh_image_head:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
            fresh = jax.jit(self.with_fresh_image_head, out_shardings=shardings)
            params = fresh(params, jax.random.key(config.seed))
        return params

    def with_fresh_image_head(self, params: Params, key: Array) -> Params:
        """`params` with the image columns of the output layer redrawn from a normal distribution of variance
        2 / d_model.

        In the released weights these columns are of no use. Anole, which taught the model to draw again, starts from
        the same distribution.
        """
        output = params["output"]
        # Drawn in float32: in bfloat16 the mean is not exactly 0 and large values are missing.
        fresh = jax.random.normal(key, output.shape) * math.sqrt(2 / self.config.model.d_model)
        return {**params, "output": jnp.where(jnp.asarray(self._is_image_id), fresh.astype(output.dtype), output)}

    # What is trained

    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config.optimizer, self.config.steps)

    def is_trained(self, path: tuple[str, ...]) -> bool:
        if self.config.lora.rank:
            return is_adapter(path[-1])
        return self.config.trainable == "all" or path == ("output",)

    def mask(self, tree: Params) -> Params:
        """Sets gradients or updates to 0 outside the image columns of the output layer, with `trainable:
        image_head`; gives the embedding and the output layer those of their mean, with `tie_embeddings`."""
        if self.config.tie_embeddings:
            mean = (tree["embed"] + tree["output"].T) / 2
            return {**tree, "embed": mean, "output": mean.T}
        if self.config.trainable != "image_head":
            return tree
        return {**tree, "output": jnp.where(jnp.asarray(self._is_image_id), tree["output"], 0)}

    def update_frozen(
        self, frozen: Params, statistics: Mapping[str, Array], step: Array
    ) -> tuple[Params, dict[str, Array]]:
        return frozen, {}

    # The loss

    def key(self, step: Array) -> Array | None:
        """Of dropout and noise."""
        if not (self.config.dropout or self.config.image_code_noise):
            return None
        return jax.random.fold_in(jax.random.key(self.config.seed, impl=self.config.dropout_bits), step)

    def _weights(self, batch: Batch) -> Array:
        """Weights of the predictions in the loss, float32 `[batch, length]`."""
        if self.config.image_loss_weight == 1:
            return batch.loss_weights
        is_image = jnp.asarray(self._is_image_id_for("image_loss_weight"))[batch.targets]
        return batch.loss_weights * jnp.where(is_image, self.config.image_loss_weight, 1)

    def weight(self, batch: Batch) -> Array:
        return jnp.sum(self._weights(batch))

    def loss(self, params: Params, batch: Batch, key: Array | None, part: Part) -> tuple[Array, Measures]:
        """With dropout and noise if a key is given."""
        if key is not None and part.count > 1:  # each part has masks of its own
            key = jax.random.fold_in(key, part.number)
        config = self.config
        inputs = batch.inputs
        if key is not None and config.image_code_noise:
            inputs = self._with_noise(batch, jax.random.fold_in(key, 1))
        x = Transformer(config.model, config.execution, config.lora).apply(
            {"params": params},
            inputs,
            batch.positions,
            batch.segment_ids,
            dropout=0.0 if key is None else config.dropout,
            rngs=None if key is None else {"dropout": key},
            hidden=True,
        )
        logits_of = lambda x: readout(x, params, config.model)  # noqa: E731
        if config.loss_chunk:
            losses = chunked_token_losses(x, logits_of, batch.targets, config.loss_chunk)
        else:
            losses = token_losses(logits_of(x), batch.targets)
        is_image = jnp.asarray(self._is_image_id, jnp.float32)[batch.targets]
        weights = self._weights(batch)
        loss, sums = weighted_loss(losses, weights, is_image, config.z_loss, part.total_weight)
        # Early signs of divergence (section 2.3 of the paper), over all tokens except padding.
        real = (batch.segment_ids > 0).astype(jnp.float32)
        squares = jnp.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)), axis=-1)
        sums |= {"output_square_sum": jnp.sum(squares * real), "token_sum": jnp.sum(real)}
        rows = {
            "row_loss_sum": jnp.sum(jax.lax.stop_gradient(losses.cross_entropy) * weights, axis=1),
            "row_weight_sum": jnp.sum(weights, axis=1),
        }
        return loss, Measures(sums, {"max_logit": jnp.max(losses.max_logit * real)}, rows)

    def _with_noise(self, batch: Batch, key: Array) -> Array:
        """The inputs with a share of the image codes that are learnt replaced by random ones, int32 `[batch, length]`.

        Codes that the loss leaves out are only read, like those of a picture that is to be named, and stay.
        """
        is_image_id = self._is_image_id_for("image_code_noise")
        image_ids = np.flatnonzero(is_image_id).astype(np.int32)
        share, where, which = jax.random.split(key, 3)
        ids, documents = batch.inputs, batch.segment_ids
        shares = jax.random.uniform(share, ids.shape, maxval=self.config.image_code_noise)
        shares = jnp.take_along_axis(shares, documents % ids.shape[1], axis=1)  # one of each document
        learnt = jnp.pad(batch.loss_weights[:, :-1] > 0, ((0, 0), (1, 0)))  # weights are those of the next token
        replaced = (jax.random.uniform(where, ids.shape) < shares) & learnt & jnp.asarray(is_image_id)[ids]
        return jnp.where(replaced, jax.random.choice(which, jnp.asarray(image_ids), ids.shape), ids)

    def compiler_options(self, mesh: jax.sharding.Mesh) -> dict[str, bool | int | str]:
        return step_compiler_options(self.config, mesh)

    # Reports

    def signals(self, params: Params) -> dict[str, Array]:
        """Per layer the RMS of the QK-norms' scales. They start at 1; growing scales indicate diverging attention
        (section 2.3 of the paper)."""
        found, attention = {}, params["layers"]["attention"]
        for name in ("q_norm", "k_norm"):
            if name in attention:
                squares = jnp.square(attention[name]["scale"].astype(jnp.float32))
                found[f"{name}_scale"] = jnp.sqrt(jnp.mean(squares, axis=(1, 2)))  # [L]
        return found

    def summary(self, steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        totals: Counter[str] = Counter()
        for step in steps:
            totals.update(step)
        return {
            **self.means(totals),
            "z_loss": totals["z_loss"] / len(steps),
            "output_rms": math.sqrt(totals["output_square_sum"] / max(totals["token_sum"], 1)),
            "mean_log_z": totals["log_z_sum"] / max(totals["weight_sum"], 1e-8),
            "max_logit": max(step["max_logit"] for step in steps),
        }

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        return per_modality(sums)

    def progress(self, line: Mapping[str, Any]) -> dict[str, str]:
        return {"loss": f"{line['loss']:.3f}"}

    def work(self, batch: Batch) -> Work:
        length = batch.inputs.shape[1]
        tokens = self.config.batch_size * length
        return Work("tokens", tokens, tokens * flops_per_token(self.config, length))


def flops_per_token(config: TrainConfig, length: int) -> float:
    """FLOPs per trained token of a row, without gradients of frozen weights, which are not computed.

    With adapters, a frozen matrix takes part in two matmuls (forward, and gradient of its input) instead of three;
    attention and the adapters cost as usual. Training only the output layer takes the forward pass and the gradient of
    all its columns.
    """
    model = config.model
    if config.lora.rank:
        saved = 2 * matmul_parameters(model)
        return train_flops_per_token(model, length) - saved + 6 * adapter_parameters(model, config.lora)
    if config.trainable == "image_head":
        return forward_flops_per_token(model, length) + 2 * model.d_model * model.vocab_size
    return train_flops_per_token(model, length)


def step_compiler_options(
    config: TrainConfig | BenchTrainConfig, mesh: jax.sharding.Mesh
) -> dict[str, bool | int | str]:
    """XLA options with which train and evaluation steps are compiled."""
    outside = config.execution.remat_outside_loop(config.model.num_layers)
    return compiler_options(mesh, config.compiler_options, remat_outside_loop=outside)
