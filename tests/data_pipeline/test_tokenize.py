"""Documents are tokenized in parts that bound the memory, whatever the size of their pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny_models import image_tokenizer, random_picture, text_tokenizer

from chameleon_jax.config import PreprocessingConfig, from_dict
from chameleon_jax.document import DocumentError
from chameleon_jax.tokens.documents import DocumentTokenizer
from data_pipeline import tokenize
from data_pipeline.sources import ConversationsSource, DocumentsSource, SourceConfig
from data_pipeline.tokenize import tokenized_pieces


@pytest.fixture
def tokenizer() -> DocumentTokenizer:
    return DocumentTokenizer.join(text_tokenizer(), image_tokenizer())


def write_lines(path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("kind", ["documents", "conversations"])
def test_pictures_are_brought_to_size_one_by_one(tmp_path, tokenizer, monkeypatch, kind):
    """Kept as they come, 512 photographs of 12 megapixels would be 24 GB."""
    random_picture(1, (400, 300)).save(tmp_path / "photo.png")
    picture = {"image": "photo.png"}
    line = ["A photo: ", picture] if kind == "documents" else {"turns": [{"prompt": [picture], "answer": [picture]}]}
    source = from_dict(SourceConfig, {"kind": kind, "path": write_lines(tmp_path / "own.jsonl", [line] * 5)})
    seen = []
    tokenize_images = tokenizer.image.__class__.tokenize
    monkeypatch.setattr(
        tokenizer.image.__class__, "tokenize", lambda self, images: seen.extend(images) or tokenize_images(self, images)
    )
    pieces = list(tokenized_pieces(source, "", tokenizer, 48))
    assert {image.size for image in seen} == {(16, 16)}
    whole = tokenizer.encode([Image.open(tmp_path / "photo.png")])  # cropped, as documents and answers are
    codes = np.concatenate([piece.ids for piece in pieces])
    windows = np.lib.stride_tricks.sliding_window_view(codes, len(whole))
    assert (windows == whole).all(axis=1).sum() == 5


def test_prompts_and_answers_are_brought_to_size_in_their_own_ways(tmp_path, tokenizer):
    random_picture(1, (40, 10)).save(tmp_path / "wide.png")
    line = {"turns": [{"prompt": [{"image": "wide.png"}], "answer": [{"image": "wide.png"}]}]}
    path = write_lines(tmp_path / "own.jsonl", [line])
    (piece,) = tokenized_pieces(ConversationsSource(path=path), "", tokenizer, 48)
    wide = Image.open(tmp_path / "wide.png")
    for fit, start in (("pad", 0), ("crop", tokenizer.image_block + 1)):
        tokenizer.image.preprocessing = PreprocessingConfig(fit=fit)
        expected = tokenizer.encode([wide])
        found = [piece.ids[at : at + len(expected)].tolist() for at in range(start, start + 3)]
        assert expected.tolist() in found


def test_chunks_are_bounded_by_pictures_and_text(monkeypatch):
    monkeypatch.setattr(tokenize, "DOCUMENTS_AT_A_TIME", 4)
    monkeypatch.setattr(tokenize, "BYTES_AT_A_TIME", 1000)
    large, small = [Image.new("RGB", (20, 20))], ["a"]
    sizes = lambda documents: [len(chunk) for chunk in tokenize._chunks(iter(documents), list)]  # noqa: E731
    assert sizes([small] * 9) == [4, 4, 1]
    assert sizes([large, small, large, large]) == [1, 2, 1]
    assert sizes([["a" * 1000], small]) == [1, 1]
    assert sizes([]) == []


def test_picture_that_cannot_be_converted_is_named_with_its_line(tmp_path, tokenizer):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "depth.tif")
    source = DocumentsSource(path=write_lines(tmp_path / "own.jsonl", [["fine"], [{"image": "depth.tif"}]]))
    with pytest.raises(DocumentError, match=r"own\.jsonl, line 2: .*depth\.tif: floating-point pictures"):
        list(tokenized_pieces(source, "", tokenizer, 48))
