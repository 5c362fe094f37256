"""The functions of attention against NumPy by hand (float64) and the specification's vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.models.attention import apply_rope, attend, layer_norm, rms_norm, rope_sin_cos
from chameleon_jax.models.attention_mask import Mask


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def once_rounded(x: np.ndarray) -> np.ndarray:
    """float64 -> bfloat16 in one rounding, as float32 for comparison."""
    return np.asarray(jnp.asarray(x, jnp.float32).astype(jnp.bfloat16), np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# Norms
# ----------------------------------------------------------------------------------------------------------------------

X = jnp.asarray([1.0, 2.0, 3.0, 4.0])
GAMMA = jnp.asarray([1.0, 2.0, 1.0, 0.5])


def test_layer_norm_is_that_of_the_specification():  # V3
    y = layer_norm(X[None], GAMMA[None], jnp.asarray([[0.0, 0.1, -0.1, 0.2]]), eps=1e-5)
    np.testing.assert_allclose(y[0], [-1.341635, -0.794424, 0.347212, 0.870818], rtol=0, atol=1e-6)


def test_rms_norm_is_that_of_the_specification():  # V4
    np.testing.assert_allclose(
        rms_norm(X, GAMMA, eps=1e-5), [0.365148, 1.460593, 1.095444, 0.730296], rtol=0, atol=1e-6
    )


def rms_norm_by_hand(x, scale, eps):
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def layer_norm_by_hand(x, scale, bias, eps):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale + bias


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_norms_equal_numpy(eps):
    x, scale, bias = 3 * normal(2, 5, 4, 8) + 1, normal(4, 8, seed=1), normal(4, 8, seed=2)
    rms = rms_norm(jnp.asarray(x), jnp.asarray(scale[0]), eps)
    layer = layer_norm(*map(jnp.asarray, (x, scale, bias)), eps)
    np.testing.assert_allclose(rms, rms_norm_by_hand(x, scale[0], eps), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer, layer_norm_by_hand(x, scale, bias, eps), rtol=1e-5, atol=2e-6)


def test_a_large_mean_does_not_spoil_the_variance():
    x = normal(3, 64) + 1000
    y = layer_norm(jnp.asarray(x), jnp.ones((1, 64)), jnp.zeros((1, 64)), 1e-5)
    np.testing.assert_allclose(y, layer_norm_by_hand(x, 1, 0, 1e-5), atol=1e-3)


def test_norms_and_rotation_of_bfloat16_round_once():
    x = jnp.asarray(normal(2, 3, 4, 16)).astype(jnp.bfloat16)
    scale, bias = (jnp.asarray(normal(1, 16, seed=seed)).astype(jnp.bfloat16) for seed in (1, 2))
    exact = [np.asarray(value, np.float64) for value in (x, scale, bias)]
    positions = np.arange(6).reshape(2, 3)
    results = {
        "rms": (rms_norm(x, scale[0], 1e-5), rms_norm_by_hand(exact[0], exact[1][0], 1e-5)),
        "layer": (layer_norm(x, scale, bias, 1e-5), layer_norm_by_hand(*exact, 1e-5)),
        "rotate": (
            apply_rope(x, rope_sin_cos(jnp.asarray(positions), x.shape[-1], 1e4)),
            rotate_by_hand(exact[0], positions, 1e4),
        ),
    }
    for name, (got, want) in results.items():
        assert got.dtype == jnp.bfloat16, name
        np.testing.assert_array_equal(np.asarray(got, np.float32), once_rounded(want), err_msg=name)


# ----------------------------------------------------------------------------------------------------------------------
# Rotary positions
# ----------------------------------------------------------------------------------------------------------------------


def rotate_by_hand(x, positions, theta):
    """Each pair of channels as a complex number, turned by its angle."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    angles = positions[..., None, None] * theta ** (-2.0 * np.arange(half) / x.shape[-1])
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_rotation_is_that_of_the_specification_after_reordering_the_channels():  # V1 and V2
    order = [0, 2, 1, 3]  # the specification's vector is interleaved: pairs (0, 1) and (2, 3)
    interleaved = np.asarray(
        [[1, 2, 3, 4], [-1.14264, 1.922076, 2.959851, 4.0298], [-2.234742, 0.077004, 2.919405, 4.059196]]
    )
    x = jnp.tile(jnp.asarray([1.0, 2.0, 3.0, 4.0])[jnp.asarray(order)], (1, 3, 1, 1))
    got = apply_rope(x, rope_sin_cos(jnp.arange(3)[None], x.shape[-1], 10000.0))
    np.testing.assert_allclose(got[0, :, 0], interleaved[:, order], rtol=0, atol=1e-6)


