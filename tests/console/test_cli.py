"""The command line: what people see when they ask for help or make a mistake."""

from __future__ import annotations

import sys

import pytest

from chameleon_jax.console.cli import main

COMMANDS = (
    "demo",
    "train-text-tokenizer",
    "train-image-tokenizer",
    "prepare",
    "show",
    "train",
    "compile",
    "generate",
    "convert",
    "inspect",
)


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_its_keys(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: chameleon {name}" in said
    known = {"demo": "--recipes", "generate": "--text.temperature", "prepare": "--sequence-length"}
    known |= {"convert": "--image-tokenizer", "inspect": "--json"}
    assert known.get(name, "--output") in said


def test_help_shows_the_values_of_the_file_that_is_named(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{data: rows, output: run, steps: 4321, batch_size: 2, model: {}, "
        "stages: [{share: 1, weights: {a: 1}}], optimizer: {warmup_steps: 7}}"
    )
    assert main(["train", str(path), "--help"]) == 0
    assert "4321" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "'trian' is no command; there are demo"),
        (["train"], "expected one YAML file, got none; for example configs/demo/train.yaml"),
        (["train", "a.yaml", "b.yaml"], "expected one YAML file, got ['a.yaml', 'b.yaml']"),
        (["train", "gone.yaml"], "gone.yaml: no such file"),
        (["train", "{recipe}", "--optimizer.learning_rte", "3"], "did you mean 'learning_rate'?"),
        (["train", "{recipe}", "--model.num-kv-heads", "4"], "num_kv_heads = 4: must divide num_heads = 6"),
        (["train", "{recipe}", "--steps"], "--steps: a value must follow"),
        (["generate"], "expected MODEL and PROMPT"),
        (["generate", "model", "a", "b"], "expected MODEL and PROMPT"),
        (["generate", "model", "a", "--text.temperature", "-1"], "text.temperature = -1.0: must be 0 (greedy) or more"),
        (["generate", "model", "a", "--form", "dialogue"], "form = 'dialogue': must be one of 'completion', 'chat'"),
        (["generate", "model", "a", "--mode", "video"], "mode = 'video': must be one of 'auto', 'interleaved'"),
        (["convert"], "expected SRC and DST, got nothing"),
        (["convert", "a", "--format", "meta"], "expected SRC and DST, got ['a']"),
        (["convert", "a", "b", "c", "--format", "meta"], "expected SRC and DST, got ['a', 'b', 'c']"),
        (["convert", "a", "b"], "format: missing; must be one of 'chameleon', 'huggingface', 'meta'"),
        (
            ["convert", "a", "b", "--format", "gguf"],
            "format = 'gguf': must be one of 'chameleon', 'huggingface', 'meta'",
        ),
        (["convert", "a", "b", "--format"], "--format: a value must follow"),
        (["convert", "a", "b", "--format", "meta", "--shards", "0"], "shards = 0: must be at least 1"),
        (["convert", "a", "b", "--format", "meta", "--shards", "two"], "shards = 'two': must be a whole number"),
        (["convert", "a", "b", "--format", "meta", "--dtype", "int8"], "dtype = 'int8': must be one of 'float32'"),
        (["convert", "a", "b", "--format", "meta", "--image_tokeniser", "c"], "did you mean 'image_tokenizer'?"),
        (["compile"], "expected one YAML file, got none; for example configs/pretrain_7b.yaml"),
        (["inspect"], "expected PATH, got nothing"),
        (["show"], "expected DATA, got nothing"),
        (["inspect", "a", "b"], "expected PATH, got ['a', 'b']"),
        (["inspect", "a", "--json"], "--json: a value must follow"),
        (["inspect", "a", "--json", "maybe"], "json = 'maybe': must be true or false"),
    ],
)
def test_wrong_commands_are_one_line_and_status_2(arguments, message, capsys):
    from chameleon_jax.config import find_configs

    recipe = str(find_configs() / "demo" / "train.yaml")
    assert main([recipe if argument == "{recipe}" else argument for argument in arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"chameleon {arguments[0]}: ")
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "{folder}", "x"], "is not a model folder"),
        (["inspect", "{folder}"], "is not a model folder (expected config.json"),
        (["inspect", "{folder}/gone"], "gone: is not a model folder (there is no such folder)"),
        (["convert", "{folder}", "{folder}/out", "--format", "meta"], "is not a model folder (expected config.json"),
        (["convert", "{folder}/gone", "{folder}/out", "--format", "meta"], "there is no such folder"),
        (["generate", "{folder}", "x", "--image", "{folder}/gone.png"], "gone.png: no such picture file"),
        (["generate", "{folder}", "⟨image⟩ and ⟨image⟩"], "2 ⟨image⟩ marks but 0 pictures"),
        (["train", "{recipe}", "--data", "{folder}"], "holds no prepared data"),
        (["prepare", "{prepare}", "--text-tokenizer", "{folder}/gone.model"], "gone.model: no such text tokenizer"),
    ],
)
def test_missing_things_are_one_line_and_status_1(arguments, message, tmp_path, capsys):
    from chameleon_jax.config import find_configs

    recipes = find_configs() / "demo"
    values = {"folder": tmp_path, "recipe": recipes / "train.yaml", "prepare": recipes / "prepare.yaml"}
    assert main([argument.format(**values) for argument in arguments]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named(monkeypatch, tmp_path, capsys):
    from chameleon_jax.config import find_configs

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    recipe = str(find_configs() / "demo" / "text_tokenizer.yaml")
    arguments = ["--datasets", str(tmp_path / "datasets"), "--output", str(tmp_path / "text.model")]
    overrides = ["--sources", "[{kind: digit_captions}]"]
    assert main(["train-text-tokenizer", recipe, *arguments, *overrides]) == 1
    assert "pip install 'chameleon-jax[demo]'" in capsys.readouterr().err


def test_a_finished_run_says_its_losses_where_the_model_is_and_what_to_type_next(monkeypatch, tmp_path, capsys):
    from chameleon_jax.config import find_configs
    from chameleon_jax.console import commands
    from chameleon_jax.training.metrics import MetricsFile

    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write(1, loss=9.0, held_out={"prose": {"loss": 5.0}})
    metrics.write(2, loss=3.0, held_out={"prose": {"loss": 4.0}, "digits": {"loss": 2.5, "image_loss": 2.25}})
    metrics.write(3, loss=3.0)
    losses = commands._last_held_out_losses(tmp_path)
    assert losses == {"held_out.prose.loss": 4.0, "held_out.digits.loss": 2.5, "held_out.digits.image_loss": 2.25}

    monkeypatch.setattr(commands, "train", lambda config: losses)
    recipe = str(find_configs() / "demo" / "train.yaml")
    assert main(["train", recipe, "--output", "my runs/first"]) == 0
    said = capsys.readouterr().out
    assert "held_out.prose.loss" in said
    assert "next:\n  chameleon generate 'my runs/first' \"Once\"\n  chameleon inspect 'my runs/first'\n" in said


def test_a_run_that_was_stopped_by_hand_ends_with_130_and_by_a_scheduler_with_143(monkeypatch, capsys):
    from chameleon_jax.config import find_configs
    from chameleon_jax.console import commands
    from chameleon_jax.errors import Stopped

    def stop(config):
        raise Stopped("stopped after step 3", status=status)

    monkeypatch.setattr(commands, "train", stop)
    for status in (130, 143):
        assert main(["train", str(find_configs() / "demo" / "train.yaml")]) == status
    assert capsys.readouterr().err == "chameleon train: stopped after step 3\n" * 2


def test_ctrl_c_in_other_commands_leaves_nothing_half_written(monkeypatch, tmp_path, capsys):
    from PIL import Image

    from chameleon_jax.config import find_configs
    from chameleon_jax.console import commands

    def press(*args):
        assert list((tmp_path / "out").parent.glob(".out*"))  # it has begun to write
        raise KeyboardInterrupt

    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    (tmp_path / "pictures.jsonl").write_text('[{"image": "black.png"}]\n')
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(commands, "learn_image_tokenizer", press)
    sources = f"[{{kind: documents, path: {tmp_path / 'pictures.jsonl'}}}]"
    arguments = ["--sources", sources, "--held_out", "[]", "--output", str(tmp_path / "out")]
    assert main(["train-image-tokenizer", str(find_configs() / "demo" / "image_tokenizer.yaml"), *arguments]) == 130
    assert capsys.readouterr().err.endswith("chameleon train-image-tokenizer: stopped\n")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--- a/file.py"],
        ["-- a comment of SQL"],
        ["- a bullet"],
        ["--seed", "7", "--", "--prompt"],
        ["--", "--help"],
        ["--"],
    ],
)
def test_prompts_may_begin_with_dashes(arguments, monkeypatch):
    from chameleon_jax.console import commands

    received = []
    monkeypatch.setattr(commands, "generate", lambda config, *positional: received.append(positional) or {})
    if arguments[-2:-1] == ["--"] or arguments == ["--"]:
        at = arguments.index("--") + 1
        arguments = [*arguments[:at], "out/model", *arguments[at:]]
    else:
        arguments = ["out/model", *arguments]
    assert main(["generate", *arguments]) == 0
    assert received == [("out/model",) if arguments[-1] == "out/model" else ("out/model", arguments[-1])]


def test_warnings_are_one_line(monkeypatch, capsys):
    import warnings

    from chameleon_jax.console import commands

    monkeypatch.setattr(commands, "generate", lambda *given: warnings.warn("no room\x1b[31m", stacklevel=2) or {})
    assert main(["generate", "out/model", "Once"]) == 0
    assert capsys.readouterr().err == "warning: no room\\x1b[31m\n"


def test_what_a_model_writes_steers_no_terminal(monkeypatch, capsys):
    from chameleon_jax.console import commands

    class Model:
        def generate(self, document, config):
            return ["\x1b]0;owned\x07 and\n\tmore"]

    monkeypatch.setattr(commands, "load", lambda path, **options: Model())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["generate", "out/model", "Once"]) == 0
    assert capsys.readouterr().out == "\\x1b]0;owned\\x07 and\n\tmore\n"
