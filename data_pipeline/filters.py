"""Filters: which records are good enough. All rules are off by default, and know no language.

The rules about words and lines are those of Gopher's MassiveText (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1,
table A1); words are what white space separates, so they are not for scripts without spaces. Each rejection names the
rule, its limit and what was found.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from chameleon_jax.config.reading import config, require
from data_pipeline.records import Record

_BULLETS = ("•", "‣", "◦", "▪", "·", "-", "*")  # Gopher: "bullet point"; here with those of plain text
_ELLIPSES = ("…", "...")


@config
class FilterConfig:
    """What records must be like to be used; null is no limit. Text is all text of a document or conversation."""

    min_characters: int | None = None
    """Characters of the text."""
    max_characters: int | None = None
    """The same, at most."""
    min_words: int | None = None
    """Words, separated by white space. Gopher: 50."""
    max_words: int | None = None
    """Gopher: 100,000."""
    min_word_length: float | None = None
    """Mean characters of a word. Gopher: 3."""
    max_word_length: float | None = None
    """Gopher: 10."""
    min_alphabetic_words: float | None = None
    """Share of words with a letter in them. Gopher: 0.8."""
    max_symbols: float | None = None
    """Hash signs for each word, and ellipses for each word. Gopher: 0.1."""
    max_bullet_lines: float | None = None
    """Share of lines that begin with a bullet. Gopher: 0.9."""
    max_ellipsis_lines: float | None = None
    """Share of lines that end with an ellipsis. Gopher: 0.3."""
    max_repeated_lines: float | None = None
    """Share of lines that stood in the text before. Gopher: 0.3."""
    max_repeated_ngrams: dict[str, float] | None = None
    """Share of the characters in words that are in repeated n-grams of words, by n. For n up to 4, in the n-gram that
    takes most of the text; from 5 on, in all that are there more than once. Gopher: {2: 0.2, 3: 0.18, 4: 0.16, 5: 0.15,
    6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}."""
    min_pictures: int | None = None
    """Pictures of the record."""
    max_pictures: int | None = None
    min_side: int | None = None
    """Pixels of the shorter side of each picture."""
    max_aspect_ratio: float | None = None
    """Longer side of each picture divided by its shorter one."""

    def __post_init__(self):
        for name, limit in vars(self).items():
            for value in limit.values() if isinstance(limit, dict) else [limit]:
                require(value is None or value >= 0, name, value, "must be 0 or more, or null for no limit")
        for n in self.max_repeated_ngrams or {}:
            require(n.isdecimal() and int(n) > 1, "max_repeated_ngrams", n, "n must be a whole number of at least 2")
        require(
            self.max_aspect_ratio is None or self.max_aspect_ratio >= 1,
            "max_aspect_ratio",
            self.max_aspect_ratio,
            "must be at least 1",
        )


def check(record: Record, limits: FilterConfig) -> str:
    """Why a record is not used, or "" if it is. Opens no picture."""
    if limits == _NO_LIMITS:
        return ""
    text = _Text("\n".join(record.texts))
    measures: tuple[tuple[str, Callable[[], float | None], str], ...] = (
        ("characters", lambda: len(text.text), "characters"),
        ("words", lambda: len(text.words), "words"),
        ("word_length", text.word_length, "characters a word"),
        ("alphabetic_words", text.alphabetic_words, "of its words have a letter"),
        ("symbols", text.symbols, "for each word"),
        ("bullet_lines", lambda: text.share_of_lines(lambda line: line.startswith(_BULLETS)), "of its lines"),
        ("ellipsis_lines", lambda: text.share_of_lines(lambda line: line.endswith(_ELLIPSES)), "of its lines"),
        ("repeated_lines", text.repeated_lines, "of its lines"),
        ("pictures", lambda: len(record.pictures), "pictures"),
    )
    for name, measure, unit in measures:
        low, high = (getattr(limits, f"{side}_{name}", None) for side in ("min", "max"))
        if low is None and high is None:
            continue
        value = measure()
        if value is None:
            continue
        if low is not None and value < low:
            return _reason(f"min_{name}", low, f"{_shown(value)} {unit}")
        if high is not None and value > high:
            return _reason(f"max_{name}", high, f"{_shown(value)} {unit}")
    for n, limit in (limits.max_repeated_ngrams or {}).items():
        if (value := text.repeated_ngrams(int(n))) > limit:
            return _reason(f"max_repeated_ngrams.{n}", limit, f"{_shown(value)} of its characters")
    return ""


def check_picture(size: tuple[int, int], limits: FilterConfig) -> str:
    """Why a record with a picture of this width and height is not used, or ""."""
    short, long = sorted(size)
    found = f"a picture of {size[0]} x {size[1]} pixels"
    if limits.min_side is not None and short < limits.min_side:
        return _reason("min_side", limits.min_side, found)
    if limits.max_aspect_ratio is not None and long > limits.max_aspect_ratio * short:
        return _reason("max_aspect_ratio", limits.max_aspect_ratio, found)
    return ""


_NO_LIMITS = FilterConfig()


def _reason(key: str, limit: Any, found: str) -> str:
    return f"filter.{key} = {limit}: it has {found}"


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


class _Text:
    """Measures of a text. None where there is nothing to measure."""

    def __init__(self, text: str):
        self.text = text

    @functools.cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        """Without white space around them, and without blank ones."""
        return [line for line in map(str.strip, self.text.splitlines()) if line]

    def word_length(self) -> float | None:
        return sum(map(len, self.words)) / len(self.words) if self.words else None

    def alphabetic_words(self) -> float | None:
        return sum(any(map(str.isalpha, word)) for word in self.words) / len(self.words) if self.words else None

    def symbols(self) -> float | None:
        counts = self.text.count("#"), sum(map(self.text.count, _ELLIPSES))
        return max(counts) / len(self.words) if self.words else None

    def share_of_lines(self, has: Callable[[str], bool]) -> float | None:
        return sum(map(has, self.lines)) / len(self.lines) if self.lines else None

    def repeated_lines(self) -> float | None:
        return 1 - len(set(self.lines)) / len(self.lines) if self.lines else None

    def repeated_ngrams(self, n: int) -> float:
        words, total = self.words, sum(map(len, self.words))
        ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
        counts = {ngram: count for ngram, count in Counter(ngrams).items() if count > 1}
        if not counts:
            return 0.0
        if n <= 4:
            return min(1.0, max(count * sum(map(len, ngram)) for ngram, count in counts.items()) / total)
        inside = set()  # places of words, so that overlapping n-grams count once
        for start, ngram in enumerate(ngrams):
            if ngram in counts:
                inside.update(range(start, start + n))
        return sum(len(words[place]) for place in inside) / total
