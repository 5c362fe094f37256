"""Our models give the numbers of Hugging Face transformers for the same weights.

The committed files were written by `tests/data/make_transformers_fixtures.py`. The tests marked `torch` make the same
arrays live, and so also notice if the files no longer are what that script writes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.config import ImageTokenizerConfig, TransformerConfig
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.models.vq import VQModel

DATA = Path(__file__).parent.parent / "data"

spec = importlib.util.spec_from_file_location("make_transformers_fixtures", DATA / "make_transformers_fixtures.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)


def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"transformers_{name}.npz") as file:
        return dict(file)


def weight(arrays: dict[str, np.ndarray], key: str) -> jnp.ndarray:
    return jnp.asarray(arrays[key], jnp.float32)


# ----------------------------------------------------------------------------------------------------------------------
# Language model
# ----------------------------------------------------------------------------------------------------------------------


def transformer_config(name: str) -> TransformerConfig:
    sizes = fixtures.LANGUAGE_MODELS[name]
    return TransformerConfig(
        vocab_size=sizes.vocab_size,
        d_model=sizes.hidden_size,
        num_layers=sizes.num_hidden_layers,
        num_heads=sizes.num_attention_heads,
        num_kv_heads=sizes.num_key_value_heads,
        head_dim=sizes.hidden_size // sizes.num_attention_heads,
        mlp_dim=sizes.intermediate_size,
        qk_norm_groups=sizes.model_parallel_size,
        norm_order="swin" if sizes.swin_norm else "pre",
    )


def transformer_params(config: TransformerConfig, arrays: dict[str, np.ndarray]):
    """transformers' layout to ours: matrices are transposed and cut into heads; RoPE is half-split in both."""
    d, D = config.d_model, config.head_dim

    def layer(index: int):
        prefix = f"model.layers.{index}"
        get = lambda name: weight(arrays, f"{prefix}.{name}.weight")  # noqa: E731

        def heads(name: str, count: int):
            return get(f"self_attn.{name}_proj").T.reshape(d, count, D)

        def group_rows(name: str, count: int):
            step = count // config.qk_norm_groups
            rows = {ours: weight(arrays, f"{prefix}.self_attn.{name}.{theirs}") for ours, theirs in
                    (("scale", "weight"), ("bias", "bias"))}  # fmt: skip
            return {ours: row[::step] for ours, row in rows.items()}

        return {
            "attention_norm": {"scale": get("input_layernorm")},
            "mlp_norm": {"scale": get("post_attention_layernorm")},
            "attention": {
                "q": heads("q", config.num_heads),
                "k": heads("k", config.num_kv_heads),
                "v": heads("v", config.num_kv_heads),
                "o": get("self_attn.o_proj").T.reshape(config.num_heads, D, d),
                "q_norm": group_rows("q_norm", config.num_heads),
                "k_norm": group_rows("k_norm", config.num_kv_heads),
            },
            "mlp": {ours: get(f"mlp.{ours}_proj").T for ours in ("gate", "up", "down")},
        }

    return {
        "embed": weight(arrays, "model.embed_tokens.weight"),
        "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(layer, range(config.num_layers))),
        "norm": {"scale": weight(arrays, "model.norm.weight")},
        "output": weight(arrays, "lm_head.weight").T,
    }


def check_logits(name: str, arrays: dict[str, np.ndarray]) -> None:
    config = transformer_config(name)
    params = transformer_params(config, arrays)
    logits = jax.jit(Transformer(config).apply)({"params": params}, arrays["input_ids"])
    comparable = np.setdiff1d(np.arange(config.vocab_size), fixtures.IMAGE_IDS)
    expected = arrays["logits"][..., comparable]
    assert np.std(expected) > 0.5  # logits as large as a trained model's, not a comparison of near-zeros
    np.testing.assert_allclose(logits[..., comparable], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", fixtures.LANGUAGE_MODELS)
def test_logits_equal_those_of_transformers(name):
    check_logits(name, stored(name))


@pytest.mark.torch
@pytest.mark.parametrize("name", fixtures.LANGUAGE_MODELS)
def test_logits_equal_those_of_transformers_live(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    check_logits(name, fixtures.language_model(name))


# ----------------------------------------------------------------------------------------------------------------------
# Image tokenizer
# ----------------------------------------------------------------------------------------------------------------------


def our_path(key: str) -> list[str]:
    """`encoder.down.0.block.1.norm1.weight` -> [encoder, down_0_block_1, norm1, scale], and so on."""
    parts = key.split(".")
    kind = {"bias": "bias", "weight": "scale" if "norm" in parts[-2] else "kernel"}[parts.pop()]
    if parts == ["quantize", "embedding"]:
        return ["codebook"]
    if parts[1:2] == ["down"]:
        level = f"down_{parts[2]}_{parts[3]}"
        parts = [parts[0], level] if parts[3] == "downsample" else [parts[0], f"{level}_{parts[4]}", *parts[5:]]
    elif parts[1:2] == ["mid"]:
        parts = [parts[0], f"mid_{parts[2]}", *parts[3:]]
    return [*parts, kind]


def vq_params(arrays: dict[str, np.ndarray]):
    """Weights of transformers' encoder and quantizer as our tree; torch convolutions are out, in, height, width."""
    params: dict = {}
    for key in arrays:
        if key in ("pixels", "latents", "codes"):
            continue
        *folders, name = our_path(key)
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        value = weight(arrays, key)
        place[name] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return params


def check_image_tokenizer(arrays: dict[str, np.ndarray]) -> None:
    sizes = fixtures.IMAGE_TOKENIZER
    config = ImageTokenizerConfig(
        resolution=sizes["resolution"],
        channels=sizes["base_channels"],
        channel_multipliers=tuple(sizes["channel_multiplier"]),
        num_res_blocks=sizes["num_res_blocks"],
        latent_channels=sizes["latent_channels"],
        code_dim=sizes["embed_dim"],
        num_codes=sizes["num_embeddings"],
    )
    model, params = VQModel(config), vq_params(arrays)

    def latents_and_codes(params, pixels):
        variables = {"params": params}
        return model.apply(variables, pixels, method="latents"), model.apply(variables, pixels, method="encode")

    latents, codes = jax.jit(latents_and_codes)(params, jnp.asarray(arrays["pixels"]))
    assert np.std(arrays["latents"]) > 0.1
    np.testing.assert_allclose(latents, arrays["latents"], rtol=0, atol=1e-4)
    assert len(np.unique(arrays["codes"])) > 16
    np.testing.assert_array_equal(codes, arrays["codes"])


def test_image_latents_and_codes_equal_those_of_transformers():
    check_image_tokenizer(stored("image_tokenizer"))


@pytest.mark.torch
def test_image_latents_and_codes_equal_those_of_transformers_live():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    check_image_tokenizer(fixtures.image_tokenizer())
