"""The YAML files that `chameleon init` writes, each complete in itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chameleon_jax.project.look import Found
from chameleon_jax.project.sizes import Sizes

FILES = ("train-text-tokenizer", "train-image-tokenizer", "prepare", "train")
"""Names of the files: those of their commands."""
PICTURE_ONLY = "A picture. {image}"
"""The document that a picture without a caption becomes: something must be asked for to draw one."""

_SIDES = frozenset(
    ["left", "right", "letter", "letters", "word", "words", "text", "sign", "number", "numbers", "digit", "digits"]
)
"""Words that say that mirrored pictures may be wrong."""


def recipes(found: Sequence[Found], held_out: Mapping[str, float], sizes: Sizes, folder: Path) -> dict[str, str]:
    """Contents of the files by name; without pictures there is none for the image tokenizer.

    Args:
      found: the sources, with names.
      held_out: the share of each that is held out, by name.
      sizes: of everything.
      folder: where everything goes.
    """
    texts = {
        "train-text-tokenizer": _text_tokenizer(found, held_out, sizes, folder),
        "prepare": _prepare(found, held_out, sizes, folder),
        "train": _train(found, sizes, folder),
    }
    if sizes.resolution:
        texts["train-image-tokenizer"] = _image_tokenizer(found, held_out, sizes, folder)
    return {name: texts[name] for name in FILES if name in texts}


def _value(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum():
        return value
    return json.dumps(value, ensure_ascii=False)


def _source(values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """An entry of a list. Comments stand above their keys."""
    lines = []
    for number, (name, value) in enumerate(values.items()):
        if name in comments:
            lines.append(f"    # {comments[name]}\n")
        lines.append(f"  {'- ' if number == 0 else '  '}{name}: {_value(value)}\n")
    return "".join(lines)


def _sources(
    found: Sequence[Found],
    held_out: Mapping[str, float],
    part: str,
    more: Mapping[str, dict[str, Any]],
    comments: Mapping[str, str],
) -> str:
    """One part of all sources, with more keys by name; what was said about a key is not said again."""
    said: dict[str, str] = dict(comments)
    text = ""
    for each in found:
        name = each.source["name"]
        values = {**each.source, "part": part, "held_out": held_out[name], **more.get(name, {})}
        text += _source(values, said)
        said = {}
    return text


_PARTS = {
    "part": "Those to learn from. A hash of its name decides for each document. held_out is the share that is kept\n"
    "    # aside to measure on; it must be the same in all files.",
}


def _form(each: Found, sizes: Sizes) -> dict[str, Any]:
    form: dict[str, Any] = {}
    if each.pictures and not each.text_bytes:
        form["templates"] = [PICTURE_ONLY]
    elif each.are_pairs and each.pictures:
        form["separator"] = " "
    return form


def _learning_form(each: Found, sizes: Sizes) -> dict[str, Any]:
    form = _form(each, sizes)
    if each.pictures and sizes.copies > 1:
        form["copies"] = sizes.copies
    if each.are_pairs and each.pictures and each.text_bytes:
        form["drop_text"] = 0.1
    return form


def augmentation(each: Found, sizes: Sizes) -> dict[str, Any]:
    """By how much pictures are changed: not at all where there are many."""
    if not each.pictures or sizes.copies == 1:
        return {}
    flip = not each.words & _SIDES
    return {"crop": 0.2, **({"flip": True} if flip else {}), "brightness": 0.1, "contrast": 0.1, "saturation": 0.1}


def _text_tokenizer(found: Sequence[Found], held_out: Mapping[str, float], sizes: Sizes, folder: Path) -> str:
    text = [each for each in found if each.text_bytes or each.pictures]
    more = {each.source["name"]: {"form": form} for each in text if (form := _form(each, sizes)).get("templates")}
    return f"""# chameleon train-text-tokenizer: byte-pair encoding, learnt from these texts.
output: {_value(str(folder / "text.model"))}
tokenizer:
  vocab_size: {sizes.vocab_size}  # the 256 bytes, and pieces of words; more want more text
