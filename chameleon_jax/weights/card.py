"""Model cards: the README.md of a model folder, which the Hugging Face Hub shows. One that somebody wrote or edited is
left as it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.files import write_text
from chameleon_jax.runtime.progress import console
from chameleon_jax.runtime.reading import read_bytes
from chameleon_jax.tokens.text_json import JSONTokenizer
from chameleon_jax.weights.checkpoint import Checkpoint, Format
from chameleon_jax.weights.layout import has_decoder, parameter_count

CARD = "README.md"
LARGEST_CARD = 1 << 20
"""Bytes of a card of ours, which has about two thousand."""
_SEAL = "<!-- Written by chameleon_jax, and again with the model until it is edited. {} -->\n"
_SEALED = re.compile(re.escape(_SEAL).replace(r"\{\}", "([0-9a-f]{64})").encode() + rb"\Z")
_TRAINING = re.compile(r"^## Training\n\n(.*?)\n\n(?=## )", re.MULTILINE | re.DOTALL)

_USE = """## How to load it

```python
import chameleon_jax

model = chameleon_jax.load("FOLDER")  # this folder, or hf://org/name
print(model.generate("Once upon a time").text)
```
"""
_META = """\
The text tokenizer is that of Meta's Chameleon models. Weights that are Meta's, or were trained from Meta's, are under
the [Chameleon Research License](https://ai.meta.com/resources/models-and-libraries/chameleon-license), which allows
research that is not commercial. If none of this model's are, change what the header of this file says of the licence.\
"""
_OPEN = """\
Nothing is known here about the licence of these weights. It is up to their owner, and depends on the data: name it in
the header of this file (`license:`).\
"""


def card(checkpoint: Checkpoint, format: Format, dtype: str) -> str:
    """The card of a model as Markdown with a YAML header. It names no path of this machine.

    Args:
      checkpoint: the model; `training` and `base_model` tell what is known of its history.
      format: that in which it is written.
      dtype: type of its Transformer's parameters.
    """
    is_meta = isinstance(checkpoint.text, JSONTokenizer)
    can_draw = _has_decoder(checkpoint) and checkpoint.image_head_trained
    reads_pictures = checkpoint.image_config is not None
    task = "any-to-any" if can_draw else "image-text-to-text" if reads_pictures else "text-generation"
    header = ["library_name: chameleon_jax", f"pipeline_tag: {task}", "tags: [chameleon, jax, multimodal]"]
    if checkpoint.base_model:
        header.append(f"base_model: {checkpoint.base_model}")
    header += [
        "license: other",
        "license_name: chameleon-research-license",
        "license_link: https://ai.meta.com/resources/models-and-libraries/chameleon-license",
    ] if is_meta else ["# license: to be filled in by the owner, such as apache-2.0"]  # fmt: skip
    lines = [
        "---", *header, "---", "",
        f"# A Chameleon model of {_short(parameter_count(checkpoint.config))} parameters", "",
        "One Transformer that reads and writes documents of text and pictures in any order, as described in",
        "[Chameleon: Mixed-Modal Early-Fusion Foundation Models](https://arxiv.org/abs/2405.09818).", "",
        "| | |", "|---|---|", *(f"| {label} | {text} |" for label, text in _rows(checkpoint, format, dtype)), "",
    ]  # fmt: skip
    if checkpoint.training:
        lines += ["## Training", "", checkpoint.training, ""]
    text = "\n".join([*lines, _USE, "## Licence", "", _META if is_meta else _OPEN, "", ""])
    return text + _SEAL.format(hashlib.sha256(text.encode()).hexdigest())


def _rows(checkpoint: Checkpoint, format: Format, dtype: str) -> Iterator[tuple[str, str]]:
    config, vocabulary, image = checkpoint.config, checkpoint.vocabulary, checkpoint.image_config
    yield "Format", {"chameleon": "chameleon_jax", "huggingface": "transformers", "meta": "Meta's"}[format]
    yield "Parameters of the Transformer", f"{parameter_count(config):,}, {dtype}"
    yield (
        "Transformer",
        f"{config.num_layers} layers, width {config.d_model}, {config.num_heads} heads ({config.num_kv_heads} for keys "
        f"and values) of size {config.head_dim}, feed-forward width {config.mlp_dim}",
    )
    yield "Context", f"{config.context_length:,} tokens"
    yield "Columns of the output layer", f"{config.vocab_size:,}"
    if vocabulary is not None:
        kinds = f"{len(vocabulary.text_ids):,} pieces of text, {len(vocabulary.image_ids):,} image codes"
        yield "Vocabulary", f"{vocabulary.size:,} ids: {kinds}"
    if image is not None:
        without = "" if _has_decoder(checkpoint) else ", without decoder"
        yield (
            "Image tokenizer",
            f"{image.resolution} x {image.resolution} pixels to {image.codes_per_image:,} codes of "
            f"{image.num_codes:,}{without}",
        )
        trained = {True: "yes", False: "no: the output layer was not trained on pictures", None: "not known"}
        yield "Draws", trained[checkpoint.image_head_trained] if _has_decoder(checkpoint) else "no"
    if checkpoint.chat_template:
        yield "Conversations", f"template `{checkpoint.chat_template}`"


def _has_decoder(checkpoint: Checkpoint) -> bool:
    image, weights = checkpoint.image_config, checkpoint.image_weights
    if image is None:
        return False
    return "decoder" not in checkpoint.missing if weights is None else has_decoder(image, weights)


def _short(count: int) -> str:
    """7.04 billion, 25.1 million, 12,345."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,}"


def is_untouched(content: bytes) -> bool:
    """Whether a card is of our making and nobody has edited it."""
    sealed = _SEALED.search(content)
    return sealed is not None and hashlib.sha256(content[: sealed.start()]).hexdigest().encode() == sealed[1]


def training_of(folder: Path) -> str:
    """What the untouched card of a model says of its training, for that of a converted model."""
    try:
        content = read_bytes(folder / CARD, LARGEST_CARD)
    except FileError:
        return ""
    found = _TRAINING.search(content.decode()) if is_untouched(content) else None
    return found[1] if found else ""


def write_card(tmp: Path, folder: Path, text: str) -> None:
    """Writes a card into `tmp`, which is to replace the model in `folder`, if there is one. A card there that somebody
    else wrote or edited is kept instead, which is said."""
    before = folder / CARD
    if not before.is_file() or is_untouched(content := before.read_bytes()):
        write_text(tmp / CARD, text)
        return
    (tmp / CARD).write_bytes(content)
    console.print(f"note: {before} was edited, and stays as it is; remove it to have it written anew")
