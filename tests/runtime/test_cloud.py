"""Runs, models and data on Google Cloud Storage, as an emulator serves it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from tiny_models import image_tokenizer, text_tokenizer

from chameleon_jax import load
from chameleon_jax.console.cli import main
from chameleon_jax.errors import FileError
from chameleon_jax.runtime import cloud
from chameleon_jax.runtime.cloud import as_path, download, objects_in
from chameleon_jax.runtime.files import append_text, new_file, write_text
from chameleon_jax.runtime.folders import Kind, new_folder
from chameleon_jax.tokens.documents import save_image_tokenizer
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer, write_image_tokenizer

NOTES = Kind("notes", lambda folder: (folder / "mark").is_file(), ("mark", "pages/*"))


pytestmark = pytest.mark.usefixtures("bucket")


def contents(folder: str) -> dict[str, bytes]:
    return {name: (as_path(folder) / name).read_bytes() for name in objects_in(folder)}


def write_notes(path: str, text: str) -> None:
    with new_folder(path, NOTES) as tmp:
        (tmp / "pages").mkdir()
        (tmp / "mark").write_text(text)
        (tmp / "pages" / text).write_text(text)


@pytest.mark.parametrize(
    "path", ["s3://bucket/run", "http://host/run", "file:///run", Path("s3://bucket/run"), "gs://b"]
)
def test_what_cannot_be_served_is_refused_in_one_line(path):
    with pytest.raises(FileError, match=r"expected a (local path or gs://|folder in a bucket)"):
        as_path(path)


def test_paths_in_a_bucket_survive_pathlib():
    assert str(as_path(Path("gs://bucket/run") / "model")) == "gs://bucket/run/model"
    assert as_path("out/run") == Path("out/run")


def test_folder_appears_whole_and_replaces_only_its_kind():
    for text in ("first", "second"):
        write_notes("gs://bucket/a/notes", text)
        assert contents("gs://bucket/a") == {"notes/mark": text.encode(), f"notes/pages/{text}": text.encode()}
    write_text("gs://bucket/a/notes/thesis.txt", "three years of work")
    with pytest.raises(FileError, match=r"^gs://bucket/a/notes: is there already; .*it holds 'thesis.txt'"):
        write_notes("gs://bucket/a/notes", "third")
    assert objects_in("gs://bucket/a").keys() == {"notes/mark", "notes/pages/second", "notes/thesis.txt"}


def test_failed_folder_leaves_nothing():
    def fail():
        with new_folder("gs://bucket/b/notes", NOTES) as tmp:
            (tmp / "mark").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents("gs://bucket/b") == {}


@pytest.mark.parametrize("calls", [0, 1])
def test_folder_that_was_being_put_in_place_is_finished_by_the_next_reader(monkeypatch, calls):
    """Killed after so many of its copies within the bucket: what is read is the new one, never a mixture."""
    folder = f"gs://bucket/c{calls}/notes"
    write_notes(folder, "old")
    copy, done = cloud._system().cp_file, []

    def dying(*arguments):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(arguments)
        copy(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(cloud._system(), "cp_file", dying)
        with pytest.raises(KeyboardInterrupt):
            write_notes(folder, "new")
    local = download(folder)
    assert sorted(path.name for path in local.rglob("*") if path.is_file()) == ["mark", "new"]
    assert (local / "mark").read_text() == "new"
    assert objects_in(as_path(folder).parent).keys() == {"notes/mark", "notes/pages/new"}


def test_lines_are_added_one_by_one():
    for text in ("a\n", "b\n", "ü\n"):
        append_text("gs://bucket/d/lines", text)
    assert contents("gs://bucket/d") == {"lines": "a\nb\nü\n".encode()}


def test_copy_follows_what_changes_and_is_checked(monkeypatch):
    with new_file("gs://bucket/e/data/1") as tmp:
        tmp.write_text("one")
    write_text("gs://bucket/e/data/2", "two")
    local = download("gs://bucket/e/data")
    before = (local / "1").stat().st_mtime_ns
    write_text("gs://bucket/e/data/2", "zwei")
    as_path("gs://bucket/e/data/3").write_text("three")
    assert download("gs://bucket/e/data") == local
    assert {path.name: path.read_text() for path in local.iterdir()} == {"1": "one", "2": "zwei", "3": "three"}
    assert (local / "1").stat().st_mtime_ns == before, "was copied again"
    as_path("gs://bucket/e/data/3").unlink()
    download("gs://bucket/e/data")
    assert sorted(path.name for path in local.iterdir()) == ["1", "2"]
    monkeypatch.setattr(cloud.base64, "b64encode", lambda digest: b"another")
    write_text("gs://bucket/e/data/1", "eins")
    with pytest.raises(FileError, match=r"gs://bucket/e/data/1: the download does not match the bucket"):
        download("gs://bucket/e/data")
    with pytest.raises(FileError, match=r"gs://bucket/none/at/all: there is no such"):
        download("gs://bucket/none/at/all")


def test_data_run_and_model_in_a_bucket(tmp_path, capsys):
    (tmp_path / "text.model").write_bytes(text_tokenizer().model)
    save_image_tokenizer(image_tokenizer(), tmp_path / "image")
    lines = [json.dumps([f"The fox said {number} to the dog. " * 3]) for number in range(40)]
    as_path("gs://bucket/g/prose.jsonl").write_text("\n".join(lines))
    prepare = {
        "output": "gs://bucket/g/rows", "sequence_length": 48, "text_tokenizer": str(tmp_path / "text.model"),
        "image_tokenizer": str(tmp_path / "image"),
        "sources": [{"kind": "documents", "name": "prose", "path": "gs://bucket/g/*.jsonl"}],
    }  # fmt: skip
    run = {
        "data": "gs://bucket/g/rows", "output": "gs://bucket/g/run", "steps": 2, "batch_size": 8, "log_every": 1,
        "model": {"vocab_size": 1024, "d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8,
                  "mlp_dim": 32},
        "stages": [{"share": 1.0, "weights": {"prose": 1.0}}], "optimizer": {"warmup_steps": 1},
    }  # fmt: skip
    for name, values in (("prepare", prepare), ("train", run)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        assert main([name, str(tmp_path / f"{name}.yaml")]) == 0
    assert "gs://bucket/g/run/model" in (said := capsys.readouterr()).out
    assert "cannot be read from a bucket" in said.err
    model = load("gs://bucket/g/run")
    model.save("gs://bucket/g/copy", "chameleon")
    again = load("gs://bucket/g/copy")
    for here, there in zip(jax.tree.leaves(model.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(here, there)
    assert main(["convert", "gs://bucket/g/run", "gs://bucket/g/copy", "--format", "meta"]) == 1
    assert "gs://bucket/g/copy: is there already" in capsys.readouterr().err


def test_image_tokenizer_in_a_bucket_is_written_and_read_alone():
    tokenizer = image_tokenizer()
    write_image_tokenizer(tokenizer, "gs://bucket/h/run/model")
    for place in ("gs://bucket/h/run", "gs://bucket/h/run/model"):
        jax.tree.map(np.testing.assert_array_equal, read_image_tokenizer(place).params, tokenizer.params)
    with pytest.raises(FileError, match=r"gs://bucket/h/none: there is no such"):
        read_image_tokenizer("gs://bucket/h/none")
