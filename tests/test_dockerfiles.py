"""The Dockerfiles say what can be built: files, extras and versions are there, and commands are ours.

No image is built here: that takes a base image and some gigabytes.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from built import build, content

from chameleon_jax.console.cli import COMMANDS, parse

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "VOLUME", "WORKDIR"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def instructions(file: Path) -> list[tuple[str, str]]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", "").splitlines()]


def values(file: Path, name: str) -> list[str]:
    return [value for instruction, value in instructions(file) if instruction == name]


def environment(file: Path) -> dict[str, str]:
    return dict(pair.split("=", 1) for value in values(file, "ENV") for pair in shlex.split(value))


def is_sent(path: str) -> bool:
    """Whether a file is part of what a build sees; the last pattern of .dockerignore that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parts = path.split("/")
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        names = parts if pattern.startswith("**/") else heads
        if not line.startswith("#") and fnmatch.filter(names, pattern.removeprefix("**/")):
            sent = line.startswith("!")
    return sent


def test_there_is_an_image_for_each_kind_of_machine():
    assert [file.name.partition(".")[0] for file in FILES] == ["cpu", "cuda", "tpu"]


def test_what_the_wheel_is_built_from_is_sent_and_nothing_else():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], PROJECT["readme"], *PROJECT["license-files"]}
    needed |= {"constraints.txt", "pyproject.toml"}
    assert {path.name for path in ROOT.iterdir() if is_sent(path.name)} == needed
    assert is_sent("chameleon_jax/pages/style.css")
    assert not is_sent("chameleon_jax/pages/__pycache__/parts.cpython-312.pyc")


@each_file
def test_instructions_are_known_and_files_are_there(file):
    assert {name for name, _ in instructions(file)} <= KNOWN
    for value in values(file, "COPY"):
        for source in value.split()[:-1]:
            assert (ROOT / source).exists()
            assert source == "." or is_sent(source)


@each_file
def test_python_is_one_that_the_project_is_tested_with(file):
    version = re.match(r"python:(3\.\d+)-slim\b", values(file, "FROM")[0])[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


@each_file
def test_extras_exist_here_and_in_jax(file):
    (argument,) = values(file, "ARG") or [""]
    of_jax = set(importlib.metadata.metadata("jax").get_all("Provides-Extra"))
    assert argument in ("", "CUDA=cuda13")
    for choice in ("cuda12", "cuda13"):
        command = next(value for value in values(file, "RUN") if "--constraint" in value).replace("${CUDA}", choice)
        extras = re.search(r'--constraint constraints\.txt "\.\[([\w,]+)\]"$', command)[1].split(",")
        assert set(extras) <= set(PROJECT["optional-dependencies"])
        accelerators = {"cpu": set(), "cuda": {choice}, "tpu": {"tpu"}}[file.name.partition(".")[0]]
        assert set(extras) & {"cuda12", "cuda13", "tpu"} == accelerators <= of_jax
        assert "serve" in extras


@each_file
def test_dependencies_are_those_of_the_package_that_follows(file, tmp_path):
    """The layer of dependencies installs a package without content, which must ask for the same."""
    pytest.importorskip("hatchling")
    for source in values(file, "COPY")[0].split()[:-1]:
        shutil.copy(ROOT / source, tmp_path)
    prepare, install = values(file, "RUN")[0].rsplit("&&", 1)
    assert install.split()[:4] == ["python", "-m", "pip", "install"]
    subprocess.run(["sh", "-ec", prepare], cwd=tmp_path, check=True)
    (tmp_path / "dist").mkdir()
    empty, whole = ([line for name, text in content(build("wheel", source, tmp_path / "dist")).items()
                     if name.endswith("/METADATA") for line in text.decode().splitlines()
                     if line.startswith(("Requires-Dist", "Provides-Extra", "Version"))]
                    for source in (tmp_path, ROOT))  # fmt: skip
    assert empty == whole != []


@each_file
def test_it_runs_our_command_as_somebody_who_is_not_root(file):
    assert values(file, "ENTRYPOINT") == ['["chameleon"]']
    assert PROJECT["scripts"].keys() == {"chameleon"}
    (user,) = values(file, "USER")
    assert int(user) > 0  # Kubernetes cannot tell by a name whether it is root
    assert f"--uid {user} " in "".join(values(file, "RUN"))
    assert values(file, "VOLUME") == [environment(file)["XDG_CACHE_HOME"]]
    assert values(file, "WORKDIR")[-1] == environment(file)["HOME"]


@pytest.mark.parametrize("file", [file for file in FILES if values(file, "EXPOSE")], ids=lambda file: file.name)
def test_server_is_started_and_asked_for_its_health(file):
    name, *arguments = json.loads(values(file, "CMD")[-1])
    parsed = parse(COMMANDS[name], arguments)
    assert (parsed.config.host, parsed.arguments["model"]) == ("0.0.0.0", "/model")
    assert values(file, "EXPOSE") == [str(parsed.config.port)]

    statuses, paths = [200, 503], []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(statuses.pop(0))
            self.end_headers()

        def log_message(self, *_):
            pass

    (check,) = values(file, "HEALTHCHECK")
    _, flag, code = json.loads(check[check.index("[") :])
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = code.replace(f":{parsed.config.port}/", f":{server.server_port}/")
        ended = [subprocess.run([sys.executable, flag, here], capture_output=True, check=False).returncode
                 for _ in range(2)]  # fmt: skip
        server.shutdown()
    assert ended == [0, 1]
    assert set(paths) == {"/health/ready"}


def test_images_differ_in_what_their_machines_need_alone():
    own = ("CUDA=", "NVIDIA_", "--constraint")
    cpu, cuda, tpu = ([each for each in instructions(file) if not any(word in each[1] for word in own)]
                      for file in FILES)  # fmt: skip
    assert cuda == cpu
    assert tpu == cpu[: len(tpu)]
