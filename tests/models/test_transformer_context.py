"""What a token can see: its own document, and through the KV cache what was read before."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import TransformerConfig
from chameleon_jax.models.transformer import KVCache, Transformer

PRE = TransformerConfig(
    vocab_size=24, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, init_std=0.3
)
SWIN = dataclasses.replace(PRE, norm_order="swin", qk_norm_groups=2)

# Differences are those of float32 sums taken in another order; logits are of size 1 to 10.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture(scope="module", params=[PRE, SWIN], ids=["pre", "swin"])
def model(request):
    """Config and a function from the model's arguments to what it returns."""
    config = request.param
    params = nn.unbox(jax.jit(Transformer(config).init)(jax.random.key(3), jnp.zeros((1, 1), jnp.int32)))
    return config, jax.jit(lambda *args: Transformer(config).apply(params, *args))


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, PRE.vocab_size, shape).astype(np.int32)


def span(start: int, stop: int, rows: int) -> np.ndarray:
    return np.tile(np.arange(start, stop, dtype=np.int32), (rows, 1))


def test_a_token_is_not_moved_by_what_comes_after_it(model):
    _, apply = model
    inputs = tokens(2, 8)
    changed = inputs.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % PRE.vocab_size
    before, after = apply(inputs), apply(changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.any(np.asarray(before[:, 5:] != after[:, 5:]), axis=-1))


@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 4], [9]], ids=str)
def test_reading_through_the_cache_equals_reading_at_once(model, chunks):
    config, apply = model
    inputs = tokens(2, 9)
    whole = apply(inputs)
    cache, parts, start = KVCache.empty(config, 2, 12, "float32"), [], 0
    for size in chunks:
        stop = start + size
        ones = np.ones((2, size), np.int32)
        logits, cache = apply(inputs[:, start:stop], span(start, stop, 2), ones, cache)
        parts.append(logits)
        start = stop
        assert int(cache.length) == stop
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, **CLOSE)


def test_rows_padded_on_the_left_continue_as_if_alone(model):
    config, apply = model
    lengths, prompt, total = [3, 5, 1], 5, 8
    documents = [tokens(total)[:length] for length in (length + total - prompt for length in lengths)]
    alone = [np.asarray(apply(document[None]))[0] for document in documents]

    padding = np.asarray(prompt) - lengths
    place = span(0, prompt, 3) - padding[:, None]
    real = place >= 0
    inputs = np.full((3, prompt), 7, np.int32)  # padding may hold any id
    for row, document in enumerate(documents):
        inputs[row, padding[row] :] = document[: lengths[row]]
    cache = KVCache.empty(config, 3, total, "float32")
    logits, cache = apply(inputs, np.maximum(place, 0), real.astype(np.int32), cache)
    assert np.all(np.isfinite(logits))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, padding[row] :], alone[row][:length], **CLOSE)

    for step in range(total - prompt):
        places = np.asarray(lengths)[:, None] + step
        inputs = np.stack([document[place] for document, place in zip(documents, places, strict=True)])
        logits, cache = apply(inputs, places.astype(np.int32), np.ones((3, 1), np.int32), cache)
        expected = [one[place[0]] for one, place in zip(alone, places, strict=True)]
        np.testing.assert_allclose(logits[:, 0], expected, **CLOSE)


def test_documents_packed_into_a_row_do_not_see_each_other(model):
    _, apply = model
    first, second = tokens(5), tokens(9)[5:]
    inputs = np.concatenate([first, second, [0, 0]])[None]
    positions = np.asarray([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0]], np.int32)
    segments = np.asarray([[1] * 5 + [2] * 4 + [0] * 2], np.int32)
    packed = apply(inputs, positions, segments)
    np.testing.assert_allclose(packed[0, :5], apply(first[None])[0], **CLOSE)
    np.testing.assert_allclose(packed[0, 5:9], apply(second[None])[0], **CLOSE)
    assert np.all(np.isfinite(packed))


def test_positions_matter_only_by_their_differences(model):
    """RoPE: shifting a whole document changes nothing."""
    _, apply = model
    inputs = tokens(1, 7)
    moved = apply(inputs, span(100, 107, 1))
    np.testing.assert_allclose(moved, apply(inputs), rtol=1e-4, atol=1e-4)
    stretched = apply(inputs, 2 * span(0, 7, 1))
    assert np.max(np.abs(stretched - apply(inputs))) > 1e-2


def test_the_cache_is_a_plain_tree_of_the_configured_shape_and_precision():
    cache = KVCache.empty(PRE, batch=3, slots=10, dtype="bfloat16")
    assert cache.k.shape == cache.v.shape == (2, 3, 10, 2, 4)  # layers, batch, slots, key/value heads, channels
    assert cache.k.dtype == cache.v.dtype == jnp.bfloat16
    assert len(jax.tree.leaves(cache)) == 4
