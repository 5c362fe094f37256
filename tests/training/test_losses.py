"""Cross-entropy, z-loss and their sums per modality against NumPy by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.training.losses import chunked_token_losses, per_modality, token_losses, weighted_loss

LOGITS = jnp.asarray([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
TARGETS = jnp.asarray([[2, 0]])


def loss_of(logits, targets, weights, is_image, z_loss):
    return weighted_loss(token_losses(logits, targets), weights, is_image, z_loss)


def test_log_z_squared_is_that_of_the_specification():
    """Vector V16."""
    cross_entropy, log_z, max_logit = token_losses(LOGITS, TARGETS)
    np.testing.assert_allclose(max_logit, np.max(np.abs(LOGITS), axis=-1))
    np.testing.assert_allclose(np.square(log_z)[0], [11.611778, 1.206949], rtol=1e-6)
    np.testing.assert_allclose(cross_entropy[0], [np.log(1 + np.exp(-1) + np.exp(-2)), np.log(3)], rtol=1e-6)


def test_the_z_loss_term_is_that_of_the_specification():
    """Vector V16."""
    ones = jnp.ones((1, 2))
    loss, sums = loss_of(LOGITS, TARGETS, ones, 0 * ones, z_loss=1e-5)
    np.testing.assert_allclose(sums["z_loss"], 6.409364e-5, rtol=1e-6)
    without, _ = loss_of(LOGITS, TARGETS, ones, 0 * ones, z_loss=0.0)
    np.testing.assert_allclose(loss - without, sums["z_loss"], atol=1e-7)


def example(seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (3, 5, 7))
    targets = rng.integers(0, 7, (3, 5))
    weights = rng.uniform(0, 2, (3, 5)) * (rng.random((3, 5)) < 0.7)
    is_image = (targets >= 4).astype(float)
    return logits, targets, weights, is_image


def by_hand(logits, targets):
    """Cross-entropy and log Z of each prediction, float64."""
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    return log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0], log_z


def as_jax(logits, targets, weights, is_image):
    floats = (jnp.asarray(x, jnp.float32) for x in (logits, weights, is_image))
    logits, weights, is_image = floats
    return logits, jnp.asarray(targets, jnp.int32), weights, is_image


def test_loss_and_sums_per_modality_equal_numpy():
    logits, targets, weights, is_image = example()
    loss, sums = loss_of(*as_jax(logits, targets, weights, is_image), z_loss=0.01)
    cross_entropy, log_z = by_hand(logits, targets)
    z_term = 0.01 * np.sum(log_z**2 * weights) / np.sum(weights)
    expected = {
        "loss_sum": np.sum(cross_entropy * weights),
        "weight_sum": np.sum(weights),
        "text_loss_sum": np.sum((cross_entropy * weights)[is_image == 0]),
        "text_weight_sum": np.sum(weights[is_image == 0]),
        "image_loss_sum": np.sum((cross_entropy * weights)[is_image == 1]),
        "image_weight_sum": np.sum(weights[is_image == 1]),
        "log_z_sum": np.sum(log_z * weights),
        "z_loss": z_term,
    }
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, np.average(cross_entropy, weights=weights) + z_term, rtol=1e-5)


def test_predictions_of_weight_zero_change_neither_loss_nor_gradient():
    logits, targets, weights, is_image = as_jax(*example())
    changed = jnp.where((weights == 0)[..., None], 50 - logits, logits)

    def loss(logits):
        return loss_of(logits, targets, weights, is_image, z_loss=0.01)[0]

    assert float(loss(changed)) == float(loss(logits))
    gradient = jax.grad(loss)(logits)
    assert np.all(gradient[weights == 0] == 0)
    assert np.all(np.any(gradient[weights > 0] != 0, axis=-1))


def test_the_gradient_is_softmax_minus_target_and_the_pull_on_log_z():
    logits, targets, weights, is_image = example()
    jax_logits, *rest = as_jax(logits, targets, weights, is_image)
    gradient = jax.grad(lambda logits: loss_of(logits, *rest, z_loss=0.01)[0])(jax_logits)
    _, log_z = by_hand(logits, targets)
    softmax = np.exp(logits - log_z[..., None])
    per_token = softmax - np.eye(7)[targets] + 0.01 * 2 * log_z[..., None] * softmax
    np.testing.assert_allclose(gradient, per_token * (weights / weights.sum())[..., None], rtol=1e-4, atol=1e-7)


def test_a_batch_in_which_nothing_counts_has_loss_zero():
    logits, targets, weights, is_image = as_jax(*example())
    loss, sums = loss_of(logits, targets, 0 * weights, is_image, z_loss=0.01)
    assert float(loss) == 0.0
    assert per_modality(sums) == {}


def test_logits_in_bfloat16_are_counted_in_float32():
    logits, targets, *_ = as_jax(*example())
    rounded = logits.astype(jnp.bfloat16)
    cross_entropy, log_z, max_logit = token_losses(rounded, targets)
    assert cross_entropy.dtype == log_z.dtype == max_logit.dtype == jnp.float32
    expected, _ = by_hand(np.asarray(rounded, np.float64), np.asarray(targets))
    np.testing.assert_allclose(cross_entropy, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 4, 8])
def test_losses_in_chunks_and_their_gradients_are_those_of_all_at_once(chunk):
    rng = np.random.default_rng(1)
    x, output = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 8, 5), (5, 11)))
    targets = jnp.asarray(rng.integers(0, 11, (3, 8)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0, 2, (3, 8)), jnp.float32)

    def in_chunks(x, output):
        losses = chunked_token_losses(x, lambda x: x @ output, targets, chunk)
        return weighted_loss(losses, weights, 0 * weights, 0.01)[0]

    def at_once(x, output):
        return loss_of(x @ output, targets, weights, 0 * weights, 0.01)[0]

    expected, expected_gradients = jax.value_and_grad(at_once, (0, 1))(x, output)
    loss, gradients = jax.jit(jax.value_and_grad(in_chunks, (0, 1)))(x, output)
    for values, others in zip(
        chunked_token_losses(x, lambda x: x @ output, targets, chunk), token_losses(x @ output, targets), strict=True
    ):
        np.testing.assert_allclose(values, others, rtol=1e-6)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-7)


def test_logits_of_all_positions_never_exist_in_chunks():
    """The largest array of the compiled step is that of one chunk."""
    B, T, d, V, chunk = 2, 64, 8, 4096, 8
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, T, d), (d, V))]
    targets = jnp.zeros((B, T), jnp.int32)

    def memory(losses) -> int:
        loss = lambda x, output: jnp.sum(losses(x, output)[0])  # noqa: E731
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    at_once = memory(lambda x, output: token_losses(x @ output, targets))
    in_chunks = memory(lambda x, output: chunked_token_losses(x, lambda x: x @ output, targets, chunk))
    assert at_once - in_chunks >= 4 * B * T * V * (1 - chunk / T)


def test_chunk_that_does_not_divide_the_rows_is_refused():
    with pytest.raises(ValueError, match="loss_chunk = 3: must divide the length of the rows, 8"):
        chunked_token_losses(jnp.zeros((1, 8, 2)), lambda x: x, jnp.zeros((1, 8), jnp.int32), 3)


def test_huge_logits_stay_finite():
    logits = jnp.asarray([[[1e4, -1e4, 0.0]]])
    cross_entropy = token_losses(logits, jnp.asarray([[1]])).cross_entropy
    assert float(cross_entropy[0, 0]) == pytest.approx(2e4)


def test_metrics_leave_out_a_modality_that_did_not_occur():
    logits, targets, weights, is_image = as_jax(*example())
    _, sums = loss_of(logits, targets, weights * (1 - is_image), is_image, z_loss=0.0)
    metrics = per_modality(sums)
    assert set(metrics) == {"loss", "text_loss"}
    assert metrics["loss"] == pytest.approx(metrics["text_loss"])
