"""Writes released_tokenizer.json beside it: a small text tokenizer built like that of the released models.

    python tests/data/make_released_tokenizer.py [folder]

Needs the package tokenizers (0.23.3 wrote the committed file). It has what the released file has (spec section 2.3), in
the same order: special tokens with the image codes among them, then a byte-level encoding, here of a few sentences.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then the dog jumps over the fox.",
    "Don't they know that we're here? They'll say they've seen it, but I'm not so sure.",
    "def add(left, right):\n    return left + right\n\n\tprint(add(12345, 67890))\n",
    "Ein schöner Tag in Zürich: naïve Gäste im Café. Это хороший день, и это хорошо.",
    "What do you see in the picture? There is a picture of the other picture.",
)


def image_names(num_codes: int) -> list[str]:
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    return [f"IMGIMG{str(code).translate(letters)}Z" for code in range(num_codes)]


def released_like(num_codes: int = 16, vocab_size: int = 480) -> dict[str, Any]:
    """Content of a text_tokenizer.json for `num_codes` image codes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("<sentinel:[0-9]+>"), "isolated"),
            pre_tokenizers.Split(Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"), "isolated"),
            pre_tokenizers.Split(Regex("([\t\n]|    |  )"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", *image_names(num_codes), "<eoss>", "<racm3:break>"]
    special += [f"<sentinel:{number}>" for number in range(4)]
    special += [f"<reserved{number:05d}>" for number in range(8706, 8710)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return json.loads(tokenizer.to_str())


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    text = json.dumps(released_like(), ensure_ascii=False, separators=(",", ":"))
    (folder / "released_tokenizer.json").write_text(text + "\n", encoding="utf-8")
