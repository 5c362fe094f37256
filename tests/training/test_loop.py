"""The loop writes what happened, goes on where it was, and stops with a reason."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from chameleon_jax.config import ConfigError
from chameleon_jax.training.loop import TrainingError, train
from chameleon_jax.training.metrics import read_metrics


def lines_of(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "speed"} for line in lines]


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


class Interruption(Exception):
    pass


def interrupted(batches, at: int):
    """Batches that raise instead of giving number `at`."""

    def from_(start: int, rows):
        for number, batch in enumerate(batches(start, rows), start):
            if number == at:
                raise Interruption
            yield batch

    return from_


@pytest.fixture(scope="module")
def whole_run(tiny, tmp_path_factory):
    """Eight steps without a break: folder and last state."""
    folder = tmp_path_factory.mktemp("whole")
    held_out = {"seen": [tiny.batch(0)], "unseen": [tiny.batch(100), tiny.batch(101)]}
    state = train(tiny.config(folder), tiny.batches, tiny.is_image_id, held_out=held_out)
    return folder, state


def test_metrics_have_a_line_for_each_logged_step(tiny, whole_run):
    folder, state = whole_run
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert {"loss", "text_loss", "image_loss", "z_loss", "gradient_norm", "learning_rate"} <= set(line)
        assert line["speed"]["tokens_per_second"] > 0
        assert min(line["text_loss"], line["image_loss"]) <= line["loss"] <= max(line["text_loss"], line["image_loss"])
    assert [line["learning_rate"] for line in lines[:2]] == pytest.approx([5e-3, 1e-2])  # two steps of warm-up
    assert int(state.step) == 8


def test_held_out_losses_are_reported_at_the_end(whole_run):
    lines = lines_of(whole_run[0])
    assert [line["step"] for line in lines if "held_out" in line] == [8]
    assert set(lines[-1]["held_out"]) == {"seen", "unseen"}
    for losses in lines[-1]["held_out"].values():
        assert all(np.isfinite(losses[name]) for name in ("loss", "text_loss", "image_loss"))


def test_a_line_holds_the_means_over_its_steps(tiny, whole_run, tmp_path):
    train(tiny.config(tmp_path, log_every=2), tiny.batches, tiny.is_image_id)
    fine, coarse = lines_of(whole_run[0]), lines_of(tmp_path)
    assert [line["step"] for line in coarse] == [2, 4, 6, 8]
    for index, line in enumerate(coarse):
        pair = fine[2 * index : 2 * index + 2]
        weights = [float(np.sum(tiny.batch(each["step"] - 1).loss_weights)) for each in pair]
        assert line["loss"] == pytest.approx(np.average([each["loss"] for each in pair], weights=weights), rel=1e-6)
        assert line["gradient_norm"] == pytest.approx(np.mean([each["gradient_norm"] for each in pair]), rel=1e-6)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tiny, whole_run, tmp_path):
    config = tiny.config(tmp_path)
    with pytest.raises(Interruption):
        train(config, interrupted(tiny.batches, 5), tiny.is_image_id)
    assert checkpoint_steps(tmp_path)[-1] == 4
    assert lines_of(tmp_path)[-1]["step"] == 5  # step 5 was logged, and is done again
    asked_from = []

    def batches(start: int, rows):
        asked_from.append(start)
        return tiny.batches(start, rows)

    state = train(config, batches, tiny.is_image_id)
    assert asked_from == [4]
    expected = [{name: value for name, value in line.items() if name != "held_out"} for line in lines_of(whole_run[0])]
    assert [{k: v for k, v in line.items() if k != "held_out"} for line in lines_of(tmp_path)] == expected
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, whole_run[1])
    assert checkpoint_steps(tmp_path) == [4, 6, 8]

    # Started once more, a finished run has nothing left to do.
    again = train(config, tiny.batches, tiny.is_image_id)
    assert int(again.step) == 8
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 9))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    def batches(start: int, rows):
        for number, batch in enumerate(tiny.batches(start, rows), start):
            yield batch._replace(loss_weights=batch.loss_weights * np.float32(np.nan)) if number == 5 else batch

    config = tiny.config(tmp_path, log_every=2)
    with pytest.raises(TrainingError, match=r"step 6: .*no longer a number.*optimizer\.learning_rate"):
        train(config, batches, tiny.is_image_id)
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4]


def test_data_that_ends_too_early_is_an_error(tiny, tmp_path):
    with pytest.raises(TrainingError, match=r"ended after 3 batches; 8 steps"):
        train(tiny.config(tmp_path), lambda start, rows: iter([tiny.batch(n) for n in range(3)]), tiny.is_image_id)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mesh__data": 3}, r"mesh = .*data 3.*8 devices"),
        ({"batch_size": 6}, r"batch_size = 6: must be a multiple of 8"),
        ({"mesh__data": 2, "mesh__tensor": 4}, r"model\.num_kv_heads = 2: .*mesh\.tensor = 4"),
        ({"mesh__data": 1, "mesh__fsdp": 8, "model__d_model": 20}, r"model\.d_model = 20: .*fsdp = 8"),
    ],
    ids=["devices", "batch", "tensor", "fsdp"],
)
def test_what_does_not_fit_the_devices_is_named(tiny, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny.config(tmp_path / "out", **change), tiny.batches, tiny.is_image_id)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------------
# A process that is killed
# ----------------------------------------------------------------------------------------------------------------------

PROGRAM = """
import hashlib, sys, time
import jax, numpy as np
sys.path[:0] = {paths!r}
from conftest import TinyRun
from chameleon_jax.training.loop import train

def batches(start, rows):
    for batch in TinyRun.batches(start, rows):
        time.sleep(0.02)
        yield batch

config = TinyRun.config(sys.argv[1], steps=100, checkpoint__every=5, model__dropout=0.1)
state = train(config, batches, TinyRun.is_image_id)
digest = hashlib.sha256()
for leaf in jax.tree.leaves(state):
    digest.update(np.asarray(leaf).tobytes())
print(digest.hexdigest())
"""


def start_training(folder: Path, tmp_path: Path) -> subprocess.Popen:
    here = Path(__file__).parent
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(paths=[str(here), str(here.parents[1])]), encoding="utf-8")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, str(program), str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output.strip()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_repeats_an_uninterrupted_run_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = finish(start_training(whole, tmp_path))

    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")
    rng = random.Random(seed)
    for first in (1, 35, 70):
        process = start_training(killed, tmp_path)
        metrics = killed / "metrics.jsonl"
        wanted = first + rng.randrange(25)
        until = time.monotonic() + 240
        while not (metrics.exists() and read_metrics(metrics) and read_metrics(metrics)[-1]["step"] >= wanted):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    assert finish(start_training(killed, tmp_path)) == expected
    assert lines_of(killed) == lines_of(whole)
    assert len(lines_of(killed)) == 100
