"""Several processes train one model as one would, and end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.config import ConfigError, DistributedConfig
from chameleon_jax.runtime.distributed import _from_environment, is_lost_process_error, start
from chameleon_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow
MESH = {"mesh__data": 2, "mesh__fsdp": 4}
"""Parameters cut over devices of both processes."""


def spawn(**options) -> subprocess.Popen:
    program = [sys.executable, str(Path(__file__).parent / "one_process.py"), json.dumps(options, default=str)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def spawn_two(output: Path, changes_of_second: dict | None = None, **options) -> list[subprocess.Popen]:
    """Two processes of four devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    changes = {
        **MESH, **options.pop("changes", {}), "distributed__coordinator": f"localhost:{port}",
        "distributed__processes": 2, "distributed__heartbeat_seconds": 10,
    }  # fmt: skip
    both = [{**changes, "distributed__process": 0}, {**changes, "distributed__process": 1, **(changes_of_second or {})}]
    return [spawn(output=output, devices=4, changes=each, **options) for each in both]


def wait(*processes: subprocess.Popen, seconds: float = 480) -> list[tuple[int, str]]:
    """Exit status and error output of each. All are read at once: one whose pipe is full would wait for ever."""
    try:
        with ThreadPoolExecutor(len(processes)) as pool:
            outputs = list(pool.map(lambda process: process.communicate(timeout=seconds), processes))
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, errors) for process, (_, errors) in zip(processes, outputs, strict=True)]


def wait_for_step(output: Path, step: int, *processes: subprocess.Popen) -> None:
    path, until = output / "metrics.jsonl", time.monotonic() + 480
    while not (path.exists() and read_metrics(path) and read_metrics(path)[-1]["step"] >= step):
        assert time.monotonic() < until
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def figures(output: Path) -> list[dict]:
    """The lines of a run, without what depends on the clock and what only the last line has."""
    lines = read_metrics(output / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in ("speed", "held_out")} for line in lines]


