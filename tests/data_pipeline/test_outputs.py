"""Every command looks at where it is to write before it works, and replaces nothing but its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_models import image_tokenizer, text_tokenizer

from chameleon_jax.bench import weights as bench
from chameleon_jax.config import BenchCommand, TransformerConfig
from chameleon_jax.console import commands
from chameleon_jax.console.cli import main
from chameleon_jax.errors import FileError
from chameleon_jax.tokens.documents import save_image_tokenizer
from data_pipeline.config import PrepareCommand
from data_pipeline.prepare import prepare  # noqa: F401 - as nobody, it may not be possible to import it
from data_pipeline.sources import DocumentsSource

NOWHERE = [{"kind": "documents", "name": "none", "path": "there/is/no/such.jsonl"}]
"""A source that fails as soon as it is opened, after every look at the output."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command_line(folder: Path, name: str, output: Path) -> list[str]:
    """The command with tokenizers and sources that are not there."""
    tokenizer = {
        "train-text-tokenizer": {"vocab_size": 400},
        "train-image-tokenizer": {"steps": 2, "warmup_steps": 1, "batch_size": 1, "model": {"num_codes": 16}},
    }
    values = {"output": str(output), "sources": NOWHERE}
    if name == "prepare":
        values |= {"sequence_length": 64, "text_tokenizer": "no.model", "image_tokenizer": "none"}
    else:
        values["tokenizer"] = tokenizer[name]
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return [name, str(config)]


COMMANDS = ["prepare", "train-image-tokenizer", "train-text-tokenizer"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("there", ["data", "other kind", "marked, with thesis", "wrong kind of thing", "below a file"])
def test_what_is_there_is_refused_first_and_stays(tmp_path, capsys, name, there):
    output, file = tmp_path / "mine" / "it", name == "train-text-tokenizer"
    if there == "below a file":
        output = tmp_path / "mine" / "file" / "it"
        output.parent.parent.mkdir()
        output.parent.write_text("thesis")
    elif file or there == "wrong kind of thing":
        output.parent.mkdir()
        if file == (there == "wrong kind of thing"):
            output.mkdir()
        else:
            output.write_text("thesis")
    else:
        # A run adds files to its folder, and only refuses where they would mix with others.
        inside = output / "model" if name == "train-image-tokenizer" else output
        inside.mkdir(parents=True)
        if there == "marked, with thesis":
            header = {"format_version": 1, "fingerprint": "", "sources": {}, "model": {"num_codes": 16}}
            (inside / {"prepare": "dataset.json"}.get(name, "config.json")).write_text(json.dumps(header))
        if there == "other kind":
            (inside / "config.json").write_text(json.dumps({"format_version": 1, "model": {"num_layers": 2}}))
        else:
            (inside / "thesis.txt").write_text("three years of work")
    before = contents(tmp_path / "mine")
    assert main(command_line(tmp_path, name, output)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"chameleon {name}: {output}: ")
    assert error.count("\n") == 1
    assert contents(tmp_path / "mine") == before
    assert main(command_line(tmp_path, name, tmp_path / "new" / "output")) != 0
    assert "such" in capsys.readouterr().err  # it went on to the sources, or to the tokenizers
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("output", ["", "new", "new/rows"])
def test_folder_that_cannot_be_written_is_refused_before_any_work(read_only_folder, output):
    nothing = DocumentsSource(path="there/is/no/such.jsonl")
    command = PrepareCommand(str(read_only_folder / output), 64, (nothing,), text_tokenizer="no.model")
    message = f"^{command.output}: cannot be written: nothing may be written into {read_only_folder}$"
    with pytest.raises(FileError, match=message):
        commands.prepare(command)


def test_data_that_was_prepared_before_is_replaced_and_nothing_is_left(own_command):
    for _ in range(2):
        commands.prepare(own_command)
    assert [path.name for path in Path(own_command.output).parent.iterdir()] == ["rows"]
    (Path(own_command.output) / "tokenizer" / "thesis.txt").write_text("three years of work")
    with pytest.raises(FileError, match=r"it holds 'tokenizer/thesis.txt'"):
        commands.prepare(own_command)


def test_tokenizers_that_were_written_before_are_known_again(tmp_path):
    save_image_tokenizer(image_tokenizer(), tmp_path / "image")
    (tmp_path / "image" / "metrics.jsonl").touch()
    (tmp_path / "text.model").write_bytes(text_tokenizer().model)
    commands.check_folder(tmp_path / "image", commands.IMAGE_TOKENIZER)
    commands.check_file(tmp_path / "text.model", commands.TEXT_TOKENIZER)


@pytest.mark.parametrize("there", ["run/notes.txt", "text.model", "notes.txt", "stages.json"])
@pytest.mark.parametrize("fresh", ["false", "true"])
def test_demo_works_only_in_a_folder_of_its_own(tmp_path, capsys, there, fresh):
    (tmp_path / "out" / there).parent.mkdir(parents=True)
    (tmp_path / "out" / there).write_text('["mine"]')
    before = contents(tmp_path)
    assert main(["demo", "--output", str(tmp_path / "out"), "--fresh", fresh]) == 1
    assert "choose another" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_demo_never_removes_a_run_that_it_did_not_make(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "sessions.jsonl").touch()
    (tmp_path / "stages.json").write_text(json.dumps({"prepare data": {"key": "", "finished": True}}))
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert f"{run}: is there already, but not from `chameleon demo`" in capsys.readouterr().err
    assert (run / "sessions.jsonl").exists()


def test_bench_removes_only_its_own_files(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("three years of work")

    def fail(*arguments):
        raise RuntimeError("enough")

    monkeypatch.setattr(bench, "open_checkpoint", fail)
    sizes = {"vocab_size": 32, "d_model": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4}
    model = TransformerConfig(**sizes, mlp_dim=8)
    with pytest.raises(RuntimeError, match="enough"):
        bench.bench_weights(BenchCommand(model, folder=str(tmp_path)))
    assert contents(tmp_path) == {"thesis.txt": b"three years of work"}
    assert len(list(tmp_path.iterdir())) == 1
