"""Tokenizers as files that Hugging Face's and Meta's code read."""

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

    Any text gets the ids that `text` and `vocabulary` give it (a SentencePieceTokenizer as `train_text_tokenizer` makes
    it, or a JSONTokenizer), except that `tokenizers` by itself reads names of special tokens as special tokens.

    Meta's code takes names that start with `<` for special tokens, so of a SentencePieceTokenizer also its bytes
    (`<0x41>`): it reads text right but does not write bytes.

    Args:
      text: the text tokenizer; a JSONTokenizer goes with the ids of its own file only.
      vocabulary: the ids.
      style: "huggingface" calls the placeholder for image codes `<image>` and begins every text with `<s>`; "meta"
        calls it `<reserved08707>` and adds nothing.

    Raises:
      VocabularyError: if the two do not go together, two tokens would have one name, or no token can be placeholder.
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
        content["post_processor"] = _beginning_with(SPECIAL_NAMES["bos"], vocabulary.bos)
    elif (content.get("post_processor") or {}).get("type") == "TemplateProcessing":
        content["post_processor"] = None
    return content


def tokenizer_config(model_max_length: int | None = None) -> dict[str, Any]:
    """The content of tokenizer_config.json beside a tokenizer.json in Hugging Face's style, which adds `<s>` itself.

    Args:
      model_max_length: tokens that the model was trained for.
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
    """File name → content for Hugging Face's ChameleonProcessor.

    Style "meta" scales pixels to [-1, 1] as Meta's code does; the files of the released models ("huggingface") say
    0.0078 instead of 2/255, which leaves white at 0.989. Pictures whose longer side does not come out whole are rounded
    by Meta's code and cut off by Hugging Face's, whatever these files say.

    Args:
      image_seq_length: codes of one picture.
      resolution: sides of the square that the image tokenizer reads, in pixels.
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
    """Names have spaces where SentencePiece has its mark, so that a mark that is typed is no space: as no piece has it,
    it is written in bytes, as by `text`."""
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
    """SentencePiece merges any two neighbours into the piece with the highest score; `tokenizers` wants the pairs."""
    pairs = []
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        halves = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
        pairs += [[left, right] for left, right in halves if left in scores and right in scores]
    return pairs


def _beginning_with(name: str, token: int) -> dict[str, Any]:
    """A post-processor that puts one special token before each text."""
    mark = [{"SpecialToken": {"id": name, "type_id": kind}} for kind in (0, 1)]
    text = [{"Sequence": {"id": sequence, "type_id": kind}} for kind, sequence in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [mark[0], text[0]],
        "pair": [mark[0], text[0], mark[1], text[1]],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def _renamed(value: Any, old: str, new: str) -> Any:
    """A copy in which every text `old`, key or value, is `new`."""
    if isinstance(value, dict):
        return {_renamed(key, old, new): _renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, old, new) for inner in value]
    return new if value == old else value
