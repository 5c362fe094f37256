"""Documents say the truth about their pictures, and the same documents come every time."""

from __future__ import annotations

import io
import itertools
import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from tiny_models import random_picture

from chameleon_jax.config import from_dict
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import FileError
from data_pipeline import forms
from data_pipeline.augment import LIGHT, augment
from data_pipeline.datasets import open_dataset
from data_pipeline.datasets.number_words import DIGITS, NUMBERS
from data_pipeline.pictures import open_picture
from data_pipeline.sources import DocumentsSource, SourceConfig, files
from data_pipeline.sources import jsonl as jsonl_module

DIGIT_KINDS = ("digit_captions", "digit_questions", "digit_sums", "digit_counting")


@pytest.fixture(scope="module")
def label_of(datasets) -> dict[bytes, int]:
    """Label of each picture by its pixels, straight from the data set."""
    labels = {}
    for split in ("train", "test"):
        for example in open_dataset("handwritten_digits", split, datasets):
            labels[Image.open(io.BytesIO(example["png"])).tobytes()] = int(example["label"])
    return labels


def documents_of(kind: str, datasets: str, **settings) -> list:
    """What a source makes of its records, with the pictures decoded and augmented."""
    source = from_dict(SourceConfig, {"kind": kind, **settings})
    documents = [document for record in source.records(datasets) for document in forms.documents_of(record, source, 0)]
    return [
        [
            part if isinstance(part, str) else open_picture(part, source, 0, document.id, number, 32)
            for number, part in enumerate(document.segments)
        ]
        for document in documents
    ]


def opened(records) -> list[list]:
    """The documents with their pictures decoded."""
    return [[part if isinstance(part, str) else part.open() for part in record.segments] for record in records]


def frozen(documents: list) -> list:
    return [[part if isinstance(part, str) else part.tobytes() for part in document] for document in documents]


@pytest.mark.parametrize("kind", [*DIGIT_KINDS, "python_reference", "python_stdlib"])
def test_documents_are_the_same_every_time(kind, datasets):
    augment = kind in DIGIT_KINDS
    first, again = (documents_of(kind, datasets, count=30, augment=augment) for _ in range(2))
    assert len(first) == 30
    assert frozen(first) == frozen(again)


@pytest.mark.parametrize("kind", DIGIT_KINDS)
def test_seed_changes_the_documents(kind, datasets):
    assert frozen(documents_of(kind, datasets, count=20)) != frozen(documents_of(kind, datasets, count=20, seed=1))


@pytest.mark.parametrize("kind", DIGIT_KINDS)
def test_every_picture_of_the_split_gets_its_turn(kind, datasets):
    pictures = {example["png"] for example in open_dataset("handwritten_digits", "test", datasets)}
    pixels = {Image.open(io.BytesIO(png)).tobytes() for png in pictures}
    documents = documents_of(kind, datasets, split="test")
    assert len(documents) == 360
    first = [next(part for part in document if not isinstance(part, str)) for document in documents]
    assert {picture.tobytes() for picture in first} == pixels
    more = documents_of(kind, datasets, split="test", count=400)
    assert frozen(more[:360]) == frozen(documents)
    assert {part.tobytes() for document in more for part in document if not isinstance(part, str)} <= pixels


def test_captions_name_their_digit_and_the_picture_comes_first_half_the_time(datasets, label_of):
    documents = documents_of("digit_captions", datasets, count=1000)
    first = 0
    for document in documents:
        (text,) = (part for part in document if isinstance(part, str))
        (picture,) = (part for part in document if not isinstance(part, str))
        assert text == f"A handwritten {DIGITS[label_of[picture.tobytes()]]}."
        first += document[0] is picture
    assert 430 < first < 570  # more than four standard deviations each way


def test_questions_are_answered_right(datasets, label_of):
    kinds = set()
    for picture, text in documents_of("digit_questions", datasets, count=500):
        label = label_of[picture.tobytes()]
        if match := re.fullmatch(r" Which digit is this\? It is (\w+)\.", text):
            assert match[1] == DIGITS[label]
        elif match := re.fullmatch(r" Is this digit odd or even\? It is (\w+), which is (\w+)\.", text):
            assert match.groups() == (DIGITS[label], ["even", "odd"][label % 2])
        else:
            match = re.fullmatch(r" Is this a (\w+)\? (Yes|No), it is (\w+)\.", text)
            assert match[3] == DIGITS[label]
            assert match[2] == ("Yes" if match[1] == DIGITS[label] else "No")
        kinds.add(text[:8] + (match[2] if match[0].startswith(" Is this a ") else ""))
    assert len(kinds) == 4, "every kind of question, and both answers"


