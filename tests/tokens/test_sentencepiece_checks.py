"""A SentencePiece model within its limits opens; one that would fill the memory is refused before it is opened."""

from __future__ import annotations

import os

import pytest
from tiny_models import text_tokenizer

from chameleon_jax.errors import FileError
from chameleon_jax.tokens import text
from chameleon_jax.tokens.sentencepiece_checks import check_model
from chameleon_jax.tokens.text import SentencePieceTokenizer


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_models_of_ours_pass():
    check_model(text_tokenizer().model)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (field(1, b"\x0a\x01x") * (1 << 20), "pieces"),
        (field(1, field(1, b"x" * 2000)), "one of more than 1024 bytes"),
        (field(3, field(2, bytes(4) + b"x" * 65 + b"\0")), "normaliser"),
        (field(3, field(2, bytes(4) + b"x\0" * (1 << 20))), "normaliser"),
        (b"\x0a\xff\xff\xff\xff\x0f", "cut short"),
        (b"\x0a" + b"\xff" * 20, "more than 64 bits"),
        (b"\x0b", "not a SentencePiece model"),
    ],
)
def test_what_text_cannot_need_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        check_model(text_tokenizer().model + more)


def test_normaliser_of_nfkc_passes():
    check_model(text_tokenizer().model + field(3, field(2, bytes(4) + b"x" * 33 + b"\0")))


def test_giants_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "text.model"
    path.write_bytes(text_tokenizer().model)
    os.truncate(path, 2 << 30)  # sparse: no bytes on the disk

    def opened(model):
        raise AssertionError(f"{len(model)} bytes were opened")

    monkeypatch.setattr(text, "check_model", opened)
    with pytest.raises(FileError, match=r"text\.model: has more than 16,777,216 bytes"):
        SentencePieceTokenizer.load(path)


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"PK\3\4"])
def test_damaged_models_are_named(tmp_path, damage):
    path = tmp_path / "text.model"
    path.write_bytes(damage)
    with pytest.raises(FileError, match=r"text\.model: not a usable SentencePiece model"):
        SentencePieceTokenizer.load(path)
