"""Reads model directories in Hugging Face's format, in every layout: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, TransformerConfig
from chameleon_jax.config.reading import shortened
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.files import read_json
from chameleon_jax.runtime.folders import read_marker
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.tokens.vocabulary import Vocabulary
from chameleon_jax.weights.checkpoint import (
    Checkpoint,
    check_layers,
    read_note,
    require_kinds,
    without_image_tokenizer,
)
from chameleon_jax.weights.layout import Layout, has_decoder, image_tokenizer_entries, is_decoder, transformer_entries
from chameleon_jax.weights.safetensors import read_index, read_safetensors
from chameleon_jax.weights.sources import FileWeights, match, refuse_unknown
from chameleon_jax.weights.stored import Tensor
from chameleon_jax.weights.torch_files import read_tensors
from chameleon_jax.weights.vqgan import read_vqgan_config

VQ = "model.vqmodel."
DECODER_FILE = "image_decoder/model.safetensors"
"""The image decoder, for which transformers has no module, goes into a folder of its own that transformers ignores."""
VQ_TYPE = "chameleon_vqgan"
"""`model_type` of the config of transformers' ChameleonVQVAE, the image tokenizer alone."""

LAYOUT_NAMES = {
    "H0": "H0 (the fork that Anole uses: Meta's channel order, one row of QK-norm)",
    "H1": "H1 (transformers since 4.43: one row of QK-norm per head)",
    "H2": "H2 (Lumina-mGPT: one row of QK-norm per shard)",
}


def is_huggingface(folder: Path) -> bool:
    return bool(_weight_files(folder)) and (folder / "config.json").exists()


def _weight_files(folder: Path) -> list[Path]:
    names = (
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
    )  # fmt: skip
    return [folder / name for name in names if (folder / name).exists()]


def open_huggingface(folder: Path, weights_file: str = "") -> Checkpoint:
    """Reads configs, headers and tokenizer of a directory, and checks that they belong together.

    Args:
      weights_file: name of the weights file or of its index; by default the only one there.

    Raises:
      FileError: if anything is missing, damaged, or does not fit the rest.
    """
    header = read_json(folder / "config.json")
    tensors = _open_tensors(folder, weights_file)
    where = folder / "config.json"
    require_kinds(header, _KINDS, where)
    if header.get("model_type") != "chameleon":
        raise FileError(f"{where}: model_type is {shortened(header.get('model_type'))}; expected 'chameleon'")
    config = _transformer_config(header, where)
    layout = _detect_layout(tensors, config, folder)
    groups = _qk_norm_groups(tensors, config, layout, header.get("model_parallel_size") or 1)
    config = dataclasses.replace(config, qk_norm_groups=groups)
    check_layers(config, len(tensors), folder)
    found, extra = match(transformer_entries(config, layout), [tensors], folder)
    weights = FileWeights(found)
    missing: dict[str, str] = {}
    image_config, image_weights, ignored = None, None, []
    with without_image_tokenizer(missing):
        image_config, image_weights, ignored = _open_image_tokenizer(folder, header, tensors, extra, missing)
    refuse_unknown([key for key in extra if not key.startswith(VQ)], folder)
    ignored += [key for key in extra if not key.startswith(VQ)]
    vocabulary, text = _open_vocabulary(folder, header, missing)
    note = read_note(folder)
    note.pop("context_length", None)  # config.json has it
    if layout == "H2":
        note = {"chat_template": "lumina"} | note
    return Checkpoint(
        folder=folder,
        format="huggingface",
        layout=LAYOUT_NAMES[layout],
        config=config,
        weights=weights,
        image_config=image_config,
        image_weights=image_weights,
        vocabulary=vocabulary,
        text=text,
        missing=missing,
        ignored=ignored,
        names=header.get("vocabulary_map"),
        **note,
    )


def _open_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    files = [folder / name] if name else _weight_files(folder)
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise FileError(f"{folder}: holds {names}; two models are mixed in one folder, keep one of them")
    (file,) = files
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    if file.name == "model.safetensors.index.json":
        return read_index(file, read_safetensors)
    if file.suffix == ".bin":
        return read_tensors(file)
    return read_index(file, read_tensors)


