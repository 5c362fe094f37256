"""Each rule lets through what is within its limit, and names itself, the limit and what it found otherwise."""

from __future__ import annotations

import pytest

from chameleon_jax.errors import ConfigError
from data_pipeline.filters import FilterConfig, check, check_picture
from data_pipeline.records import Picture, Record, Turn

PROSE = (
    "The old harbour wall was built of stone from the hills.\nGulls sat on it in long rows, and nobody minded them.\n"
)


def text(value: str) -> Record:
    return Record("1", "line 1", (value,))


def reason(value: str, **limits) -> str:
    return check(text(value), FilterConfig(**limits))


@pytest.mark.parametrize(
    ("key", "limit", "value", "found"),
    [
        ("min_characters", 5, "four", "4 characters"),
        ("max_characters", 5, "longer", "6 characters"),
        ("min_words", 3, "two words", "2 words"),
        ("max_words", 3, "one two three four", "4 words"),
        ("min_word_length", 3.0, "a bb ccc", "2 characters a word"),
        ("max_word_length", 3.0, "four five", "4 characters a word"),
        ("min_alphabetic_words", 0.8, "1 2 three 4", "0.25 of its words have a letter"),
        ("max_symbols", 0.1, "# one # two", "0.5 for each word"),
        ("max_symbols", 0.1, "wait… and... see", "0.667 for each word"),
        ("max_bullet_lines", 0.5, "- one\n* two\n\n  • three\nfour", "0.75 of its lines"),
        ("max_ellipsis_lines", 0.3, "so…\nand so... \nend", "0.667 of its lines"),
        ("max_repeated_lines", 0.3, "one\ntwo\none\n one \n", "0.5 of its lines"),
    ],
)
def test_rule_names_itself_its_limit_and_what_it_found(key, limit, value, found):
    assert reason(value, **{key: limit}) == f"filter.{key} = {limit}: it has {found}"
    roomy = {"max_characters": 1000, "max_words": 100, "max_word_length": 10}
    assert reason(PROSE, **{key: roomy.get(key, limit)}) == ""


def test_limit_itself_is_allowed():
    assert reason("four", min_characters=4, max_characters=4, min_words=1, max_words=1, max_word_length=4) == ""


# Shares of characters by hand. Of 12 words of one letter each, for one.
@pytest.mark.parametrize(
    ("value", "n", "share"),
    [
        ("a b a b a b c d e f g h", 2, 6 / 12),  # "a b" three times
        ("a b a b a b c d e f g h", 4, 8 / 12),  # "a b a b" twice, overlapping: Gopher counts both
        ("a b c d e x a b c d e y", 5, 10 / 12),
        ("a a a a a a a a a a a a", 5, 1.0),  # every place is in a repeated one
        ("a b c d e f a b c d e f", 6, 1.0),
        ("a b c d e f g h i j k l", 2, 0.0),  # nothing twice
        ("longest a longest a b c", 2, 16 / 18),
        ("a b", 2, 0.0),
        ("", 5, 0.0),
    ],
)
def test_repeated_ngrams_by_hand(value, n, share):
    limit = {str(n): share}
    assert reason(value, max_repeated_ngrams=limit) == ""
    if share:
        low = share - 0.01
        assert reason(value, max_repeated_ngrams={n: low}).startswith(
            f"filter.max_repeated_ngrams.{n} = {low}: it has "
        )


def test_rules_of_gopher_pass_prose_and_stop_spam():
    gopher = FilterConfig(
        min_words=20, max_words=100_000, min_word_length=3, max_word_length=10, min_alphabetic_words=0.8,
        max_symbols=0.1, max_bullet_lines=0.9, max_ellipsis_lines=0.3, max_repeated_lines=0.3,
        max_repeated_ngrams={2: 0.2, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
    )  # fmt: skip
    assert check(text(PROSE), gopher) == ""
    assert "max_repeated" in check(text("buy cheap kites here\n" * 20), gopher)


def test_picture_without_text_has_no_text_to_judge():
    record = Record("1", "", (Picture("a.png"),))
    limits = {"min_word_length": 3, "min_alphabetic_words": 0.8, "max_symbols": 0, "max_repeated_lines": 0}
    assert check(record, FilterConfig(**limits)) == ""
    assert check(record, FilterConfig(min_characters=1)) == "filter.min_characters = 1: it has 0 characters"


def test_number_of_pictures_is_counted_without_opening_any():
    gone = Picture("gone.png")
    record = Record("1", "", turns=(Turn((gone, "Which?"), (gone, gone)),))
    assert check(record, FilterConfig(min_pictures=3, max_pictures=3)) == ""
    assert check(record, FilterConfig(max_pictures=2)) == "filter.max_pictures = 2: it has 3 pictures"
    assert check(text("none"), FilterConfig(min_pictures=1)) == "filter.min_pictures = 1: it has 0 pictures"


def test_picture_must_be_large_and_compact_enough():
    limits = FilterConfig(min_side=64, max_aspect_ratio=3)
    assert check_picture((64, 192), limits) == ""
    assert check_picture((640, 63), limits) == "filter.min_side = 64: it has a picture of 640 x 63 pixels"
    assert check_picture((64, 193), limits) == "filter.max_aspect_ratio = 3.0: it has a picture of 64 x 193 pixels"
    assert check_picture((1, 10_000), FilterConfig()) == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_words": -1}, "min_words = -1: must be 0 or more, or null for no limit"),
        ({"max_repeated_ngrams": {"two": 0.2}}, "max_repeated_ngrams = 'two': n must be a whole number of at least 2"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio = 0.5: must be at least 1"),
    ],
)
def test_limit_that_cannot_be_is_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        FilterConfig(**values)
    assert str(caught.value) == message