def test_sums_are_right(datasets, label_of):
    totals = set()
    for first, plus, second, text in documents_of("digit_sums", datasets, count=500):
        left, right = label_of[first.tobytes()], label_of[second.tobytes()]
        assert plus == " plus "
        words = re.fullmatch(r" equals (\w+) plus (\w+), that is (\w+)\.", text).groups()
        assert words == (NUMBERS[left], NUMBERS[right], NUMBERS[left + right])
        totals.add(left + right)
    assert totals == set(range(19))
    assert NUMBERS.index("eighteen") == 18


def test_counting_is_right(datasets, label_of):
    directions = set()
    for document in documents_of("digit_counting", datasets, count=300):
        direction, start = re.fullmatch(r"Counting (up|down) from (\w+):", document[0]).groups()
        words, pictures = document[1::2], document[2::2]
        assert len(words) == len(pictures) >= 1
        numbers = [DIGITS.index(word.strip()) for word in words]
        assert numbers == [label_of[picture.tobytes()] for picture in pictures]
        assert numbers[0] == DIGITS.index(start)
        step = 1 if direction == "up" else -1
        assert all(second - first == step for first, second in itertools.pairwise(numbers))
        assert len(numbers) in (3, 4, 5) or numbers[-1] in (0, 9)
        directions.add((direction, len(numbers)))
    assert len(directions) >= 6


def test_augmentation_is_light_and_only_on_demand(datasets, label_of):
    plain = documents_of("digit_captions", datasets, count=50)
    changed = documents_of("digit_captions", datasets, count=50, augment=True)
    pictures = [part for document in changed for part in document if not isinstance(part, str)]
    assert all(part.tobytes() in label_of for document in plain for part in document if not isinstance(part, str))
    assert not any(picture.tobytes() in label_of for picture in pictures)
    for picture in pictures:
        assert (picture.mode, picture.size) == ("L", (32, 32))


def test_augmentation_moves_the_ink_only_a_little(datasets):
    def centre(image) -> np.ndarray:
        ink = 255.0 - np.asarray(image)
        places = np.stack(np.meshgrid(np.arange(32), np.arange(32)), axis=-1)
        return (places * ink[..., None]).sum((0, 1)) / ink.sum()

    rng = np.random.default_rng(0)
    for example in list(open_dataset("handwritten_digits", "test", datasets))[:60]:
        image = Image.open(io.BytesIO(example["png"]))
        moved = augment(image, LIGHT, rng)
        assert np.abs(centre(moved) - centre(image)).max() < 2.5
        assert 0.8 < (255.0 - np.asarray(moved)).sum() / (255.0 - np.asarray(image)).sum() < 1.2


def test_text_sources_stop_after_their_count(datasets):
    some = documents_of("python_reference", datasets, count=5)
    assert frozen(documents_of("python_reference", datasets))[:5] == frozen(some)
    assert all(len(document) == 1 and isinstance(document[0], str) for document in some)


def jsonl(tmp_path, content: str | bytes, **settings) -> list:
    path = tmp_path / "own.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return opened(DocumentsSource(path=str(path), **settings).records())