_DEFAULTS = {
    "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "rms_norm_eps": 1e-5, "swin_norm": False,
    "initializer_range": 0.02, "max_position_embeddings": 4096,
}  # fmt: skip
"""transformers' defaults for keys missing from config.json: the sizes of the 7B model."""

_KINDS = {
    "vocab_size": int, "hidden_size": int, "intermediate_size": int, "num_hidden_layers": int,
    "num_attention_heads": int, "num_key_value_heads": int, "rms_norm_eps": float, "swin_norm": bool,
    "initializer_range": float, "rope_theta": float, "rope_parameters": dict, "rope_scaling": dict,
    "model_parallel_size": int, "vocabulary_map": dict, "max_position_embeddings": int,
}  # fmt: skip

_UNSUPPORTED = {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "hidden_act": "silu"}


def _transformer_config(header: dict[str, Any], where: Path) -> TransformerConfig:
    for key, only in _UNSUPPORTED.items():
        if header.get(key, only) not in (only, None):
            raise FileError(
                f"{where}: {key} = {shortened(header[key])}: only {only!r} is supported, as in the released models"
            )
    rope = header.get("rope_parameters") or header.get("rope_scaling") or {}
    require_kinds(rope, {"rope_theta": float}, f"{where}: rope_parameters")
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise FileError(
            f"{where}: rope_parameters = {shortened(rope)}: only plain RoPE is supported, as in the released models"
        )
    values = {key: default if header.get(key) is None else header[key] for key, default in _DEFAULTS.items()}
    heads = values["num_attention_heads"]
    try:
        return TransformerConfig(
            vocab_size=values["vocab_size"],
            d_model=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values["num_key_value_heads"] or heads,
            head_dim=values["hidden_size"] // heads,
            mlp_dim=values["intermediate_size"],
            norm_order="swin" if values["swin_norm"] else "pre",
            norm_eps=float(values["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta") or header.get("rope_theta") or 10000.0),
            init_std=float(values["initializer_range"]),
            context_length=values["max_position_embeddings"],
        )
    except (TypeError, ZeroDivisionError, ValueError) as error:
        raise FileError(f"{where}: not the config of a Chameleon model: {error}") from None


def _detect_layout(tensors: Mapping[str, Tensor], config: TransformerConfig, folder: Path) -> Layout:
    key = "model.layers.0.self_attn.q_norm.weight"
    if key not in tensors:
        raise FileError(f"{folder}: {key} is missing; every layout of Chameleon has it. Is it another kind of model?")
    shape = tensors[key].shape
    if len(shape) == 1:
        return "H0"
    if len(shape) == 2 and shape[0] == config.num_heads:
        return "H1"
    if len(shape) == 2 and _can_group(config, shape[0]):
        return "H2"
    raise FileError(
        f"{tensors[key].file}: {key} has shape {shape}; expected ({config.head_dim},), or one row for each of the "
        f"{config.num_heads} heads, or one row per shard"
    )


def _can_group(config: TransformerConfig, groups: int) -> bool:
    """Whether the heads can be divided into this many groups of QK-norm."""
    H, K = config.num_heads, config.num_kv_heads
    return groups > 0 and H % groups == 0 and 0 in (K % groups, groups % K)


