"""One trainer a folder, and no folder of something else."""

from __future__ import annotations

import os

import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.training.loop import train
from chameleon_jax.training.run_folder import check_run, only_trainer


class Interruption(Exception):
    pass


@pytest.mark.usefixtures("compiled_once")
def test_second_trainer_is_refused_while_the_first_lives(tiny, tmp_path):
    config = tiny.config(tmp_path / "run")
    refused = pytest.raises(FileError, match=rf"run: is being written by process {os.getpid()} on '.*' since ")

    def batches(start, rows):
        with refused, only_trainer(tmp_path / "run"):
            pass
        raise Interruption

    with pytest.raises(Interruption):
        train(tiny.task(config), batches)
    with only_trainer(tmp_path / "run"), refused:
        train(tiny.task(config), tiny.batches)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "model/config.json", "bad_steps.jsonl"])
def test_folder_of_something_else_is_no_run(tmp_path, name):
    """Such as an image tokenizer's, whose metrics.jsonl would be begun anew."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(FileError, match=f"contains {name.split('/')[0]}, but is not the folder of a training run"):
        check_run(tmp_path)


def test_folder_with_a_config_in_it_may_become_a_run(tmp_path):
    (tmp_path / "train.yaml").touch()
    check_run(tmp_path)
    check_run(tmp_path / "not" / "yet")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    check_run(tmp_path)
    with pytest.raises(FileError, match=r"train.yaml: is a file; expected a folder"):
        check_run(tmp_path / "train.yaml")
