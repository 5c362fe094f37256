"""Small models with random parameters, drawn by NumPy so that they are the same on every version of jax."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import ImageTokenizerConfig, LoRAConfig, TextTokenizerConfig, TransformerConfig
from chameleon_jax.models import vq
from chameleon_jax.models.transformer import abstract_params
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.text import SentencePieceTokenizer, train_text_tokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer, vocabulary_from_json
from chameleon_jax.tokens.vocabulary import Vocabulary

TRANSFORMER = TransformerConfig(
    vocab_size=64, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, qk_norm_groups=2
)

IMAGE_TOKENIZER = ImageTokenizerConfig(
    resolution=16,
    space_to_depth=4,
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=4,
    code_dim=4,
    num_codes=16,
    norm_groups=4,
)
"""2 x 2 codes a picture."""

TEXTS = (
    "The quick brown fox jumps over the lazy dog. " * 3,
    "In 1984 there were 2701 sheep, 365 goats and 98 hens.\n\tNone of them could count.\n",
    "def add(left, right):\n    return left + right\n",
    "A handwritten seven. A handwritten three. Which digit is this? It is nine.",
    "Ein schöner Tag in Zürich – naïve café, 数字, “quotes” and €5.",
)


def _random_like(tree, seed: int, std: float):
    """The tree of shapes with numbers in it: scales around 1, everything else around 0."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        values = rng.normal(size=shape.shape).astype(np.float32)
        name = path[-1].key
        return jax.device_put(1 + 0.2 * values if name == "scale" else std * values)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def transformer_params(config: TransformerConfig, seed: int = 0, lora: LoRAConfig | None = None):
    """A parameter tree whose logits differ by units, so that the most likely token is never in doubt."""
    return _random_like(nn.unbox(abstract_params(config, lora=lora)), seed, std=0.5)


@functools.cache
def image_tokenizer(seed: int = 0) -> ImageTokenizer:
    params = _random_like(vq.abstract_params(IMAGE_TOKENIZER), seed, std=0.2)
    return ImageTokenizer(IMAGE_TOKENIZER, params)


@functools.cache
def text_tokenizer() -> SentencePieceTokenizer:
    return train_text_tokenizer(TextTokenizerConfig(vocab_size=360), TEXTS)


def released_json() -> dict[str, Any]:
    """Content of a small text_tokenizer.json like the released one, with 16 image codes."""
    return json.loads((Path(__file__).parent / "data" / "released_tokenizer.json").read_text(encoding="utf-8"))


def scrambled_json(seed: int = 0, unused: int = 5) -> dict[str, Any]:
    """`released_json` with other ids in another order, some of which mean nothing."""
    content = released_json()
    names = content["model"]["vocab"]
    ids = np.random.default_rng(seed).permutation(len(names) + unused).tolist()
    content["model"]["vocab"] = {name: ids[token] for name, token in names.items()}
    content["added_tokens"] = [{**token, "id": ids[token["id"]]} for token in content["added_tokens"]]
    return content


def scrambled_vocabulary(num_pieces: int, num_codes: int, seed: int = 0, unused: int = 3) -> Vocabulary:
    """Text, codes and specials all mixed up, with some ids that mean nothing."""
    ids = np.random.default_rng(seed).permutation(6 + num_pieces + num_codes + unused).astype(np.int32)
    specials, ids = ids[:6].tolist(), ids[6:]
    return Vocabulary(*specials, text_ids=ids[:num_pieces], image_ids=ids[num_pieces : num_pieces + num_codes])


@functools.cache
def joined_tokenizer() -> DocumentTokenizer:
    """Text and image tokenizer as `chameleon prepare` joins them."""
    return DocumentTokenizer.join(text_tokenizer(), image_tokenizer())


def scrambled_tokenizer() -> DocumentTokenizer:
    text, image = text_tokenizer(), image_tokenizer()
    return DocumentTokenizer(text, image, scrambled_vocabulary(text.num_pieces, image.config.num_codes))


def transformer_for(vocabulary: Vocabulary, **changes) -> TransformerConfig:
    """The tiny Transformer with a few more columns of logits than the vocabulary has ids."""
    return dataclasses.replace(TRANSFORMER, vocab_size=vocabulary.size + 5, **changes)


def random_picture(seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB"):
    """A picture of noise in blocks, so that every code of it differs."""
    from PIL import Image

    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)


def released_model(image_head_trained: bool | None = None) -> Chameleon:
    """A model of everything that the released ones have, only small: 4 x 4 codes a picture."""
    text = JSONTokenizer(released_json())
    vocabulary = vocabulary_from_json(text.json, "released_tokenizer.json")
    config = TransformerConfig(
        vocab_size=vocabulary.size + 3, d_model=32, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=4, mlp_dim=40,
        qk_norm_groups=2, norm_order="swin",
    )  # fmt: skip
    sizes = ImageTokenizerConfig(
        resolution=8, channels=32, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8, code_dim=8,
        num_codes=16,
    )  # fmt: skip
    here = jax.devices()[0]  # where `load` puts parameters; what is compiled for those serves these
    image = ImageTokenizer(sizes, jax.device_put(_random_like(vq.abstract_params(sizes), 0, std=0.2), here))
    params = jax.device_put(transformer_params(config), here)
    tokenizer = DocumentTokenizer(text, image, vocabulary)
    return Chameleon(config, params, tokenizer, image_head_trained=image_head_trained)
