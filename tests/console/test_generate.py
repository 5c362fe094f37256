"""`chameleon generate` and `chameleon chat` with a small model: what is printed, written and asked."""

from __future__ import annotations

import io
import json
import os
import signal
import sys

import pytest
from PIL import Image
from tiny_models import random_picture, scrambled_tokenizer, transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon, load
from chameleon_jax.config import GenerationConfig, SamplingConfig
from chameleon_jax.console.chat import ctrl_c_calls, parse_line
from chameleon_jax.console.cli import main
from chameleon_jax.document import DocumentError

TEXT = ("--mode", "text", "--max-new-tokens", "6", "--text.temperature", "0")
ASKED = GenerationConfig(mode="text", max_new_tokens=6, text=SamplingConfig(temperature=0.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = scrambled_tokenizer()
    config = transformer_for(tokenizer.vocabulary, context_length=256)
    place = tmp_path_factory.mktemp("cli")
    Chameleon(config, transformer_params(config, seed=1), tokenizer, image_head_trained=True).save(place / "model")
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load(folder / "model")


class Input(io.TextIOWrapper):
    def __init__(self, text: str):
        super().__init__(io.BytesIO(text.encode()), "utf-8")


def run(folder, tmp_path, *words: str) -> int:
    return main([words[0], str(folder / "model"), *words[1:], "--output", str(tmp_path / "out"), *TEXT])


def test_prompt_comes_from_arguments_a_file_or_standard_input(folder, model, tmp_path, monkeypatch, capsys):
    expected = model.generate("The quick\nbrown", ASKED).text + "\n"
    (tmp_path / "prompt.txt").write_text("The quick\nbrown\n")
    assert run(folder, tmp_path, "generate", "The quick\nbrown") == 0
    assert capsys.readouterr().out == expected
    assert run(folder, tmp_path, "generate", "--prompt-file", str(tmp_path / "prompt.txt")) == 0
    assert capsys.readouterr().out == expected
    for words in (["-"], ["--prompt-file", "-"]):
        monkeypatch.setattr(sys, "stdin", Input("The quick\nbrown\n"))
        assert run(folder, tmp_path, "generate", *words) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["a", "--prompt-file", "b"], 2, "prompt_file = 'b': goes without a PROMPT"),
        (["--prompt-file", "gone.txt"], 1, "gone.txt: no such file"),
        (["a", "--n", "0"], 2, "n = 0: must be from 1 to 10,000"),
        (["a", "--n", "many"], 2, "n = 'many': must be a whole number"),
        (["a" * 400], 1, "context_length = 256"),
        (["a", "--max-images", "2"], 2, "max_images = 2: mode 'text' writes no picture"),
    ],
)
def test_what_cannot_be_asked_is_one_line(folder, tmp_path, words, status, message, capsys):
    assert run(folder, tmp_path, "generate", *words) == status
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_answers_are_printed_as_json(folder, model, tmp_path, capsys):
    words = ["generate", str(folder / "model"), "Draw", "--mode", "image", "--n", "2", "--json"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    expected = model.generate("Draw", GenerationConfig(mode="image"), n=2)
    for answer, wanted in zip(answers, expected, strict=True):
        (segment,) = answer["segments"]
        assert Image.open(segment["picture"]).tobytes() == wanted[0].tobytes()
        assert (answer["reason"], answer["prompt_tokens"]) == (wanted.reason, len(wanted.prompt_ids))


def test_chat_answers_line_by_line_and_goes_on_after_a_mistake(folder, model, tmp_path, monkeypatch, capsys):
    random_picture(1).save(tmp_path / "a picture.png")
    lines = [f"What is '{tmp_path}/a picture.png'", "", "/image gone.png", f"/image {tmp_path}/a picture.png", "And?"]
    monkeypatch.setattr(sys, "stdin", Input("\n".join([*lines, "/new", "Who?"])))
    assert run(folder, tmp_path, "chat") == 0
    said = capsys.readouterr()
    chat = model.chat(ASKED)
    answers = [chat.say(["What is ", random_picture(1)]), chat.say([random_picture(1), "And?"])]
    answers.append(model.chat(ASKED).say("Who?"))
    assert said.out == "".join(f"{answer.text}\n" if answer else EMPTY for answer in answers)
    assert said.err == "chameleon chat: gone.png: no such picture file\n"


EMPTY = "[the model ended the document at once]\n"


def test_paths_of_pictures_in_a_line_become_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b c.JPG"):
        random_picture(1).save(tmp_path / name)
    pictures = [(part if isinstance(part, str) else "PICTURE") for part in parse_line(r"a.png and b\ c.JPG, no.png?")]
    assert pictures == ["PICTURE", " and b\\ c.JPG, no.png?"]  # the comma belongs to the name
    assert parse_line('"b c.JPG" ')[1:] == [" "]
    assert parse_line("don't") == ["don't"]
    with pytest.raises(DocumentError, match=r"gone/a\.png: no such picture file"):
        parse_line("look at gone/a.png")


def test_first_ctrl_c_stops_the_answer_and_the_second_interrupts():
    stopped, before = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored
    try:
        with ctrl_c_calls(lambda: stopped.append(1)):
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped == [1]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_help_is_one_screen(capsys):
    for command in ("generate", "chat"):
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out.count("\n") <= 50