def assert_same_figures(output: Path, expected: Path) -> None:
    lines, others = figures(output), figures(expected)
    assert [line["step"] for line in lines] == [line["step"] for line in others] == list(range(1, 9))
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert value == pytest.approx(other[name], rel=2e-5, abs=1e-6), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of a single process with eight devices."""
    output = tmp_path_factory.mktemp("alone")
    assert wait(spawn(output=output, devices=8, changes=MESH))[0][0] == 0
    return output


def test_two_processes_train_like_one_and_either_goes_on_where_the_other_stopped(alone, tmp_path):
    whole = tmp_path / "whole"
    assert [status for status, _ in wait(*spawn_two(whole))] == [0, 0]
    assert_same_figures(whole, alone)

    first_two = tmp_path / "first two, then one"
    results = wait(*spawn_two(first_two, stop_at=5))
    assert all("stopped before batch 5" in errors for _, errors in results)
    assert wait(spawn(output=first_two, devices=8, changes=MESH))[0][0] == 0
    assert_same_figures(first_two, alone)

    first_one = tmp_path / "first one, then two"
    assert "stopped before batch 5" in wait(spawn(output=first_one, devices=8, changes=MESH, stop_at=5))[0][1]
    assert [status for status, _ in wait(*spawn_two(first_one))] == [0, 0]
    assert_same_figures(first_one, alone)


def test_two_processes_draw_the_reconstructions_of_an_image_tokenizer_like_one(tmp_path):
    """The parameters are cut over devices of both; only the first writes."""
    changes = {**MESH, "steps": 2}
    both = spawn_two(tmp_path / "two", changes=changes, image_tokenizer=True)
    assert [status for status, _ in wait(*both)] == [0, 0]
    assert wait(spawn(output=tmp_path / "one", devices=8, changes=changes, image_tokenizer=True))[0][0] == 0
    two, one = (
        np.asarray(Image.open(tmp_path / name / "samples" / "step-2" / "01-1.png"), np.int32) for name in ("two", "one")
    )
    assert two.std() > 20
    np.testing.assert_array_equal(two[:8], one[:8])
    np.testing.assert_allclose(two, one, atol=1)  # the parameters are the same up to rounding


def test_all_processes_go_on_from_the_newest_checkpoint_that_is_whole_for_each(alone, tmp_path):
    """The array files of step 6 are cut; of step 4 process 1 alone reads something else."""
    output = tmp_path / "run"
    results = wait(*spawn_two(output, stop_at=7))
    assert all("stopped before batch 7" in errors for _, errors in results)
    for path in (output / "checkpoints" / "6" / "state").rglob("*"):
        if path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    began = time.monotonic()
    results = wait(*spawn_two(output, fails_to_read=[4, "DATA_LOSS: as if"]))
    assert [status for status, _ in results] == [0, 0], results
    assert time.monotonic() - began < 280  # no barrier ran into its time limit, which is 300
    assert "Resuming from the checkpoint at step 2 of 8" in results[0][1]
    assert_same_figures(output, alone)
    names = {path.name for path in (output / "checkpoints").iterdir()}
    assert names == {"damaged-4", "damaged-6", "4", "6", "8"}


def test_one_process_without_memory_ends_all_and_leaves_the_checkpoints(tmp_path):
    output = tmp_path / "run"
    wait(*spawn_two(output, stop_at=5))
    first, second = wait(*spawn_two(output, fails_to_read=[4, "memory"]))
    assert "cannot be read in process 1: MemoryError" in first[1]
    assert "MemoryError" in second[1]
    assert {path.name for path in (output / "checkpoints").iterdir()} == {"2", "4"}


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_process_ends_the_other_within_a_minute_and_says_why(tmp_path, victim):
    processes = spawn_two(tmp_path / "run", pause=0.2, changes={"steps": 2000})
    wait_for_step(tmp_path / "run", 2, *processes)
    processes[victim].kill()
    killed = time.monotonic()
    ((status, errors),) = wait(processes[1 - victim])
    assert time.monotonic() - killed < 60
    assert status != 0
    assert "lost the others" in errors or "another task died" in errors
    processes[victim].communicate()


def test_an_error_of_one_process_is_its_own_and_ends_both(tmp_path):
    """The second meets a program that its compiler refuses."""
    (status, errors), (own_status, own_errors) = wait(*spawn_two(tmp_path / "run", refuse_at=3))
    assert own_status == 1
    assert "process 1 of 2 failed: INVALID_ARGUMENT: No such compile option: 'xla_no_such_option'" in own_errors
    assert "lost the others" not in own_errors
    assert status != 0
    assert "lost the others" in errors or "another task died" in errors


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        (
            "INTERNAL: Gloo all-reduce failed: [gloo/transport/tcp/pair.cc:547] Connection closed by peer",
            True,
        ),
        (
            "UNKNOWN: Buffer Definition Event: Gloo AllGather failed: Read error: Connection reset",
            True,
        ),
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)", True),
        ("DEADLINE_EXCEEDED: Barrier timed out. Id: save", True),
        ("INTERNAL: NCCL operation ncclAllReduce failed: unhandled system error", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes for NCCL", False),
        ("INVALID_ARGUMENT: No such compile option: 'xla_no_such_option'", False),
        ("INTERNAL: Mosaic failed to compile TPU kernel: unsupported shape cast", False),
        ("UNIMPLEMENTED: Could not find registered platform with id: 0x7f", False),
        ("FAILED_PRECONDITION: DNN library initialization failed", False),
    ],
)
def test_only_errors_of_talking_to_others_tell_of_lost_processes(message, lost):
    assert is_lost_process_error(message) is lost


def test_processes_with_different_configs_are_refused_by_the_name_of_the_difference(tmp_path):
    results = wait(*spawn_two(tmp_path / "run", changes_of_second={"optimizer__b2": 0.9}))
    for status, errors in results:
        assert status == 1
        assert "ConfigError: optimizer.b2: is 0.95 in process 0 but 0.9 in process 1" in errors
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_process_that_is_asked_to_stop_makes_all_save_the_same_step(alone, tmp_path):
    output = tmp_path / "run"
    processes = spawn_two(output, pause=0.5, changes={"checkpoint__every": 8})
    wait_for_step(output, 2, *processes)
    processes[1].send_signal(signal.SIGINT)  # handed on as a SIGTERM, which is what JAX listens for
    for (status, errors), by in zip(wait(*processes), ("SIGTERM", "Ctrl-C"), strict=True):
        assert status == 1
        assert "Stopped: stopped after step" in errors
        assert f"by {by};" in errors
    (step,) = [int(path.name) for path in (output / "checkpoints").iterdir() if path.name.isdigit()]
    assert 2 <= step < 8
    assert wait(spawn(output=output, devices=8, changes={**MESH, "checkpoint__every": 8}))[0][0] == 0
    assert_same_figures(output, alone)


# ----------------------------------------------------------------------------------------------------------------------
# Where the processes are described
# ----------------------------------------------------------------------------------------------------------------------


def test_options_win_over_variables(monkeypatch):
    monkeypatch.setenv("CHAMELEON_COORDINATOR", "there:1")
    monkeypatch.setenv("CHAMELEON_PROCESSES", "4")
    monkeypatch.setenv("CHAMELEON_PROCESS", "3")
    expected = {"coordinator_address": "there:1", "num_processes": 4, "process_id": 3}
    assert _from_environment(DistributedConfig()) == expected
    assert _from_environment(DistributedConfig(process=0)) == {**expected, "process_id": 0}


def test_without_any_description_there_is_one_process():
    assert _from_environment(DistributedConfig()) == {}


@pytest.mark.parametrize(
    ("config", "variables", "message"),
    [
        (DistributedConfig(coordinator="here:1", processes=2), {}, r"distributed\.process: missing"),
        (DistributedConfig(process=1), {}, r"distributed\.coordinator: missing"),
        (DistributedConfig("here:1", 2, 2), {}, r"distributed\.process = 2: must be from 0 to 1"),
        (DistributedConfig("here:1", 2), {"CHAMELEON_PROCESS": "two"}, r"CHAMELEON_PROCESS = 'two'"),
    ],
)
def test_half_a_description_is_refused(monkeypatch, config, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        start(config)


def test_a_process_0_that_is_not_there_is_said_in_one_line():
    program = (
        "from chameleon_jax.runtime.distributed import jax, start; from chameleon_jax.config import DistributedConfig\n"
        "jax.distributed.initialize = __import__('functools').partial(jax.distributed.initialize,"
        " initialization_timeout=1)\n"
        "start(DistributedConfig('localhost:9', 2, 1))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode != 0
