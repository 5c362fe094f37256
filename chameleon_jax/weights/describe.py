"""Describes the contents of a model folder, or of an image tokenizer alone, as data and as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from chameleon_jax.config import ImageTokenizerConfig, to_dict
from chameleon_jax.errors import printable
from chameleon_jax.weights.checkpoint import Checkpoint
from chameleon_jax.weights.layout import has_decoder, image_tokenizer_entries, parameter_count
from chameleon_jax.weights.native import OpenedImageTokenizer
from chameleon_jax.weights.sources import Weights

ARCHITECTURE = (
    "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "qk_norm", "qk_norm_groups",
    "norm_order", "rope_theta", "vocab_size", "context_length",
)  # fmt: skip


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Format, sizes, dtypes, vocabulary and missing parts of a checkpoint, as JSON-serializable data.

    The value of a vocabulary, text tokenizer or image tokenizer that does not exist is None; `missing` says why.
    """
    config, weights = checkpoint.config, checkpoint.weights
    return {
        "folder": str(checkpoint.folder),
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "architecture": {name: getattr(config, name) for name in ARCHITECTURE},
        "parameters": parameter_count(config),
        "tensors_by_dtype": dict(weights.dtypes),
        "bytes": weights.nbytes,
        "vocabulary": _vocabulary(checkpoint),
        "text_tokenizer": checkpoint.text
        and {"type": type(checkpoint.text).__name__, "pieces": checkpoint.text.num_pieces},
        "image_tokenizer": _image_tokenizer(checkpoint.image_config, checkpoint.image_weights),
        "output_layer_trained_on_pictures": checkpoint.image_head_trained,
        "chat_template": checkpoint.chat_template,
        "missing": {part: printable(why, 1000) for part, why in checkpoint.missing.items()},
        "ignored_tensors": [printable(name) for name in checkpoint.ignored],
        "warnings": list(checkpoint.warnings),
    }


def _vocabulary(checkpoint: Checkpoint) -> dict[str, Any] | None:
    vocabulary = checkpoint.vocabulary
    if vocabulary is None:
        return None
    ids = vocabulary.image_ids
    names = ("bos", "pad", "eos", "begin_image", "end_image", "end_of_turn")
    return {
        "text_pieces": len(vocabulary.text_ids),
        "image_codes": len(ids),
        "first_image_id": int(ids.min()),
        "last_image_id": int(ids.max()),
        "image_ids_in_order": bool(np.array_equal(ids, ids[0] + np.arange(len(ids)))),
        **{name: int(getattr(vocabulary, name)) for name in names},
    }


def _image_tokenizer(image: ImageTokenizerConfig | None, weights: Weights | None) -> dict[str, Any] | None:
    if image is None or weights is None:
        return None
    entries = [entry for entry in image_tokenizer_entries(image) if entry.leaf in weights]
    return {
        "resolution": image.resolution,
        "codes_per_image": image.codes_per_image,
        "num_codes": image.num_codes,
        "parameters": sum(int(np.prod(entry.piece)) for entry in entries),
        "tensors_by_dtype": dict(weights.dtypes),
        "decoder": has_decoder(image, weights),
    }


def describe_image_tokenizer(path: str, opened: OpenedImageTokenizer) -> dict[str, Any]:
    """Architecture, preprocessing, sizes and dtypes of an image tokenizer alone, as JSON-serializable data."""
    return {
        "folder": path,
        "image_tokenizer": _image_tokenizer(opened.config, opened.weights),
        "architecture": to_dict(opened.config),
        "preprocessing": to_dict(opened.preprocessing),
    }


def image_tokenizer_lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The result of `describe_image_tokenizer` as pairs of label and text."""
    yield "folder", found["folder"]
    yield "image_tokenizer", _image_line(found["image_tokenizer"])
    yield "parameters", f"{found['image_tokenizer']['parameters']:,}"
    for part in ("architecture", "preprocessing"):
        yield part, ", ".join(f"{key} {value}" for key, value in found[part].items())


def lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The result of `describe` as pairs of label and text; the label is empty on continuation lines."""
    config, image, vocabulary = found["architecture"], found["image_tokenizer"], found["vocabulary"]
    for name in ("folder", "format", "layout"):
        yield name, found[name]
    yield (
        "transformer",
        (
            f"{config['num_layers']} layers, width {config['d_model']}, {config['num_heads']} heads "
            f"({config['num_kv_heads']} for keys and values) of size {config['head_dim']}, feed-forward width "
            f"{config['mlp_dim']}"
        ),
    )
    parameters = f", image tokenizer {image['parameters']:,}" if image else ""
    yield "parameters", f"{found['parameters']:,}{parameters}"
    yield "type", _types(found["tensors_by_dtype"])
    yield "gigabytes", f"{found['bytes'] / 1e9:.3g}"
    order = "before" if config["norm_order"] == "pre" else "after"
    qk_norm = f"with {config['qk_norm_groups']} rows" if config["qk_norm"] else "off"
    yield "norms", f"{order} each branch ({config['norm_order']}); QK-norm {qk_norm}"
    yield "rope_theta", str(config["rope_theta"])
    yield "vocab_size", str(config["vocab_size"])
    yield "context_length", str(config["context_length"])
    if vocabulary:
        yield "vocabulary", _vocabulary_line(vocabulary)
    if text := found["text_tokenizer"]:
        yield "text_tokenizer", f"{text['type']}, {text['pieces']} pieces"
    if image:
        yield "image_tokenizer", _image_line(image)
    heads = {True: "trained on pictures", False: "not trained on pictures (cannot draw)"}
    trained = found["output_layer_trained_on_pictures"]
    yield "output_layer", heads.get(trained, "unknown whether trained on pictures")
    if found["chat_template"]:
        yield "chat_template", found["chat_template"]
    missing = [f"{part}: {why}" for part, why in found["missing"].items()] or ["nothing"]
    yield from zip(["missing", *[""] * (len(missing) - 1)], missing, strict=True)
    if ignored := found["ignored_tensors"]:
        yield "not_needed", f"{len(ignored)} tensors, such as {ignored[0]}"
    warnings = found["warnings"]
    yield from zip(["warnings", *[""] * (len(warnings) - 1)][: len(warnings)], warnings, strict=True)


def _vocabulary_line(found: dict[str, Any]) -> str:
    order = "in order" if found["image_ids_in_order"] else "in any order"
    return (
        f"{found['text_pieces']} pieces of text, {found['image_codes']} image codes ({found['first_image_id']} to "
        f"{found['last_image_id']}, {order}), <s> {found['bos']}, <pad> {found['pad']}, </s> {found['eos']}, begin of "
        f"image {found['begin_image']}, end of image {found['end_image']}, end of turn {found['end_of_turn']}"
    )


def _image_line(image: dict[str, Any]) -> str:
    return (
        f"{image['resolution']} x {image['resolution']} pixels to {image['codes_per_image']} codes of "
        f"{image['num_codes']}, {'with' if image['decoder'] else 'without'} decoder, "
        f"{_types(image['tensors_by_dtype'])}"
    )


def _types(tensors_by_dtype: dict[str, int]) -> str:
    """'bfloat16', or the number of tensors of each dtype if there are several."""
    if len(tensors_by_dtype) == 1:
        return next(iter(tensors_by_dtype))
    return ", ".join(f"{dtype} ({count} tensors)" for dtype, count in tensors_by_dtype.items())
