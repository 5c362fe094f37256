"""Records are tokenized in groups that bound the memory, whatever the size of their pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny_models import image_tokenizer, random_picture, text_tokenizer

from chameleon_jax.config import PreprocessingConfig, from_dict
from chameleon_jax.tokens.documents import DocumentTokenizer
from data_pipeline import tokenize as module
from data_pipeline.records import Picture, Record, Rejected
from data_pipeline.sources import ConversationsSource, DocumentsSource, SourceConfig
from data_pipeline.tokenize import remember_codes, tokenize


@pytest.fixture
def tokenizer() -> DocumentTokenizer:
    return DocumentTokenizer.join(text_tokenizer(), image_tokenizer())


def write_lines(path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("kind", ["documents", "conversations"])
def test_pictures_are_brought_to_size_one_by_one(tmp_path, tokenizer, kind):
    """Kept as they come, 512 photographs of 12 megapixels would be 24 GB."""
    random_picture(1, (400, 300)).save(tmp_path / "photo.png")
    picture = {"image": "photo.png"}
    line = ["A photo: ", picture] if kind == "documents" else {"turns": [{"prompt": [picture], "answer": [picture]}]}
    source = from_dict(SourceConfig, {"kind": kind, "path": write_lines(tmp_path / "own.jsonl", [line] * 5)})
    seen = []

    def encode(squares: np.ndarray) -> np.ndarray:
        seen.extend(squares)
        return tokenizer.image.encode_squares(squares)

    documents = [document for made in tokenize(source.records(), source, tokenizer, encode=encode) for document in made]
    assert {(square.shape, square.dtype) for square in seen} == {((16, 16, 3), np.dtype(np.uint8))}
    whole = tokenizer.encode([Image.open(tmp_path / "photo.png")])  # cropped, as documents and answers are
    codes = np.concatenate([document.ids for document in documents])
    windows = np.lib.stride_tricks.sliding_window_view(codes, len(whole))
    assert (windows == whole).all(axis=1).sum() == 5


def test_prompts_and_answers_are_brought_to_size_in_their_own_ways(tmp_path, tokenizer):
    random_picture(1, (40, 10)).save(tmp_path / "wide.png")
    line = {"turns": [{"prompt": [{"image": "wide.png"}], "answer": [{"image": "wide.png"}]}]}
    source = ConversationsSource(path=write_lines(tmp_path / "own.jsonl", [line]))
    ((document,),) = tokenize(source.records(), source, tokenizer)
    wide = Image.open(tmp_path / "wide.png")
    for fit, start in (("pad", 0), ("crop", tokenizer.image_block + 1)):
        tokenizer.image.preprocessing = PreprocessingConfig(fit=fit)
        expected = tokenizer.encode([wide])
        assert document.ids[start : start + len(expected)].tolist() == expected.tolist()


def test_groups_are_bounded_by_records_text_and_pixels(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "RECORDS_AT_A_TIME", 4)
    monkeypatch.setattr(module, "CHARACTERS_AT_A_TIME", 1000)
    monkeypatch.setattr(module, "PIXELS_AT_A_TIME", 600)
    random_picture(1).save(tmp_path / "small.png")
    source, picture = DocumentsSource(path="own.jsonl"), Picture(str(tmp_path / "small.png"))

    def sizes(*segments: str | Picture) -> list[int]:
        """Records that are read before each result."""
        read = []

        def records():
            for number, segment in enumerate(segments):
                read.append(number)
                yield Record(str(number), "here", (segment,))

        return [len(read) for _ in tokenize(records(), source, tokenizer)]

    assert sizes(*"abcde") == [4, 4, 4, 4, 5]
    assert sizes("a" * 1000, "b") == [1, 2]
    assert sizes(picture, picture, picture, picture) == [3, 3, 3, 4]
    assert sizes() == []


def test_records_that_cannot_be_tokenized_are_rejected_with_their_reasons(tmp_path, tokenizer):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "depth.tif")
    random_picture(1).save(tmp_path / "fine.png")
    fine = Picture(str(tmp_path / "fine.png"))
    records = [
        Record("1", "line 1", ("fine",)),
        Record("2", "line 2", (fine, Picture(str(tmp_path / "depth.tif")))),
        Rejected("3", "line 3", "no JSON"),
        Record("4", "line 4", (fine, "\ud800")),
        Record("5", "line 5", (Picture("gone.png"),)),
        Record("6", "line 6", (fine, "fine")),
        Record("7", "line 7", ("",)),
    ]
    results = list(tokenize(records, DocumentsSource(path="own.jsonl"), tokenizer))
    rejected = [result for result in results if isinstance(result, Rejected)]
    assert [result.place for result in rejected] == ["line 2", "line 3", "line 4", "line 5", "line 7"]
    for result, reason in zip(
        rejected, ["floating-point", "no JSON", "lone surrogate", "gone.png", "is empty"], strict=True
    ):
        assert reason in result.reason
    for result, document in ((results[0], ["fine"]), (results[5], [fine.open(), "fine"])):
        assert result[0].ids.tolist() == [*tokenizer.encode(document), tokenizer.vocabulary.eos]


def one_by_one(source: SourceConfig, tokenizer: DocumentTokenizer, **settings) -> list:
    return [document for made in tokenize(source.records(), source, tokenizer, **settings) for document in made]


def test_templates_make_conversations_of_any_kind(tmp_path, tokenizer):
    """With the defaults of conversations: prompts are not learnt from, their pictures are padded."""
    random_picture(1, (40, 10)).save(tmp_path / "wide.png")
    lines = [{"turns": [{"prompt": [{"image": "wide.png"}, "What is it?"], "answer": "A fox."}]}]
    expected = one_by_one(ConversationsSource(path=write_lines(tmp_path / "turns.jsonl", lines)), tokenizer)
    path = write_lines(tmp_path / "own.jsonl", [["A fox.", {"image": "wide.png"}]])
    template = {"prompt": "{image}What is it?", "answer": "{text}"}
    (document,) = one_by_one(DocumentsSource(path=path, form={"templates": [template]}), tokenizer)
    assert document.ids.tolist() == expected[0].ids.tolist()
    assert document.weights.tolist() == expected[0].weights.tolist()
    assert document.turn_ends.tolist() == expected[0].turn_ends.tolist()


def test_copies_of_equal_records_are_equal_one_by_one(tmp_path, tokenizer):
    """Whatever order and augmentation make of them; and copies of one record are no duplicates of each other."""
    random_picture(1).save(tmp_path / "a.png")
    random_picture(1).save(tmp_path / "same.png")
    lines = [["A fox.", {"image": name}] for name in ("a.png", "same.png")] + [["A fox"], [".A fox."]]
    source = DocumentsSource(
        path=write_lines(tmp_path / "own.jsonl", lines),
        form={"copies": 3, "order": "rotate"},
        augment={"brightness": 0.5},
    )
    documents = one_by_one(source, tokenizer)
    assert [document.number for document in documents] == [0, 1, 2] * 4
    digests = [document.digest for document in documents]
    assert digests[:3] == digests[3:6]
    assert len(set(digests)) == 9
    assert len({document.ids.tobytes() for document in documents[:6]}) > 3, "augmented, each its own way"


def test_records_that_differ_in_what_templates_use_are_no_duplicates(tokenizer):
    source = DocumentsSource(path="any", form={"templates": ["{question} {answer}"]})
    records = [
        Record(str(number), "", fields={"question": "Which?", "answer": answer, "note": str(number)})
        for number, answer in enumerate(("A fox.", "A dog.", "A fox."))
    ]
    first, other, same = (made[0].digest for made in tokenize(records, source, tokenizer))
    assert first == same != other


def test_pictures_that_come_again_are_encoded_once(tokenizer, monkeypatch):
    """The codes are those of the tokenizer, in whatever groups the pictures come."""
    squares = np.stack([np.asarray(random_picture(number, (16, 16))) for number in range(12)])
    expected, encoded = tokenizer.image.encode_squares(squares), []

    def encode(group: np.ndarray) -> np.ndarray:
        encoded.append(len(group))
        return tokenizer.image.encode_squares(group)

    remembering = remember_codes(encode)
    for places in ([0, 1, 1, 2], [2, 1, 0], [0, 3], [3, 4, 5, 0], [5]):
        np.testing.assert_array_equal(remembering(squares[places]), expected[places])
    assert encoded == [3, 2, 2, 1], "three; none; one of two, as one alone takes another program; two; one alone"

    monkeypatch.setattr(module, "MOST_REMEMBERED", 4)
    remembering = remember_codes(encode)
    for places in ([0, 1, 2, 3, 4, 5], [0, 1, 2], [1, 2]):
        np.testing.assert_array_equal(remembering(squares[places]), expected[places])
    assert encoded[4:] == [6, 3, 2], "none came again among the first four"
    remembering = remember_codes(encode)
    for places in ([0, 1, 2, 0, 1, 2], [0, 1, 2, 3], [0, 4, 5], [3, 5]):
        np.testing.assert_array_equal(remembering(squares[places]), expected[places])
    assert encoded[7:] == [3, 2, 2, 2], "the fifth and later ones are not remembered"
