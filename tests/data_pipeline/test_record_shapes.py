"""Records in the shapes of other people's data sets mean what those say."""

from __future__ import annotations

import json

import pytest
from tiny_models import random_picture

from chameleon_jax.config import from_dict
from chameleon_jax.document import DocumentError
from data_pipeline.forms import documents_of
from data_pipeline.records import Record, Rejected, Turn
from data_pipeline.sources import SourceConfig


def read(tmp_path, values, kind: str = "documents") -> Record:
    for number, name in enumerate("abc"):
        random_picture(number).save(tmp_path / f"{name}.png")
    (tmp_path / "own.jsonl").write_text(json.dumps(values))
    (record,) = from_dict(SourceConfig, {"kind": kind, "path": str(tmp_path / "own.jsonl")}).records()
    return record


def shown(segments) -> list[str]:
    """Texts, and the letter of each picture by its pixels."""
    letters = {random_picture(number).tobytes(): f"<{name}>" for number, name in enumerate("abc")}
    return [part if isinstance(part, str) else letters[part.open().tobytes()] for part in segments]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "a fox", "meta": {"url": 3}}, ["a fox"]),
        ({"image": "a.png", "caption": "a fox"}, ["<a>", "a fox"]),
        ({"caption": "", "image": "a.png", "text": "a fox"}, ["<a>", "a fox"]),
        ({"image": "b.png", "url": "https://example.com"}, ["<b>"]),
        ({"image": "a.png", "text": "<image>\na fox"}, ["<a>", "\na fox"]),
        ({"images": ["a.png", "b.png"], "text": "from <image> to<|image|>."}, ["from ", "<a>", " to", "<b>", "."]),
        ({"images": [{"path": "a.png", "bytes": None}, "b.png"], "text": "two"}, ["<a>", "<b>", "two"]),
        ({"text": "the tag <image>"}, ["the tag <image>"]),
        ({"texts": ["one ", None, None, " two"], "images": [None, "a.png", "b.png", None], "metadata": "[]"},
         ["one ", "<a>", "<b>", " two"]),
        ({"text_list": ["One.", "Two.", "Three."], "image_info": [
            {"image_name": "b.png", "matched_text_index": 2, "matched_sim": 0.3},
            {"image_name": "a.png", "matched_text_index": 0}, {"image_name": "c.png", "matched_text_index": 2},
        ]}, ["<a>", "One. Two.", "<b>", "<c>", "Three."]),
    ],
)  # fmt: skip
def test_documents_of_every_shape(tmp_path, values, expected):
    assert shown(read(tmp_path, values).segments) == expected


def test_columns_are_kept_for_templates(tmp_path):
    record = read(
        tmp_path, {"image": "a.png", "caption": "a fox", "label": 3, "by": "Ann", "tags": ["x"], "none": None}
    )
    fields = {name: shown([value])[0] for name, value in record.fields.items()}
    assert fields == {"image": "<a>", "caption": "a fox", "text": "a fox", "label": "3", "by": "Ann"}
    assert read(tmp_path, {"image": "a.png", "text": "this: <image>", "by": "Ann"}).fields == {}
    assert read(tmp_path, ["A list ", {"image": "a.png"}, "has an order of its own"]).fields == {}


def message(role: str, *parts) -> dict:
    return {"role": role, "content": parts[0] if isinstance(parts[0], str) else list(parts)}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}


@pytest.mark.parametrize(
    ("messages", "images", "expected"),
    [
        ([message("user", IMAGE, text("What?")), message("assistant", "A fox.")], ["a.png"],
         [["<a>", "What?"], ["A fox."]]),
        ([message("system", "Be brief."), message("user", "Hi <image>"), message("assistant", text("Ho"))], ["b.png"],
         [["Be brief.\nHi ", "<b>"], ["Ho"]]),
        ([message("system", text("Be brief.")), message("user", text("Compare "), IMAGE, text(" and "), IMAGE),
          message("model", "One."), message("user", "Draw it."), message("assistant", IMAGE), message("user", "And?")],
         ["a.png", "b.png", "c.png"],
         [["Be brief.\nCompare ", "<a>", " and ", "<b>"], ["One."], ["Draw it."], ["<c>"]]),
        ([message("user", {"type": "image", "image": "b.png"}, {"type": "image_url", "image_url": {"url": "c.png"}}),
          message("assistant", "Two.")], None, [["<b>", "<c>"], ["Two."]]),
        ([message("user", text("<image> is a tag.")), message("assistant", "Yes.")], None,
         [["<image> is a tag."], ["Yes."]]),
        ([message("user", "Which?"), message("assistant", "This.")], [{"path": "a.png", "bytes": None}, "b.png"],
         [["<a>", "<b>", "Which?"], ["This."]]),
        ([message("user", "Hi"), message("assistant", "Ho"), message("user", "<image> And this?")], ["a.png"],
         [["Hi"], ["Ho"]]),
    ],
)  # fmt: skip
def test_chat_messages_with_pictures(tmp_path, messages, images, expected):
    record = read(tmp_path, {"id": "7", "messages": messages, "images": images}, "conversations")
    assert [shown(part) for turn in record.turns for part in turn] == expected


def test_templates_make_documents_of_other_objects(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps([{"question": "Who?", "answer": "Ann."}, {"answer": 3}], indent=1))
    values = {"kind": "documents", "path": str(tmp_path / "own.json")}
    with pytest.raises(
        DocumentError, match=r"own\.json, item 1: no text, caption or image .*\"question\".*form\.templates"
    ):
        list(from_dict(SourceConfig, values).records())
    template = {"prompt": "{question}", "answer": "{answer}"}
    source = from_dict(SourceConfig, {**values, "form": {"templates": [template]}})
    (first,), second = (documents_of(record, source, 0) for record in source.records())
    assert first.turns == (Turn(("Who?",), ("Ann.",)),)
    assert isinstance(second, Rejected)
