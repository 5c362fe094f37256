"""What a model directory holds, for people and for programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from chameleon_jax.errors import printable
from chameleon_jax.weights.checkpoint import Checkpoint
from chameleon_jax.weights.layout import image_tokenizer_entries, leaf_shapes
from chameleon_jax.weights.sources import Weights


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Format, sizes, types, vocabulary and gaps of a checkpoint, as text, numbers and lists of text."""
    config, image, vocabulary = checkpoint.config, checkpoint.image_config, checkpoint.vocabulary
    found: dict[str, Any] = {
        "folder": str(checkpoint.folder),
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "transformer": f"{config.num_layers} layers, width {config.d_model}, {config.num_heads} heads"
        f" ({config.num_kv_heads} for keys and values) of {config.head_dim}, feed-forward {config.mlp_dim}",
        "parameters": count_parameters(checkpoint),
        "type": _types(checkpoint.weights),
        "gigabytes": round(checkpoint.weights.nbytes / 1e9, 3),
        "norms": f"{'before' if config.norm_order == 'pre' else 'after'} each branch ({config.norm_order}); QK-norm "
        + (f"with {config.qk_norm_groups} rows" if config.qk_norm else "off"),
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if vocabulary is not None:
        ids = vocabulary.image_ids
        order = "in order" if np.array_equal(ids, ids[0] + np.arange(len(ids))) else "in any order"
        found["vocabulary"] = (
            f"{len(vocabulary.text_ids)} pieces of text, {len(ids)} image codes ({ids.min()} to {ids.max()}, "
            f"{order}), <s> {vocabulary.bos}, <pad> {vocabulary.pad}, </s> {vocabulary.eos}, begin of image "
            f"{vocabulary.begin_image}, end of image {vocabulary.end_image}, end of turn {vocabulary.end_of_turn}"
        )
    if checkpoint.text is not None:
        found["text_tokenizer"] = f"{type(checkpoint.text).__name__}, {checkpoint.text.num_pieces} pieces"
    if image is not None and checkpoint.image_weights is not None:
        decoder = "without decoder" if "decoder" in checkpoint.missing else "with decoder"
        found["image_tokenizer"] = (
            f"{image.resolution} x {image.resolution} pixels to {image.codes_per_image} codes of {image.num_codes}, "
            f"{decoder}, {_types(checkpoint.image_weights)}"
        )
    heads = {True: "was trained on pictures", False: "was not trained on pictures (they were taken out of the weights)"}
    found["output_layer"] = heads.get(checkpoint.image_head_trained, "nothing says whether it learned to draw")
    found["missing"] = [printable(f"{part}: {why}", 1000) for part, why in checkpoint.missing.items()] or ["nothing"]
    if checkpoint.ignored:
        found["not_needed"] = f"{len(checkpoint.ignored)} tensors, such as {printable(checkpoint.ignored[0])}"
    if checkpoint.warnings:
        found["warnings"] = checkpoint.warnings
    return found


def _types(weights: Weights) -> str:
    """'bfloat16', or how many tensors there are of each type if there are several."""
    if len(weights.dtypes) == 1:
        return next(iter(weights.dtypes))
    return ", ".join(f"{dtype} ({count} tensors)" for dtype, count in weights.dtypes.items())


def count_parameters(checkpoint: Checkpoint) -> str:
    config, image = checkpoint.config, checkpoint.image_config
    layers = {leaf: config.num_layers if leaf.startswith("layers/") else 1 for leaf in leaf_shapes(config)}
    text = f"{sum(layers[leaf] * int(np.prod(shape)) for leaf, shape in leaf_shapes(config).items()):,}"
    if image is not None and checkpoint.image_weights is not None:
        entries = [entry for entry in image_tokenizer_entries(image) if entry.leaf in checkpoint.image_weights]
        text += f", image tokenizer {sum(int(np.prod(entry.piece)) for entry in entries):,}"
    return text
