"""Every attention backend gives the values and gradients of attention by hand, and lets no document see another."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import ConfigError, ExecutionConfig
from chameleon_jax.models import attention_kernels
from chameleon_jax.models.attention import attend
from chameleon_jax.models.attention_kernels import packed_layout
from chameleon_jax.models.attention_mask import Mask
from chameleon_jax.models.transformer import Transformer
from tests.tiny_models import TRANSFORMER, transformer_params

LENGTH = 256
SEGMENTS = np.zeros((2, LENGTH), np.int32)
"""Documents that end inside and at the edges of blocks, one of a single token; padding behind and before."""
SEGMENTS[0, :100], SEGMENTS[0, 100:128], SEGMENTS[0, 128:230] = 1, 2, 3
SEGMENTS[1, 7:8], SEGMENTS[1, 8:] = 1, 2


def examples(H: int, K: int, dtype: str, D: int = 16) -> list[jax.Array]:
    """q, k, v and the gradient of the result."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(*SEGMENTS.shape, heads, D)), dtype) for heads in (H, K, K, H)]


def by_hand(q, k, v, upstream, segments=SEGMENTS):
    """Result and gradients of q, k, v, a head at a time in float64."""
    q, k, v, upstream = (np.asarray(x, np.float64) for x in (q, k, v, upstream))
    (B, _, H, D), group = q.shape, q.shape[2] // k.shape[2]
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b in range(B):
        seen = np.tril(segments[b][:, None] == segments[b][None, :])
        for h in range(H):
            queries, keys, values, above = q[b, :, h], k[b, :, h // group], v[b, :, h // group], upstream[b, :, h]
            scores = np.where(seen, queries @ keys.T / np.sqrt(D), -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[b, :, h] = weights @ values
            dv[b, :, h // group] += weights.T @ above
            of_weights = above @ values.T
            of_scores = weights * (of_weights - (of_weights * weights).sum(1, keepdims=True)) / np.sqrt(D)
            dq[b, :, h] = of_scores @ keys
            dk[b, :, h // group] += of_scores.T @ queries
    return out, dq, dk, dv


def computed(backend: str, q, k, v, upstream, segments=SEGMENTS):
    @jax.jit
    def run(q, k, v, upstream):
        out, gradients = jax.vjp(lambda *qkv: attend(*qkv, Mask.of_rows(jnp.asarray(segments)), backend), q, k, v)
        return out, *gradients(upstream)

    return run(q, k, v, upstream)


def assert_close(found, expected, dtype: str):
    """float32: sums in another order. bfloat16: weights and results with 8 bits, sums of some of them."""
    for name, x, right in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert x.dtype == dtype, name
        error = np.max(np.abs(np.asarray(x, np.float64) - right)) / np.max(np.abs(right))
        assert error < {"float32": 2e-6, "bfloat16": 2**-6}[dtype], f"{name}: {error}"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of queries and keys in a short row."""
    monkeypatch.setattr(attention_kernels, "BLOCK", 48)  # with a rest
    monkeypatch.setattr(attention_kernels, "SPLASH_BLOCK", 128)


@pytest.mark.parametrize(
    ("H", "K", "dtype"),
    [
        (4, 4, "float32"),
        (4, 2, "float32"),
        (4, 2, "bfloat16"),
        pytest.param(4, 4, "bfloat16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("backend", ["xla", "blockwise", "splash"])
def test_values_and_gradients_are_those_by_hand(backend, H, K, dtype):
    arrays = examples(H, K, dtype)
    assert_close(computed(backend, *arrays), by_hand(*arrays), dtype)


def test_splash_computes_gradients_of_long_rows_by_a_kernel_of_their_own(monkeypatch):
    monkeypatch.setattr(attention_kernels, "SPLASH_FUSED_BLOCKS", 1)
    arrays = examples(4, 2, "float32")
    assert_close(computed("splash", *arrays), by_hand(*arrays), "float32")


@pytest.mark.parametrize("blocks", [1, 9])
def test_blockwise_in_any_number_of_blocks(monkeypatch, blocks):
    monkeypatch.setattr(attention_kernels, "BLOCK", -(-LENGTH // blocks))
    arrays = examples(4, 2, "float32")
    assert_close(computed("blockwise", *arrays), by_hand(*arrays), "float32")


@pytest.mark.parametrize("backend", ["xla", "blockwise", "splash", "cudnn"])
def test_a_token_changes_no_logit_of_another_document(monkeypatch, backend):
    monkeypatch.setattr(attention_kernels, "cudnn_function", lambda: cudnn_by_hand)
    config, execution = TRANSFORMER, ExecutionConfig(attention=backend, remat="save_attention")
    apply = jax.jit(functools.partial(Transformer(config, execution).apply, {"params": transformer_params(config)}))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, SEGMENTS.shape)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), SEGMENTS.shape)
    changed_ids = ids.copy()
    changed_ids[:, 110] = (ids[:, 110] + 1) % config.vocab_size
    before, after = (np.asarray(apply(jnp.asarray(x), positions, jnp.asarray(SEGMENTS))) for x in (ids, changed_ids))
    changed = np.any(before != after, axis=-1)
    same_document = SEGMENTS[:, 110:111] == SEGMENTS
    assert np.all(changed[:, 110])
    assert not np.any(changed & ~(same_document & (np.arange(LENGTH) >= 110)))


# ----------------------------------------------------------------------------------------------------------------------
# cuDNN, as far as it goes without a GPU
# ----------------------------------------------------------------------------------------------------------------------


def cudnn_by_hand(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale):
    """What cuDNN computes from the arrays that JAX's wrapper hands it: documents are stretches of the flat buffers."""
    from jax._src.cudnn.fused_attention_stablehlo import _fix_seqlen_offsets

    assert scale == pytest.approx(q.shape[-1] ** -0.5)
    handed = _fix_seqlen_offsets(q_seqlen, kv_seqlen, q_offsets, kv_offsets, q, k)

    def documents(x, lengths, offsets):
        """Number of each token's document, [1, B * T]; -1 for none."""
        B, T, heads, D = x.shape
        lengths, offsets = lengths.reshape(-1), offsets.reshape(-1)[: lengths.size]
        element = jnp.arange(B * T) * heads * D
        number = jnp.searchsorted(offsets, element, side="right") - 1
        inside = element < offsets[number] + lengths[number] * heads * D
        return jnp.where(inside, number, -1)[None]

    of_queries, of_keys = documents(q, handed[0], handed[2]), documents(k, handed[1], handed[3])
    slots = jnp.arange(of_queries.shape[1])
    flat = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    return attend(*flat, Mask(slots, slots, of_queries, of_keys), "xla").reshape(q.shape)


def test_the_worked_example_of_the_packed_layout():
    lengths, offsets, fits = packed_layout(jnp.asarray([[1, 1, 2, 0], [5, 5, 5, 5]]), 3)
    np.testing.assert_array_equal(lengths, [[2, 1, 1], [4, -1, -1]])
    np.testing.assert_array_equal(offsets, [[0, 2, 3, -1], [0, -1, -1, -1]])
    assert lengths.dtype == offsets.dtype == jnp.int32
    assert fits


@pytest.mark.parametrize("row", [[1, 2, 3, 0], [1, 2, 1, 1], [0, 1, 1, 0]])
def test_rows_that_the_packed_layout_cannot_say_are_known(row):
    assert packed_layout(jnp.asarray([[1, 1, 1, 1]]), 3)[2]
    assert not packed_layout(jnp.asarray([[1, 1, 1, 1], row]), 3)[2]


@pytest.mark.parametrize("most", [64, 3])
def test_cudnn_is_handed_documents_and_heads_as_it_wants_them_or_not_asked(monkeypatch, most):
    """With room for 3 documents, the row of 4 is computed blockwise."""
    asked = []

    def told(*arrays, **layout):
        jax.debug.callback(lambda: asked.append(1))
        return cudnn_by_hand(*arrays, **layout)

    monkeypatch.setattr(attention_kernels, "cudnn_function", lambda: told)
    monkeypatch.setattr(attention_kernels, "CUDNN_SEGMENTS", most)
    arrays = examples(4, 2, "float32")
    assert_close(computed("cudnn", *arrays), by_hand(*arrays), "float32")
    jax.effects_barrier()
    assert bool(asked) == (most == 64)


def test_the_program_for_nvidia_calls_cudnn_with_documents_each_way(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    run = jax.jit(functools.partial(computed, "cudnn"))
    text = run.trace(*examples(4, 2, "bfloat16")).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "__cudnn$fmha" in line]
    assert len(calls) == 2
    heads = "tensor<2x256x4x16xbf16>"  # keys have as many as queries
    layout = "tensor<2x64xi32>, tensor<2x64xi32>, tensor<2x65xi32>, tensor<2x65xi32>"
    forward, backward = calls
    assert f"({heads}, {heads}, {heads}, {layout}) ->" in forward
    assert f"({heads}, {heads}, {heads}, tensor<128x4x256xf32>, {heads}, {heads}, {layout}) ->" in backward
    for call in calls:
        assert "PADDING_CAUSAL" in call
        assert "max_seg_per_batch\\22: 64" in call
        assert "fmha_scale\\22: 0.25" in call


@pytest.mark.parametrize(("remat", "calls"), [("full", 3), ("save_attention", 2), ("save_projections", 2)])
def test_the_backward_pass_runs_no_second_forward_kernel_of_cudnn_unless_told_to(monkeypatch, remat, calls):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    model = Transformer(TRANSFORMER, ExecutionConfig(attention="cudnn", compute_dtype="bfloat16", remat=remat))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), SEGMENTS.shape)

    def loss(params, ids):
        return jnp.sum(model.apply({"params": params}, ids, positions, jnp.asarray(SEGMENTS)))

    traced = jax.jit(jax.grad(loss)).trace(transformer_params(TRANSFORMER), jnp.zeros(SEGMENTS.shape, jnp.int32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # One scanned layer each way.
    assert sum("__cudnn$fmha" in line for line in text.splitlines()) == calls


def test_more_rows_than_cudnn_can_count_are_refused():
    q = jax.ShapeDtypeStruct((512, 4096, 8, 128), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((512, 4096), jnp.int32)
    mask = Mask(jnp.arange(4096), jnp.arange(4096), segments, segments)
    with pytest.raises(ConfigError, match="512 rows of 4096 on a device"):
        jax.eval_shape(functools.partial(attend, backend="cudnn"), q, q, q, mask)
