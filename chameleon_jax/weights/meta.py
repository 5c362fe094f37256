"""Meta's format: params.json, consolidated*.pth, and the folder `tokenizer`; read and written without torch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.config import TransformerConfig
from chameleon_jax.errors import FileError, printable
from chameleon_jax.runtime.files import read_json, write_json
from chameleon_jax.tokens.export import tokenizer_json
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.weights.checkpoint import (
    Checkpoint,
    ConversionError,
    check_layers,
    read_note,
    require_kinds,
    without_image_tokenizer,
    write_note,
)
from chameleon_jax.weights.layout import Entry, transformer_entries
from chameleon_jax.weights.sources import FileWeights, Progress, match, refuse_unknown
from chameleon_jax.weights.stored import ComputedTensor, Tensor
from chameleon_jax.weights.taming import IMAGE_CONFIG_FILE, IMAGE_FILE, open_taming, require_writable, write_taming
from chameleon_jax.weights.torch_files import read_tensors
from chameleon_jax.weights.torch_writing import write_torch_file

TEXT_FILE = "text_tokenizer.json"
ROPE_KEY = "rope.freqs"
"""Meta's loader expects this tensor in the file, though the model does not use it."""


def find_meta(folder: Path) -> Path | None:
    """The folder with the weights: `folder` itself, or the one in its subfolder `models`.

    Raises:
      FileError: if there are several.
    """
    if any(folder.glob("consolidated*.pth")):
        return folder
    found = sorted({file.parent for file in folder.glob("models/*/consolidated*.pth")})
    if len(found) > 1:
        raise FileError(f"{folder}: holds {len(found)} models; give one of them, such as {found[0]}")
    return found[0] if found else None


def open_meta(folder: Path) -> Checkpoint:
    """Reads configs, pickles and tokenizer of a directory, and checks that they belong together.

    Raises:
      FileError: if anything is missing, damaged, or does not fit the rest.
    """
    shards = [read_tensors(file) for file in _shard_files(folder)]
    header, warnings = _read_params(folder)
    count = header.get("model_parallel_size")
    if count is not None and count != len(shards):
        raise FileError(
            f"{folder}: model_parallel_size is {count}, but there are {len(shards)} consolidated*.pth; is one missing?"
        )
    config, note = _transformer_config(header, shards, folder), read_note(folder)
    config = dataclasses.replace(config, context_length=note.pop("context_length", config.context_length))
    shards = [_split_fused(tensors, config, len(shards)) for tensors in shards]
    check_layers(config, min(map(len, shards)), folder)
    found, extra = match(transformer_entries(config, "meta", len(shards)), shards, folder)
    refuse_unknown(extra, folder)
    weights = FileWeights(_merge_copies(found, warnings))
    missing: dict[str, str] = {}
    tokenizer = _find_tokenizer(folder)
    image_config = image_weights = text = vocabulary = None
    ignored = list(extra)
    if tokenizer is None or not (tokenizer / IMAGE_FILE).exists():
        missing["image"] = f"there is no {IMAGE_FILE} in {tokenizer or folder / 'tokenizer'}"
    else:
        with without_image_tokenizer(missing):
            image_config, image_weights, unneeded = open_taming(tokenizer / IMAGE_FILE, tokenizer / IMAGE_CONFIG_FILE)
            ignored += unneeded
    if tokenizer is None or not (tokenizer / TEXT_FILE).exists():
        missing["text"] = missing["vocabulary"] = f"there is no {TEXT_FILE} in {tokenizer or folder / 'tokenizer'}"
    else:
        text = JSONTokenizer.load(tokenizer / TEXT_FILE)
        vocabulary = vocabulary_from_json(text.json, str(tokenizer / TEXT_FILE))
    made_without_pictures = "noimggen" in str(header.get("src", ""))
    return Checkpoint(
        folder=folder,
        format="meta",
        layout=f"Meta's, {len(shards)} shard{'s' if len(shards) > 1 else ''}",
        config=config,
        weights=weights,
        image_config=image_config,
        image_weights=image_weights,
        vocabulary=vocabulary,
        text=text,
        missing=missing,
        ignored=ignored,
        warnings=warnings,
        **(note | ({"image_head_trained": False} if made_without_pictures else {})),
    )


def _shard_files(folder: Path) -> list[Path]:
    whole, numbered = folder / "consolidated.pth", sorted(folder.glob("consolidated.[0-9]*.pth"))
    if whole.exists() and numbered:
        raise FileError(f"{folder}: holds {whole.name} and {numbered[0].name}; two models are mixed in one folder")
    if whole.exists():
        return [whole]
    for number, file in enumerate(numbered):
        if file.name != f"consolidated.{number:02d}.pth":
            raise FileError(f"{folder}: consolidated.{number:02d}.pth is missing, though {file.name} is there")
    return numbered