def test_own_documents(tmp_path):
    (tmp_path / "kites").mkdir()
    random_picture(1).save(tmp_path / "kites" / "17.png")
    content = '["A red kite. ", {"image": "kites/17.png"}, "Seen in Mäy."]\n\n  \n["next"]\r\n["last"]'
    first, *rest = jsonl(tmp_path, content)
    assert [first[0], first[2], rest] == ["A red kite. ", "Seen in Mäy.", [["next"], ["last"]]]
    assert first[1].tobytes() == random_picture(1).tobytes()
    assert len(jsonl(tmp_path, content, count=2)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'["text"', "not valid JSON"),
        (b'["caf\xe9"]', "not valid UTF-8 at byte 5"),
        (b'"text"', "must be a list"),
        (b'{"txet": "a"}', "no text, caption or image in an object with the keys"),
        (b"[]", "the document is empty"),
        (b'["", ""]', "the document is empty"),
        (b'["a", 3]', "a segment is text or"),
        (b'["a", null]', "a segment is text or"),
        (b'[{"image": "a.png", "size": 3}]', "a segment is text or"),
        (b'[{"image": 3}]', "a segment is text or"),
        (b'["lone \\ud800 surrogate"]', "surrogate"),
        (b"[" * 100_000, "JSON"),
        (b'[{"image": "a.png", "image": "b.png"}]', "the key 'image' is written twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[" + b"1" * 5000 + b"]", "a number has too many digits"),
        (b"[" * 900 + b"]" * 900, "a segment is text or"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(DocumentError, match=re.escape(message)) as caught:
        jsonl(tmp_path, b'["good"]\n\n' + line + b'\n["good"]\n')
    assert str(caught.value).startswith("own.jsonl, line 3: ")
    assert "\n" not in str(caught.value)
    first, bad, last = DocumentsSource(path=str(tmp_path / "own.jsonl")).read_all()
    assert (first.segments, last.segments) == (("good",), ("good",))
    assert (bad.id, bad.place) == ("own.jsonl@10", "own.jsonl, line 3")
    assert message in bad.reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "gone.png: no such picture file"),
        ("own.jsonl", "own.jsonl: not a picture"),
        ("..", "is a folder, not a picture file"),
        ("/dev/zero", "/dev/zero: is a device, not a picture file"),
        ("a\0b", "cannot be read: embedded null byte"),
    ],
)
def test_picture_that_is_none_is_named_when_it_is_opened(tmp_path, name, message):
    (tmp_path / "own.jsonl").write_text(json.dumps(["see", {"image": name}]))
    (record,) = DocumentsSource(path=str(tmp_path / "own.jsonl")).records()
    with pytest.raises(DocumentError, match=re.escape(message)):
        record.segments[1].open()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"gone\.jsonl: no such file"):
        list(DocumentsSource(path=str(tmp_path / "gone.jsonl")).read_all())


def test_line_is_read_no_further_than_it_may_be_long(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl_module, "LONGEST_LINE", 40)
    assert jsonl(tmp_path, b'["' + b"a" * 35 + b'"]\n["b"]') == [["a" * 35], ["b"]]
    with pytest.raises(DocumentError, match=r"own\.jsonl, line 2: longer than 40 bytes"):
        jsonl(tmp_path, b'["b"]\n["' + b"a" * 36 + b'"]\n')


def test_line_of_too_many_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_PICTURES", 3)
    random_picture(1).save(tmp_path / "a.png")
    three = '{"image": "a.png"}, {"image": "a.png"}, {"image": "a.png"}'
    assert len(jsonl(tmp_path, f"[{three}]\n[{three}]")) == 2
    with pytest.raises(DocumentError, match=r"own\.jsonl, line 1: more than 3 pictures"):
        jsonl(tmp_path, f'[{three}, {{"image": "a.png"}}]')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, r"own\.jsonl: cannot be read: is a pipe, a socket or a device, not a file"),
        (os.mkdir, r"own\.jsonl: no files \*\.jsonl or .* in this folder"),
        (lambda path: path.symlink_to("/dev/zero"), r"own\.jsonl: cannot be read: is a pipe"),
    ],
)
def test_source_that_is_no_file_is_not_waited_for(tmp_path, make, message):
    make(tmp_path / "own.jsonl")
    with pytest.raises(FileError, match=message):
        list(DocumentsSource(path=str(tmp_path / "own.jsonl")).read_all())


@pytest.mark.parametrize("kind", ["documents", "conversations"])
def test_pictures_are_turned_as_their_exif_data_says_unless_told_not_to(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_picture(1, (20, 10)).save(tmp_path / "photo.png", exif=exif)
    picture = {"image": "photo.png"}
    line = [picture] if kind == "documents" else {"turns": [{"prompt": "a", "answer": [picture]}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    for option, size in ((True, (10, 20)), (False, (20, 10))):
        source = from_dict(SourceConfig, {"kind": kind, "path": str(tmp_path / "own.jsonl"), "exif": option})
        (record,) = source.records()
        pictures = [part for part in record.all_segments if not isinstance(part, str)]
        assert [picture.open(exif=source.exif).size for picture in pictures] == [size]
