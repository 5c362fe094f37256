"""Configs of the whole family of VQGANs, as taming-transformers and transformers write them."""

from __future__ import annotations

import dataclasses

import pytest

from chameleon_jax.config import ConfigError, ImageTokenizerConfig
from chameleon_jax.errors import FileError
from chameleon_jax.weights.layout import image_tokenizer_entries
from chameleon_jax.weights.vqgan import huggingface_config, meta_config, read_vqgan_config, why_not_released

TRANSFORMERS = dataclasses.asdict(ImageTokenizerConfig())
"""Its defaults are the released sizes."""

TAMING = {
    "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip
"""`ddconfig` of the published f16 model with 16,384 codes."""


def test_published_model_has_attention_at_its_smallest_map():
    config = read_vqgan_config({"embed_dim": 256, "n_embed": 16384, **TAMING}, "vqgan.yaml", {})
    assert (config.attn_resolutions, config.attn_type, config.num_codes) == ((16,), "vanilla", 16384)
    keys = {entry.key for entry in image_tokenizer_entries(config)}
    attended = {key.rsplit(".", 2)[0] for key in keys if ".attn." in key and key.endswith("q.weight")}
    assert attended == {
        "encoder.down.4.attn.0", "encoder.down.4.attn.1",
        "decoder.up.4.attn.0", "decoder.up.4.attn.1", "decoder.up.4.attn.2",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_resolutions": (32, 64)},
        {"attn_type": "none"},
        {"resolution": 64, "channels": 32, "channel_multipliers": (1, 2), "code_dim": 8, "latent_channels": 16},
    ],
)
def test_config_survives_both_formats(changes):
    config = ImageTokenizerConfig(**changes)
    assert read_vqgan_config(huggingface_config(config), "config.json", TRANSFORMERS) == config
    params = meta_config(config)
    sizes = params.pop("ddconfig")
    assert read_vqgan_config({**params, **sizes}, "vqgan.yaml", {}) == config


def test_left_out_keys_mean_what_transformers_takes_for_them():
    assert read_vqgan_config({}, "config.json", TRANSFORMERS) == ImageTokenizerConfig()
    with pytest.raises(FileError, match=r"vqgan.yaml: not the config of a VQGAN: resolution is missing"):
        read_vqgan_config({}, "vqgan.yaml", {})


def test_numbers_that_no_level_has_mean_no_attention_as_in_their_code():
    values = {**huggingface_config(ImageTokenizerConfig()), "attn_resolutions": [16, 64, 100]}
    assert read_vqgan_config(values, "config.json", TRANSFORMERS).attn_resolutions == (64,)


@pytest.mark.parametrize("attention", ["none", None])
def test_without_attention_resolutions_mean_nothing(attention):
    config = read_vqgan_config({"attn_type": attention, "attn_resolutions": [32]}, "config.json", TRANSFORMERS)
    assert (config.attn_type, config.attn_resolutions) == ("none", ())


def test_keys_of_training_and_of_every_config_of_transformers_may_be_there():
    values = {"beta": 0.25, "dropout": 0.1, "image_key": "image", "_name_or_path": "x", "id2label": {"0": "a"}}
    assert read_vqgan_config({**values, "remap": None}, "config.json", TRANSFORMERS) == ImageTokenizerConfig()


@pytest.mark.torch
def test_config_of_transformers_itself_is_read():
    transformers = pytest.importorskip("transformers.models.chameleon")
    values = transformers.ChameleonVQVAEConfig(attn_resolutions=[64], dropout=0.1).to_dict()
    expected = ImageTokenizerConfig(attn_resolutions=(64,))
    assert read_vqgan_config(values, "config.json", TRANSFORMERS) == expected


def test_attention_over_a_map_that_takes_all_memory_is_refused():
    with pytest.raises(ConfigError, match=r"attn_resolutions = \[512\]: .* 65536 million scores a picture"):
        ImageTokenizerConfig(attn_resolutions=(512,))
    with pytest.raises(ConfigError, match=r"resolution = 4096: .* up to 128"):
        ImageTokenizerConfig(resolution=4096)
    assert ImageTokenizerConfig(resolution=4096, attn_type="none").grid == 256


def test_attention_at_a_map_that_is_not_there_is_refused_in_our_configs():
    with pytest.raises(ConfigError, match=r"attn_resolutions = \[16\]: must be among the sides .* 512, 256, 128, 64"):
        ImageTokenizerConfig(attn_resolutions=(16,))


def test_what_the_released_formats_cannot_hold_is_listed_whole():
    config = ImageTokenizerConfig(space_to_depth=2, norm_groups=16)
    assert why_not_released(config) == "space_to_depth = 2 (must be 1), norm_groups = 16 (must be 32)"
    assert why_not_released(ImageTokenizerConfig()) == ""
