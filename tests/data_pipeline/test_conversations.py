"""Conversations of either form are read as they stand, and only their answers are learnt from."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import kept_squares
from PIL import Image
from tiny_models import random_picture, scrambled_vocabulary

from chameleon_jax.chameleon import load
from chameleon_jax.config import (
    ConfigError,
    PreprocessingConfig,
    TrainConfig,
    from_dict,
)
from chameleon_jax.console import train as train_command
from chameleon_jax.console.commands import prepare
from chameleon_jax.document import DocumentError
from chameleon_jax.sharding import make_mesh
from chameleon_jax.tokens.image import resize_and_crop
from chameleon_jax.tokens.vocabulary import IMAGE
from chameleon_jax.training.state import TrainState, init_state
from chameleon_jax.training.transformer import TransformerTask
from data_pipeline.loader import PreparedData
from data_pipeline.packing import fit, pack
from data_pipeline.records import Turn
from data_pipeline.segments import read_texts
from data_pipeline.sources import ConversationsSource, json_array
from data_pipeline.tokenize import join_turns
from data_pipeline.tokenized import TokenizedDocument
from data_pipeline.unpacking import unpack

# ----------------------------------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------------------------------


def read(tmp_path: Path, *lines: dict | bytes) -> list[tuple[Turn, ...]]:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return [record.turns for record in ConversationsSource(path=str(path)).records()]


def plain(documents: list) -> list:
    return [
        [part if isinstance(part, str) else part.open().tobytes() for part in segments]
        for turn in documents for segments in turn
    ]  # fmt: skip


@pytest.fixture
def pictures(tmp_path) -> list[bytes]:
    """Pixels of a.png and b.png, which are there afterwards."""
    for number, name in enumerate("ab"):
        random_picture(number).save(tmp_path / f"{name}.png")
    return [random_picture(number).tobytes() for number in range(2)]


def test_both_forms_say_the_same(tmp_path, pictures):
    ours = {
        "turns": [
            {"prompt": ["See ", {"image": "a.png"}, " and", {"image": "b.png"}], "answer": ["Two kites."]},
            {"prompt": "Draw the first.", "answer": [{"image": "a.png"}]},
        ]
    }
    theirs = {
        "id": 17,
        "conversations": [
            {"from": "human", "value": "See <|image|> and<image>"},
            {"from": "gpt", "value": "Two kites."},
            {"from": "human", "value": "Draw the first."},
            {"from": "gpt", "value": "⟨image⟩"},
        ],
        "image": ["a.png", "b.png", "a.png"],
    }
    first, second = pictures
    expected = [["See ", first, " and", second], ["Two kites."], ["Draw the first."], [first]]
    for conversation in read(tmp_path, ours, theirs):
        assert len(conversation) == 2
        assert plain(conversation) == expected


def test_one_picture_may_be_a_plain_path_and_none_may_be_left_out(tmp_path, pictures):
    pair = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A kite."}]
    text = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]
    one, without, null = read(
        tmp_path,
        {"conversations": pair, "image": "a.png"}, {"conversations": text}, {"conversations": text, "image": None},
    )  # fmt: skip
    assert plain(one) == [[pictures[0], "\nWhat?"], ["A kite."]]
    assert plain(without) == plain(null) == [["Who?"], ["I."]]


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
SYSTEM = {"from": "system", "value": "Be brief."}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"conversations": [SYSTEM, HUMAN, GPT]}, [["Be brief.\na"], ["b"]]),
        ({"conversations": [GPT, HUMAN, GPT]}, [["a"], ["b"]]),  # LLaVA skips what gpt says first
        ({"conversations": [HUMAN, GPT, HUMAN]}, [["a"], ["b"]]),
        ({"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]}, [["a"], ["b"]]),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, [["a"], ["b"]]),
        ({"conversations": [HUMAN, GPT], "image": "a.png"}, [["picture", "a"], ["b"]]),
        ({"conversations": [{**HUMAN, "value": "a\n<image>"}, GPT], "images": ["a.png"]}, [["a\n", "picture"], ["b"]]),
        ({"conversations": [HUMAN, {**GPT, "value": "<svg><image></image></svg>"}]},
         [["a"], ["<svg><image></image></svg>"]]),
    ],
)  # fmt: skip
def test_files_of_llava_are_read_as_its_tools_do(tmp_path, pictures, values, expected):
    (conversation,) = read(tmp_path, {"id": "1", **values})
    assert plain(conversation) == [[pictures[0] if part == "picture" else part for part in each] for each in expected]


@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_is_read_item_by_item(tmp_path, monkeypatch, indent):
    items = [{"conversations": [{**HUMAN, "value": f'Is {n} ] more? \\ "{n}'}, GPT]} for n in range(500)]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(items, indent=indent), encoding="utf-8-sig")
    monkeypatch.setattr(json_array, "_CHUNK", 50)  # an item is longer
    source = ConversationsSource(path=str(path))
    expected = [(item["conversations"][0]["value"],) for item in items]
    assert [record.turns[0].prompt for record in source.records()] == expected
    short = dataclasses.replace(source, count=3)
    assert [record.id for record in short.records()] == ["chat.json:1", "chat.json:2", "chat.json:3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"conversations": []}]', "item 1: conversations must be a list of messages"),
        ('[GOOD, {"a": 1}]', "item 2: a line must be"),
        ("[GOOD, 3]", "item 2: not valid JSON: expected '{'"),
        ("[GOOD GOOD]", "item 2: not valid JSON: expected ',' or ']'"),
        ("[GOOD", "item 2: not valid JSON: expected ',' or ']'"),
        ("[GOOD,", "item 2: not valid JSON: expected '{'"),
        ('[GOOD, {"a": ', "item 2: not valid JSON: Expecting value"),
        ("[GOOD] GOOD", "item 2: not valid JSON: more text behind the array"),
        ('[GOOD, {"a": ' + "[" * 100_000, "item 2: not usable JSON: nested too deeply"),
        (b'[{"a": "\xff"}]', "item 1: not valid UTF-8"),
    ],
)
def test_bad_item_of_an_array_is_named(tmp_path, text, message):
    path = tmp_path / "chat.json"
    good = json.dumps({"conversations": [HUMAN, GPT]})
    path.write_bytes(text if isinstance(text, bytes) else text.replace("GOOD", good).encode())
    with pytest.raises(DocumentError, match=re.escape(message)) as caught:
        list(ConversationsSource(path=str(path)).records())
    assert str(caught.value).startswith("chat.json, item ")
    assert "\n" not in str(caught.value)


def test_empty_array_holds_no_conversation(tmp_path):
    (tmp_path / "chat.json").write_text(" [ ] \n")
    assert list(ConversationsSource(path=str(tmp_path / "chat.json")).records()) == []


def test_tokenizers_can_be_learnt_from_conversations(tmp_path, pictures):
    read(tmp_path, {"turns": [{"prompt": ["a", {"image": "a.png"}], "answer": "b"}, {"prompt": "c", "answer": "d"}]})
    sources = (ConversationsSource(path=str(tmp_path / "chat.jsonl")),)
    assert read_texts(sources, "") == ["a", "b", "c", "d"]
    (picture,) = kept_squares(sources[0])
    assert picture.tobytes() == resize_and_crop(random_picture(0), 16).tobytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"turns": ', "not valid JSON"),
        (["a"], 'a line must be {"turns":'),
        ({"prompt": "a", "answer": "b"}, 'a line must be {"turns":'),
        ({"turns": [], "more": 1}, 'a line must be {"turns":'),
        ({"turns": []}, "at least one prompt and answer"),
        ({"turns": [{"prompt": "a"}]}, 'turn 1, {"prompt": "a"}: must be {"prompt": …, "answer": …}'),
        ({"turns": [{"prompt": "a", "answer": "b"}, "c"]}, 'turn 2, "c": must be'),
        ({"turns": [{"prompt": 3, "answer": "b"}]}, "turn 1: prompt must be text or a list of segments"),
        ({"turns": [{"prompt": "a", "answer": ""}]}, "turn 1: answer: the document is empty"),
        ({"turns": [{"prompt": ["a", 3], "answer": "b"}]}, "turn 1: prompt: 3: a segment is text or"),
        ({"turns": [{"prompt": "\ud800", "answer": "b"}]}, "lone surrogate"),
        ({"conversations": []}, "a list of messages, human and gpt in turn"),
        ({"conversations": [HUMAN]}, "human and gpt in turn, and end with gpt"),
        ({"conversations": [GPT, HUMAN]}, "there is no answer to learn from"),
        ({"conversations": [GPT]}, "there is no answer to learn from"),
        (
            {"conversations": [HUMAN, {"from": "tool", "value": "b"}]},
            'message 2, {"from": "tool", "value": "b"}: must be',
        ),
        ({"conversations": [HUMAN, GPT, {"from": "system", "value": "b"}]}, "message 3 is from system: must be"),
        ({"conversations": [HUMAN, GPT], "image": "a.png", "images": ["a.png"]}, "image or images, not both"),
        ({"conversations": [HUMAN, HUMAN]}, "message 2 is from human: must be from gpt"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "message 2"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "message 2 is empty"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "\ud800"}]}, "lone surrogate"),
        ({"conversations": [HUMAN, GPT], "image": 3}, "image must be a path or a list of paths"),
        (
            {"conversations": [{**HUMAN, "value": "<image>Two"}, GPT], "image": ["a.png", "b.png"]},
            "1 image marks (such as <|image|>), but image lists 2",
        ),
        ({"conversations": [HUMAN, {**GPT, "value": "<image>"}]}, "1 image marks (such as <|image|>), but image"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(DocumentError, match=re.escape(message)) as caught:
        read(tmp_path, {"conversations": [HUMAN, GPT]}, b" ", line)
    assert str(caught.value).startswith("chat.jsonl, line 3: ")
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Joining and packing
# ----------------------------------------------------------------------------------------------------------------------

VOCABULARY = scrambled_vocabulary(num_pieces=30, num_codes=9, seed=5)
BOS, EOS, SEPARATOR = VOCABULARY.bos, VOCABULARY.eos, VOCABULARY.end_of_turn
SOURCE = ConversationsSource(path="chat.jsonl")

pieces_of_text = st.lists(st.sampled_from(VOCABULARY.text_ids.tolist()), min_size=1, max_size=6)
pictures_of_codes = st.lists(st.sampled_from(VOCABULARY.image_ids.tolist()), min_size=4, max_size=4).map(
    lambda codes: [VOCABULARY.begin_image, *codes, VOCABULARY.end_image]
)
segments = st.lists(st.one_of(pieces_of_text, pictures_of_codes), min_size=1, max_size=3).map(
    lambda parts: np.asarray(list(itertools.chain(*parts)), np.int32)
)
conversations = st.lists(st.tuples(segments, segments), min_size=1, max_size=4)


def by_hand(turns: list, kept: int, source: ConversationsSource) -> list[tuple[int, float]]:
    """Ids and weights of a conversation after its begin of sequence, written down token by token."""
    tokens = []
    for number, (prompt, answer) in enumerate(turns[:kept]):
        tokens += [(token, source.prompt_loss) for token in [*prompt.tolist(), SEPARATOR]]
        ends_here = number == kept - 1 or source.answer_end == "eos"
        tokens += [(token, 1.0) for token in [*answer.tolist(), EOS if ends_here else SEPARATOR]]
    return tokens


@settings(max_examples=60)
@given(
    corpus=st.lists(conversations, min_size=1, max_size=8),
    length=st.integers(6, 60),
    prompt_loss=st.sampled_from([0.0, 0.25]),
    answer_end=st.sampled_from(["separator", "eos"]),
)
def test_every_answer_is_predicted_once_and_after_its_own_prompt_only(corpus, length, prompt_loss, answer_end):
    source = dataclasses.replace(SOURCE, prompt_loss=prompt_loss, answer_end=answer_end)
    pieces, expected = [], []
    for turns in corpus:
        document = TokenizedDocument("", *join_turns(turns, source, VOCABULARY), 0, 0, 0)
        fitted = fit(document, length, VOCABULARY)
        kept = len(turns) - fitted.turns_dropped
        sizes = [len(by_hand(turns, count, source)) for count in range(len(turns) + 1)]
        assert kept == max(count for count, size in enumerate(sizes) if size <= length), "as many as fit"
        pieces += fitted.pieces
        if kept:
            expected.append(by_hand(turns, kept, source))
    assert len(pieces) == len(expected), "no conversation is cut"
    found = []
    for row in pack(pieces, length):
        for piece in row:
            assert (piece.ids[0], piece.weights[0]) == (BOS, 0)
            found.append(list(zip(piece.ids[1:].tolist(), piece.weights[1:].tolist(), strict=True)))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("loss", ["image", "text", "last_image"])
def test_loss_on_one_modality_of_the_answers(loss):
    codes, others = VOCABULARY.image_ids[:4], VOCABULARY.image_ids[4:8]
    picture, other = (
        np.array([VOCABULARY.begin_image, *each, VOCABULARY.end_image], np.int32) for each in (codes, others)
    )
    text = VOCABULARY.text_ids[:2]
    turns = [(np.concatenate([text, picture]), np.concatenate([text, picture, text, other, text]))]
    ids, weights, _ = join_turns(turns, dataclasses.replace(SOURCE, loss=loss), VOCABULARY)
    begin, end = VOCABULARY.begin_image, VOCABULARY.end_image
    learnt = {
        "image": [*codes, end, *others, end], "text": [*text, begin, *text, begin, *text, EOS],
        "last_image": [*others, end],
    }  # fmt: skip
    assert ids[weights == 1].tolist() == learnt[loss]
    assert set(weights.tolist()) == {0, 1}


# ----------------------------------------------------------------------------------------------------------------------
# Preparing
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_command(command, tmp_path_factory) -> PrepareCommand:
    """Three conversations, in one a picture twice as wide as high, and rows of 48 tokens."""
    tmp_path = tmp_path_factory.mktemp("chat")
    random_picture(3, size=(32, 16)).save(tmp_path / "wide.png")
    wide = {"image": "wide.png"}
    read(
        tmp_path,
        {"turns": [{"prompt": [wide, "What?"], "answer": ["This: ", wide]}]},
        {"turns": [{"prompt": "Hi", "answer": "Ho"}, {"prompt": "The fox " * 30, "answer": "dog"}]},
        {"turns": [{"prompt": "sheep and goats and hens " * 9, "answer": "many"}]},
    )
    source = ConversationsSource(name="chat", path=str(tmp_path / "chat.jsonl"))
    return dataclasses.replace(command, output=str(tmp_path / "rows"), sources=(source,), held_out=())


@pytest.fixture(scope="module")
def figures(chat_command) -> dict:
    """What preparing them says."""
    return prepare(chat_command)


def prepared_documents(command: PrepareCommand) -> list:
    data = PreparedData(command.output)
    rows = data.rows("sources", "chat")
    return [document for index in range(len(rows)) for document in unpack(rows[index], data.tokenizer())]


def test_what_does_not_fit_is_left_out_and_counted(chat_command, figures):
    assert (figures["documents"], figures["turns_dropped"], figures["conversations_skipped"]) == (2, 1, 1)
    entry = PreparedData(chat_command.output).header["sources"]["chat"]
    assert (entry["documents"], entry["turns_dropped"], entry["conversations_skipped"]) == (2, 1, 1)
    assert (entry["pictures"], entry["image_tokens"], entry["image_tokens_learnt"]) == (2, 8, 4)
    (first, second) = prepared_documents(chat_command)
    texts = [(span.content, span.weight) for span in first if isinstance(span.content, str)]
    assert texts == [("⟨bos⟩", 0), ("What?", 0), ("⟨end of turn⟩", 0), ("This: ", 1), ("⟨eos⟩", 1)]
    assert [span.weight for span in first if not isinstance(span.content, str)] == [0, 1]
    assert [tuple(span) for span in second] == [
        ("⟨bos⟩", 0), ("Hi", 0), ("⟨end of turn⟩", 0), ("Ho", 1), ("⟨eos⟩", 1)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_tuned_model_remembers_how_its_prompts_were_prepared(chat_command, tmp_path, monkeypatch):
    def no_steps(task: TransformerTask, *args, **options) -> TrainState:  # they would change none of this
        Path(task.config.output).mkdir()
        (Path(task.config.output) / "metrics.jsonl").touch()
        return init_state(task, make_mesh(task.config.mesh))

    monkeypatch.setattr(train_command, "run_training", no_steps)
    model = {"d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 16}
    values = {
        "data": chat_command.output, "output": str(tmp_path / "run"), "steps": 1, "batch_size": 8, "log_every": 1,
        "model": model, "stages": [{"share": 1.0, "weights": {"chat": 1.0}}],
        "optimizer": {"warmup_steps": 1}, "checkpoint": {"every": 1},
    }  # fmt: skip
    train_command.train(from_dict(TrainConfig, values))
    assert "\n| chat | " in (tmp_path / "run/model/README.md").read_text()  # the table of the data
    tuned = load(tmp_path / "run")
    needed = PreparedData(chat_command.output).header["vocab_size"]
    assert tuned.config.vocab_size == -(-needed // 128) * 128  # it was left out
    assert tuned.image_head_trained is True
    asked, _ = (span.content for span in prepared_documents(chat_command)[0] if not isinstance(span.content, str))
    wide = random_picture(3, size=(32, 16))
    np.testing.assert_array_equal(tuned.encode([wide])[1:-1], asked)
    assert tuned.image_tokenizer.preprocessing.fit == "pad"
    cropped = load(tmp_path / "run", preprocessing=PreprocessingConfig())
    assert not np.array_equal(cropped.encode([wide])[1:-1], asked)
    tuned.save(tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved").encode([wide])[1:-1], asked)


@pytest.mark.usefixtures("figures")
def test_prompts_keep_the_whole_picture_and_answers_its_centre(chat_command):
    data = PreparedData(chat_command.output)
    tokenizer = data.tokenizer()
    asked, answered = (
        span.content for span in prepared_documents(chat_command)[0] if not isinstance(span.content, str)
    )
    wide = random_picture(3, size=(32, 16))
    square = Image.new("RGB", (16, 16), "white")
    square.paste(wide.resize((16, 8), Image.Resampling.LANCZOS), (0, 4))
    (padded,), (cropped,) = (tokenizer.image.tokenize([image]) for image in (square, wide.crop((8, 0, 24, 16))))
    assert padded.tolist() != cropped.tolist()
    np.testing.assert_array_equal(tokenizer.vocabulary.code_of_id[asked], padded)
    np.testing.assert_array_equal(tokenizer.vocabulary.code_of_id[answered], cropped)


@pytest.mark.parametrize(
    ("prompt", "loss", "message"),
    [
        ("a", "image", r"chat\.loss = 'image': nothing"),
        ("a" * 99, "all", r"chat: has no documents that fit a row of 48"),
    ],
)
def test_source_that_teaches_nothing_is_refused(chat_command, tmp_path, capsys, prompt, loss, message):
    read(tmp_path, {"turns": [{"prompt": prompt, "answer": "b"}]})
    source = ConversationsSource(name="chat", path=str(tmp_path / "chat.jsonl"), loss=loss)
    with pytest.raises(ConfigError, match=message):
        prepare(dataclasses.replace(chat_command, output=str(tmp_path / "rows"), sources=(source,)))
    assert ("Left out whole: 1;" in capsys.readouterr().err) == (len(prompt) > 1)


def test_documents_can_be_learnt_from_for_one_modality(command, tmp_path):
    losses = ("image", "text", "last_image")
    sources = tuple(dataclasses.replace(command.sources[0], name=loss, loss=loss, count=12) for loss in losses)
    prepare(dataclasses.replace(command, output=str(tmp_path / "rows"), sources=sources, held_out=()))
    data = PreparedData(tmp_path / "rows")
    vocabulary = data.tokenizer().vocabulary
    for loss in losses:
        rows = data.rows("sources", loss)
        for index in range(len(rows)):
            row = rows[index]
            is_image = (vocabulary.modality[row["targets"]] == IMAGE) | (row["targets"] == vocabulary.end_image)
            wanted = (row["segment_ids"] > 0) & (is_image == (loss != "text"))
            if loss == "last_image":
                for document in range(1, row["segment_ids"].max() + 1):
                    here = row["segment_ids"] == document
                    begins = np.flatnonzero(here & (row["targets"] == vocabulary.begin_image))
                    last = begins[-1] if len(begins) else 0
                    wanted[:last] &= ~here[:last]
            np.testing.assert_array_equal(row["loss_weights"], wanted)
