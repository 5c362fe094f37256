"""Checks a tokenizer's JSON before the package `tokenizers` opens it.

The package trusts its files: it runs ten replacements in a row of one letter by fifty, or regular expressions that
take minutes, and panics on values of the wrong type. Only what Chameleon's and Llama's tokenizers need is accepted
here; anything else is rejected by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from chameleon_jax.config.reading import shortened
from chameleon_jax.errors import FileError

MOST_STEPS = 16
"""Most steps of a normalizer, a pre-tokenizer or a decoder; the released pre-tokenizer has six."""
LONGEST_STRING = 64
"""Most characters of a string that is replaced, split at or prepended."""
LARGEST_GROWTH = 64
"""Largest factor by which a text may become longer in the worst case."""
MOST_TOKENS = 1 << 19
LONGEST_TOKEN = 1024
"""Most characters of a token's name."""
MOST_ADDED = 1 << 20
"""Most characters of all added tokens together; the 8,711 of the released file have 90,000."""

_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "Strip": 1, "StripAccents": 1}
_KINDS = {
    "normalizer": {"Sequence", "Prepend", "Replace", *_GROWTH},
    "pre_tokenizer": {
        "Sequence", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Whitespace", "WhitespaceSplit",
    },
    "decoder": {"Sequence", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip"},
}  # fmt: skip
_TYPES: dict[str, type] = {
    "add_prefix_space": bool, "trim_offsets": bool, "use_regex": bool, "individual_digits": bool, "split": bool,
    "invert": bool, "strip_left": bool, "strip_right": bool, "behavior": str, "prepend_scheme": str, "prepend": str,
    "content": str, "replacement": str, "start": int, "stop": int,
}  # fmt: skip


def check_tokenizer(content: Mapping[str, Any], where: str) -> None:
    """Raises `FileError` if a tokenizer's JSON uses more than Chameleon's and Llama's tokenizers need."""
    for field in _KINDS:
        _check_steps(content.get(field), field, f"{where}: {field}")
    model = content["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise FileError(f"{where}: model.{key} = {shortened(model[key])}: only null can be read")
    if len(model["vocab"]) > MOST_TOKENS:
        raise FileError(f"{where}: model.vocab has {len(model['vocab']):,} tokens; at most {MOST_TOKENS:,} can be read")
    longest = max(map(len, model["vocab"]), default=0)
    added = [token["content"] for token in content.get("added_tokens") or []]
    if longest > LONGEST_TOKEN or max(map(len, added), default=0) > LONGEST_TOKEN:
        raise FileError(f"{where}: a token has a name of more than {LONGEST_TOKEN} characters")
    if "" in added or sum(map(len, added)) > MOST_ADDED:
        raise FileError(f"{where}: added_tokens: must have names, of {MOST_ADDED:,} characters in all at most")


def _check_steps(step: Any, field: str, where: str) -> None:
    growth = 1.0
    for count, each in enumerate(_flat(step, where)):
        if count >= MOST_STEPS:
            raise FileError(f"{where}: has more than {MOST_STEPS} steps")
        kind = each.get("type")
        if not isinstance(kind, str) or kind not in _KINDS[field]:
            known = ", ".join(sorted(_KINDS[field]))
            raise FileError(f"{where}: type = {shortened(kind)}: only {known} can be read")
        for key, expected in _TYPES.items():
            if each.get(key) is not None and type(each[key]) is not expected:
                raise FileError(f"{where}: {kind}: {key} = {shortened(each[key])}: is of the wrong kind")
            if expected is str and len(each.get(key) or "") > LONGEST_STRING:
                raise FileError(f"{where}: {kind}: {key} has more than {LONGEST_STRING} characters")
        growth *= _check_step(each, kind, where)
    if growth > LARGEST_GROWTH:
        raise FileError(f"{where}: its replacements make a text more than {LARGEST_GROWTH} times longer")


def _flat(step: Any, where: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """All steps of a sequence, nested ones included."""
    if step is None:
        return
    if not isinstance(step, Mapping) or depth > 3:
        raise FileError(f"{where}: {shortened(step, 40)} is not a step")
    yield step
    if step.get("type") == "Sequence":
        inner = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders") or []
        if not isinstance(inner, list):
            raise FileError(f"{where}: Sequence: must have a list of steps")
        for each in inner:
            yield from _flat(each, where, depth + 1)


def _check_step(step: Mapping[str, Any], kind: str, where: str) -> float:
    """Checks one step; returns the factor by which a text may become longer in it."""
    if kind == "Metaspace" and len(step.get("replacement") or " ") != 1:
        raise FileError(f"{where}: Metaspace: replacement = {step['replacement']!r}: must be one character")
    if kind in ("Replace", "Split"):
        pattern = step.get("pattern")
        options = set(pattern) if isinstance(pattern, Mapping) else set()
        if options not in ({"String"}, {"Regex"} if kind == "Split" else {"String"}):
            raise FileError(f"{where}: {kind}: pattern = {shortened(pattern)}: cannot be read")
        (option, text), *_ = pattern.items()
        if not isinstance(text, str) or not text or (option == "String" and len(text) > LONGEST_STRING):
            raise FileError(f"{where}: {kind}: pattern = {shortened(text)}: must be a short text")
        if option == "Regex" and not is_linear(text):
            raise FileError(
                f"{where}: {kind}: the expression {shortened(text)} is none that is known, and not so simple that its "
                "search surely takes time linear in the text"
            )
        if kind == "Replace":
            return max(1.0, len((step.get("content") or "").encode()) / len(text.encode()))
    return _GROWTH.get(kind, 1)


_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_LLAMA = (
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN_EXPRESSIONS = frozenset(
    {
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        "([\t\n]|    |  )",
        r"([\t\n]|    |  )",
        _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        _LLAMA.replace("DIGITS", "{1,3}"),  # Llama 3
        _LLAMA.replace("DIGITS", ""),  # Qwen 2
    }
)
"""Expressions of public tokenizers that take linear time, although `is_linear` cannot prove it."""

_CLASS = r"\[\^?(?:\\[pP]\{\^?\w+\}|\\[^pP]|[^\[\]\\&^])+\]"
_ATOM = rf"(?:\\[pP]\{{\^?\w+\}}|\\[sSdDwWrnt]|\\[^\w\s]|{_CLASS}|[^\\()\[\]{{}}|.*+?^$])"
_BRANCH = re.compile(rf"(?P<fixed>(?:{_ATOM}(?:\?|\{{\d(?:,\d)?\}})?)*?)(?:{_ATOM}[+*])?")
_OPTION = re.compile(r"\?|\{\d,\d\}")


def is_linear(expression: str) -> bool:
    """Whether a search for a regular expression is certain to take time linear in the text.

    Accepts alternatives that are sequences of characters and classes in which only the last may repeat without bound,
    so that it never backtracks, and at most two others are optional.
    """
    if expression in KNOWN_EXPRESSIONS:
        return True
    if len(expression) > 4 * LONGEST_STRING:
        return False
    branches = [_BRANCH.fullmatch(branch) for branch in _branches(expression)]
    return all(branch and len(_OPTION.findall(branch["fixed"])) <= 2 for branch in branches)


def _branches(expression: str) -> list[str]:
    """The alternatives, split at each bar that is not in a class or after a backslash."""
    return re.sub(r"(\\.|\[(?:\\.|[^\]\\])*\])|\|", lambda match: match[1] or "\0", expression).split("\0")
