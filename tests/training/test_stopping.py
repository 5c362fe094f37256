"""A run that is asked to stop says so, saves, and goes on later as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from chameleon_jax.batch import Batch
from chameleon_jax.errors import Stopped
from chameleon_jax.training.loop import train
from chameleon_jax.training.metrics import read_metrics
from chameleon_jax.training.stopping import StopRequest


def lines_of(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "speed"} for line in lines]


def wait_until_taken(stop: StopRequest) -> None:
    until = time.monotonic() + 10
    while not stop.came(1):
        assert time.monotonic() < until
        time.sleep(0.001)


def source(batch: Batch, number: int | None = None):
    """A held-out source; reading it sends this process a signal, if it has a number."""

    def read(rows):
        if number is not None:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        return [Batch(*(values[rows] for values in batch))]

    return read


def test_ctrl_c_during_an_evaluation_saves_that_step_and_the_run_goes_on_bit_for_bit(
    tiny, compiled_once, tmp_path, capfd
):
    """Also where neither a checkpoint nor a line of metrics was due at that step."""
    rest = {"log_every": 2, "evaluate_every": 3, "checkpoint__every": 8}
    held_out = {"unseen": source(tiny.batch(100))}
    expected = train(tiny.task(tiny.config(tmp_path / "whole", **rest)), tiny.batches, held_out=held_out)

    config = tiny.config(tmp_path / "stopped", **rest)
    asking = {"unseen": source(tiny.batch(100), signal.SIGINT)}
    with pytest.raises(Stopped, match=r"after step 3 of 8.*everything is saved") as stopped:
        train(tiny.task(config), tiny.batches, held_out=asking)
    assert stopped.value.status == 130
    assert "stopping after the losses on held-out rows" in capfd.readouterr().err
    state = train(tiny.task(config), tiny.batches, held_out=held_out)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, expected)
    assert lines_of(tmp_path / "stopped") == lines_of(tmp_path / "whole")
    assert [line["step"] for line in lines_of(tmp_path / "whole") if "held_out" in line] == [3, 6, 8]


def test_a_request_before_the_first_step_ends_the_run_there(tiny, tmp_path):
    def params(target):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), target)

    with pytest.raises(Stopped, match="after step 0 of 8"):
        train(tiny.task(tiny.config(tmp_path)), tiny.batches, initial_params=params)


def test_ctrl_c_is_answered_while_the_main_thread_is_busy_and_a_second_one_ends_the_process():
    """As when XLA compiles: Python's own handlers would wait for it."""
    program = """
import ctypes, signal, sys
from chameleon_jax.training.stopping import StopRequest
with StopRequest() as stop, stop.waiting_for("the compiler"):
    libc = ctypes.CDLL(None)
    blocked = (ctypes.c_ulong * 16)(*[2**64 - 1] * 16)
    libc.pthread_sigmask(signal.SIG_BLOCK, blocked, None)  # no signal wakes this thread any more
    print("ready", flush=True)
    libc.sleep(120)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    said = iter(process.stderr.readline, "")
    assert any("stopping after the compiler; everything is saved. Ctrl-C again" in line for line in said)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "stopped at once" in errors
    assert process.returncode == 130


def test_handlers_of_the_caller_are_back_afterwards():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with StopRequest() as stop:
        assert not stop.came(1)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until_taken(stop)
        assert stop.stopped(3, 8).status == 143
        os.kill(os.getpid(), signal.SIGINT)  # a person after a scheduler: their status counts
        time.sleep(0.1)
        assert stop.stopped(3, 8).status == 130
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
