"""VQGAN configs in the formats of taming-transformers (Esser et al. 2021) and of transformers.

Meta's vqgan.yaml and Hugging Face's vq_config describe the same family of networks. Every key of theirs is either
converted, ignored because it only matters for training, or rejected by name with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chameleon_jax.config import ConfigError, ImageTokenizerConfig
from chameleon_jax.errors import FileError
from chameleon_jax.weights.checkpoint import require_kinds

_NAMES = {
    "resolution": ("resolution",),
    "channels": ("base_channels", "ch"),
    "channel_multipliers": ("channel_multiplier", "ch_mult"),
    "num_res_blocks": ("num_res_blocks",),
    "latent_channels": ("latent_channels", "z_channels"),
    "code_dim": ("embed_dim",),
    "num_codes": ("num_embeddings", "n_embed"),
}
"""Our names of keys, mapped to those of transformers and taming-transformers."""

_LISTS = ("channel_multiplier", "ch_mult", "attn_resolutions")

_KINDS = {name: list if name in _LISTS else int for names in _NAMES.values() for name in names} | {
    "attn_resolutions": list, "in_channels": int, "out_channels": int, "out_ch": int, "dropout": float,
    "double_latent": bool, "double_z": bool, "resamp_with_conv": bool, "tanh_out": bool, "give_pre_end": bool,
    "use_linear_attn": bool,
}  # fmt: skip

_ONLY: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("in_channels", "out_channels", "out_ch"), (3, "pictures are red, green and blue")),
    **dict.fromkeys(
        ("double_latent", "double_z"),
        (False, "such an encoder outputs a mean and a variance (a KL autoencoder), but a codebook needs one value"),
    ),
    "resamp_with_conv": (True, "only resizing with convolutions is implemented"),
    "tanh_out": (False, "the released decoder has no tanh at its end"),
    "give_pre_end": (False, "the decoder would stop before its last layer and output no picture"),
    "use_linear_attn": (False, "only softmax attention is implemented"),
    "remap": (None, "remapped codes are not supported"),
}
"""Keys of which only one value is supported, and why."""

_ATTENTION = {"vanilla": "vanilla", "none": "none", None: "none"}

_TRAINING = {
    "dropout", "lossconfig", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "monitor", "beta", "legacy",
    "batch_resize_range", "scheduler_config", "lr_g_factor", "use_ema", "sane_index_shape", "initializer_range",
}  # fmt: skip
"""Keys about training or calling the tokenizer, not about what it computes."""

_EVERY_CONFIG = {
    "model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "return_dict", "output_attentions",
    "output_hidden_states", "torchscript", "use_bfloat16", "tf_legacy_loss", "pruned_heads", "tie_word_embeddings",
    "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "cross_attention_hidden_size", "add_cross_attention",
    "tie_encoder_decoder", "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "finetuning_task", "id2label",
    "label2id", "tokenizer_class", "prefix", "bos_token_id", "pad_token_id", "eos_token_id", "sep_token_id",
    "decoder_start_token_id", "task_specific_params", "problem_type", "base_model_tp_plan", "base_model_pp_plan",
}  # fmt: skip
"""Keys that older versions of transformers write into every config, besides those that begin with an underscore."""


def read_vqgan_config(values: Mapping[str, Any], where: str, defaults: Mapping[str, Any]) -> ImageTokenizerConfig:
    """Converts the config of a VQGAN.

    Args:
      values: its keys and values, in either format.
      where: file and key, for error messages.
      defaults: defaults of optional keys, by our names.

    Raises:
      FileError: for a key that is missing, unknown, or has an unsupported value.
    """
    require_kinds(values, _KINDS, where)
    known = _KINDS.keys() | _ONLY.keys() | _TRAINING | _EVERY_CONFIG | {"attn_type"}
    unknown = [key for key in values if key not in known and not key.startswith("_") and values[key] is not None]
    if unknown:
        raise FileError(f"{where}: unknown keys {', '.join(unknown)[:100]}; is it another kind of image tokenizer?")
    for key, (only, why) in _ONLY.items():
        if values.get(key, only) not in (only, None):
            raise FileError(f"{where}: {key} = {str(values[key])[:40]!r}: only {only!r} is supported: {why}")
    attention = values.get("attn_type", "vanilla")
    if not isinstance(attention, str | None) or attention not in _ATTENTION:
        raise FileError(f"{where}: attn_type = {str(attention)[:40]!r}: only 'vanilla' and 'none' are supported")
    sizes = {key: _one_of(values, names, where, defaults.get(key)) for key, names in _NAMES.items()}
    try:
        # Both implementations ignore resolutions that no level has.
        sizes["channel_multipliers"] = tuple(sizes["channel_multipliers"])
        plain = ImageTokenizerConfig(**sizes, attn_type=_ATTENTION[attention])
        resolutions = set(values.get("attn_resolutions") or ()) if plain.attn_type == "vanilla" else set()
        sizes["attn_resolutions"] = tuple(sorted(resolutions & set(plain.maps)))
        return ImageTokenizerConfig(**sizes, attn_type=plain.attn_type)
    except (ConfigError, TypeError) as error:
        raise FileError(f"{where}: {error}") from None


def _one_of(values: Mapping[str, Any], names: tuple[str, ...], where: str, default: Any) -> Any:
    """The value of a key that may have several names."""
    given = {name: values[name] for name in names if values.get(name) is not None}
    if not given:
        if default is None:
            raise FileError(f"{where}: not the config of a VQGAN: {' or '.join(names)} is missing")
        return default
    first, *others = given
    for other in others:
        if given[other] != given[first]:
            raise FileError(f"{where}: {first} = {given[first]} but {other} = {given[other]}; they mean the same")
    return given[first]


def huggingface_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    """The contents of vq_config, with the names of both older and newer versions of transformers."""
    multipliers = list(config.channel_multipliers)
    return {
        "attn_resolutions": list(config.attn_resolutions), "attn_type": config.attn_type, "dropout": 0.0,
        "in_channels": 3, "out_channels": 3, "out_ch": 3, "resolution": config.resolution,
        "num_res_blocks": config.num_res_blocks, "embed_dim": config.code_dim, "num_embeddings": config.num_codes,
        "n_embed": config.num_codes, "latent_channels": config.latent_channels, "z_channels": config.latent_channels,
        "base_channels": config.channels, "ch": config.channels, "channel_multiplier": multipliers,
        "ch_mult": multipliers, "double_latent": False, "double_z": False,
    }  # fmt: skip


def meta_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    """The contents of `model.params` in vqgan.yaml."""
    sizes = {
        "double_z": False, "z_channels": config.latent_channels, "resolution": config.resolution, "in_channels": 3,
        "out_ch": 3, "ch": config.channels, "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks, "attn_resolutions": list(config.attn_resolutions), "dropout": 0.0,
    }  # fmt: skip
    if config.attn_type != "vanilla":
        sizes["attn_type"] = config.attn_type
    return {"embed_dim": config.code_dim, "n_embed": config.num_codes, "ddconfig": sizes}


def why_not_released(config: ImageTokenizerConfig) -> str:
    """Settings of an image tokenizer that the released formats cannot represent, in words; '' if there are none."""
    wanted = {"space_to_depth": 1, "norm_groups": 32, "independent_patches": False}
    return ", ".join(
        f"{key} = {getattr(config, key)} (must be {value})"
        for key, value in wanted.items()
        if getattr(config, key) != value
    )
