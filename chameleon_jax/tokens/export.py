"""Exports tokenizers as files for Hugging Face's and Meta's code."""

from __future__ import annotations

import copy
from typing import Any, Literal

from chameleon_jax.tokens.text import SentencePieceTokenizer, TextTokenizer
from chameleon_jax.tokens.text_json import JSONTokenizer
from chameleon_jax.tokens.vocabulary import (
    PLACEHOLDER,
    RELEASED_PLACEHOLDER,
    SPECIAL_NAMES,
    Vocabulary,
    VocabularyError,
)


def tokenizer_json(
    text: TextTokenizer, vocabulary: Vocabulary, *, style: Literal["huggingface", "meta"]
) -> dict[str, Any]:
    """The content of a tokenizer.json, for the package `tokenizers`, with the ids of `vocabulary`.

    It encodes text to the same ids as `text` and `vocabulary` (a SentencePieceTokenizer from `train_text_tokenizer`, or
    a JSONTokenizer), except that `tokenizers` reads names of special tokens in text as special tokens.

    Meta's code treats names that start with `<` as special tokens, including the bytes (`<0x41>`) of a
    SentencePieceTokenizer: it encodes text correctly but does not decode bytes.

    Args:
      text: the text tokenizer; a JSONTokenizer requires the ids of its own file.
      vocabulary: the ids.
      style: "huggingface" names the placeholder for image codes `<image>` and adds `<s>` before every text; "meta"
        names it `<reserved08707>` and adds nothing.

    Raises:
      VocabularyError: if the two do not match, two tokens would share a name, or no token can be the placeholder.
    """
    names = vocabulary.names(text)
    if style == "huggingface" and PLACEHOLDER not in names:
        raise VocabularyError(
            f"Hugging Face's code needs a token {PLACEHOLDER!r} for image codes; the text tokenizer's file has neither "
            f"it nor {RELEASED_PLACEHOLDER!r}"
        )
    if isinstance(text, SentencePieceTokenizer):
        content, present = _from_sentencepiece(text, names), names
    elif isinstance(text, JSONTokenizer):
        content, present = copy.deepcopy(text.json), text.names
    else:
        raise TypeError(f"cannot export a {type(text).__name__}")
    new = PLACEHOLDER if style == "huggingface" else RELEASED_PLACEHOLDER
    if new not in present:
        old = RELEASED_PLACEHOLDER if style == "huggingface" else PLACEHOLDER
        content = _renamed(content, old, new)
    if style == "huggingface":
        content["post_processor"] = _prepend_token(SPECIAL_NAMES["bos"], vocabulary.bos)
    elif (content.get("post_processor") or {}).get("type") == "TemplateProcessing":
        content["post_processor"] = None
    return content


def tokenizer_config(model_max_length: int | None = None) -> dict[str, Any]:
    """The content of tokenizer_config.json for a tokenizer.json in Hugging Face's style, which adds `<s>` itself.

    Args:
      model_max_length: context length of the model.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "ChameleonProcessor",
        "bos_token": SPECIAL_NAMES["bos"],
        "eos_token": SPECIAL_NAMES["eos"],
        "pad_token": SPECIAL_NAMES["pad"],
        "sep_token": SPECIAL_NAMES["end_of_turn"],
        "image_token": PLACEHOLDER,
        "boi_token": SPECIAL_NAMES["begin_image"],
        "eoi_token": SPECIAL_NAMES["end_image"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": model_max_length} if model_max_length else {}),
    }


def processor_files(
    image_seq_length: int, resolution: int, style: Literal["meta", "huggingface"] = "meta"
) -> dict[str, dict[str, Any]]:
    """The files of Hugging Face's ChameleonProcessor, as a map from file name to content.

    Style "meta" scales pixels to [-1, 1] as Meta's code does. The files of the released models ("huggingface") have
    0.0078 instead of 2/255, so that white becomes 0.989. Neither file controls how the longer side is rounded: Meta's
    code rounds to the nearest whole number, Hugging Face's truncates.

    Args:
      image_seq_length: number of codes per picture.
      resolution: width and height in pixels that the image tokenizer reads.
    """
    return {
        "processor_config.json": {
            "processor_class": "ChameleonProcessor",
            "image_seq_length": image_seq_length,
            "image_token": PLACEHOLDER,
        },
        "preprocessor_config.json": {
            "processor_class": "ChameleonProcessor",
            "image_processor_type": "ChameleonImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": resolution},
            "resample": 1,  # Lanczos
            "do_center_crop": True,
            "crop_size": {"height": resolution, "width": resolution},
            "do_rescale": True,
            "rescale_factor": 2 / 255 if style == "meta" else 0.0078,
            "do_normalize": True,
            "image_mean": [1.0, 1.0, 1.0],
            "image_std": [1.0, 1.0, 1.0],
        },
    }


def _from_sentencepiece(text: SentencePieceTokenizer, names: dict[str, int]) -> dict[str, Any]:
    """Pieces are named with plain spaces instead of SentencePiece's U+2581. A U+2581 in the text is thus not read as a
    space: no piece contains it, so it falls back to bytes, as in `text`."""
    pieces = set(text.piece_names)
    special = sorted((token, name) for name, token in names.items() if name not in pieces)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **flags} for token, name in special],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(sorted(names.items(), key=lambda item: item[1])),
            "merges": _merges(text.scores),
        },
    }


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """The merges of a BPE: SentencePiece only has scores, and merges the two neighbours whose piece scores highest."""
    pairs = []
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        halves = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
        pairs += [[left, right] for left, right in halves if left in scores and right in scores]
    return pairs


def _prepend_token(name: str, token: int) -> dict[str, Any]:
    """A post-processor that adds one special token before each text."""
    special = [{"SpecialToken": {"id": name, "type_id": kind}} for kind in (0, 1)]
    text = [{"Sequence": {"id": sequence, "type_id": kind}} for kind, sequence in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [special[0], text[0]],
        "pair": [special[0], text[0], special[1], text[1]],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def _renamed(value: Any, old: str, new: str) -> Any:
    """A copy in which every string `old`, key or value, is replaced by `new`."""
    if isinstance(value, dict):
        return {_renamed(key, old, new): _renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, old, new) for inner in value]
    return new if value == old else value
