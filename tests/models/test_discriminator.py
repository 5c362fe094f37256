"""The discriminator against the PatchGAN of taming-transformers, written out in torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from chameleon_jax.config import ConfigError
from chameleon_jax.models.discriminator import Discriminator
from chameleon_jax.training.adversarial import discriminator_loss


def pictures(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)), jnp.float32)


def random_params(model: Discriminator):
    """Kernels are larger than initial ones, so that scores are not all near zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pictures(1, 32, 32))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(leaf.ndim == 1, 0.1, leaf.shape), jnp.float32), shapes)


def in_torch(params, stages: int, norm: str):
    """The same network as a `torch.nn.Sequential`; norms have 32 groups."""
    from torch import nn

    layers, names = [], ["conv_in"]
    shapes = {name: layer["kernel"].shape for name, layer in params.items() if "conv" in name}
    layers += [nn.Conv2d(*shapes["conv_in"][2:], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for stage in range(1, stages + 1):
        into, out = shapes[f"conv_{stage}"][2:]
        layers += [
            nn.Conv2d(into, out, 4, stride=2 if stage < stages else 1, padding=1, bias=False),
            nn.BatchNorm2d(out) if norm == "batch" else nn.GroupNorm(32, out, eps=1e-6),
            nn.LeakyReLU(0.2),
        ]
        names += [f"conv_{stage}", f"norm_{stage}"]
    layers.append(nn.Conv2d(*shapes["conv_out"][2:], 4, stride=1, padding=1))
    network = nn.Sequential(*layers).train()
    network.load_state_dict(
        {
            f"{index}.{theirs}": torch_layout(params[name][ours])
            for index, name in zip(
                [i for i, layer in enumerate(layers) if list(layer.parameters())], [*names, "conv_out"], strict=True
            )
            for ours, theirs in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias"))
            if ours in params[name]
        },
        strict=norm == "group",  # BatchNorm's running averages are not compared
    )
    return network


def torch_layout(array):
    import torch

    array = np.array(array)
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array)


@pytest.mark.torch
@pytest.mark.parametrize(("norm", "stages"), [("batch", 3), ("group", 2)])
def test_scores_and_gradients_are_those_of_torch(norm, stages):
    torch = pytest.importorskip("torch")
    model, x = Discriminator(channels=32, stages=stages, norm=norm), pictures(2, 32, 40)
    params = random_params(model)

    @jax.jit
    def scores_and_gradients(params, x):
        def loss(params, x):
            scores = model.apply({"params": params}, x)
            return jnp.sum(jnp.sin(scores)), scores

        grads, scores = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return scores, *grads

    scores, param_grads, x_grad = scores_and_gradients(params, x)
    network = in_torch(params, stages, norm)
    inputs = torch.from_numpy(np.array(x)).requires_grad_()
    expected = network(inputs.permute(0, 3, 1, 2))[:, 0]
    expected.sin().sum().backward()
    assert scores.shape == {2: (2, 6, 8), 3: (2, 2, 3)}[stages]
    assert np.std(scores) > 0.1
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=0, atol=1e-4)
    grad_network = in_torch(param_grads, stages, norm)
    for (name, parameter), grad in zip(network.named_parameters(), grad_network.parameters(), strict=True):
        want = parameter.grad.numpy()
        np.testing.assert_allclose(grad.detach(), want, rtol=0, atol=1e-3 * np.abs(want).max(), err_msg=name)
    want = inputs.grad.numpy()
    np.testing.assert_allclose(x_grad, want, rtol=0, atol=1e-3 * np.abs(want).max())


def test_it_has_the_size_and_initial_values_of_the_published_one():
    params = jax.jit(Discriminator(norm="batch").init)(jax.random.key(0), pictures(1, 32, 32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_765_633
    np.testing.assert_allclose(np.std(params["conv_3"]["kernel"]), 0.02, rtol=0.01)
    np.testing.assert_allclose(np.std(params["norm_3"]["scale"]), 0.02, rtol=0.1)
    np.testing.assert_allclose(np.mean(params["norm_3"]["scale"]), 1, rtol=0.01)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_loss_and_gradients_on_eight_devices_are_those_of_one(norm):
    model, real, fake = Discriminator(4, stages=1, norm=norm), pictures(8, 8, 8, seed=1), pictures(8, 8, 8, seed=2)

    @jax.jit
    @jax.value_and_grad
    def loss(params, real, fake):
        scores = (model.apply({"params": params}, x) for x in (real, fake))
        return jnp.mean(discriminator_loss(*scores, "vanilla"))

    over_devices = NamedSharding(jax.make_mesh((8,), ("data",), (AxisType.Auto,)), PartitionSpec("data"))
    params = random_params(model)
    one, eight = loss(params, real, fake), loss(params, *jax.device_put((real, fake), over_devices))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight)


def test_bfloat16_is_for_computing_only():
    model, x = Discriminator(4, stages=1), pictures(2, 8, 8)
    params = random_params(model)
    scores = jax.jit(model.apply)({"params": params}, x)
    low = jax.jit(model.clone(dtype=jnp.bfloat16).apply)({"params": params}, x)
    assert low.dtype == jnp.float32
    assert 0 < np.max(np.abs(low - scores)) < 0.02 * np.max(np.abs(scores))


def test_pictures_without_a_patch_are_rejected():
    scores = lambda x: jax.eval_shape(Discriminator().init_with_output, jax.random.key(0), x)[0]  # noqa: E731
    with pytest.raises(ConfigError, match=r"stages = 3 needs pictures of at least 24 pixels a side, not 16 x 64"):
        scores(pictures(1, 16, 64))
    assert scores(pictures(1, 24, 24)).shape == (1, 1, 1)
