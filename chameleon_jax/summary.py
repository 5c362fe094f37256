"""What a model consists of, in a few lines: `repr` of a `Chameleon` and its view in a notebook."""

from __future__ import annotations

import html
from collections import Counter
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import NamedSharding

if TYPE_CHECKING:
    from chameleon_jax.chameleon import Chameleon


def summarize(model: Chameleon) -> dict[str, str]:
    """Sizes, parameters, devices, tokenizers and what the model can write. Nothing is computed."""
    config, tokenizer = model.config, model.tokenizer
    leaves = jax.tree.leaves(model._engines.weights if model._params is None else model._params)
    lines = {
        "transformer": f"{config.num_layers} layers of width {config.d_model:,}, {config.num_heads} heads "
        f"({config.num_kv_heads} key/value) of {config.head_dim}, feed-forward {config.mlp_dim:,}, vocabulary "
        f"{config.vocab_size:,}",
        "parameters": f"{_parameters(leaves)}; computes in {model.execution.compute_dtype}",
        "devices": _devices(leaves),
    }
    if tokenizer.text is None:
        lines["text tokenizer"] = f"none: {tokenizer.missing['text']}"
    else:
        lines["text tokenizer"] = f"{type(tokenizer.text).__name__}, {tokenizer.text.num_pieces:,} pieces"
    if tokenizer.image is None:
        lines["image tokenizer"] = f"none: {tokenizer.missing['image']}"
    else:
        sizes = tokenizer.image.config
        lines["image tokenizer"] = (
            f"{sizes.resolution} x {sizes.resolution} pixels to {sizes.codes_per_image:,} codes of {sizes.num_codes:,}"
        )
    return {**lines, "can write": _can_write(model)}


def as_text(model: Chameleon) -> str:
    lines = summarize(model)
    width = max(map(len, lines)) + 2
    return "\n".join(["Chameleon", *(f"  {name + ':':<{width}}{value}" for name, value in lines.items())])


def as_html(model: Chameleon) -> str:
    rows = "".join(
        f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
        f"<td style='text-align: left'>{html.escape(value)}</td></tr>"
        for name, value in summarize(model).items()
    )
    return f"<table><caption>Chameleon</caption>{rows}</table>"


def _parameters(leaves: list[Any]) -> str:
    types = Counter()
    for leaf in leaves:
        types[str(leaf.dtype)] += leaf.size
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    scaled = f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
    return f"{sum(types.values()):,} in {' and '.join(sorted(types))}, {scaled}"


def _devices(leaves: list[Any]) -> str:
    shardings = [leaf.sharding for leaf in leaves if isinstance(leaf, jax.Array)]
    devices = set().union(*(sharding.device_set for sharding in shardings))
    if not devices:
        return "none: the parameters are in host memory"
    kinds = Counter(device.device_kind for device in devices)
    text = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    meshes = {sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)}
    sizes = [f"{name} {size}" for mesh in meshes for name, size in mesh.shape.items() if size > 1]
    return f"{text} ({', '.join(sizes)})" if len(meshes) == 1 and sizes else text


def _can_write(model: Chameleon) -> str:
    for part in ("text", "vocabulary"):
        if part in model.tokenizer.missing:
            return f"ids only: it has no {'text tokenizer' if part == 'text' else part}"
    if model.tokenizer.image is None:
        return "text; no pictures: it has no image tokenizer"
    if not model.tokenizer.image.can_decode:
        return "text; no pictures: it has no image decoder"
    if model.image_head_trained is False:
        return "text; no pictures: its output layer was never trained on them"
    if model.image_head_trained is None:
        return "text; pictures if its output layer was trained on them, which `why_no_pictures` finds out"
    return "text and pictures"
