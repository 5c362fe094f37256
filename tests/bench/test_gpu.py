"""`make gpu`: every stage on the CPU with tiny sizes, what becomes of stages that fail, and what is written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from chameleon_jax.bench.gpu import stages
from chameleon_jax.bench.gpu.__main__ import main
from chameleon_jax.bench.gpu.attention import FLOAT32_ROUNDING, _deviation, count_kernels
from chameleon_jax.bench.gpu.needs import requirements
from chameleon_jax.bench.gpu.record import Record
from chameleon_jax.bench.gpu.run import run_stages, use_wheels
from chameleon_jax.bench.gpu.stages import BARE, STAGES, Stage
from chameleon_jax.bench.gpu.table import publish, slug
from tests.test_imports import run_with_little_installed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1")


@pytest.mark.slow
def test_every_stage_but_the_demos_passes_its_rehearsal_and_is_kept(tmp_path, capsys):
    arguments = ["--rehearse", "--output", str(tmp_path / "out"), "--publish", str(tmp_path / "docs")]
    assert main(arguments) == 0, capsys.readouterr().out
    names = [stage.name for stage in STAGES if stage.name not in ("demo", "showcase")]
    records = {name: json.loads((tmp_path / "docs" / f"cpu_{name}.json").read_text()) for name in names}
    for name, record in records.items():
        assert (record["status"], record["rehearsal"]) == ("passed", True), name
        assert record["checks"], name
        assert "jax" in record["versions"], name
    for name, unit in (("1b", "tokens"), ("7b", "tokens"), ("image_tokenizer", "pictures")):
        assert records[name][f"{unit}_per_second"]["median"] > 0
        profile = records[name]["profile"]
        assert 0 < sum(kernel["share"] for kernel in profile["kernels"]) <= 1.01
        assert sum(profile["kinds"].values()) == pytest.approx(profile["milliseconds_of_kernels"], abs=0.01)
    text, picture, jacobi, *_ = records["generate"]["checks"]
    assert (picture["lanes"], picture["steps"]) == (2, 5), "four codes and the end of image"
    assert jacobi["steps"] <= 5
    assert text["tokens_per_second"]["median"] > 0
    page = (tmp_path / "docs" / "cpu.md").read_text()
    assert all(f"| {name} | passed |" in page for name in names)
    assert all(f"| {name} | skipped |" in page for name in ("demo", "showcase"))
    capsys.readouterr()
    began = time.monotonic()
    assert main(arguments) == 0
    assert time.monotonic() - began < 5, "no process was started"
    assert capsys.readouterr().out.count("has passed") == len(names)
    assert main([*arguments, "generate", "--only", "te*t"]) == 0
    assert [each["check"] for each in json.loads((tmp_path / "out" / "generate.json").read_text())["checks"]] == [
        "text"
    ]
    assert json.loads((tmp_path / "docs" / "cpu_generate.json").read_text()) == records["generate"]


def test_a_stage_that_crashes_or_takes_too_long_stops_no_other(tmp_path, monkeypatch, capsys):
    unknown = Stage("unknown to its process", "none.none", "", about=0, limit=60)
    for module in ("run", "stages"):
        monkeypatch.setattr(f"chameleon_jax.bench.gpu.{module}.STAGES", (unknown, STAGES[0]._replace(limit=0.1)))
    records = run_stages((), tmp_path, rehearse=True)
    crashed, slow = records.values()
    assert crashed["problem"] == "its process ended with 1"
    assert "StopIteration" in crashed["last_lines"][-1]
    assert slow["problem"] == "took more than 1 s"
    for name, record in records.items():
        assert record["status"] == "failed"
        assert json.loads((tmp_path / f"{name}.json").read_text()) == record
    assert capsys.readouterr().out.count("✗") == 2


def test_stages_beyond_the_budget_or_without_their_packages_are_left_out_with_a_line(tmp_path, monkeypatch, capsys):
    found = importlib.metadata.distribution

    def without_grain(name: str):
        if name == "grain":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without_grain)
    records = run_stages(("7b", "demo"), tmp_path, budget=20)
    assert [record["status"] for record in records.values()] == ["skipped", "skipped"]
    said = capsys.readouterr().out
    assert "- 7b: left out, takes about 90 s, 20 s of the budget are left" in said
    assert "- demo: left out, needs grain: bring wheels (make gpu-needs WHEELS=folder) and give --wheels folder" in said


def test_a_check_that_fails_is_recorded_and_the_next_one_runs(tmp_path, capsys):
    path = tmp_path / "x.json"
    with Record(path, "x", seconds=60, rehearsal=True) as record:
        assert record.check("raises", lambda: 1 / 0) is None
        assert json.loads(path.read_text())["status"] == "running"
        record.check("finds", lambda: {"size": 3, "problem": "too small"})
        record.check("works", lambda: {"size": 4, "problem": None})
        assert record.check("is long", lambda: {}, about=100) is None
    values = json.loads(path.read_text())
    assert values["status"] == "failed"
    assert values["problem"] == "raises: ZeroDivisionError: division by zero; finds: too small"
    assert [set(check) - {"check"} for check in values["checks"]] == [
        {"seconds", "problem"}, {"seconds", "size", "problem"}, {"seconds", "size"}, {"left_out"},
    ]  # fmt: skip


def test_a_stage_with_a_check_left_out_is_incomplete_and_a_missing_gpu_is_said(tmp_path):
    with Record(tmp_path / "x.json", "x", seconds=60, rehearsal=True) as record:
        record.check("is long", lambda: {}, about=100)
    assert record.values["status"] == "incomplete"
    with pytest.raises(Exception, match="JAX finds no GPU"):
        Record(tmp_path / "x.json", "x", seconds=60).__enter__()


def test_single_checks_are_chosen_by_name(tmp_path):
    with Record(tmp_path / "x.json", "x", seconds=60, rehearsal=True, only=("text*", "none")) as record:
        assert record.check("text, 8 rows", lambda: {"rows": 8}) == {"rows": 8}
        assert record.check("picture", lambda: 1 / 0) is None
    assert (record.values["status"], record.values["only"]) == ("passed", ["text*", "none"])
    assert [check["check"] for check in record.values["checks"]] == ["text, 8 rows"]
    with Record(tmp_path / "x.json", "x", seconds=60, rehearsal=True, only=("drawing",)) as record:
        record.check("picture", lambda: 1 / 0)
    assert record.values["problem"] == "no check is named drawing; there are: picture"


def test_deviations_tell_another_order_of_sums_from_coarser_products():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 300)).astype(np.float32)
    exact = {"a": a @ b, "step": np.array(3)}
    other_order = {"a": (a[:, ::-1] @ b[::-1]), "step": np.array(3)}
    cut = (a.view(np.int32) & ~0x1FFF).view(np.float32)  # the 10 bits of mantissa of TF32
    assert _deviation(other_order, exact)[1] < FLOAT32_ROUNDING < _deviation({**exact, "a": cut @ b}, exact)[1]
    assert _deviation({**exact, "a": a * np.nan}, exact)[0] == "['a']"


def test_kernels_are_counted_in_either_text():
    lowered = "%1 = stablehlo.custom_call @__cudnn$fmhaSoftmax(%a)\n%2 = … @__cudnn$fmhaSoftmaxBackward(%a)"
    compiled = 'custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(__cudnn$fmhaX)"}'
    assert count_kernels(lowered) == (1, 1)
    assert count_kernels(compiled) == (1, 0)


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        ("1 x NVIDIA H200 (gpu)", "h200"),
        ("1 x NVIDIA H100 80GB HBM3 (gpu)", "h100"),
        ("8 x NVIDIA A100-SXM4-80GB (gpu)", "a100"),
        ("1 x Tesla T4 (gpu)", "t4"),
        ("1 x cpu (cpu)", "cpu"),
    ],
)
def test_files_are_named_after_the_gpu(devices, name):
    assert slug(devices) == name


def test_published_stages_stay_when_others_are_run_later(tmp_path):
    machine = {"devices": "1 x NVIDIA H200 (gpu)", "python": "3.12", "versions": {"jax": "1"}, "checks": []}
    passed = {"status": "passed", "seconds": 3.0, **machine}
    publish({"1b": {**passed, "mfu": 0.5}, "generate": {**passed, "only": ["text"]}}, tmp_path)
    path = publish(
        {"attention": {**passed, "status": "failed", "problem": "a | b"}, "1b": {"status": "skipped"}}, tmp_path
    )
    assert path == tmp_path / "h200.md"
    assert "| attention | failed | 3.0 | a / b |" in path.read_text()
    assert "| 1b | passed | 3.0 | MFU 50.0% |" in path.read_text()
    assert [each.name for each in tmp_path.glob("*.json")] == ["h200_1b.json"]


def test_needs_are_what_the_project_needs_beyond_a_bare_machine():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_demos = (project["optional-dependencies"][name] for name in ("demo", "showcase"))
    wanted = [each for group in (project["dependencies"], *of_demos) for each in group if "chameleon" not in each]
    names = {each.split(">")[0].split(";")[0] for each in wanted} - set(BARE)
    assert {each.split("==")[0] for each in requirements()} == names


def test_wheels_bring_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("brought_along", "numpy"):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "here = True")
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    assert not stages._installed("brought-along")
    use_wheels(tmp_path, tmp_path / "packages")
    assert stages._installed("brought-along")
    assert not (tmp_path / "packages" / "numpy.py").exists()


def test_stages_for_bare_machines_import_without_the_optional_packages():
    modules = sorted({stage.function.split(".")[0] for stage in STAGES if not stage.needs})
    body = "".join(f"import chameleon_jax.bench.gpu.{name}; " for name in ("__main__", *modules))
    assert run_with_little_installed(f"{body}print('imported')") == "imported"
