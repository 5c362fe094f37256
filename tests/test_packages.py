"""What is built to be installed has every file that it opens, and works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from built import build, content

ROOT = Path(__file__).parent.parent
PACKAGES = ("chameleon_jax", "data_pipeline")

USED_WHERE_IT_IS_INSTALLED = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import chameleon_jax, data_pipeline
from chameleon_jax.config import read_config
from chameleon_jax.console.cli import COMMANDS, main
from chameleon_jax.pages.comparison import comparison_page
from chameleon_jax.pages.parts import style_sheet
from chameleon_jax.serving.page import FILES
for command in COMMANDS.values():
    for path in command.shipped().values():
        read_config(command.config, path)
assert main(["train", "configs/pretrain_7b.yaml", "--help"]) == 0
assert style_sheet() and comparison_page([], "comparison")
assert {"/", "/page/page.js", "/page/style.css", "/page/icon.svg"} <= set(FILES)
json.dump([chameleon_jax.__file__, data_pipeline.__file__, *opened], open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_wheel_has_the_packages_and_configs_alone(wheel):
    expected = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    expected |= {f"chameleon_jax/{path.relative_to(ROOT)}": path.read_bytes() for path in configs}
    files = content(wheel)
    assert {name: files[name] for name in files if ".dist-info/" not in name} == expected
    assert sum(map(len, files.values())) < 5e6
    assert {"entry_points.txt", "LICENSE"} <= {Path(name).name for name in files if ".dist-info/" in name}


def test_sdist_makes_the_same_wheel(wheel, tmp_path):
    sdist = build("sdist", ROOT, tmp_path)
    assert sdist.stat().st_size < 2e6
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    assert content(again) == content(wheel)


def test_installed_package_opens_nothing_of_a_checkout(wheel, tmp_path):
    pytest.importorskip("fastapi")
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    command = [sys.executable, "-P", "-c", USED_WHERE_IT_IS_INSTALLED, str(tmp_path / "opened.json")]
    environment = {**os.environ, "PYTHONPATH": str(site)}  # before the checkout, which may be installed to edit it
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    opened = [Path(name) for name in json.loads((tmp_path / "opened.json").read_text())]
    assert any(site / "chameleon_jax" / "configs" in path.parents for path in opened)
    ours = [path for path in opened if any((ROOT / name) in path.parents for name in (*PACKAGES, "configs"))]
    assert ours == []
    assert list(home.iterdir()) == []