_DEFAULTS = {
    "dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": None, "vocab_size": -1, "ffn_dim_multiplier": None,
    "multiple_of": 256, "norm_eps": 1e-5, "rope_theta": 10000.0, "qk_normalization": False, "swin_norm": False,
}  # fmt: skip
"""The defaults of Meta's code for keys missing from params.json."""


_KINDS = {
    "dim": int, "n_layers": int, "n_heads": int, "n_kv_heads": int, "vocab_size": int, "ffn_dim_multiplier": float,
    "multiple_of": int, "norm_eps": float, "rope_theta": float, "qk_normalization": bool, "swin_norm": bool,
    "model_parallel_size": int,
}  # fmt: skip


def _read_params(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """params.json and consolidate_params.json, merged as Meta's loader does, and warnings about them."""
    where, consolidated = folder / "params.json", folder / "consolidate_params.json"
    header = read_json(where)
    require_kinds(header, _KINDS | {"model": dict}, where)
    model = header.get("model") or {}
    require_kinds(model, _KINDS, where)
    later = read_json(consolidated) if consolidated.exists() else {}
    require_kinds(later, _KINDS, consolidated)
    merged = {**header, **model, **later}
    unknown = sorted(key for key in model if key not in _DEFAULTS)
    return merged, [f"params.json: unknown keys of the model: {printable(', '.join(unknown))}"] if unknown else []


def feed_forward_width(dim: int, multiplier: float | None, multiple_of: int) -> int:
    """Meta's rule for the feed-forward width: 2/3 of 4 dim, times `multiplier`, rounded up to `multiple_of`."""
    hidden = int(2 * 4 * dim / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return -(-hidden // multiple_of) * multiple_of


def _transformer_config(header: dict[str, Any], shards: list[dict[str, Tensor]], folder: Path) -> TransformerConfig:
    values = {key: default if header.get(key) is None else header[key] for key, default in _DEFAULTS.items()}
    if values["vocab_size"] == -1 and "output.weight" in shards[0]:
        values["vocab_size"] = shards[0]["output.weight"].shape[0] * len(shards)
    where = folder / "params.json"
    for key in ("n_heads", "dim", "vocab_size"):
        if values[key] % len(shards):
            raise FileError(f"{folder}: {key} = {values[key]} cannot be divided into {len(shards)} shards")
    try:
        config = TransformerConfig(
            vocab_size=values["vocab_size"],
            d_model=values["dim"],
            num_layers=values["n_layers"],
            num_heads=values["n_heads"],
            num_kv_heads=values["n_kv_heads"] or values["n_heads"],
            head_dim=values["dim"] // values["n_heads"],
            mlp_dim=feed_forward_width(values["dim"], values["ffn_dim_multiplier"], values["multiple_of"]),
            qk_norm=values["qk_normalization"],
            qk_norm_groups=len(shards),
            norm_order="swin" if values["swin_norm"] else "pre",
            norm_eps=float(values["norm_eps"]),
            rope_theta=float(values["rope_theta"]),
        )
    except (TypeError, ZeroDivisionError, ValueError) as error:
        raise FileError(f"{where}: not the config of a Chameleon model: {error}") from None
    _require_divisible(config, len(shards), FileError, folder)
    return config


def _require_divisible(config: TransformerConfig, shards: int, error: type[Exception], where: Path) -> None:
    for name in ("num_heads", "num_kv_heads", "d_model", "mlp_dim", "vocab_size"):
        if getattr(config, name) % shards:
            raise error(f"{where}: {name} = {getattr(config, name)} cannot be divided into {shards} shards")


def _split_fused(tensors: dict[str, Tensor], config: TransformerConfig, shards: int) -> dict[str, Tensor]:
    """Splits tensors that stack the rows of q, k and v (or gate and up), as Meta's inference code does."""
    H, K, D = config.num_heads // shards, config.num_kv_heads // shards, config.head_dim
    width = config.mlp_dim // shards
    fused = {
        "attention.wqkv": {"attention.wq": H * D, "attention.wk": K * D, "attention.wv": K * D},
        "feed_forward.w13": {"feed_forward.w1": width, "feed_forward.w3": width},
    }
    split = {}
    for key, tensor in tensors.items():
        layer = re.match(r"layers\.\d+\.", key)
        parts = next((parts for name, parts in fused.items() if layer and key == f"{layer[0]}{name}.weight"), None)
        if parts is None or len(tensor.shape) != 2 or tensor.shape[0] != sum(parts.values()):
            split[key] = tensor
            continue
        begin = 0
        for name, rows in parts.items():
            split[f"{layer[0]}{name}.weight"] = tensor.rows(begin, begin + rows)
            begin += rows
    return split


def _merge_copies(found: dict[Entry, Tensor], warnings: list[str]) -> dict[Entry, Tensor]:
    """Keeps one copy of tensors that every shard holds; if copies differ, their mean, as Hugging Face's conversion."""
    copies: dict[tuple, list[Entry]] = {}
    for entry in found:
        copies.setdefault((entry.leaf, entry.layer, entry.start), []).append(entry)
    kept = {}
    for first, *others in copies.values():
        kept[first] = found[first]
        values = [np.asarray(found[entry].view()) for entry in (first, *others)] if others else []
        if any(value.tobytes() != values[0].tobytes() for value in values[1:]):
            mean = np.mean([value.astype(np.float64) for value in values], axis=0).astype(np.result_type(*values))
            kept[first] = ComputedTensor(found[first].file, first.key, mean)
            warnings.append(f"{first.key} differs between the shards; their mean was taken")
    return kept


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizer
# ----------------------------------------------------------------------------------------------------------------------


def _find_tokenizer(folder: Path) -> Path | None:
    folder = folder.absolute()
    places = (folder / "tokenizer", folder.parent / "tokenizer", folder.parent.parent / "tokenizer", folder)
    return next((place for place in places if (place / TEXT_FILE).exists() or (place / IMAGE_FILE).exists()), None)


# ----------------------------------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------------------------------


def write_meta(checkpoint: Checkpoint, folder: Path, dtype: np.dtype, progress: Progress, shards: int) -> None:
    """Writes a checkpoint for Meta's code into an empty folder; use inside `runtime.folders.new_folder`.

    Raises:
      ConversionError: if it cannot be divided into `shards`, or Meta's code cannot represent its image tokenizer.
    """
    config, image = checkpoint.config, checkpoint.image_config
    _require_divisible(config, shards, ConversionError, checkpoint.folder)
    if config.head_dim * config.num_heads != config.d_model:
        raise ConversionError(
            f"{checkpoint.folder}: Meta's code assumes head_dim = d_model / num_heads, but it is {config.head_dim}"
        )
    if config.qk_norm and shards % config.qk_norm_groups:
        raise ConversionError(
            f"{checkpoint.folder}: its heads have {config.qk_norm_groups} different rows of QK-norm, and Meta's format "
            f"has one per shard; {shards} shards cannot hold them, choose {config.qk_norm_groups}"
        )
    if image is not None and checkpoint.image_weights is not None:
        require_writable(image, checkpoint.image_weights, checkpoint.folder)
    entries = transformer_entries(config, "meta", shards)
    for shard in range(shards):
        name = "consolidated.pth" if shards == 1 else f"consolidated.{shard:02d}.pth"
        own = {entry.key: entry for entry in entries if entry.shard == shard}
        _write_shard(folder / name, own, checkpoint, dtype, progress)
    write_json(folder / "params.json", {"model": meta_params(config)})
    short = "bf16" if str(dtype) == "bfloat16" else "fp32"
    write_json(folder / "consolidate_params.json", {"dtype": short, "model_parallel_size": shards, "on_gpu": False})

    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    if checkpoint.text is not None and checkpoint.vocabulary is not None:
        write_json(tokenizer / TEXT_FILE, tokenizer_json(checkpoint.text, checkpoint.vocabulary, style="meta"))
    if image is not None and checkpoint.image_weights is not None:
        write_taming(tokenizer, image, checkpoint.image_weights, progress)
    write_note(checkpoint, folder)


def _write_shard(
    path: Path, entries: dict[str, Entry], checkpoint: Checkpoint, dtype: np.dtype, progress: Progress
) -> None:
    half = checkpoint.config.head_dim // 2
    frequencies = checkpoint.config.rope_theta ** (-np.arange(half, dtype=np.float64) / half)

    def value(key: str) -> np.ndarray:
        if key == ROPE_KEY:
            return frequencies.astype(dtype)
        return checkpoint.weights.fetch(entries[key], dtype)

    specs = {key: (entry.stored, dtype) for key, entry in entries.items()} | {ROPE_KEY: ((half,), dtype)}
    write_torch_file(path, specs, value, progress)


def meta_params(config: TransformerConfig) -> dict[str, Any]:
    """The architecture in the keys of params.json."""
    multiple_of, multiplier = 256, None
    if feed_forward_width(config.d_model, None, multiple_of) != config.mlp_dim:
        # The rule rounds up to a multiple at the end, so a multiple of the width itself yields any width.
        multiple_of = config.mlp_dim
        multiplier = min(1.0, config.mlp_dim / int(2 * 4 * config.d_model / 3))
    return {
        "dim": config.d_model,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "qk_normalization": config.qk_norm,
        "swin_norm": config.norm_order == "swin",
    }
