"""The image tokenizer's network against the specification's numbers and NumPy by hand."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import ImageTokenizerConfig, ImageTokenizerExecutionConfig
from chameleon_jax.models import vq
from chameleon_jax.models.vq import (
    Encoder,
    ResBlock,
    VQModel,
    _convolve,
    attend,
    depth_to_space,
    group_norm,
    nearest_code,
    space_to_depth,
    upsample_conv,
)


def shapes_of(config: ImageTokenizerConfig):
    pixels = jax.ShapeDtypeStruct((1, config.resolution, config.resolution, 3), jnp.float32)
    return jax.eval_shape(VQModel(config).init, jax.random.key(0), pixels)["params"]


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


# ----------------------------------------------------------------------------------------------------------------------
# The whole network (vector V20)
# ----------------------------------------------------------------------------------------------------------------------

TINY = ImageTokenizerConfig(
    resolution=16,
    channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=8,
    code_dim=8,
    num_codes=16,
)


def torch_key(path: tuple[str, ...]) -> str:
    """encoder, down_0_block_1, norm1, scale -> encoder.down.0.block.1.norm1.weight, the name in the released file."""
    if path == ("codebook",):
        return "quantize.embedding.weight"
    *modules, name = path
    words = []
    for module in modules:
        first, *rest = module.split("_")
        if first in ("down", "up"):
            level, kind, *number = rest
            words += [first, level, kind, *(number or ["conv"])]
        elif first == "mid":
            words += [first, "_".join(rest)]
        else:
            words.append(module)
    return ".".join([*words, "bias" if name == "bias" else "weight"])


def closed_form_params(config: ImageTokenizerConfig, dtype: jnp.dtype):
    """V20's weights: the j-th key in sorted order has elements 0.1 sin(0.37 n + j) in torch's layout."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes_of(config))
    keys = [torch_key(tuple(part.key for part in path)) for path, _ in leaves]
    place = {key: j for j, key in enumerate(sorted(keys))}
    assert len(place) == 125

    def value(key: str, shape: tuple[int, ...]) -> jax.Array:
        convolution = len(shape) == 4
        torch_shape = (shape[3], shape[2], shape[0], shape[1]) if convolution else shape
        n = np.arange(np.prod(shape))
        if key == "quantize.embedding.weight":
            flat = 0.5 * np.sin(1.3 * n + 0.2)
        else:
            flat = 0.1 * np.sin(0.37 * n + place[key])
        if "norm" in key.split(".")[-2] and key.endswith("weight"):
            flat = flat + 1
        array = flat.reshape(torch_shape)
        return jnp.asarray(array.transpose(2, 3, 1, 0) if convolution else array, dtype)

    return structure.unflatten([value(key, leaf.shape) for key, (_, leaf) in zip(keys, leaves, strict=True)])


@pytest.fixture(scope="module", params=["float64", "float32"])
def tiny(request):
    """V20's latents, codes and decoder output, and how close they can be to six decimals of float64.

    float64 shows that the formulas are right to the last decimal; float32 is what the tokenizer runs in.
    """
    dtype = jnp.dtype(request.param)
    pixels = np.sin(0.1 * np.arange(3 * 16 * 16)).reshape(1, 3, 16, 16).transpose(0, 2, 3, 1)
    model = VQModel(TINY)

    @jax.jit
    def run(params, pixels):
        apply = functools.partial(model.apply, {"params": params})
        codes = apply(pixels, method="encode")
        return apply(pixels, method="latents"), codes, apply(codes, method="decode"), apply(pixels)

    with jax.enable_x64(dtype == jnp.float64):
        outputs = run(closed_form_params(TINY, dtype), jnp.asarray(pixels, dtype))
        assert outputs[0].dtype == outputs[2].dtype == dtype
        return [np.asarray(output) for output in outputs], 6e-7 if dtype == jnp.float64 else 4e-6


def test_latents_are_those_of_the_specification(tiny):
    (z, *_), precision = tiny
    assert z.shape == (1, 8, 8, 8)
    first = [0.032944, 0.010413, 0.004634, -0.102358, -0.015794, -0.180002, -0.002048, -0.196056]
    np.testing.assert_allclose(z[0, 0, 0], first, rtol=0, atol=precision)
    np.testing.assert_allclose([z.mean(), z.std(ddof=1)], [-0.0454358, 0.1431845], rtol=0, atol=precision)


