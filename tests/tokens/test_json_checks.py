"""A tokenizer's JSON cannot make the package `tokenizers` panic, search for ever or fill the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_models import released_json

from chameleon_jax.errors import FileError
from chameleon_jax.tokens.json_checks import KNOWN_EXPRESSIONS, is_linear
from chameleon_jax.tokens.text_json import JSONTokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TENFOLD = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}


def split(**pattern: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def setting(field: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.update({field: value})


def sequence(*steps: Any, of: str = "pretokenizers") -> dict[str, Any]:
    return {"type": "Sequence", of: list(steps)}


def nested(depth: int) -> Any:
    return sequence(nested(depth - 1)) if depth else BYTE_LEVEL


HOSTILE = {
    "nested quantifiers": (setting("pre_tokenizer", sequence(split(Regex="(a+)+$"), BYTE_LEVEL)), r"'\(a\+\)\+\$'"),
    "search in quadratic time": (setting("pre_tokenizer", sequence(split(Regex="a+b"), BYTE_LEVEL)), "'a\\+b'"),
    "look-ahead": (setting("pre_tokenizer", sequence(split(Regex="a+(?!b)"), BYTE_LEVEL)), "expression"),
    "back reference": (setting("pre_tokenizer", sequence(split(Regex=r"(a)\1"), BYTE_LEVEL)), "expression"),
    "endless expression": (setting("pre_tokenizer", sequence(split(Regex="a" * 10**6), BYTE_LEVEL)), "expression"),
    "many optional parts": (setting("pre_tokenizer", sequence(split(Regex="a?" * 30 + "a" * 30), BYTE_LEVEL)), "expr"),
    "split at nothing": (setting("pre_tokenizer", sequence(split(String=""), BYTE_LEVEL)), "must be a short text"),
    "pattern of the wrong kind": (setting("decoder", {"type": "Replace", "pattern": None, "content": "x"}), "None"),
    "list for a mark": (setting("decoder", {"type": "Metaspace", "replacement": ["a"]}), "wrong kind"),
    "two characters for a mark": (setting("decoder", {"type": "Metaspace", "replacement": "ab"}), "one character"),
    "text for a switch": (setting("pre_tokenizer", {**BYTE_LEVEL, "use_regex": "yes"}), "wrong kind"),
    "growing": (setting("normalizer", sequence(TENFOLD, TENFOLD, of="normalizers")), "more than 64 times longer"),
    "growing names": (setting("decoder", sequence(BYTE_LEVEL, TENFOLD, TENFOLD, of="decoders")), "64 times longer"),
    "long content": (setting("normalizer", {**TENFOLD, "content": "a" * 65}), "more than 64 characters"),
    "replacement of an expression": (setting("normalizer", {**TENFOLD, "pattern": {"Regex": "a"}}), "cannot be read"),
    "many steps": (setting("pre_tokenizer", sequence(*[BYTE_LEVEL] * 20)), "more than 16 steps"),
    "deep steps": (setting("pre_tokenizer", nested(10)), "is not a step"),
    "a table of characters": (setting("normalizer", {"type": "Precompiled", "precompiled_charsmap": "A" * 99}), "Prec"),
    "steps that are a number": (setting("normalizer", 3), "3 is not a step"),
    "prefix of inner pieces": (lambda content: content["model"].update(continuing_subword_prefix="x" * 9), "only null"),
    "random merges": (lambda content: content["model"].update(dropout=0.5), "only null"),
    "long name": (lambda content: content["model"]["vocab"].update({"x" * 2000: 9999}), "more than 1024 characters"),
    "nameless token": (lambda content: content["added_tokens"].append({"id": 9999, "content": ""}), "must have names"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_field(name):
    change, message = HOSTILE[name]
    content = released_json()
    change(content)
    with pytest.raises(FileError, match=rf"^tokenizer\.json: .*{message}") as caught:
        JSONTokenizer(content, "tokenizer.json")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("stage", ["opening", "encoding"])
def test_panics_of_the_package_are_errors_of_ours(monkeypatch, stage):
    tokenizers = pytest.importorskip("tokenizers")

    class PanicException(BaseException):
        """As `pyo3` raises it."""

    class Panicking:
        encode_special_tokens = False

        @classmethod
        def from_str(cls, content):
            if stage == "opening":
                raise PanicException("index out of bounds")
            return cls()

        def encode_batch_fast(self, *args, **kwargs):
            raise PanicException("index out of bounds")

    monkeypatch.setattr(tokenizers, "Tokenizer", Panicking)
    tokenizer = JSONTokenizer(released_json(), "tokenizer.json")
    with pytest.raises(FileError, match=r"^tokenizer\.json: the package `tokenizers` .*index out of bounds"):
        tokenizer.encode("text")


@pytest.mark.parametrize(
    "expression",
    [*sorted(KNOWN_EXPRESSIONS), r"\p{N}{1,3}", r"\s+", r" ?\p{L}+|[0-9]", r"[\r\n]", r"[^\p{L}|]+|\|", r"\."],
)
def test_expressions_of_public_tokenizers_pass(expression):
    assert is_linear(expression)


@pytest.mark.parametrize(
    "expression",
    ["(a|a)*", "a*b", "a+?", "a++b", r"\w+\d", "[a-z]+[a-z]+x", ".*x", "(?<=a)b", "[a&&b]", "(", "[", "a{999}"],
)
def test_expressions_of_unknown_cost_do_not(expression):
    assert not is_linear(expression)


@pytest.mark.parametrize(
    "expression", ["[^a]" * 60 + "(", r"[\p{L}]" * 35 + "(", "[" + "^" * 200 + "(", r"\p{L}" * 50 + "("]
)
def test_the_check_itself_takes_no_time(expression):
    assert not is_linear(expression)
