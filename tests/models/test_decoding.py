"""Decoding through lanes of a cache, against the Transformer reading whole sequences."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny_models import TRANSFORMER, transformer_params

from chameleon_jax.config import ConfigError, LoRAConfig, MeshConfig
from chameleon_jax.models.decode_kernels import BLOCK, OUTPUTS, multiply
from chameleon_jax.models.decoding import Cache, copy_lane, decode_weights, extend, extend_lane, head, readout
from chameleon_jax.models.lora import merge
from chameleon_jax.models.transformer import Transformer, abstract_params
from chameleon_jax.sharding import make_mesh, params_shardings

CONFIGS = {
    "grouped queries": TRANSFORMER,
    "swin": dataclasses.replace(TRANSFORMER, norm_order="swin", num_kv_heads=4, qk_norm_groups=4),
    "no norm of queries": dataclasses.replace(TRANSFORMER, qk_norm=False, num_kv_heads=1, qk_norm_groups=1),
}
LENGTH, SLOTS = 12, 16

# Differences are those of float32 sums taken in another order; logits are of size 1 to 10.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


@dataclasses.dataclass
class Model:
    """A tiny model, sequences, and their logits by the Transformer."""

    name: str

    def __post_init__(self):
        self.config = CONFIGS[self.name]
        self.params = transformer_params(self.config)
        self.weights = decode_weights(self.params, self.config, dtype="float32")
        self.head = head(self.params["output"], jnp.arange(self.config.vocab_size), dtype="float32")
        self.ids = np.random.default_rng(0).integers(0, self.config.vocab_size, (4, LENGTH)).astype(np.int32)
        self.logits = np.asarray(jax.jit(Transformer(self.config).apply)({"params": self.params}, self.ids))

    def empty(self, lanes: int, slots: int = SLOTS) -> Cache:
        return Cache.empty(self.config, lanes, slots, "float32")

    @functools.cached_property
    def extend(self):
        """Logits and caches."""

        @jax.jit
        def run(weights, ids, start, caches):
            hidden, caches = extend(weights, self.config, ids, start, caches)
            return readout(self.head, hidden), caches

        return functools.partial(run, self.weights)

    @functools.cached_property
    def extend_lane(self):
        return functools.partial(jax.jit(extend_lane, static_argnums=1), self.weights, self.config)

    def filled(self, lengths: dict[int, int], slots: int = SLOTS) -> Cache:
        """A lane for each sequence, with so many tokens of it, read in chunks that end in padding."""
        cache = self.empty(len(lengths), slots)
        for lane, (sequence, length) in enumerate(lengths.items()):
            for start in range(0, length, 4):
                chunk = np.full(4, 7, np.int32)
                part = self.ids[sequence, start : min(start + 4, length)]
                chunk[: len(part)] = part
                cache = self.extend_lane(chunk, start, lane, cache)
        return cache


@pytest.fixture(scope="module", params=CONFIGS)
def model(request) -> Model:
    return Model(request.param)


def test_lanes_of_different_lengths_go_on_as_if_alone(model):
    lengths = np.array([0, 5, 9, 2], np.int32)
    cache = model.filled(dict(enumerate(lengths)))
    for step in range(3):
        place = lengths + step
        ids = model.ids[np.arange(4), place][:, None]
        logits, (cache,) = model.extend(ids, place, [cache])
        np.testing.assert_allclose(logits[:, 0], model.logits[np.arange(4), place], **CLOSE)


def test_several_caches_of_different_slots_and_windows_of_tokens(model):
    """Lanes 0 and 1 in one cache, 2 and 3 in another; each reads a window of three tokens."""
    lengths = np.array([1, 6, 9, 3], np.int32)
    caches = [model.filled({0: 1, 1: 6}), model.filled({2: 9, 3: 3}, slots=LENGTH)]
    window = lengths[:, None] + np.arange(3)
    logits, caches = model.extend(model.ids[np.arange(4)[:, None], window], lengths, caches)
    np.testing.assert_allclose(logits, model.logits[np.arange(4)[:, None], window], **CLOSE)
    assert [(cache.lanes, cache.slots) for cache in caches] == [(2, SLOTS), (2, LENGTH)]


def test_a_whole_prompt_at_once_and_its_copy(model):
    cache = model.extend_lane(model.ids[2, :10], 0, 3, model.empty(4))
    cache = jax.jit(copy_lane)(cache, 3, 1)
    ids = np.repeat(model.ids[2, 10:11], 4)[:, None]
    logits, _ = model.extend(ids, np.full(4, 10, np.int32), [cache])
    for lane in (1, 3):
        np.testing.assert_allclose(logits[lane, 0], model.logits[2, 10], **CLOSE)
    assert not np.allclose(logits[0, 0], logits[1, 0], **CLOSE)


def test_writes_past_the_last_slot_are_dropped(model):
    before = model.filled({0: 11, 1: 11, 2: 11, 3: 11})
    start = np.array([SLOTS, SLOTS - 1, SLOTS + 7, 11], np.int32)
    _, (after,) = model.extend(model.ids[:, :3], start, [before])
    by_chunk = model.extend_lane(model.ids[1, :4], SLOTS - 1, 1, before)
    for old, new, chunk in zip(*map(jax.tree.leaves, (before, after, by_chunk)), strict=True):
        changed = [np.unique(np.argwhere(np.asarray(old != x))[:, 0]).tolist() for x in (new, chunk)]
        assert changed == [[1, 3], [1]]
        np.testing.assert_allclose(chunk[1], new[1], **CLOSE)


def test_a_head_holds_the_columns_asked_for(model):
    ids = jnp.asarray([5, 0, 63, 7])
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, model.config.d_model)), jnp.float32)
    some = readout(head(model.params["output"], ids, dtype="float32"), hidden)
    np.testing.assert_allclose(some, (hidden @ model.params["output"])[..., ids], **CLOSE)


def relative_error(got, exact) -> float:
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("dtype", "quantization", "cache", "least", "most"),
    [
        ("bfloat16", None, "bfloat16", 1e-3, 2e-2),
        ("float32", "int8", "float32", 1e-3, 3e-2),
        ("float32", None, "int8", 1e-3, 2e-2),
        ("bfloat16", "int8", "int8", 1e-3, 3e-2),
    ],
)
@pytest.mark.parametrize("lanes", [1, 4])
def test_narrow_weights_and_caches_stay_near_float32(dtype, quantization, cache, least, most, lanes):
    config, ids = TRANSFORMER, jnp.arange(TRANSFORMER.vocab_size)
    params = transformer_params(config)
    weights = decode_weights(params, config, dtype=dtype, quantization=quantization)
    columns = head(params["output"], ids, dtype=dtype, quantization=quantization)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (lanes, LENGTH)).astype(np.int32)

    @jax.jit
    def logits(weights, columns, cache):
        """Token by token, in a loop as decoding runs in."""

        def step(cache, token):
            place, ids = token
            hidden, (cache,) = extend(weights, config, ids[:, None], jnp.full(lanes, place), [cache])
            return cache, readout(columns, hidden[:, 0])

        return jax.lax.scan(step, cache, (jnp.arange(LENGTH), tokens.T))[1]

    got = logits(weights, columns, Cache.empty(config, lanes, SLOTS, cache))
    exact = jax.jit(Transformer(config).apply)({"params": params}, tokens)
    assert got.dtype == jnp.float32
    assert least < relative_error(np.swapaxes(got, 0, 1), exact) < most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_row_of_a_product_does_not_depend_on_the_others(dtype):
    """To the bit, from two rows on, so that a lane goes on alike whatever is read beside it."""
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(24, 96)), "bfloat16" if dtype == "bfloat16" else "float32")
    matrix = jnp.asarray(rng.normal(size=(80, 96)) * 30, dtype)
    product = jax.jit(multiply)
    whole = np.asarray(product(rows, matrix))
    exact = np.asarray(rows, np.float64) @ np.asarray(matrix, np.float64).T
    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-3)
    for count in (2, 5, 8, 9, 16, 17):
        np.testing.assert_array_equal(product(rows[-count:], matrix), whole[-count:])
    np.testing.assert_allclose(product(rows[:1], matrix), exact[:1], rtol=1e-5, atol=1e-3)


def test_a_product_of_many_rows_holds_no_float32_copy_of_an_int8_matrix():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(40, 96)), jnp.float32)
    matrix = jnp.asarray(rng.normal(size=(8 * OUTPUTS + 24, 96)) * 30, jnp.int8)
    product = jax.jit(multiply).lower(rows, matrix).compile()
    exact = np.asarray(rows, np.float64) @ np.asarray(matrix, np.float64).T
    np.testing.assert_allclose(product(rows, matrix), exact, rtol=1e-5, atol=1e-3)
    assert product.memory_analysis().temp_size_in_bytes < 4 * matrix.size / 2


def test_lanes_longer_than_a_block_of_attention():
    """Lanes of very different lengths in slots that are no multiple of the block."""
    length = 2 * BLOCK + 40
    config = dataclasses.replace(TRANSFORMER, num_layers=1)
    params = transformer_params(config)
    weights = decode_weights(params, config, dtype="float32")
    columns = head(params["output"], jnp.arange(config.vocab_size), dtype="float32")
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, length)).astype(np.int32)
    exact = np.asarray(jax.jit(Transformer(config).apply)({"params": params}, ids))[0]

    cache = Cache.empty(config, 3, length + 3, "float32")
    read = jax.jit(extend_lane, static_argnums=1)
    for lane in range(3):
        cache = read(weights, config, ids[0], 0, lane, cache)
    places = np.array([3, BLOCK, length - 1], np.int32)
    hidden, _ = jax.jit(extend, static_argnums=1)(weights, config, ids[0, places][:, None], places, [cache])
    np.testing.assert_allclose(readout(columns, hidden)[:, 0], exact[places], **CLOSE)


def test_decoding_on_a_mesh_equals_one_device():
    config = TRANSFORMER
    params = transformer_params(config)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params, params_shardings(abstract_params(config), mesh))
    ids, start = np.array([[5], [9]], np.int32), np.array([0, 3], np.int32)

    def run(params, quantization):
        weights = decode_weights(params, config, dtype="float32", quantization=quantization)
        columns = head(params["output"], jnp.arange(31), dtype="float32", quantization=quantization)
        cache = Cache.empty(config, 2, SLOTS, "float32", weights)
        cache = jax.jit(extend_lane, static_argnums=1)(weights, config, np.arange(3), 0, 1, cache)
        hidden, _ = jax.jit(extend, static_argnums=1)(weights, config, ids, start, [cache])
        return weights, cache, np.asarray(jax.jit(readout)(columns, hidden))[..., :31]  # on a mesh with a zero behind

    for quantization in (None, "int8"):
        *_, one = run(params, quantization)
        weights, cache, several = run(placed, quantization)
        np.testing.assert_allclose(several, one, **CLOSE)
        specs = {
            name: getattr(weights.layers[0], name).values.sharding.spec for name in ("qkv", "o", "gate_up", "down")
        }
        assert specs == {
            "qkv": P("tensor", "fsdp"),
            "o": P("fsdp", "tensor"),
            "gate_up": P("tensor", "fsdp"),
            "down": P("fsdp", "tensor"),
        }
        assert cache.k[0][0].addressable_shards[0].data.shape[1] == config.num_kv_heads // 2


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_step_copies_no_cache_and_widens_no_matrix(lanes):
    """Temporaries of a loop over steps, taken from XLA, with caches and weights that are large beside activations."""
    config = dataclasses.replace(TRANSFORMER, d_model=256, head_dim=64, mlp_dim=256)
    weights = jax.eval_shape(
        lambda: decode_weights(transformer_params(config), config, dtype="float32", quantization="int8")
    )
    cache = jax.eval_shape(lambda: Cache.empty(config, lanes, BLOCK, "float32"))

    def steps(weights, ids, start, cache):
        def step(_, state):
            ids, start, cache = state
            hidden, (cache,) = extend(weights, config, ids, start, [cache])
            return jnp.argmax(hidden, axis=-1).astype(jnp.int32), start + 1, cache

        return jax.lax.fori_loop(0, 8, step, (ids, start, cache))

    ids, start = jax.ShapeDtypeStruct((lanes, 1), jnp.int32), jax.ShapeDtypeStruct((lanes,), jnp.int32)
    memory = jax.jit(steps, donate_argnums=3).lower(weights, ids, start, cache).compile().memory_analysis()
    of_cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= of_cache
    assert memory.temp_size_in_bytes < of_cache / 4  # one layer's keys
    assert memory.temp_size_in_bytes < 4 * 256 * 256  # the smallest matrix in float32


def test_adapters_are_refused_until_merged():
    lora = LoRAConfig(rank=2, targets=("q", "down"))
    params = transformer_params(TRANSFORMER, lora=lora)
    with pytest.raises(ConfigError, match="q_lora_a"):
        decode_weights(params, TRANSFORMER, dtype="float32")
    decode_weights(merge(params, lora), TRANSFORMER, dtype="float32")