def test_codes_are_those_of_the_specification(tiny):
    rows = [
        [0, 0, 0, 14, 2, 13, 13, 13], [0, 2, 2, 13, 13, 13, 0, 0], [13, 13, 13, 13, 13, 0, 0, 0],
        [13, 13, 13, 13, 0, 0, 0, 0], [14, 14, 14, 14, 0, 0, 0, 13], [2, 13, 13, 13, 13, 0, 0, 13],
        [13, 13, 13, 13, 13, 13, 0, 13], [13, 13, 13, 0, 0, 13, 13, 13],
    ]  # fmt: skip
    assert tiny[0][1].tolist() == [[code for row in rows for code in row]]


def test_decoded_pixels_are_those_of_the_specification(tiny):
    (_, _, pixels, _), precision = tiny
    assert pixels.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(pixels[0, 0, 0], [0.074789, 0.058226, 0.032964], rtol=0, atol=precision)
    np.testing.assert_allclose(pixels[0, 7, 9], [0.072052, 0.061876, 0.042767], rtol=0, atol=precision)
    np.testing.assert_allclose([pixels.mean(), pixels.std(ddof=1)], [0.0607062, 0.1892459], rtol=0, atol=precision)


def test_the_squared_distance_to_the_codes_is_that_of_the_specification(tiny):
    codebook = 0.5 * np.sin(1.3 * np.arange(16 * 8) + 0.2).reshape(16, 8)
    (z, codes, *_), _ = tiny
    squared = np.mean((z - codebook[codes].reshape(z.shape)) ** 2)
    assert squared == pytest.approx(0.1296240, abs=1e-6)
    assert 1.25 * squared == pytest.approx(0.1620300, abs=1e-6)  # both terms of the legacy loss have this value


def test_calling_the_model_is_the_round_trip(tiny):
    (_, _, decoded, round_trip), _ = tiny
    np.testing.assert_array_equal(round_trip, decoded)


# ----------------------------------------------------------------------------------------------------------------------
# Parts
# ----------------------------------------------------------------------------------------------------------------------


def test_the_default_config_has_the_released_number_of_parameters():
    params = shapes_of(ImageTokenizerConfig())
    assert {name: count(part) for name, part in params.items()} == {
        "encoder": 27_194_880,
        "decoder": 39_294_851,
        "codebook": 2_097_152,
        "quant_conv": 65_792,
        "post_quant_conv": 65_792,
    }
    assert count(params) == 68_718_467
    assert len(jax.tree.leaves(params)) == 293


def test_downsampling_pads_below_and_to_the_right_only():  # V8
    config = ImageTokenizerConfig(
        resolution=4, channels=1, channel_multipliers=(1, 1), num_res_blocks=1, latent_channels=1, code_dim=1,
        num_codes=2, norm_groups=1,
    )  # fmt: skip
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes_of(config)["encoder"])
    # Everything before and after the downsampling passes its input on; the blocks add nothing.
    params["conv_in"]["kernel"] = params["conv_in"]["kernel"].at[1, 1, 0, 0].set(1.0)
    params["down_0_downsample"]["kernel"] = jnp.ones((3, 3, 1, 1))
    pixels = jnp.zeros((1, 4, 4, 3)).at[..., 0].set(jnp.arange(16.0).reshape(1, 4, 4))
    _, state = Encoder(config).apply({"params": params}, pixels, capture_intermediates=True)
    down = state["intermediates"]["down_0_downsample"]["__call__"][0]
    assert down[0, :, :, 0].tolist() == [[45.0, 39.0], [66.0, 50.0]]


def test_group_norm_is_that_of_the_specification():  # V9
    y = group_norm(jnp.arange(64.0).reshape(1, 1, 1, 64), jnp.ones(64), jnp.zeros(64), groups=32)
    np.testing.assert_allclose(y.reshape(32, 2), [[-0.999998, 0.999998]] * 32, rtol=0, atol=1e-6)


def test_group_norm_equals_numpy_even_far_from_zero():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 3, 5, 8)) + 300).astype(np.float32)
    scale, bias = rng.normal(size=(2, 8)).astype(np.float32)
    y = x.astype(np.float64).reshape(2, 15, 4, 2)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
    got = group_norm(*map(jnp.asarray, (x, scale, bias)), groups=4)
    np.testing.assert_allclose(got, y.reshape(x.shape) * scale + bias, rtol=0, atol=2e-4)


