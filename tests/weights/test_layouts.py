"""Every layout of a released file opens as the same model.

The files are cut from one random tree by plain NumPy, here and from the specification (sections 4.2 and 4.3), not by
the tables of `chameleon_jax.weights.layout`.
"""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_models import transformer_params

import chameleon_jax
from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import ExecutionConfig, TransformerConfig
from chameleon_jax.weights.safetensors import write_safetensors
from chameleon_jax.weights.torch_writing import write_torch_file

d, H, K, D, F, V, LAYERS = 64, 8, 4, 8, 176, 96, 2
IDS = np.random.default_rng(9).integers(0, V, (2, 24))

Tensors = dict[str, np.ndarray]


def config_with(rows: int, norm_order: str = "pre") -> TransformerConfig:
    return TransformerConfig(
        vocab_size=V, d_model=d, num_layers=LAYERS, num_heads=H, num_kv_heads=K, head_dim=D, mlp_dim=F,
        qk_norm_groups=rows, norm_order=norm_order,
    )  # fmt: skip


@functools.cache
def model(rows: int, norm_order: str = "pre") -> Chameleon:
    """The model that all files are cut from, with `rows` different rows in QK-norm."""
    config = config_with(rows, norm_order)
    return Chameleon(config, transformer_params(config, seed=rows), None)


@functools.cache
def expected_logits(rows: int, norm_order: str = "pre") -> np.ndarray:
    return np.asarray(model(rows, norm_order).logits(IDS))


def tree(rows: int, norm_order: str = "pre") -> dict[str, Any]:
    return jax.tree.map(np.asarray, model(rows, norm_order).params)


# ----------------------------------------------------------------------------------------------------------------------
# The layouts
# ----------------------------------------------------------------------------------------------------------------------


def interleaved(x: np.ndarray) -> np.ndarray:
    """The channels of a head, on the last axis, from (i, i + D/2) to Meta's pairs (2i, 2i + 1)."""
    y = np.empty_like(x)
    y[..., 0::2], y[..., 1::2] = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return y


def rows_of_heads(x: np.ndarray) -> np.ndarray:
    """[d, heads, D] -> (heads * D, d), as torch keeps the matrix of a linear layer."""
    return x.transpose(1, 2, 0).reshape(-1, x.shape[0])


