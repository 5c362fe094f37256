"""Writes model directories in Hugging Face's format, in layout H1, which transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, TransformerConfig
from chameleon_jax.runtime.files import write_json
from chameleon_jax.tokens.export import processor_files, tokenizer_config, tokenizer_json
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.checkpoint import Checkpoint, ConversionError, write_note
from chameleon_jax.weights.huggingface import DECODER_FILE, VQ, VQ_TYPE
from chameleon_jax.weights.layout import image_tokenizer_entries, is_decoder, transformer_entries
from chameleon_jax.weights.safetensors import parts_of, write_safetensors
from chameleon_jax.weights.sources import Progress, Weights
from chameleon_jax.weights.vqgan import huggingface_config, why_not_released

LARGEST_FILE = 5 * 10**9


def write_huggingface(checkpoint: Checkpoint, folder: Path, dtype: np.dtype, progress: Progress) -> None:
    """Writes a checkpoint for transformers into an empty folder; use inside `runtime.folders.new_folder`.

    Raises:
      ConversionError: if transformers cannot represent the model.
    """
    config, image = checkpoint.config, checkpoint.image_config
    _require_supported(checkpoint)
    entries = transformer_entries(config, "H1")
    sources = {entry.key: (checkpoint.weights, entry, dtype) for entry in entries}
    decoder = {}
    if image is not None and checkpoint.image_weights is not None:
        encoder, decoder = _image_sources(image, checkpoint.image_weights, VQ)
        sources |= encoder
    _write_tensors(folder, sources, progress)
    _write_decoder(folder, decoder, progress)

    names, vocabulary = checkpoint.names, checkpoint.vocabulary
    if vocabulary is not None and checkpoint.text is not None:
        names = vocabulary.names(checkpoint.text)
        write_json(folder / "tokenizer.json", tokenizer_json(checkpoint.text, vocabulary, style="huggingface"))
        write_json(folder / "tokenizer_config.json", tokenizer_config())
        if image is not None:
            style = checkpoint.preprocessing.style
            for name, values in processor_files(image.codes_per_image, image.resolution, style).items():
                write_json(folder / name, values)
    write_json(folder / "config.json", _header(config, image, vocabulary, names, dtype))
    if vocabulary is not None:
        ids = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad}
        write_json(folder / "generation_config.json", ids)
    write_note(checkpoint, folder)


def write_huggingface_vq(folder: Path, config: ImageTokenizerConfig, weights: Weights, progress: Progress) -> None:
    """Writes an image tokenizer alone, as transformers' ChameleonVQVAE, into an empty folder.

    Raises:
      ConversionError: if transformers cannot represent it.
    """
    if unreleased := why_not_released(config):
        raise ConversionError(
            f"{folder.name}: an image tokenizer with {unreleased} cannot be written for transformers, which only has "
            "VQGANs of the released kind. Format 'chameleon' can hold every one"
        )
    encoder, decoder = _image_sources(config, weights, "")
    _write_file(folder / "model.safetensors", encoder, progress)
    _write_decoder(folder, decoder, progress)
    names = {"architectures": ["ChameleonVQVAE"], "model_type": VQ_TYPE, "dtype": "float32", "torch_dtype": "float32"}
    write_json(folder / "config.json", names | huggingface_config(config))


def _image_sources(
    config: ImageTokenizerConfig, weights: Weights, prefix: str
) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Sources of the tensors that transformers has, and of the decoder."""
    parts: tuple[dict[str, tuple], dict[str, tuple]] = {}, {}
    for entry in image_tokenizer_entries(config, prefix):
        if entry.leaf in weights:
            parts[is_decoder(entry)][entry.key] = (weights, entry, np.dtype(np.float32))
    return parts


def _write_decoder(folder: Path, sources: dict[str, tuple], progress: Progress) -> None:
    if sources:
        (folder / DECODER_FILE).parent.mkdir()
        _write_file(folder / DECODER_FILE, sources, progress)


def _require_supported(checkpoint: Checkpoint) -> None:
    config, image = checkpoint.config, checkpoint.image_config
    unreleased = why_not_released(image) if image is not None else ""
    for supported, key, why in (
        (config.qk_norm, "qk_norm = False", "its models always normalise queries and keys"),
        (
            config.head_dim * config.num_heads == config.d_model,
            f"head_dim = {config.head_dim}",
            f"its head size is d_model / num_heads = {config.d_model} / {config.num_heads}",
        ),
        (not unreleased, f"an image tokenizer with {unreleased}", "it only has VQGANs of the released kind"),
    ):
        if not supported:
            raise ConversionError(
                f"{checkpoint.folder}: {key} cannot be written for transformers: {why}. Format 'chameleon' "
                "can hold every model"
            )


def _write_tensors(folder: Path, sources: dict[str, tuple], progress: Progress) -> None:
    specs = {key: (entry.stored, dtype) for key, (_, entry, dtype) in sources.items()}
    parts = list(parts_of(specs, LARGEST_FILE))
    if len(parts) == 1:
        _write_file(folder / "model.safetensors", sources, progress)
        return
    where = {}
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        _write_file(folder / name, {key: sources[key] for key in part}, progress)
        where |= dict.fromkeys(part, name)
    total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in specs.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _write_file(path: Path, sources: dict[str, tuple], progress: Progress) -> None:
    def value(key: str) -> np.ndarray:
        weights, entry, dtype = sources[key]
        return weights.fetch(entry, dtype)

    specs = {key: (entry.stored, dtype) for key, (_, entry, dtype) in sources.items()}
    write_safetensors(path, specs, value, progress)


def _header(
    config: TransformerConfig,
    image: ImageTokenizerConfig | None,
    vocabulary: Vocabulary | None,
    names: Mapping[str, int] | None,
    dtype: np.dtype,
) -> dict[str, Any]:
    """The contents of config.json, with the keys of both older and newer versions of transformers."""
    header = {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": str(dtype),
        "torch_dtype": str(dtype),
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "initializer_range": config.init_std,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.context_length,
        "mlp_bias": False,
        "model_parallel_size": config.qk_norm_groups,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "swin_norm": config.norm_order == "swin",
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if vocabulary is not None:
        header |= {
            "bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad
        }  # fmt: skip
    if names is not None:
        header["vocabulary_map"] = dict(names)
    if image is not None:
        header["vq_config"] = huggingface_config(image)
    return header