def test_rotation_equals_numpy_at_each_rows_own_positions():
    x = normal(2, 4, 3, 8)
    positions = np.asarray([[0, 1, 2, 3], [7, 0, 4095, 100]])
    # float32 angles near 4095 are exact to 2e-4 of a turn's unit.
    np.testing.assert_allclose(
        apply_rope(jnp.asarray(x), rope_sin_cos(jnp.asarray(positions), x.shape[-1], 10000.0)),
        rotate_by_hand(x, positions, 10000.0),
        atol=1e-3,
    )
    near = positions.clip(max=10)
    np.testing.assert_allclose(
        apply_rope(jnp.asarray(x), rope_sin_cos(jnp.asarray(near), x.shape[-1], 500.0)),
        rotate_by_hand(x, near, 500.0),
        atol=5e-6,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Masks
# ----------------------------------------------------------------------------------------------------------------------


def mask_rows(mask) -> list[str]:
    return ["".join(str(int(seen)) for seen in row) for row in np.asarray(mask)]


def test_the_worked_example_of_the_docstring():
    segments = jnp.asarray([[1, 1, 2, 0]])
    assert mask_rows(Mask.of_rows(segments).to_array()[0]) == ["1000", "1100", "0010", "0001"]


def test_queries_that_continue_a_cache_see_what_is_written_in_their_segment():
    # Six slots: a pad, three tokens read before, then the two queries at slots 4 and 5 (the last slot just written).
    keys = jnp.asarray([[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    mask = Mask(jnp.asarray([4, 5]), jnp.arange(6), keys[:, 4:], keys).to_array()
    assert mask_rows(mask[0]) == ["011110", "011111"]
    assert mask_rows(mask[1]) == ["000110", "000111"]


def test_no_query_is_left_without_a_key():
    for segments in ([0, 0, 0], [0, 0, 1], [1, 0, 1], [3, 2, 1]):
        row = jnp.asarray([segments])
        assert np.all(np.any(Mask.of_rows(row).to_array(), axis=-1))


# ----------------------------------------------------------------------------------------------------------------------
# Attention
# ----------------------------------------------------------------------------------------------------------------------


def attend_by_hand(q, k, v, mask):
    """One query at a time."""
    B, T, H, D = q.shape
    group = H // k.shape[2]
    out = np.zeros(q.shape)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                seen = np.flatnonzero(mask[b, t])
                scores = k[b, seen, h // group].astype(np.float64) @ q[b, t, h].astype(np.float64) / np.sqrt(D)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights / weights.sum() @ v[b, seen, h // group]
    return out


@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_attention_equals_numpy_with_contiguous_groups_of_query_heads(H, K):
    B, T, S, D = 2, 3, 5, 8
    q, k, v = normal(B, T, H, D), normal(B, S, K, D, seed=1), normal(B, S, K, D, seed=2)
    keys = np.asarray([[1, 1, 1, 1, 1], [0, 1, 1, 2, 2]])
    mask = Mask(jnp.arange(2, 5), jnp.arange(5), jnp.asarray(keys[:, 2:]), jnp.asarray(keys))
    out = attend(*map(jnp.asarray, (2 * q, k, v)), mask, "xla")
    np.testing.assert_allclose(out, attend_by_hand(2 * q, k, v, mask.to_array()), rtol=1e-5, atol=2e-6)


def test_a_row_of_padding_alone_gives_numbers_and_gradients():
    segments = jnp.zeros((1, 4), jnp.int32)
    mask = Mask.of_rows(segments)
    q, k, v = (jnp.asarray(normal(1, 4, 2, 8, seed=seed)) for seed in range(3))
    assert np.all(np.isfinite(attend(q, k, v, mask)))
    nothing = mask._replace(query_slots=-mask.query_slots - 1)  # not even itself: no caller does this, and still no NaN
    value, gradient = jax.value_and_grad(lambda q: jnp.sum(attend(q, k, v, nothing)))(q)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_hidden_keys_have_no_influence_at_all():
    q, k, v = (jnp.asarray(normal(1, 4, 2, 8, seed=seed)) for seed in range(3))
    mask = Mask.of_rows(jnp.ones((1, 4), jnp.int32))
    changed = attend(q, k.at[:, 3].set(100.0), v.at[:, 3].set(1e6), mask)
    np.testing.assert_array_equal(changed[:, :3], attend(q, k, v, mask)[:, :3])


def test_large_scores_neither_overflow_nor_round_away():
    """Scores of some hundred: a bfloat16 softmax would not tell neighbours apart."""
    q = jnp.full((1, 1, 1, 4), 16.0, jnp.bfloat16)
    k = jnp.asarray([[16.0] * 4, [15.875] * 4]).reshape(1, 2, 1, 4).astype(jnp.bfloat16)
    v = jnp.asarray([1.0, 0.0]).reshape(1, 2, 1, 1).repeat(4, -1).astype(jnp.bfloat16)
    out = attend(q, k, v, Mask(jnp.asarray([1]), jnp.arange(2), jnp.ones((1, 1)), jnp.ones((1, 2))), "xla")
    expected = 1 / (1 + np.exp(-16.0 * 0.125 * 4 / 2))  # scores 512 and 508
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=2**-8)