def meta_shards(params: dict[str, Any], mp: int, fused: bool = False) -> list[Tensors]:
    """What each of `mp` consolidated files holds."""
    layers, shards = params["layers"], []
    for rank in range(mp):

        def part(x: np.ndarray, axis: int, rank: int = rank) -> np.ndarray:
            return np.split(x, mp, axis)[rank]

        tensors = {"tok_embeddings.weight": part(params["embed"], 1)}
        for layer in range(LAYERS):
            name = f"layers.{layer}"
            attention = jax.tree.map(lambda x, layer=layer: x[layer], layers["attention"])
            mlp = jax.tree.map(lambda x, layer=layer: x[layer], layers["mlp"])
            # Heads are on axis 1; the channels of q and k are reordered before they become rows.
            wq, wk = (rows_of_heads(interleaved(part(attention[key], 1))) for key in "qk")
            wv = rows_of_heads(part(attention["v"], 1))
            w1, w3 = (part(mlp[key], 1).T for key in ("gate", "up"))
            if fused:
                tensors[f"{name}.attention.wqkv.weight"] = np.concatenate([wq, wk, wv])
                tensors[f"{name}.feed_forward.w13.weight"] = np.concatenate([w1, w3])
            else:
                tensors |= {f"{name}.attention.w{key}.weight": x for key, x in zip("qkv", (wq, wk, wv), strict=True)}
                tensors |= {f"{name}.feed_forward.w1.weight": w1, f"{name}.feed_forward.w3.weight": w3}
            tensors[f"{name}.attention.wo.weight"] = part(attention["o"].reshape(H * D, d).T, 1)
            tensors[f"{name}.feed_forward.w2.weight"] = part(mlp["down"].T, 1)
            for key in "qk":
                for ours, theirs in (("scale", "weight"), ("bias", "bias")):
                    rows = attention[f"{key}_norm"][ours]
                    row = rows[rank * len(rows) // mp]
                    tensors[f"{name}.attention.{key}_normalization.{theirs}"] = interleaved(row)
            tensors[f"{name}.attention_norm.weight"] = layers["attention_norm"]["scale"][layer]
            tensors[f"{name}.ffn_norm.weight"] = layers["mlp_norm"]["scale"][layer]
        tensors["norm.weight"] = params["norm"]["scale"]
        tensors["output.weight"] = part(params["output"], 1).T
        tensors["rope.freqs"] = (10000.0 ** (-np.arange(D // 2) / (D // 2))).astype(np.float32)
        shards.append(tensors)
    return shards


def huggingface(params: dict[str, Any], layout: str) -> Tensors:
    """What the files of a layout hold: H0 and H2 have the rows of QK-norm as they are, H1 one for every head."""
    layers = params["layers"]
    order = interleaved if layout == "H0" else lambda x: x
    tensors = {"model.embed_tokens.weight": params["embed"], "lm_head.weight": params["output"].T}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        attention = jax.tree.map(lambda x, layer=layer: x[layer], layers["attention"])
        mlp = jax.tree.map(lambda x, layer=layer: x[layer], layers["mlp"])
        tensors |= {
            f"{name}.self_attn.q_proj.weight": rows_of_heads(order(attention["q"])),
            f"{name}.self_attn.k_proj.weight": rows_of_heads(order(attention["k"])),
            f"{name}.self_attn.v_proj.weight": rows_of_heads(attention["v"]),
            f"{name}.self_attn.o_proj.weight": attention["o"].reshape(H * D, d).T,
            f"{name}.input_layernorm.weight": layers["attention_norm"]["scale"][layer],
            f"{name}.post_attention_layernorm.weight": layers["mlp_norm"]["scale"][layer],
        }
        tensors |= {f"{name}.mlp.{key}_proj.weight": mlp[key].T for key in ("gate", "up", "down")}
        for key, heads in (("q", H), ("k", K)):
            for ours, theirs in (("scale", "weight"), ("bias", "bias")):
                rows = order(attention[f"{key}_norm"][ours])
                if layout == "H0":
                    (rows,) = rows
                elif layout == "H1":
                    rows = rows.repeat(heads // len(rows), 0)
                tensors[f"{name}.self_attn.{key}_norm.{theirs}"] = rows
    return tensors | {"model.norm.weight": params["norm"]["scale"]}


# ----------------------------------------------------------------------------------------------------------------------
# Folders
# ----------------------------------------------------------------------------------------------------------------------


def specs_of(tensors: Tensors) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in tensors.items()}


def write_pth(path: Path, tensors: Tensors) -> None:
    write_torch_file(path, specs_of(tensors), tensors.__getitem__)


def meta_folder(folder: Path, shards: list[Tensors], norm_order: str = "pre", **changes: Any) -> Path:
    """The fields of params.json are those of the released files. F follows from d: 170, rounded up to a multiple."""
    folder.mkdir()
    for rank, tensors in enumerate(shards):
        write_pth(folder / ("consolidated.pth" if len(shards) == 1 else f"consolidated.{rank:02d}.pth"), tensors)
    fields = {
        "dim": d, "n_layers": LAYERS, "n_heads": H, "n_kv_heads": K, "vocab_size": V, "ffn_dim_multiplier": None,
        "multiple_of": 16, "norm_eps": 1e-5, "rope_theta": 10000.0, "qk_normalization": True,
        "swin_norm": norm_order == "swin",
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps({"seed": 1, "model": fields | changes}))
    merged = {"dtype": "bf16", "model_parallel_size": len(shards), "on_gpu": False, "tokenizer_path": None}
    (folder / "consolidate_params.json").write_text(json.dumps(merged))
    return folder


def huggingface_config(norm_order: str = "pre", shards: int = 1) -> str:
    return json.dumps(
        {
            "architectures": ["ChameleonForConditionalGeneration"], "model_type": "chameleon", "hidden_size": d,
            "intermediate_size": F, "num_hidden_layers": LAYERS, "num_attention_heads": H, "num_key_value_heads": K,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "vocab_size": V,
            "swin_norm": norm_order == "swin", "model_parallel_size": shards, "tie_word_embeddings": False,
        }
    )  # fmt: skip


def huggingface_folder(folder: Path, tensors: Tensors, norm_order: str = "pre", shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(huggingface_config(norm_order, shards))
    write_safetensors(folder / "model.safetensors", specs_of(tensors), tensors.__getitem__)
    return folder


def check(folder: Path, rows: int, norm_order: str = "pre") -> Chameleon:
    """The folder opens as the model it was cut from: the same bits, and so the same logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = chameleon_jax.load(folder)
    assert loaded.config == config_with(rows, norm_order)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, tree(rows, norm_order))
    np.testing.assert_allclose(loaded.logits(IDS), expected_logits(rows, norm_order), rtol=0, atol=1e-5)
    return loaded


# ----------------------------------------------------------------------------------------------------------------------
# Tests
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize(("mp", "norm_order"), [(1, "pre"), (2, "pre"), (4, "swin")])
def test_shards_of_meta_open_as_the_model_they_were_cut_from(tmp_path, mp, norm_order, fused):
    """R8 in the small: logits of the shards are those of the merged tree."""
    check(meta_folder(tmp_path / "model", meta_shards(tree(mp, norm_order), mp, fused), norm_order), mp, norm_order)


@pytest.mark.parametrize(
    ("layout", "rows"), [("H0", 1), ("H1", 1), ("H1", 2), ("H1", 4), ("H1", 8), ("H2", 1), ("H2", 2)]
)
def test_files_of_every_huggingface_layout_open_as_the_model_they_were_cut_from(tmp_path, layout, rows):
    check(huggingface_folder(tmp_path / "model", huggingface(tree(rows), layout), shards=min(rows, 4)), rows)


def test_original_h1_and_h2_files_of_a_model_give_identical_logits(tmp_path):
    """R9 in the small, for the 30B's form; and bit for bit."""
    params = tree(2, "swin")
    folders = [
        meta_folder(tmp_path / "meta", meta_shards(params, 2), "swin"),
        huggingface_folder(tmp_path / "H1", huggingface(params, "H1"), "swin", shards=2),
        huggingface_folder(tmp_path / "H2", huggingface(params, "H2"), "swin", shards=2),
    ]
    first, *others = [np.asarray(chameleon_jax.load(folder).logits(IDS)) for folder in folders]
    for other in others:
        np.testing.assert_array_equal(other, first)
    np.testing.assert_allclose(first, expected_logits(2, "swin"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pieces", [2, 3])
def test_safetensors_in_several_files_open_through_their_index(tmp_path, pieces):
    tensors = huggingface(tree(1), "H1")
    names = [f"model-{number + 1:05d}-of-{pieces:05d}.safetensors" for number in range(pieces)]
    where = {key: names[number % pieces] for number, key in enumerate(tensors)}
    for name in names:
        part = {key: value for key, value in tensors.items() if where[key] == name}
        write_safetensors(tmp_path / name, specs_of(part), part.__getitem__)
    index = {"metadata": {"total_size": sum(value.nbytes for value in tensors.values())}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(huggingface_config())
    check(tmp_path, 1)


def test_bfloat16_files_open_bit_for_bit(tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), tree(2))
    folders = [
        meta_folder(tmp_path / "meta", meta_shards(half, 2)),
        huggingface_folder(tmp_path / "H1", huggingface(half, "H1"), shards=2),
    ]
    for folder in folders:
        loaded = chameleon_jax.load(folder)
        assert loaded.config == config_with(2)
        assert loaded.execution == ExecutionConfig(param_dtype="bfloat16", compute_dtype="bfloat16")
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
        jax.tree.map(np.testing.assert_array_equal, loaded.params, half)


def to_torch(array: np.ndarray):
    import torch

    return torch.from_numpy(array.copy())


@pytest.mark.torch
@pytest.mark.parametrize("indexed", [False, True], ids=["one file", "index"])
def test_pytorch_model_bin_of_torch_opens(tmp_path, indexed):
    torch = pytest.importorskip("torch")
    tensors = {key: to_torch(value) for key, value in huggingface(tree(1), "H1").items()}
    (tmp_path / "config.json").write_text(huggingface_config())
    if not indexed:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        names = [f"pytorch_model-{number}-of-00002.bin" for number in ("00001", "00002")]
        where = {key: names[number % 2] for number, key in enumerate(tensors)}
        for name in names:
            torch.save({key: value for key, value in tensors.items() if where[key] == name}, tmp_path / name)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    check(tmp_path, 1)


@pytest.mark.torch
def test_shards_written_by_torch_open(tmp_path):
    """As Meta's own code writes them: some tensors are views of others, or lie transposed in memory."""
    torch = pytest.importorskip("torch")
    shards = meta_shards(tree(2), 2)
    folder = meta_folder(tmp_path / "model", shards)
    for rank, tensors in enumerate(shards):
        saved = {key: to_torch(value) for key, value in tensors.items()}
        saved["output.weight"] = to_torch(tensors["output.weight"].T).T
        both = torch.cat([saved[f"layers.0.feed_forward.w{n}.weight"] for n in (1, 3)])
        saved |= {"layers.0.feed_forward.w1.weight": both[: F // 2], "layers.0.feed_forward.w3.weight": both[F // 2 :]}
        torch.save(saved, folder / f"consolidated.{rank:02d}.pth")
    check(folder, 2)


# ----------------------------------------------------------------------------------------------------------------------
# QK-norm and RMSNorm of several shards
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mp", [2, 4])
def test_rows_of_qk_norm_of_different_shards_are_kept_apart(tmp_path, mp):
    """Averaging them, as early conversions did, is wrong (specification, 9.3)."""
    shards = meta_shards(tree(mp), mp)
    attention = check(meta_folder(tmp_path / "model", shards), mp).params["layers"]["attention"]
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        for norm in ("q", "k"):
            rows = np.asarray(attention[f"{norm}_norm"][ours])
            assert rows.shape == (LAYERS, mp, D)
            for layer in range(LAYERS):
                stored = [shard[f"layers.{layer}.attention.{norm}_normalization.{theirs}"] for shard in shards]
                assert len(np.unique(stored, axis=0)) == mp
                np.testing.assert_array_equal([interleaved(row) for row in rows[layer]], stored)


@pytest.mark.parametrize("key", ["layers.1.attention_norm.weight", "norm.weight"])
def test_rms_norms_that_differ_between_shards_are_averaged_with_a_warning(tmp_path, key):
    shards = meta_shards(tree(4), 4)
    rng = np.random.default_rng(0)
    for shard in shards:
        shard[key] = shard[key] + 0.01 * rng.standard_normal(d).astype(np.float32)
    folder = meta_folder(tmp_path / "model", shards)
    with pytest.warns(UserWarning, match=f"{key} differs between the shards; their mean") as caught:
        params = chameleon_jax.load(folder).params
    assert len(caught) == 1
    mean = np.mean([shard[key].astype(np.float64) for shard in shards], axis=0)
    changed = params["norm"]["scale"] if key == "norm.weight" else params["layers"]["attention_norm"]["scale"][1]
    np.testing.assert_allclose(changed, mean, rtol=1e-6)
    # Everything else is as it was.
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), params, tree(4))
    wrong = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(same) if not leaf]
    assert len(wrong) == 1


def test_rms_norms_of_bfloat16_shards_are_averaged_before_they_are_rounded(tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), tree(2))
    shards = meta_shards(half, 2)
    shards[1]["norm.weight"] = (shards[0]["norm.weight"].astype(np.float32) * 1.1).astype(ml_dtypes.bfloat16)
    with pytest.warns(UserWarning, match=r"norm\.weight differs"):
        scale = chameleon_jax.load(meta_folder(tmp_path / "model", shards)).params["norm"]["scale"]
    mean = np.mean([shard["norm.weight"].astype(np.float64) for shard in shards], axis=0)
    np.testing.assert_array_equal(np.asarray(scale), mean.astype(ml_dtypes.bfloat16))


# ----------------------------------------------------------------------------------------------------------------------
# Vectors of the specification
# ----------------------------------------------------------------------------------------------------------------------


def test_channels_of_a_head_come_in_the_order_of_the_specification(tmp_path):
    """V2: for D = 8 rows are taken in the order 0, 2, 4, 6, 1, 3, 5, 7; in q, k and their norms and nowhere else."""
    (shard,) = meta_shards(tree(1), 1)
    numbered = {"attention.wq.weight": H, "attention.wk.weight": K, "attention.wv.weight": K}
    for name, heads in numbered.items():
        shard[f"layers.0.{name}"] = np.repeat(np.arange(heads * D, dtype=np.float32)[:, None], d, 1)
    for name in ("q_normalization.weight", "q_normalization.bias", "k_normalization.weight", "k_normalization.bias"):
        shard[f"layers.0.attention.{name}"] = np.arange(D, dtype=np.float32)
    attention = chameleon_jax.load(meta_folder(tmp_path / "model", [shard])).params["layers"]["attention"]
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    for name, heads in (("q", H), ("k", K)):
        for head in range(heads):
            assert attention[name][0, 0, head].tolist() == [head * D + channel for channel in order]
        for kind in ("scale", "bias"):
            assert attention[f"{name}_norm"][kind][0].tolist() == [order]
    assert attention["v"][0, 0].reshape(-1).tolist() == list(range(K * D))


def closed_form(shape: tuple[int, ...], s: float) -> np.ndarray:
    return 0.3 * np.sin(0.7 * np.arange(np.prod(shape)) + s).reshape(shape)


def v19_shard(rank: int, mp: int, kv_heads: int) -> Tensors:
    """One rank's tensors, in Meta's layout as the specification writes them down; float64."""
    h, kv, f = 2 // mp, kv_heads // mp, 12 // mp
    tensors = {
        "tok_embeddings.weight": closed_form((12, 8 // mp), 3 + rank),
        "norm.weight": 1 + closed_form((8,), 99),
        "output.weight": closed_form((12 // mp, 8), 5 + rank),
    }
    for i in range(2):
        b = 100 * (i + 1) + rank
        values = {
            "attention.wq.weight": closed_form((4 * h, 8), b + 1),
            "attention.wk.weight": closed_form((4 * kv, 8), b + 2),
            "attention.wv.weight": closed_form((4 * kv, 8), b + 3),
            "attention.wo.weight": closed_form((8, 4 * h), b + 4),
            "attention.q_normalization.weight": 1 + closed_form((4,), b + 5),
            "attention.k_normalization.weight": 1 + closed_form((4,), b + 6),
            "attention.q_normalization.bias": closed_form((4,), b + 7),
            "attention.k_normalization.bias": closed_form((4,), b + 8),
            "feed_forward.w1.weight": closed_form((f, 8), b + 11),
            "feed_forward.w3.weight": closed_form((f, 8), b + 12),
            "feed_forward.w2.weight": closed_form((8, f), b + 13),
            "attention_norm.weight": 1 + closed_form((8,), 10 * i + 1),
            "ffn_norm.weight": 1 + closed_form((8,), 10 * i + 2),
        }
        tensors |= {f"layers.{i}.{name}": value for name, value in values.items()}
    return tensors


V19 = {
    "one shard, pre-norm": (
        1, 1, "pre",
        [1.00472, 0.757081, 0.169613, -0.493989, -0.935855, -0.957646,
         -0.54958, 0.105175, 0.71272, 1.000348, 0.838951, 0.300976],
        [3, 2, 3, 0],
    ),
    "one shard, swin": (
        1, 1, "swin",
        [0.471176, -0.389214, -1.074898, -1.278095, -0.907595, -0.129705,
         0.706406, 1.225433, 1.194403, 0.627243, -0.221467, -0.970767],
        [6, 4, 4, 7],
    ),
    "two shards, swin": (
        2, 2, "swin",
        [-0.074848, 0.018546, 0.103615, 0.142175, 0.116916, 0.039178,
         -0.142541, -0.108924, -0.026414, 0.067952, 0.131817, 0.136513],
        [5, 3, 4, 3],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", V19)
def test_files_of_the_specifications_tiny_model_give_its_logits(tmp_path, case):
    """V19, from .pth files to logits; the float64 tensors become float32 when they are opened."""
    mp, kv_heads, norm_order, last, best = V19[case]
    folder = meta_folder(
        tmp_path / "model", [v19_shard(rank, mp, kv_heads) for rank in range(mp)], norm_order, dim=8, n_heads=2,
        n_kv_heads=kv_heads, vocab_size=12, ffn_dim_multiplier=0.5, multiple_of=4,
    )  # fmt: skip
    model = chameleon_jax.load(folder)
    assert model.config.qk_norm_groups == mp
    logits = np.asarray(model.logits(np.array([[0, 5, 9, 3]])))[0]
    np.testing.assert_allclose(logits[-1], last, rtol=0, atol=1e-5)
    assert np.argmax(logits, axis=-1).tolist() == best
