"""What the image tokenizer's network takes in memory and moves between devices, by XLA's own account."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.compilation.collectives import read_collectives
from chameleon_jax.config import MeshConfig
from chameleon_jax.models.vq import attend, group_norm, nearest_code
from chameleon_jax.runtime.compiler_options import convolution_options
from chameleon_jax.sharding import batch_sharding, make_mesh, replicated


@pytest.mark.parametrize("num_codes", [8192, 65536])
def test_the_distances_to_all_codes_never_exist_at_once(num_codes):
    """Latents of four pictures of 512 x 512."""
    z = jax.ShapeDtypeStruct((4, 32, 32, 256), jnp.float32)
    codebook = jax.ShapeDtypeStruct((num_codes, 256), jnp.float32)
    memory = jax.jit(nearest_code).lower(z, codebook).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 6 * 4 * z.size < 4 * 4 * 32 * 32 * num_codes


def test_of_equal_codes_in_different_parts_of_the_codebook_the_first_is_taken():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(1100, 4)).astype(np.float32)
    codebook = np.concatenate([codes, codes, codes[:7]])  # a last part that is not full
    z = rng.normal(size=(3, 5, 5, 4)).astype(np.float32)
    wanted = np.argmin(np.sum((z[..., None, :].astype(np.float64) - codes) ** 2, axis=-1), axis=-1)
    np.testing.assert_array_equal(nearest_code(jnp.asarray(z), jnp.asarray(codebook)), wanted)
    assert wanted.max() > 1024


def test_each_device_finds_the_codes_of_its_own_pictures():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rng = np.random.default_rng(1)
    z, codebook = rng.normal(size=(8, 4, 4, 8)).astype(np.float32), rng.normal(size=(3000, 8)).astype(np.float32)
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.P(batch_sharding(mesh).spec[0]))
        arguments = jax.device_put(z, rows), jax.device_put(codebook, replicated(mesh))
        compiled = jax.jit(nearest_code).lower(*arguments).compile()
        codes = compiled(*arguments)
    assert not read_collectives(compiled.as_text(), mesh.size).collectives
    assert codes.sharding.is_equivalent_to(rows, codes.ndim)
    np.testing.assert_array_equal(codes, nearest_code(jnp.asarray(z), jnp.asarray(codebook)))


def test_scores_of_attention_exist_for_1024_queries_at_a_time():
    """A map of 64 x 64, whose scores take 64 MiB in all."""
    maps = [jax.ShapeDtypeStruct((1, 64, 64, 8), jnp.float32)] * 3

    def gradients(q, k, v):
        return jax.grad(lambda *maps: jnp.sum(attend(*maps, "highest")), argnums=(0, 1, 2))(q, k, v)

    for function, copies in ((lambda *maps: attend(*maps, "highest"), 2.5), (gradients, 3.5)):
        memory = jax.jit(function).lower(*maps).compile().memory_analysis()
        assert memory.temp_size_in_bytes < copies * 4 * 1024 * 64**2


def test_group_norm_keeps_one_copy_of_the_map_at_most_and_for_its_gradient_alone():
    x, scale = jax.ShapeDtypeStruct((1, 128, 128, 32), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.float32)

    def gradients(x, scale, dy):
        return jax.vjp(lambda x, scale: group_norm(x, scale, scale, 8, True), x, scale)[1](dy)

    alone = jax.jit(lambda x, scale: group_norm(x, scale, scale, 8, True)).lower(x, scale).compile().memory_analysis()
    both = jax.jit(gradients).lower(x, scale, x).compile().memory_analysis()
    assert alone.temp_size_in_bytes < 0.1 * 4 * x.size
    assert both.temp_size_in_bytes < 1.1 * 4 * x.size


def test_no_library_that_is_slow_at_gradients_of_kernels_convolves_large_maps_on_a_cpu():
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    options = convolution_options(jax.local_devices()[0], 128)
    assert "ynn" not in jax.jit(convolve).lower(x, kernel).compile(compiler_options=options).as_text()
    assert convolution_options(jax.local_devices()[0], 64) == {}
