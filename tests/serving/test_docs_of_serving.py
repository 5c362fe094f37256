"""The examples of docs/serving.md work as they stand, and its tables have every name."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest
import yaml
from tiny_models import random_picture

from chameleon_jax.config import ServeConfig, from_dict
from chameleon_jax.serving.wire import ChatRequest, CompletionRequest, ImageRequest

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CURL = [body for language, body in FENCES if language == "sh" and "curl" in body]
HERE = "http://127.0.0.1:8000"


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
@pytest.mark.parametrize("script", CURL, ids=range(len(CURL)))
def test_curl_gets_an_answer(script, server, tmp_path):
    random_picture(1).save(tmp_path / "picture.png")
    script = script.replace("curl -s", "curl --fail-with-body -s").replace(HERE, server.url)
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if '"stream": true' in script:
        *events, last = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line.startswith("data: ")]
        assert last == "[DONE]"
        assert all(json.loads(event)["object"] == "chat.completion.chunk" for event in events)
    elif "models" not in script:
        assert {"choices", "data"} & set(json.loads(done.stdout))


def test_there_are_examples():
    assert len(CURL) == 6


def test_python_example_runs(server, capsys):
    (example,) = (body for language, body in FENCES if language == "python")
    exec(example.replace(HERE, server.url), {})
    assert capsys.readouterr().out.strip()


def test_yaml_example_is_a_config():
    (example,) = (body for language, body in FENCES if language == "yaml")
    config = from_dict(ServeConfig, yaml.safe_load(example))
    assert (config.engine.rows, config.limits.new_tokens) == (16, 1024)


def test_every_option_of_a_request_is_in_the_table():
    described = set(re.findall(r"`([a-z_.]+)`", PAGE))
    names = {*ChatRequest.model_fields, *CompletionRequest.model_fields, *ImageRequest.model_fields}
    names -= {"stream_options", "background", "quality", "style", "response_format", "echo"}
    assert names - described == set()


def test_every_limit_is_on_the_page():
    for field in dataclasses.fields(ServeConfig().limits):
        assert f"`{field.name}`" in PAGE, field.name


def test_every_metric_is_on_the_page(server):
    names = set(re.findall(r"^# TYPE (\S+)", httpx2.get(f"{server.url}/metrics").text, re.MULTILINE))
    own = {name for name in names if not name.endswith("_created")}
    assert {name for name in own if name not in PAGE} == set()
