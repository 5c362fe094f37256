"""`chameleon show` prints what is in the rows, for people on a terminal and for files."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_models import random_picture, text_tokenizer

from chameleon_jax.batch import row_dtype
from chameleon_jax.console.cli import main
from chameleon_jax.console.show import _weighed
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary
from data_pipeline.loader import PreparedData
from data_pipeline.unpacking import unpack


def test_rows_are_printed_with_what_is_learnt_from(prepared, capsys):
    assert main(["show", str(prepared), "--source", "prose", "--rows", "[3, 0]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [
        re.fullmatch(r"prose, row (\d): (\d) documents, (\d+) of 48 tokens, \3 of them learnt.*", line)
        for line in lines
    ]
    assert [head[1] for head in heads if head] == ["3", "0"]
    documents = [line for line in lines if re.fullmatch(r"⟨bos⟩⟦(The fox said (\d+) to the dog\. )+⟨eos⟩⟧", line)]
    assert len(documents) == sum(int(head[2]) for head in heads if head)


def test_pictures_are_marked_or_drawn(prepared, tmp_path, capsys):
    arguments = ["show", str(prepared), "--source", "held_out.unseen", "--rows", "0"]
    assert main(arguments) == 0
    marked = capsys.readouterr().out
    assert "⟨bos⟩⟦[picture] is picture " in marked
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    drawn = capsys.readouterr().out
    files = re.findall(r"\[picture: (.*?)\]", drawn)
    assert re.sub(r": [^\]]*\]", "]", drawn) == re.sub(r": [^\]]*\]", "]", marked)
    tokenizer = PreparedData(prepared).tokenizer()
    numbers = re.findall(r"is picture (\d+)", drawn)
    expected = tokenizer.image.detokenize(tokenizer.image.tokenize([random_picture(1000 + int(n)) for n in numbers]))
    assert [Image.open(file).tobytes() for file in files] == [image.tobytes() for image in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "3,x"], "rows = '3,x': must be numbers from 0 to"),
        (["--rows", "9999"], "rows = '9999': must be numbers from 0 to"),
        (["--source", "unseen"], "source = 'unseen': was not prepared; there is mixed, prose, held_out.unseen"),
    ],
)
def test_what_is_not_there_is_said(prepared, capsys, arguments, message):
    assert main(["show", str(prepared), *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"chameleon show: {message}")
    assert said.out == ""


def test_weights_are_visible_and_control_characters_harmless(monkeypatch):
    assert [_weighed("a\x1b[2J", weight) for weight in (0, 1, 0.25)] == [
        "a\\x1b[2J", "⟦a\\x1b[2J⟧", "⟦0.25 x a\\x1b[2J⟧"
    ]  # fmt: skip
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert [_weighed("a", weight) for weight in (0, 1, 0.25)] == [f"\x1b[{style}ma\x1b[0m" for style in (2, 1, 0)]


def test_tokens_in_wrong_places_are_shown_as_they_are():
    """Rows of others may be odd, and then one looks at them."""
    text = text_tokenizer()
    vocabulary = Vocabulary.in_released_order(text.num_pieces, 16)
    codes, fox = vocabulary.image_ids[:3], vocabulary.text_ids[text.encode("fox")]
    targets = [*codes[:1], vocabulary.begin_image, *codes, *fox, vocabulary.end_image, vocabulary.begin_image]
    row = np.zeros((), row_dtype(len(targets) + 2))
    used = slice(len(targets))
    row["inputs"][used], row["targets"][used], row["segment_ids"][used] = [vocabulary.bos, *targets[:-1]], targets, 1
    (spans,) = unpack(row, DocumentTokenizer(text, None, vocabulary))
    contents = [span.content if isinstance(span.content, str) else span.content.tolist() for span in spans]
    assert contents == ["⟨bos⟩", f"⟨id {codes[0]}⟩", codes.tolist(), "fox", "⟨end image⟩", "⟨begin image⟩"]