sources:
{_sources(text, held_out, "train", more, _PARTS)}"""


def _image_tokenizer(found: Sequence[Found], held_out: Mapping[str, float], sizes: Sizes, folder: Path) -> str:
    pictured = [each for each in found if each.pictures]
    more = {}
    for each in pictured:
        if augment := augmentation(each, sizes):
            more[each.source["name"]] = {"augment": augment}
    # Half of the downsampling by folding pixels into channels, which a CPU likes, the rest by levels.
    levels = 1 if sizes.is_cpu else 3
    fold = sizes.resolution // sizes.grid // 2 ** (levels - 1)
    comments = {**_PARTS, "augment": "Each picture is changed anew in each epoch."}
    return f"""# chameleon train-image-tokenizer: a VQGAN that turns a picture into {sizes.grid} x {sizes.grid} codes.
output: {_value(str(folder / "image_tokenizer"))}
tokenizer:
  model:
    resolution: {sizes.resolution}  # pictures are shrunk to this, and cropped to squares
    space_to_depth: {fold}
    channels: {sizes.channels}
    channel_multipliers: {_value([1, 2, 2][:levels])}
    num_res_blocks: 1
    latent_channels: 64
    code_dim: 8
    num_codes: {sizes.num_codes}
    norm_groups: 16
    attn_type: none
  steps: {sizes.image_steps}  # more make sharper pictures
  batch_size: {sizes.image_batch}
  optimizer: {{learning_rate: 2.0e-3}}
  commitment: 0.1
  codebook_decay: 0.98
  restart_below: 0.05
sources:
{_sources(pictured, held_out, "train", more, comments)}held_out:
{_sources(pictured, held_out, "held_out", {}, {})}"""


def _prepare(found: Sequence[Found], held_out: Mapping[str, float], sizes: Sizes, folder: Path) -> str:
    more, plain = {}, {}
    for each in found:
        keys = {"form": _learning_form(each, sizes), "augment": augmentation(each, sizes)}
        more[each.source["name"]] = {name: value for name, value in keys.items() if value}
        if form := _form(each, sizes):
            plain[each.source["name"]] = {"form": form}
    comments = {
        **_PARTS,
        "form": "copies: documents of each picture; drop_text: the share of them without text, for guidance.",
        "augment": "By how much each copy is changed. Leave out flip for pictures of writing.",
    }
    pictures = f"image_tokenizer: {_value(str(folder / 'image_tokenizer'))}\n" if sizes.resolution else ""
    return f"""# chameleon prepare: everything tokenized and packed into rows. Captions stand before pictures or after.
text_tokenizer: {_value(str(folder / "text.model"))}
{pictures}output: {_value(str(folder / "rows"))}
sequence_length: {sizes.sequence_length}  # tokens a row; some documents fit into each
sources:
{_sources(found, held_out, "train", more, comments)}held_out:
{_sources(found, held_out, "held_out", plain, {})}"""


def _train(found: Sequence[Found], sizes: Sizes, folder: Path) -> str:
    weights = {each.source["name"]: 1 for each in found}
    best = f"held_out.{found[0].source['name']}.loss"
    every = max(20, sizes.steps // 100 * 10)
    execution = "remat: full  # faster on a CPU" if sizes.is_cpu else "compute_dtype: bfloat16"
    parts = f"accumulation: {sizes.accumulation}  # parts of a batch, one after another: what fits into the memory\n"
    accumulation = parts if sizes.accumulation > 1 else ""
    return f"""# chameleon train: a Transformer as in the paper, only small.
data: {_value(str(folder / "rows"))}
output: {_value(str(folder / "run"))}
steps: {sizes.steps}
batch_size: {sizes.batch_size}
{accumulation}model:  # vocab_size is what the rows need
  d_model: {sizes.d_model}
  num_layers: {sizes.num_layers}
  num_heads: {sizes.num_heads}
  num_kv_heads: {sizes.num_kv_heads}
  head_dim: {sizes.d_model // sizes.num_heads}
  mlp_dim: {sizes.mlp_dim}
execution:
  {execution}
dropout: 0.1
stages:
  - share: 1.0
    weights: {_value(weights)}
optimizer:
  name: muon
  learning_rate: {"8.0e-3" if sizes.d_model < 512 else "2.0e-3"}
  schedule: linear
  warmup_steps: 20
  final_fraction: 0.02
  eps: 1.0e-8
  weight_decay: 0.1
log_every: 10
evaluate_every: {every}
evaluation_batches: 4
checkpoint:
  every: {every}
  keep: 2
  best: {best}  # the model is that of the step with the lowest
"""
