"""The loop writes what happened, goes on where it was, and stops with a reason."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import struct
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_process import run_logged
from test_damage import cut_arrays

from chameleon_jax.batch import Batch
from chameleon_jax.config import ConfigError, MeshConfig
from chameleon_jax.errors import FileError
from chameleon_jax.models.flops import train_flops_per_token
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.sharding import make_mesh
from chameleon_jax.training import loop
from chameleon_jax.training.loop import TrainingError, train
from chameleon_jax.training.metrics import read_metrics

LENGTH = 12
"""Tokens a row of the tiny run."""


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


def held_out_source(*batches: Batch):
    return lambda rows: (Batch(*(values[rows] for values in batch)) for batch in batches)


def half_padding(tiny) -> Batch:
    """The last batch of a source whose rows do not fill it."""
    return Batch(*(np.where(np.arange(8)[:, None] < 4, values, 0).astype(values.dtype) for values in tiny.batch(101)))


@pytest.fixture(scope="module")
def whole_run(tiny, tmp_path_factory):
    """Eight steps without a break: folder and last state."""
    folder = tmp_path_factory.mktemp("whole")
    held_out = {"seen": held_out_source(tiny.batch(0)), "unseen": held_out_source(tiny.batch(100), half_padding(tiny))}
    with tiny.compiled_once():
        return folder, train(tiny.task(tiny.config(folder)), tiny.batches, held_out=held_out)


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


def test_held_out_losses_are_means_over_tokens_whatever_fills_the_last_batch(tiny, whole_run):
    folder, state = whole_run
    total, count, apply = 0.0, 0.0, jax.jit(Transformer(tiny.config().model).apply)
    for batch in (tiny.batch(100), half_padding(tiny)):
        arrays = map(jnp.asarray, (batch.inputs, batch.positions, batch.segment_ids))
        logits = np.asarray(apply({"params": state.params}, *arrays), np.float64)
        log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        losses = -np.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
        total, count = total + np.sum(losses * batch.loss_weights), count + np.sum(batch.loss_weights)
    assert lines_of(folder)[-1]["held_out"]["unseen"]["loss"] == pytest.approx(total / count, rel=1e-6)


@pytest.mark.usefixtures("compiled_once")
def test_a_line_holds_the_means_over_its_steps(tiny, whole_run, tmp_path):
    train(tiny.task(tiny.config(tmp_path, log_every=2)), tiny.batches)
    fine, coarse = lines_of(whole_run[0]), lines_of(tmp_path)
    assert [line["step"] for line in coarse] == [2, 4, 6, 8]
    for index, line in enumerate(coarse):
        pair = fine[2 * index : 2 * index + 2]
        weights = [float(np.sum(tiny.batch(each["step"] - 1).loss_weights)) for each in pair]
        assert line["loss"] == pytest.approx(np.average([each["loss"] for each in pair], weights=weights), rel=1e-6)
        assert line["gradient_norm"] == pytest.approx(np.mean([each["gradient_norm"] for each in pair]), rel=1e-6)


@pytest.mark.usefixtures("compiled_once")
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tiny, whole_run, tmp_path):
    config = tiny.config(tmp_path)
    with pytest.raises(Interruption):
        train(tiny.task(config), interrupted(tiny.batches, 5))
    assert checkpoint_steps(tmp_path)[-1] == 4
    assert lines_of(tmp_path)[-1]["step"] == 5  # step 5 was logged, and is done again
    asked_from = []

    def batches(start: int, rows):
        asked_from.append(start)
        return tiny.batches(start, rows)

    state = train(tiny.task(config), batches)
    assert asked_from == [4]
    expected = [{name: value for name, value in line.items() if name != "held_out"} for line in lines_of(whole_run[0])]
    assert [{k: v for k, v in line.items() if k != "held_out"} for line in lines_of(tmp_path)] == expected
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, whole_run[1])
    assert checkpoint_steps(tmp_path) == [4, 6, 8]

    # Started once more, a finished run has nothing left to do.
    again = train(tiny.task(config), tiny.batches)
    assert int(again.step) == 8
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 9))


def test_a_run_and_its_continuation_compile_each_step_once(tiny, tmp_path, monkeypatch):
    """Whatever the last held-out batch holds, and with a state that came from a checkpoint."""
    made = []

    def keep(make):
        return lambda *arguments: made.append(make(*arguments)) or made[-1]

    monkeypatch.setattr(loop, "make_train_step", keep(loop.make_train_step))
    monkeypatch.setattr(loop, "make_evaluation_step", keep(loop.make_evaluation_step))
    config = tiny.config(tmp_path, evaluate_every=2)
    held_out = {"seen": held_out_source(tiny.batch(0)), "unseen": held_out_source(tiny.batch(100), half_padding(tiny))}
    with pytest.raises(Interruption):
        train(tiny.task(config), interrupted(tiny.batches, 5), held_out=held_out)
    train(tiny.task(config), tiny.batches, held_out=held_out)
    assert [step._cache_size() for step in made] == [1, 1, 1, 1]


@pytest.mark.usefixtures("compiled_once")
def test_data_that_ends_too_early_is_an_error(tiny, tmp_path):
    with pytest.raises(TrainingError, match=r"ended after 3 batches; 8 steps"):
        train(tiny.task(tiny.config(tmp_path)), lambda start, rows: iter([tiny.batch(n) for n in range(3)]))


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
        train(tiny.task(tiny.config(tmp_path / "out", **change)), tiny.batches)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Steps that go wrong
# ----------------------------------------------------------------------------------------------------------------------


def poisoned(tiny, *numbers: int):
    """Batches of which some have weights that are no numbers."""

    def batches(start: int, rows):
        for number, batch in enumerate(tiny.batches(start, rows), start):
            yield batch._replace(loss_weights=batch.loss_weights * np.float32(np.nan)) if number in numbers else batch

    return batches


def rows_of(number: int) -> list[tuple[str, int]]:
    return [("all", 8 * number + row) for row in range(8)]


def read_bad_steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("compiled_once")
def test_a_bad_step_stops_the_run_names_its_rows_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    config = tiny.config(tmp_path, log_every=2)
    with pytest.raises(TrainingError, match=r"step 6: .*no longer a number.*optimizer\.learning_rate"):
        train(tiny.task(config), poisoned(tiny, 5), rows_of_batch=rows_of)
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4]
    rows = [{"source": "all", "rows": list(range(40, 48))}]
    assert read_bad_steps(tmp_path) == [{"step": 6, "loss": "nan", "gradient_norm": "nan", "rows": rows}]

    # The same run goes on past it once it is told to leave such steps out.
    skipping = tiny.config(tmp_path, log_every=2, bad_steps__action="skip")
    assert int(train(tiny.task(skipping), poisoned(tiny, 5)).step) == 8
    assert [line.get("bad_steps") for line in lines_of(tmp_path)] == [None, None, 1, None]


@pytest.mark.usefixtures("compiled_once")
def test_a_skipped_step_changes_no_parameter_and_no_figure(tiny, tmp_path):
    step = tiny.make_train_step(tiny.task(tiny.config(tmp_path)), make_mesh(MeshConfig()))
    state = tiny.init_state(tiny.task(tiny.config(tmp_path)), make_mesh(MeshConfig()))
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, next(poisoned(tiny, 0)(0, slice(None))))
    assert bool(metrics["bad"])
    assert int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, state.params), before.params)
    floats = lambda tree: [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if leaf.dtype == np.float32]  # noqa: E731
    for moment, other in zip(floats(state.opt_state), floats(before.opt_state), strict=True):
        np.testing.assert_array_equal(moment, other)

    config = tiny.config(tmp_path, log_every=8, checkpoint__every=8, bad_steps__action="skip")
    train(tiny.task(config), poisoned(tiny, 2, 3))
    (line,) = lines_of(tmp_path)
    assert line["bad_steps"] == 2
    assert all(np.isfinite(line[name]) for name in ("loss", "gradient_norm", "output_rms", "max_logit", "mean_log_z"))


@pytest.mark.usefixtures("compiled_once")
def test_gradients_above_a_limit_are_bad_steps_and_too_many_in_a_row_end_the_run(tiny, tmp_path):
    config = tiny.config(tmp_path, bad_steps__action="skip", bad_steps__gradient_norm=1e-6, bad_steps__limit=3)
    with pytest.raises(TrainingError, match=r"step 3: .*bad step number 3 in a row \(bad_steps\.limit\)"):
        train(tiny.task(config), tiny.batches)
    assert [record["step"] for record in read_bad_steps(tmp_path)] == [1, 2, 3]


# ----------------------------------------------------------------------------------------------------------------------
# What a run tells, and where
# ----------------------------------------------------------------------------------------------------------------------


def test_lines_hold_the_signals_of_stability_and_the_split_of_time(tiny, whole_run):
    for line in read_metrics(whole_run[0] / "metrics.jsonl"):
        assert {"output_rms", "max_logit", "mean_log_z", "parameter_norm", "max_gradient_norm"} <= set(line)
        assert len(line["q_norm_scale"]) == len(line["k_norm_scale"]) == tiny.config().model.num_layers
        speed = line["speed"]
        assert set(speed["seconds"]) == {"compute", "startup", "data", "checkpoint", "evaluation"}
        assert min(speed["seconds"].values()) >= 0
        assert 0 < speed["goodput"] <= 1 or line["step"] == 1
        assert "mfu" not in speed  # of a processor no peak is known
    flops = train_flops_per_token(tiny.config().model, LENGTH)
    assert speed["tflops_per_device"] == pytest.approx(speed["tokens_per_second"] * flops / 8 / 1e12, abs=1e-4)
    assert len(read_metrics(whole_run[0] / "sessions.jsonl")) == 1


@pytest.mark.usefixtures("compiled_once")
def test_metrics_go_to_tensorboard_as_well(tiny, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    train(tiny.task(tiny.config(tmp_path, trackers=["tensorboard"], checkpoint__every=8)), tiny.batches)
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), {}
    while data:  # records: length, checksum of it, content, checksum of that
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        data = data[16 + size :]
    for line in read_metrics(tmp_path / "metrics.jsonl"):
        assert found[line["step"], "loss"] == pytest.approx(line["loss"])
        assert found[line["step"], "q_norm_scale/01"] == pytest.approx(line["q_norm_scale"][1])
        assert found[line["step"], "speed/seconds/compute"] == pytest.approx(line["speed"]["seconds"]["compute"])


@pytest.mark.usefixtures("compiled_once")
def test_metrics_go_to_weights_and_biases_as_well(tiny, tmp_path, monkeypatch):
    """Its client talks to a service; here a stand-in takes the calls."""
    calls = []

    class Run:
        def log(self, figures, step):
            calls.append((step, figures))

        def finish(self):
            calls.append("finished")

    wandb = types.SimpleNamespace(init=lambda **options: calls.append(options) or Run())
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tiny.task(tiny.config(tmp_path, trackers=["wandb"], checkpoint__every=8)), tiny.batches)
    options, *logged, end = calls
    assert options["resume"] == "allow"
    assert options["config"]["steps"] == 8
    assert [step for step, _ in logged] == list(range(1, 9))
    assert logged[0][1]["loss"] == pytest.approx(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"])
    assert end == "finished"


@pytest.mark.slow
def test_steps_can_be_traced(tiny, tmp_path):
    config = tiny.config(tmp_path, steps=4, profile__steps=2, profile__start=1)
    train(tiny.task(config), tiny.batches)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.usefixtures("compiled_once")
def test_waiting_for_data_counts_only_while_the_devices_have_nothing_to_do(tiny, tmp_path):
    def slow(start: int, rows):
        for batch in tiny.batches(start, rows):
            time.sleep(0.1)
            yield batch

    train(tiny.task(tiny.config(tmp_path)), slow)
    waits = [line["speed"]["seconds"]["data"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert min(waits[1:]) > 0.05


def test_a_disk_without_room_for_a_checkpoint_is_said_before_the_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(FileError, match=r"a checkpoint takes 0\.0 GiB and 0\.0 GiB are free"):
        train(tiny.task(tiny.config(tmp_path)), tiny.batches)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.usefixtures("compiled_once")
def test_rows_of_another_length_than_the_config_says_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"sequence_length = 64: the rows of the data have 12 tokens"):
        train(tiny.task(tiny.config(tmp_path, sequence_length=64)), tiny.batches)


# ----------------------------------------------------------------------------------------------------------------------
# A process that is stopped or killed
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forks() -> multiprocessing.context.ForkServerContext:
    """Starts processes as copies of one that has imported the library, a third of the work of a short run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chameleon_jax.training.loop", "pytest"])
    return context


