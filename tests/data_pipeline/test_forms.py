"""A form makes what it says of a record, loses nothing else, and makes the same in every process."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_jax.config.reading import from_dict, to_dict
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ConfigError
from data_pipeline.forms import FormConfig, apply_form, documents_of, rng_of
from data_pipeline.records import Picture, Record, Rejected, Turn
from data_pipeline.sources import DocumentsSource

A, B, C = (Picture(name, b"-") for name in "ABC")


def pair(number: int, caption: str = "A red kite.") -> Record:
    """A picture with its caption, as a folder or a table gives them."""
    return Record(f"kites/{number}.jpg", f"kites, {number}", (A, caption), fields={"image": A, "text": caption})


def document(*segments) -> Record:
    return Record("own.jsonl:1", "own.jsonl, line 1", segments)


def conversation(*turns: tuple) -> Record:
    return Record("chat.jsonl:1", "chat.jsonl, line 1", turns=tuple(Turn(*turn) for turn in turns))


def made(record: Record, seed: int = 0, **keys) -> list:
    """What a form makes of a record: segments, or turns."""
    return [each.turns or each.segments for each in apply_form(record, FormConfig(**keys), seed)]


def share(holds, records: int = 2000, **keys) -> float:
    return sum(holds(*made(pair(number), **keys)) for number in range(records)) / records


def near(expected: float, records: int = 2000) -> float:
    """Five standard deviations of a share."""
    return pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / records))


# ----------------------------------------------------------------------------------------------------------------------
# Order and separators
# ----------------------------------------------------------------------------------------------------------------------


def test_records_stay_as_they_are_by_default():
    for record in (document("a", A, "b"), document(A, "b"), conversation(((A, "Who?"), ("I.",)))):
        assert apply_form(record, FormConfig(), 0) == [record]


def test_captions_from_columns_come_in_either_order_half_each():
    assert share(lambda parts: parts == (A, "A red kite.")) == near(0.5)
    assert all(set(made(pair(number))[0]) == {A, "A red kite."} for number in range(20))
    assert made(pair(1), order="as_is") == [(A, "A red kite.")]
    written = [dataclasses.replace(pair(number), segments=(A, " A photo of a kite.")) for number in range(20)]
    assert {made(record)[0] for record in written} == {(A, " A photo of a kite.")}, "somebody wrote this order"


def test_share_of_pictures_first_can_be_set():
    assert share(lambda parts: parts[0] is A, image_first_share=0.2) == near(0.2)


def test_order_is_that_of_pictures_and_texts_among_themselves():
    record = document("a", A, "b", "c", B)
    assert made(record, order="image_first") == [(A, B, "a", "b", "c")]
    assert made(record, order="text_first") == [("a", "b", "c", A, B)]
    assert {made(dataclasses.replace(record, id=str(i)), order="rotate")[0][0] for i in range(20)} == {A, "a"}
    turns = ((A, "Who?"), ("I.",))
    assert made(conversation(turns), order="text_first") == [(Turn(*turns),)]


def test_separator_stands_beside_text_only():
    assert made(document("a", A, B, "b", "", "c"), separator=" ") == [("a ", A, B, " b c")]
    assert made(conversation(((A, "Who?"), ("I.", B))), separator="\n") == [(Turn((A, "\nWho?"), ("I.\n", B)),)]


# ----------------------------------------------------------------------------------------------------------------------
# Templates
# ----------------------------------------------------------------------------------------------------------------------


def test_template_takes_pictures_text_and_columns_by_name():
    record = dataclasses.replace(pair(1), fields={"image": A, "author": "{Ann}"})
    assert made(record, templates=("{image}{text} {{by}} {author}",)) == [(A, "A red kite. {by} {Ann}")]
    assert made(document("Look: ", A, "and ", B), templates=("{text}: {image}, {image}",)) == [
        ("Look: and : ", A, ", ", B)
    ]
    assert made(pair(1), templates=("{image}{text}",), separator=" ") == [(A, "A red kite.")], "templates say all"


def test_template_of_prompt_and_answer_makes_a_turn():
    form = from_dict(
        FormConfig, {"templates": ["{text} {image}", {"prompt": "{image}What is this?", "answer": "{text}"}]}
    )
    assert from_dict(FormConfig, to_dict(form)) == form
    (record,) = apply_form(pair(1), dataclasses.replace(form, templates=form.templates[1:]), 0)
    assert record.turns == (Turn((A, "What is this?"), ("A red kite.",)),)
    assert record.segments == ()


def test_every_template_gets_its_share():
    templates = (
        "{text}{image}",
        {"prompt": "Draw: {text}", "answer": "{image}"},
        "{image}A photo of {text}",
        "{text}{image}.",
    )
    kinds = [made(pair(number), templates=templates)[0] for number in range(2000)]
    for template in templates:
        (expected,) = made(pair(0), templates=(template,))
        assert kinds.count(expected) / 2000 == near(0.25)


@pytest.mark.parametrize(
    ("record", "template", "message"),
    [
        (pair(1), "{image}{title}", "there is no {title} here, or it is empty; fields: image, text"),
        (pair(1, " "), "{image}{text}", "there is no {text} here"),
        (document("only text"), "{image}", "there is no {image} here, or it is empty; fields: none"),
        (document(A, B), "{image}", "2 pictures, and {image} stands in the template 1 times"),
        (conversation((("Who?",), ("I.",))), "{text}", "this is a conversation"),
    ],
)
def test_record_that_a_template_does_not_fit_is_rejected(record, template, message):
    source = DocumentsSource(path="own.jsonl", form=FormConfig(templates=(template,)))
    rejected = documents_of(record, source, 0)
    assert isinstance(rejected, Rejected)
    assert (rejected.id, rejected.place) == (record.id, record.place)
    assert message in rejected.reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"templates": [""]}, "templates.0.document = '': give either this or prompt and answer"),
        ({"templates": ["ok", "{image"]}, "templates.1.document = '{image': places are {image}, {text} or {column}"),
        ({"templates": ["{}"]}, "templates.0.document = '{}': places are"),
        ({"templates": [{"prompt": "a"}]}, "templates.0.document = '': give either this or prompt and answer"),
        ({"templates": [{"prompt": "a", "answer": "}"}]}, "templates.0.answer = '}': places are"),
        ({"templates": [{"prompt": "a", "answr": "b"}]}, "templates.0.answr: there is no such key; did you mean 'answ"),
        ({"templates": [3]}, "templates.0 = 3: must be a mapping of the keys of Template"),
        ({"drop_text": 0.7, "drop_all": 0.4}, "drop_all = 0.4: and drop_text = 0.7 must not exceed 1 together"),
        ({"copies": 0}, "copies = 0: must be at least 1"),
        ({"image_first_share": 1.5}, "image_first_share = 1.5: must be from 0 to 1"),
        ({"max_pictures": -1}, "max_pictures = -1: must be 0 or more"),
    ],
)
def test_form_that_cannot_be_is_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(FormConfig, values)
    assert str(caught.value).startswith(message)


# ----------------------------------------------------------------------------------------------------------------------
# Limits, guidance, copies
# ----------------------------------------------------------------------------------------------------------------------


def test_pictures_above_the_limit_leave_and_the_text_stays():
    assert made(document("a", A, "b", B, "c", C), max_pictures=2) == [("a", A, "b", B, "c")]
    assert made(document("a", A, "b"), max_pictures=1) == [("a", A, "b")]


def test_document_is_split_at_the_picture_that_is_too_many():
    parts = apply_form(document("a", A, B, "b", C, "c"), FormConfig(max_pictures=2, too_many_pictures="split"), 0)
    assert [part.segments for part in parts] == [("a", A, B, "b"), (C, "c")]
    assert [part.id for part in parts] == ["own.jsonl:1", "own.jsonl:1 part 2"]


def test_conversation_is_cut_between_turns():
    turns = [((A, "Who?"), ("I.",)), (("Draw.",), (B,)), (("And?",), ("No.",))]
    record = conversation(*turns)
    assert made(record, max_pictures=1) == [record.turns[:1]]
    assert made(record, max_pictures=1, too_many_pictures="split") == [record.turns[:1], record.turns[1:]]
    with pytest.raises(DocumentError, match="turn 1 has 2 pictures; max_pictures = 1"):
        made(conversation(((A, B), ("Two.",))), max_pictures=1)


def test_text_is_dropped_as_guidance_has_it():
    """The document then is begin of sequence and the pictures: `guidance.contexts` takes the same from a prompt."""
    record = document("a", A, "b", B)
    assert made(record, drop_text=1) == [(A, B)]
    assert made(record, drop_all=1) == [(B,)]
    assert made(document("no picture"), drop_text=1) == [("no picture",)]
    drawing, seeing = conversation(((A, "Bluer."), (B,))), conversation(((A, "Who?"), ("I.",)))
    assert [each.turns for each in apply_form(drawing, FormConfig(drop_text=1), 0)] == [()]
    assert made(drawing, drop_text=1) == [(A, B)]
    assert made(drawing, drop_all=1) == [(B,)]
    assert made(seeing, drop_text=1) == [seeing.turns]


def test_text_is_dropped_as_often_as_asked():
    assert share(lambda parts: parts == (A,), drop_text=0.1) == near(0.1)
    assert share(lambda parts: parts == (A,), drop_text=0.1, drop_all=0.2) == near(0.3)


def test_copies_have_ids_and_choices_of_their_own():
    copies = apply_form(pair(1), FormConfig(copies=2000), 0)
    assert [copy.id for copy in copies[:3]] == ["kites/1.jpg", "kites/1.jpg copy 1", "kites/1.jpg copy 2"]
    assert sum(copy.segments[0] is A for copy in copies) / 2000 == near(0.5)
    assert copies[:1] == apply_form(pair(1), FormConfig(), 0), "more copies leave the first as it was"


def test_seed_changes_the_choices():
    assert [made(pair(n), seed=0) for n in range(64)] != [made(pair(n), seed=1) for n in range(64)]


def test_one_choice_does_not_move_another():
    plain = [made(pair(n)) for n in range(200)]
    some_dropped = [made(pair(n), drop_text=0.2) for n in range(200)]
    assert sum(parts == [(A,)] for parts in some_dropped) > 10
    assert all(parts in ([(A,)], before) for parts, before in zip(some_dropped, plain, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# For every record
# ----------------------------------------------------------------------------------------------------------------------

segments = st.lists(st.one_of(st.text("ab {}\n", max_size=5), st.sampled_from([A, B, C])), min_size=1, max_size=8)
forms = st.builds(
    FormConfig,
    order=st.sampled_from(["auto", "as_is", "image_first", "text_first", "rotate"]),
    separator=st.sampled_from(["", "|"]),
    max_pictures=st.integers(0, 3),
    too_many_pictures=st.sampled_from(["keep_first", "split"]),
    copies=st.integers(1, 2),
)


@given(segments, forms)
@settings(max_examples=200, deadline=None)
def test_form_neither_loses_nor_reorders_text(parts, form):
    record = document(*parts)
    documents = apply_form(record, form, 0)
    text = "".join(text for each in documents for text in each.texts).replace("|", "")
    assert text == "".join(record.texts) * form.copies
    assert len({each.id for each in documents}) == len(documents)
    most = form.max_pictures or len(parts)
    assert all(len(each.pictures) <= most for each in documents)
    if form.too_many_pictures == "split":
        assert tuple(picture for each in documents for picture in each.pictures) == record.pictures * form.copies


PROBE = """
import json
from data_pipeline.forms import FormConfig, apply_form, rng_of
from data_pipeline.records import Picture, Record
picture = Picture("A", b"-")
form = FormConfig(templates=("{image}{text}", "{text}{image}", "{text}"), drop_text=0.3, copies=3)
made = [
    ["picture" if part == picture else part for part in each.segments]
    for number in range(50)
    for each in apply_form(Record(f"é {number}", "", (picture, "caption")), form, 7)
]
print(json.dumps([made, rng_of(7, "é", "augment 0").integers(2**32, size=3).tolist()]))
"""


def test_choices_are_the_same_in_another_process():
    answers = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
        answers.append(json.loads(run.stdout))
    assert answers[0] == answers[1]
    assert len({json.dumps(parts) for parts in answers[0][0]}) == 4


def test_random_numbers_differ_with_seed_record_and_purpose():
    draws = {
        int(rng_of(seed, record, purpose).integers(2**63))
        for seed in range(10)
        for record in ("a", "b", "a 1", "\ud800")
        for purpose in ("order", "template")
    }
    assert len(draws) == 80
