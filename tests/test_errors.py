"""Text from strangers cannot steer the terminal that it is printed on, nor flood it."""

from __future__ import annotations

import pytest

from chameleon_jax.console.cli import main
from chameleon_jax.document import DocumentError, open_image
from chameleon_jax.errors import LONGEST_MESSAGE, ChameleonError, printable


@pytest.mark.parametrize("text", ["a/kite.png", "Straße 数字 ⟨image⟩ …", "back\\slash", ""])
def test_readable_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("two\nlines\r", r"two\nlines\r"),
        ("gnp.\u202etxt", r"gnp.\u202etxt"),
        ("line\u2028separator", r"line\u2028separator"),
        ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_what_steers_a_terminal_is_spelled_out(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


def test_long_text_keeps_its_beginning_and_its_end():
    short = printable("begin" + "x" * 10**6 + "end", limit=30)
    assert short.startswith("begin")
    assert short.endswith("end")
    assert len(short) < 40


def test_every_error_of_ours_is_one_short_line():
    error = DocumentError(f"{'k' * 10**6}\x1b[31m\nand more")
    assert isinstance(error, ChameleonError)
    assert str(error).isprintable()
    assert len(str(error)) < LONGEST_MESSAGE + 100


def test_name_of_a_file_is_printed_escaped(tmp_path, capsys):
    path = tmp_path / "\x1b[31mred.png"
    with pytest.raises(DocumentError, match="no such picture file") as caught:
        open_image(path)
    assert "\x1b" not in str(caught.value)
    assert main(["generate", str(tmp_path / "\x1b]0;model"), "Once"]) == 1
    assert "\x1b" not in capsys.readouterr().err