class Run:
    """A tiny run in a process of its own, and what it prints."""

    def __init__(self, forks, folder: Path, **options):
        self.log = folder.with_suffix(".log")
        self.process = forks.Process(
            target=run_logged, args=({"output": str(folder), "pause": 0.02, **options}, self.log)
        )
        self.process.start()

    def end(self) -> tuple[int | None, str]:
        """Waits until it ends; returns its exit status and what it printed."""
        self.process.join(300)
        return self.process.exitcode, self.log.read_text().strip()

    def finish(self) -> str:
        """The hash of its last state."""
        status, printed = self.end()
        assert status == 0, printed
        return printed.splitlines()[-1]


def wait_for_step(run: Run, folder: Path, step: int) -> None:
    metrics, until = folder / "metrics.jsonl", time.monotonic() + 240
    # Read once: a resumed run cuts the file, and it may be empty a moment after it was not.
    while not ((found := metrics.exists() and read_metrics(metrics)) and found[-1]["step"] >= step):
        assert run.process.is_alive(), "the run ended before it could be stopped"
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_killed_at_ten_moments_and_one_asked_to_stop_repeat_an_uninterrupted_run_bit_for_bit(forks, tmp_path):
    whole, killed, stopped = tmp_path / "whole", tmp_path / "killed", tmp_path / "stopped"
    changes = {"steps": 100, "checkpoint__every": 5, "dropout": 0.1}
    expected = Run(forks, whole, changes=changes).finish()
    assert len(lines_of(whole)) == 100

    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")
    rng = random.Random(seed)
    for first in range(1, 91, 9):
        run = Run(forks, killed, changes=changes)
        wait_for_step(run, killed, first + rng.randrange(9))
        time.sleep(rng.random() * 0.05)
        run.process.kill()
        assert run.end()[0] == -signal.SIGKILL
    assert Run(forks, killed, changes=changes).finish() == expected
    assert lines_of(killed) == lines_of(whole)

    # Asked to stop between two checkpoints, and between two lines of metrics.
    changes |= {"log_every": 5}
    run = Run(forks, stopped, changes=changes)
    wait_for_step(run, stopped, 30)
    run.process.terminate()
    status, printed = run.end()
    assert status == 1
    assert "Stopped: stopped after step" in printed
    assert Run(forks, stopped, changes=changes).finish() == expected
    for line, part in zip(lines_of(stopped), (lines_of(whole)[n : n + 5] for n in range(0, 100, 5)), strict=True):
        assert line["gradient_norm"] == pytest.approx(np.mean([each["gradient_norm"] for each in part]), rel=1e-6)