@pytest.mark.parametrize("swish", [False, True])
def test_gradients_of_group_norm_are_those_of_its_formula(swish):
    def plain(x, scale, bias):
        y = x.reshape(2, 15, 4, 2)
        y = (y - y.mean((1, 3), keepdims=True)) / jnp.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
        y = y.reshape(x.shape) * scale + bias
        return y / (1 + jnp.exp(-y)) if swish else y

    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(rng.normal(size=shape)) for shape in ((2, 3, 5, 8), 8, 8)]
        weights = jnp.asarray(rng.normal(size=(2, 3, 5, 8)))
        value, gradients = jax.value_and_grad(lambda *a: jnp.sum(weights * group_norm(*a, 4, swish)), (0, 1, 2))(
            *arguments
        )
        wanted, wanted_gradients = jax.value_and_grad(lambda *a: jnp.sum(weights * plain(*a)), (0, 1, 2))(*arguments)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    for got, each in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(got, each, rtol=0, atol=1e-12)


def test_upsampling_repeats_pixels_before_it_convolves():
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(3, 3, 5, 6))
    larger = np.pad(x.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = sum(larger[:, i : i + 6, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
    with jax.enable_x64(True):
        got = upsample_conv(jnp.asarray(x), jnp.asarray(kernel), "highest")
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def test_attention_by_parts_of_the_map_is_attention_over_the_whole():
    rng = np.random.default_rng(4)
    q, k, v = rng.normal(size=(3, 1, 48, 48, 4))
    scores = q.reshape(-1, 4) @ k.reshape(-1, 4).T / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = (weights / weights.sum(-1, keepdims=True)) @ v.reshape(-1, 4)
    with jax.enable_x64(True):
        got = attend(*map(jnp.asarray, (q, k, v)), "highest")
    np.testing.assert_allclose(got.reshape(-1, 4), wanted, rtol=0, atol=1e-12)


def test_remat_and_bfloat16_change_rounding_only():
    config = ImageTokenizerConfig(
        resolution=8, channels=8, channel_multipliers=(1,), num_res_blocks=1, latent_channels=4, code_dim=4,
        num_codes=8, norm_groups=4,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes_of(config))
    pixels = jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)

    def gradients(**execution):
        model = VQModel(config, ImageTokenizerExecutionConfig(**execution))

        def loss(params):
            z = model.apply({"params": params}, pixels, method="latents")
            output = model.apply({"params": params}, z, method="decode_latents")
            assert z.dtype == output.dtype == jnp.float32
            return jnp.mean(jnp.square(output - pixels))

        return jax.flatten_util.ravel_pytree(jax.jit(jax.grad(loss))(params))[0]

    plain, rounded = gradients(), gradients(compute_dtype="bfloat16", remat="blocks", precision="default")
    assert 1e-4 < np.linalg.norm(rounded - plain) / np.linalg.norm(plain) < 0.05
    for remat in ("blocks", "save_convolutions"):
        np.testing.assert_allclose(gradients(remat=remat), plain, rtol=0, atol=2e-6 * np.abs(plain).max())


@pytest.mark.parametrize(("remat", "convolutions"), [("none", 2), ("save_convolutions", 2), ("blocks", 3)])
def test_the_backward_pass_of_a_block_convolves_again_only_with_remat_of_blocks(remat, convolutions):
    """The second convolution need not be repeated: nothing but the sum depends on what it makes."""
    block = vq._block(ResBlock, ImageTokenizerExecutionConfig(remat=remat), 4, 2, name="block")
    x = jnp.ones((1, 4, 4, 4))
    params = jax.eval_shape(block.init, jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda params, x: jnp.sum(block.apply(params, x) ** 3), argnums=(0, 1)))
    compiled = step.lower(params, jax.ShapeDtypeStruct(x.shape, x.dtype)).compile().as_text()
    gradients = 2 * 2  # of kernels and maps
    assert len(re.findall(r" convolution\(", compiled)) - gradients == convolutions


def test_nearest_code_equals_brute_force():
    rng = np.random.default_rng(1)
    z, codebook = rng.normal(size=(2, 5, 5, 6)).astype(np.float32), rng.normal(size=(40, 6)).astype(np.float32)
    distances = np.sum((z[..., None, :].astype(np.float64) - codebook) ** 2, axis=-1)
    codes = nearest_code(jnp.asarray(z), jnp.asarray(codebook))
    np.testing.assert_array_equal(codes, np.argmin(distances, axis=-1))
    assert len(np.unique(codes)) > 20


def test_ties_go_to_the_lowest_code():
    codebook = jnp.asarray([[4.0, 4.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    z = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-3.0, -3.0]])
    assert nearest_code(z, codebook).tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("side", [1, 2, 3])
def test_space_to_depth_keeps_every_pixel_and_is_undone(side):
    x = jnp.arange(2 * 6 * 12 * 3.0).reshape(2, 6, 12, 3)
    folded = space_to_depth(x, side)
    assert folded.shape == (2, 6 // side, 12 // side, 3 * side**2)
    np.testing.assert_array_equal(depth_to_space(folded, side), x)


def test_space_to_depth_folds_each_square_of_pixels_into_one_place():
    x = np.arange(4 * 4 * 3.0).reshape(1, 4, 4, 3)
    folded = np.asarray(space_to_depth(jnp.asarray(x), 2))
    for row in range(2):
        for column in range(2):
            square = x[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(folded[0, row, column], square.reshape(-1))


def test_a_tokenizer_that_folds_pixels_has_the_grid_its_config_says():
    config = ImageTokenizerConfig(
        resolution=16, space_to_depth=4, channels=8, channel_multipliers=(1, 1), num_res_blocks=1, latent_channels=4,
        code_dim=4, num_codes=8, norm_groups=4,
    )  # fmt: skip
    assert (config.downsampling, config.grid, config.codes_per_image) == (8, 2, 4)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), shapes_of(config))
    assert params["encoder"]["conv_in"]["kernel"].shape == (3, 3, 3 * 4 * 4, 8)
    pixels = jnp.asarray(rng.uniform(-1, 1, (3, 16, 16, 3)), jnp.float32)

    @jax.jit
    def run(params, pixels):
        codes = VQModel(config).apply({"params": params}, pixels, method="encode")
        return codes, VQModel(config).apply({"params": params}, codes, method="decode")

    codes, decoded = run(params, pixels)
    assert codes.shape == (3, 4)
    assert decoded.shape == pixels.shape


@pytest.mark.parametrize(("fold", "multipliers"), [(4, (1,)), (1, (1, 2, 1))])
def test_independent_patches_are_encoded_as_pictures_of_their_own(fold, multipliers):
    config = ImageTokenizerConfig(
        resolution=16, space_to_depth=fold, channels=8, channel_multipliers=multipliers, num_res_blocks=1,
        latent_channels=4, code_dim=4, num_codes=64, norm_groups=2, independent_patches=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes_of(config))
    pixels = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)

    def latents(config, pixels):
        return np.asarray(VQModel(config).apply({"params": params}, jnp.asarray(pixels), method="latents"))

    whole = latents(config, pixels)
    assert whole.shape == (2, 4, 4, 4)
    alone = dataclasses.replace(config, resolution=4, independent_patches=False)  # the same network, a patch a picture
    for row, column in [(0, 0), (1, 2), (3, 3)]:
        patch = pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_allclose(latents(alone, patch)[:, 0, 0], whole[:, row, column], rtol=0, atol=1e-5)
    other = pixels.copy()
    other[:, 4:8, 8:12] = 1.0
    changed = np.any(np.abs(latents(config, other) - whole) > 1e-6, axis=(0, 3))
    assert np.argwhere(changed).tolist() == [[1, 2]]
    as_one = dataclasses.replace(config, independent_patches=False)
    assert np.all(np.any(np.abs(latents(as_one, other) - latents(as_one, pixels)) > 1e-6, axis=(0, 3)))


def test_a_map_of_one_position_is_convolved_as_any_other():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 1, 1, 5), (3, 3, 5, 7)))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": jax.lax.Precision.HIGHEST}
    ours, xla = (
        functools.partial(convolve, x, window_strides=(1, 1), padding=[(1, 1), (1, 1)], **options)
        for convolve in (_convolve, jax.lax.conv_general_dilated)
    )
    np.testing.assert_allclose(ours(rhs=kernel), xla(rhs=kernel), rtol=1e-5, atol=1e-5)
    gradients = (jax.grad(lambda k, f=f: jnp.sum(jnp.sin(f(rhs=k))))(kernel) for f in (ours, xla))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)
