"""The command line: what people see when they ask for help or make a mistake."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys

import pytest

import chameleon_jax
from chameleon_jax.config import find_configs, read_config, reading
from chameleon_jax.config.docstrings import field_docs
from chameleon_jax.console.arguments import parse
from chameleon_jax.console.cli import COMMANDS, main
from data_pipeline.config import PoolConfig
from data_pipeline.forms import Template


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all((f"  {name} " in said) == command.listed for name, command in COMMANDS.items())
    assert main([]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_help_all_explains_every_key(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    short = capsys.readouterr().out
    assert short.startswith(f"usage: chameleon {name}")
    assert short.count("\n") <= 50
    assert max(map(len, short.splitlines())) <= 120
    assert main([*name.split(), "--help-all"]) == 0
    full = capsys.readouterr().out
    for field in dataclasses.fields(COMMANDS[name].config):
        key = f"--{field.name.replace('_', '-')}"
        assert key in short
        assert key in full
    nested = {"train": "--optimizer.learning-rate", "generate": "--text.temperature", "prepare": "--sources.0.count"}
    assert nested.get(name, "") in full


def test_help_all_explains_the_keys_of_lists_that_are_empty(capsys):
    assert main(["prepare", "--help-all"]) == 0
    full = " ".join(capsys.readouterr().out.split())
    for path, cls in (("--pools", PoolConfig), ("--sources.0.form.templates", Template)):
        assert f"{path}, a list that is empty here. " in full
        for field in dataclasses.fields(cls):
            assert f" {field.name} {' '.join(field_docs(cls)[field.name].split())}" in full


def test_help_shows_long_values_on_narrow_terminals(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.yaml"
    recipe = (find_configs() / "demo" / "prepare.yaml").read_text(encoding="utf-8")
    path.write_text(recipe.replace("out/demo/datasets", "long/" * 30), encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["prepare", "--sequence-length", "64", str(path), "--help"]) == 0
    assert f"--datasets {'long/' * 30}\n" in capsys.readouterr().out


def test_help_of_a_group_of_commands_lists_all(capsys):
    assert main(["bench", "--help"]) == 0
    assert "  bench train " in capsys.readouterr().out


def test_every_shipped_recipe_can_be_given_by_name():
    reached = [path for command in COMMANDS.values() for path in command.shipped().values()]
    models = (f"models/{path.name}" for path in (find_configs() / "models").iterdir())
    others = {*(f"{name}/evaluation.yaml" for name in ("demo", "showcase", "showcase_gpu")), *models}
    recipes = {str(path.relative_to(find_configs())) for path in find_configs().rglob("*.yaml")} - others
    assert {str(path.relative_to(find_configs())) for path in reached} == recipes
    for command in COMMANDS.values():
        for name, path in command.shipped().items():
            assert parse(command, [name]).config == read_config(command.config, path)


def test_names_of_recipes_are_found_where_the_package_is_installed(tmp_path, monkeypatch):
    """The wheel has configs/ inside the package, and people are in a folder of their own."""
    package = tmp_path / "chameleon_jax"
    shutil.copytree(find_configs(), package / "configs")
    monkeypatch.setattr(reading, "__file__", str(package / "config" / "reading.py"))
    monkeypatch.chdir(tmp_path)
    assert COMMANDS["train"].shipped()["demo"] == package / "configs" / "demo" / "train.yaml"
    assert parse(COMMANDS["bench train"], ["cpu_25m"]).config.batch_size > 0
    assert parse(COMMANDS["train"], ["configs/demo/train.yaml"]).config.steps == 600  # as the documentation writes it


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
        (["trian"], "'trian' is not a command; did you mean 'train'?"),
        (["train"], "CONFIG is missing; expected CONFIG, for example chameleon train demo"),
        (["train", "a.yaml", "b.yaml"], "'b.yaml': is one argument too many; expected CONFIG"),
        (["train", "dmo"], "CONFIG = 'dmo': must be a YAML file or one of demo, finetune_image_head"),
        (["train", "--steps", "3"], "CONFIG is missing"),
        (["train", "{recipe}", "--quite"], "--quite: there is no such option; did you mean --quiet?"),
        (["train", "gone.yaml"], "gone.yaml: no such file"),
        (["train", "{recipe}", "--optimizer.learning_rte", "3"], "did you mean 'learning_rate'?"),
        (["train", "{recipe}", "--model.num-kv-heads", "4"], "num_kv_heads = 4: must divide num_heads = 6"),
        (["train", "{recipe}", "--steps"], "--steps: a value must follow"),
        (["generate"], "MODEL is missing; expected MODEL [PROMPT], for example chameleon generate"),
        (["generate", "model", "a", "b"], "'b': is one argument too many; expected MODEL [PROMPT]"),
        (["generate", "model", "a", "--imge", "x"], "--imge: there is no such option; did you mean --image?"),
        (["generate", "model", "a", "--image"], "--image: a value must follow"),
        (["generate", "model", "a", "--text.temperature", "-1"], "text.temperature = -1.0: must be 0 (greedy) or more"),
        (["generate", "model", "a", "--form", "dialogue"], "form = 'dialogue': must be one of 'completion', 'chat'"),
        (["generate", "model", "a", "--mode", "video"], "mode = 'video': must be one of 'auto', 'interleaved'"),
        (["convert"], "SRC is missing; expected SRC DST"),
        (["convert", "a", "--format", "meta"], "DST is missing; expected SRC DST"),
        (["convert", "a", "b", "c", "--format", "meta"], "'c': is one argument too many; expected SRC DST"),
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
        (["compile"], "CONFIG is missing; expected CONFIG, for example chameleon compile pretrain_7b"),
        (["compile", "{recipe}", "--toplogy", "v5e"], "toplogy: there is no such key; did you mean 'topology'?"),
        (["compile", "{recipe}", "--slices", "2"], "slices = 2: needs --topology"),
        (["prepare", "demo", "x"], "'x': is one argument too many; only --runner has options that follow --"),
        (
            ["prepare", "demo", "--runner", "DirectRunner", "--worker", "1/2"],
            "--worker and --runner exclude each other",
        ),
        (["inspect"], "PATH is missing; expected PATH"),
        (["show"], "DATA is missing; expected DATA"),
        (["inspect", "a", "b"], "'b': is one argument too many; expected PATH"),
        (["inspect", "a", "--json=maybe"], "json = 'maybe': must be true or false"),
        (["completion", "sh"], "expected one of bash, zsh, fish, tcsh"),
    ],
)
def test_wrong_commands_are_one_line_and_status_2(arguments, message, capsys):
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
    recipes = find_configs() / "demo"
    values = {"folder": tmp_path, "recipe": recipes / "train.yaml", "prepare": recipes / "prepare.yaml"}
    assert main([argument.format(**values) for argument in arguments]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    recipe = str(find_configs() / "demo" / "text_tokenizer.yaml")
    arguments = ["--datasets", str(tmp_path / "datasets"), "--output", str(tmp_path / "text.model")]
    overrides = ["--sources", "[{kind: digit_captions}]"]
    assert main(["train-text-tokenizer", recipe, *arguments, *overrides]) == 1
    assert "pip install 'chameleon-jax[demo]'" in capsys.readouterr().err


def test_a_finished_run_says_its_losses_where_the_model_is_and_what_to_type_next(monkeypatch, tmp_path, capsys):
    from chameleon_jax.console import train
    from chameleon_jax.training.metrics import MetricsFile

    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write(1, loss=9.0, held_out={"prose": {"loss": 5.0}})
    metrics.write(2, loss=3.0, held_out={"prose": {"loss": 4.0}, "digits": {"loss": 2.5, "image_loss": 2.25}})
    metrics.write(3, loss=3.0)
    losses = train._last_held_out_losses(tmp_path)
    assert losses == {"held_out.prose.loss": 4.0, "held_out.digits.loss": 2.5, "held_out.digits.image_loss": 2.25}

    monkeypatch.setattr(train, "train", lambda config: losses)
    recipe = str(find_configs() / "demo" / "train.yaml")
    assert main(["train", recipe, "--output", "my runs/first"]) == 0
    said = capsys.readouterr().out
    assert "held_out.prose.loss" in said
    assert "next:\n  chameleon generate 'my runs/first' \"Once\"\n  chameleon inspect 'my runs/first'\n" in said


def test_a_run_that_was_stopped_by_hand_ends_with_130_and_by_a_scheduler_with_143(monkeypatch, capsys):
    from chameleon_jax.console import train
    from chameleon_jax.errors import Stopped

    def stop(config):
        raise Stopped("stopped after step 3", status=status)

    monkeypatch.setattr(train, "train", stop)
    for status in (130, 143):
        assert main(["train", str(find_configs() / "demo" / "train.yaml")]) == status
    assert capsys.readouterr().err == "chameleon train: stopped after step 3\n" * 2


def test_ctrl_c_in_other_commands_leaves_nothing_half_written(monkeypatch, tmp_path, capsys):
    from PIL import Image

    from chameleon_jax.console import commands

    def press(*args):
        assert list((tmp_path / "out").glob(".model*"))  # it has begun to write
        raise KeyboardInterrupt

    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    (tmp_path / "pictures.jsonl").write_text('[{"image": "black.png"}]\n')
    monkeypatch.setattr(commands, "learn_image_tokenizer", lambda *args, **more: None)
    monkeypatch.setattr(commands, "save_image_tokenizer", press)
    sources = f"[{{kind: documents, path: {tmp_path / 'pictures.jsonl'}}}]"
    arguments = ["--sources", sources, "--held_out", "[]", "--output", str(tmp_path / "out")]
    assert main(["train-image-tokenizer", str(find_configs() / "demo" / "image_tokenizer.yaml"), *arguments]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("chameleon train-image-tokenizer: stopped")
    assert "tokenizer.batch_size = 64: there are only 1 pictures" in said
    assert {path.name for path in tmp_path.iterdir()} == {"black.png", "pictures.jsonl", "out"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pictures"], "complete, for the next run"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--- a/file.py"],
        ["-- a comment of SQL"],
        ["- a bullet"],
        ["-x marks the spot"],
        ["--Hello, she said"],
        ["-1"],
        ["-5", "--seed", "-3"],
        ["--seed", "7", "--", "--prompt"],
        ["--", "--help"],
        ["--"],
    ],
)
def test_prompts_may_begin_with_dashes(arguments, monkeypatch):
    from chameleon_jax.console import generate

    received = []
    monkeypatch.setattr(generate, "generate", lambda config, options, **given: received.append(given) or {})
    prompt = arguments[0] if arguments[0].startswith("-") and "--" not in arguments else arguments[-1]
    if arguments[-2:-1] == ["--"] or arguments == ["--"]:
        at = arguments.index("--") + 1
        arguments = [*arguments[:at], "out/model", *arguments[at:]]
    else:
        arguments = ["out/model", *arguments]
    assert main(["generate", *arguments]) == 0
    assert [given["model"] for given in received] == ["out/model"]
    assert received[0]["prompt"] == ("" if arguments[-1] == "out/model" else prompt)


def test_warnings_are_one_line(monkeypatch, capsys):
    import warnings

    from chameleon_jax.console import generate

    monkeypatch.setattr(
        generate, "generate", lambda *given, **more: warnings.warn("no room\x1b[31m", stacklevel=2) or {}
    )
    assert main(["generate", "out/model", "Once"]) == 0
    assert capsys.readouterr().err == "warning: no room\\x1b[31m\n"


def test_what_a_model_writes_steers_no_terminal(monkeypatch, capsys):
    from chameleon_jax.console import generate
    from chameleon_jax.generation.answer import Answer
    from chameleon_jax.generation.events import Finished, TextPiece

    class Model:
        def streams(self, document, config, n):
            return [iter([TextPiece("\x1b]0;owned"), TextPiece("\x07 and\n\tmore"), Finished(Answer())])]

    monkeypatch.setattr(generate, "load", lambda path, **options: Model())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["generate", "out/model", "Once"]) == 0
    assert capsys.readouterr().out == "\\x1b]0;owned\\x07 and\n\tmore\n"


@pytest.mark.parametrize(
    ("words", "as_json", "verify"),
    [
        (["--json", "--verify"], True, True),
        (["--verify", "true", "--json", "true"], True, True),
        (["--json=true"], True, False),
        (["--no-json", "--verify=false"], False, False),
    ],
)
def test_flags_stand_alone_or_have_a_value(words, as_json, verify):
    parsed = parse(COMMANDS["inspect"], ["folder", *words])
    assert parsed.arguments == {"path": "folder"}
    assert (parsed.config.json, parsed.config.verify) == (as_json, verify)
    assert parse(COMMANDS["inspect"], [*words, "folder"]) == parsed


def test_lists_may_stand_before_the_file():
    parsed = parse(COMMANDS["train"], ["--trackers", "tensorboard", "wandb", "demo"])
    assert parsed.config.trackers == ("tensorboard", "wandb")
    shown = parse(COMMANDS["show"], ["rows", "--rows", "3", "17"])
    assert shown.arguments == {"data": "rows", "rows": ("3", "17")}
    pictures = parse(COMMANDS["generate"], ["model", "x", "--image", "a.png", "--image", "b.png", "--image.top-p", "1"])
    assert pictures.arguments["image"] == ("a.png", "b.png")
    assert pictures.config.image.top_p == 1


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"chameleon-jax {chameleon_jax.__version__} (jax ")


def test_quiet_and_verbose(monkeypatch, capsys):
    from chameleon_jax.console import generate
    from chameleon_jax.errors import FileError
    from chameleon_jax.runtime.progress import console

    def fail(*given, **more):
        console.print("working")
        raise FileError("broken")

    monkeypatch.setattr(generate, "generate", fail)
    said = {}
    for word in ("--quiet", "-q", "--verbose=", "--verbose", "-v"):
        arguments = ["generate", "model", "x", *([] if word.endswith("=") else [word])]
        assert main(arguments) == 1
        said[word] = capsys.readouterr().err
    assert said["--quiet"] == said["-q"] == "chameleon generate: broken\n"
    assert said["--verbose="] == "working\nchameleon generate: broken\n"
    assert said["--verbose"] == said["-v"]
    assert said["-v"].startswith("working\nTraceback")
    assert said["-v"].endswith("FileError: broken\nchameleon generate: broken\n")
    assert logging.getLogger("absl").level == logging.INFO


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_keys_and_values(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "chameleon.bash"
    script.write_text(capsys.readouterr().out)

    def complete(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        program = f"""
            source {script}
            COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
            $(complete -p chameleon | sed 's/.*-F //; s/ .*//') chameleon '{words[-1]}' '{words[-2]}'
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30, check=True)
        return set(result.stdout.split())

    assert complete("chameleon", "tra") == {"train", "train-text-tokenizer", "train-image-tokenizer"}
    assert "--optimizer.learning-rate" in complete("chameleon", "train", "--optimizer.l")
    assert complete("chameleon", "generate", "--mode", "i") == {"interleaved", "image"}
    assert complete("chameleon", "bench", "") >= {"generate", "train", "weights"}
    assert complete("chameleon", "compile", "--topo") == {"--topology"}
    assert complete("chameleon", "compile", "gen") == {"generate"}
    assert "--topology" in complete("chameleon", "compile", "generate", "--t")


def test_output_that_nobody_reads_ends_the_command_without_a_traceback(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["--help"]) == 141
    assert capfd.readouterr().err == ""


def test_figures_with_long_names_stand_apart_from_their_values(capsys, monkeypatch):
    figures = {"held_out.digit_captions.image_loss": 0.5345, "steps": 60}
    monkeypatch.setattr("chameleon_jax.console.inspect.inspect", lambda *_, **__: figures)
    assert main(["inspect", "somewhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [[name, str(value)] for name, value in figures.items()]
    assert lines[0].index("0.5345") == lines[1].index("60")


def test_preparing_by_beam_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "data_pipeline.beam", raising=False)
    assert main(["prepare", "demo", "--runner", "DirectRunner"]) == 1
    assert capsys.readouterr().err == (
        "chameleon prepare: needs apache_beam, which is not installed; pip install 'chameleon-jax[beam]'\n"
    )