@pytest.mark.slow
def test_an_image_tokenizer_killed_and_damaged_repeats_an_uninterrupted_run_bit_for_bit(forks, tmp_path):
    """With its discriminator, the averages and restarts of its codes, and the pictures that it draws."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"image_tokenizer": True, "changes": {"steps": 24, "checkpoint__every": 4, "mesh__data": 1}}
    expected = Run(forks, whole, **options).finish()
    lines = lines_of(whole)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert sum(line["restarted_codes"] for line in lines) > 0

    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")
    rng = random.Random(seed)
    for first in (1, 6, 11, 16):
        run = Run(forks, killed, **options)
        wait_for_step(run, killed, first + rng.randrange(5))
        time.sleep(rng.random() * 0.05)
        run.process.kill()
        assert run.end()[0] == -signal.SIGKILL
    newest = checkpoint_steps(killed)[-1]
    cut_arrays(killed / "checkpoints" / str(newest))
    run = Run(forks, killed, **options)
    assert run.finish() == expected
    assert f"Resuming from the checkpoint at step {newest - 4} of 24" in run.log.read_text()
    assert lines_of(killed) == lines
    drawn = [sorted((folder / "samples").glob("*/01-1.png")) for folder in (whole, killed)]
    assert len(drawn[0]) == 4
    assert [path.read_bytes() for path in drawn[0]] == [path.read_bytes() for path in drawn[1]]