def _qk_norm_groups(tensors: Mapping[str, Tensor], config: TransformerConfig, layout: Layout, shards: int) -> int:
    """Number of groups of heads that share a row of QK-norm: the model's shards, or more if their rows differ."""
    if layout == "H0":
        return 1
    rows = {}
    for name, heads in (("q_norm", config.num_heads), ("k_norm", config.num_kv_heads)):
        found = [tensor for key, tensor in tensors.items() if f".{name}." in key]
        if layout == "H2":
            return found[0].shape[0]
        if not found or any(tensor.shape != (heads, config.head_dim) for tensor in found):
            return 1  # `match` reports which
        rows[heads, name] = np.concatenate([np.ascontiguousarray(tensor.view()).view(np.uint8) for tensor in found], 1)

    def equal_within(groups: int) -> bool:
        return all(
            (values == np.repeat(values[:: heads // min(groups, heads)], heads // min(groups, heads), 0)).all()
            for (heads, _), values in rows.items()
        )

    candidates = [groups for groups in range(max(1, shards), config.num_heads + 1) if _can_group(config, groups)]
    return next((groups for groups in candidates if equal_within(groups)), config.num_heads)


# ----------------------------------------------------------------------------------------------------------------------
# Image tokenizer, vocabulary
# ----------------------------------------------------------------------------------------------------------------------


def _open_image_tokenizer(
    folder: Path, header: dict[str, Any], tensors: Mapping[str, Tensor], extra: list[str], missing: dict[str, str]
) -> tuple[ImageTokenizerConfig | None, FileWeights | None, list[str]]:
    """The image tokenizer's config, its weights if there are any, and the names of tensors that it does not use.

    Raises:
      FileError: if it is damaged or of an unknown kind.
    """
    vq = {key: tensors[key] for key in extra if key.startswith(VQ)}
    where = f"{folder / 'config.json'}: vq_config"
    config = read_vqgan_config(header.get("vq_config") or {}, where, dataclasses.asdict(ImageTokenizerConfig()))
    if not vq:
        missing["image"] = f"the weights in {folder} hold no image tokenizer ({VQ}…)"
        return config, None, []
    weights, unneeded = _image_weights(folder, config, vq, VQ)
    if not has_decoder(config, weights):
        missing["decoder"] = f"the weights in {folder} lack the image decoder, as Hugging Face's releases do"
    return config, weights, unneeded


def _image_weights(
    folder: Path, config: ImageTokenizerConfig, tensors: Mapping[str, Tensor], prefix: str
) -> tuple[FileWeights, list[str]]:
    """The weights of an image tokenizer, with those of its decoder if there are any, and the names of others."""
    decoder = folder / DECODER_FILE
    vq = {**tensors, **(read_safetensors(decoder) if decoder.exists() else {})}
    entries = image_tokenizer_entries(config, prefix)
    some = any(is_decoder(entry) and entry.key in vq for entry in entries)
    found, unused = match(entries, [vq], folder, optional=lambda entry: is_decoder(entry) and not some)
    return FileWeights(found), unused


def is_huggingface_vq(folder: Path) -> bool:
    """Whether a folder holds transformers' ChameleonVQVAE, the image tokenizer alone."""
    return is_huggingface(folder) and read_marker(folder / "config.json").get("model_type") == VQ_TYPE


def open_huggingface_vq(folder: Path, weights_file: str = "") -> tuple[ImageTokenizerConfig, FileWeights, list[str]]:
    """Opens an image tokenizer alone; also returns the names of tensors that it does not use.

    Args:
      weights_file: as for `open_huggingface`.

    Raises:
      FileError: if a file or a tensor is missing or does not fit.
    """
    where = folder / "config.json"
    config = read_vqgan_config(read_json(where), str(where), dataclasses.asdict(ImageTokenizerConfig()))
    tensors = _open_tensors(folder, weights_file)
    prefix = VQ if any(key.startswith(VQ) for key in tensors) else ""  # cut out of a whole model, or saved alone
    return config, *_image_weights(folder, config, tensors, prefix)


def _open_vocabulary(
    folder: Path, header: dict[str, Any], missing: dict[str, str]
) -> tuple[Vocabulary | None, JSONTokenizer | None]:
    names = header.get("vocabulary_map")
    path = folder / "tokenizer.json"
    if path.exists():
        text = JSONTokenizer.load(path)
        vocabulary = vocabulary_from_json(text.json, str(path))
        if isinstance(names, dict):
            listed = text.names
            for name, token in names.items():
                if listed.get(name, token) != token:
                    raise FileError(
                        f"{path}: {name!r} has id {listed[name]}, but {token} in config.json; "
                        "two models are mixed in one folder"
                    )
        return vocabulary, text
    missing["text"] = f"there is no tokenizer.json in {folder}"
    if isinstance(names, dict) and {"<s>", "<racm3:break>"} <= names.keys():
        return Vocabulary.from_names(names, f"{folder / 'config.json'}: vocabulary_map"), None
    missing["vocabulary"] = f"{folder} has neither tokenizer.json nor a complete vocabulary_map"
    return None, None
