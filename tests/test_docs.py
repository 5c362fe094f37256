"""What the Markdown files tell people to type exists: commands, keys, scripts, manifests."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from chameleon_jax.config import ConfigError
from chameleon_jax.config.reading import find_key
from chameleon_jax.console.arguments import Command, CommonOptions
from chameleon_jax.console.cli import COMMANDS
from chameleon_jax.runtime.distributed import ENVIRONMENT
from chameleon_jax.serving.gate import VARIABLE as KEYS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.md")])
NAME = r"[a-z][a-z-]*"
# A command begins a line or follows what a shell or Markdown puts before one.
CALL = re.compile(
    rf"(?:^|[`\"(\s;&]|\.venv/bin/)chameleon ({NAME})(?=[\s`]|$)((?:[^\n`|;&>#]|\\\n)*)", flags=re.MULTILINE
)
OPTION = re.compile(r"(?<![\w-])--([A-Za-z][\w.-]*)")


def fences(text: str, *languages: str) -> list[str]:
    return [body for name, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
            if name in languages]  # fmt: skip


def typed(text: str) -> str:
    """The parts of a page that are code: fences, indented lines, and `…` in sentences."""
    code = [body for _, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    code += re.findall(r"^    .*", rest, re.MULTILINE)
    code += re.findall(r"`[^`]+`", rest)
    return "\n".join(code)


def knows(command: Command, option: str) -> bool:
    """Whether a command has the option, or its config the key `a.b.0.c`."""
    own = {field.name for cls in (command.arguments, CommonOptions) for field in dataclasses.fields(cls)}
    if option.replace("-", "_") in own | {"help", "help_all", "key"}:
        return True
    for cls in filter(None, (command.config, command.options)):
        with contextlib.suppress(ConfigError):
            return bool(find_key(cls, option))
    return False


def mistakes(code: str) -> list[str]:
    """Commands that do not exist, their options that do not, and config files that are not there."""
    found = []
    for name, rest in CALL.findall(code):
        second = next(iter(rest.split()), "")
        if f"{name} {second}" in COMMANDS:  # such as `bench train`
            name, rest = f"{name} {second}", rest.strip().removeprefix(second)
        if name not in COMMANDS:
            if name != "completion" and (second or not any(each.startswith(f"{name} ") for each in COMMANDS)):
                found.append(f"chameleon {name}")
            continue
        command = COMMANDS[name]
        rest = re.split(r"\s--\s", rest)[0]  # what follows is no option of ours
        found += [f"chameleon {name} --{option}" for option in OPTION.findall(rest) if not knows(command, option)]
        found += [path for path in re.findall(r"(?<!\S)configs/\S+\.yaml", rest) if not (ROOT / path).is_file()]
        shipped = re.match(r"\s*([a-z]\w*)(?=\s|$)", rest) if command.configs else None
        if shipped and shipped[1] not in command.shipped():
            found.append(f"chameleon {name} {shipped[1]}")
    for option in OPTION.findall(code):
        if "." in option and not any(knows(command, option) for command in COMMANDS.values()):
            found.append(f"--{option}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_keys_on_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    assert mistakes(typed(text)) == []
    for variable in re.findall(r"\bCHAMELEON_[A-Z]+", text):
        assert variable in (*ENVIRONMENT.values(), KEYS)


def test_a_wrong_command_key_or_file_would_be_found():
    page = (
        "Run `chameleon trane x`, or\n\n    chameleon train configs/none.yaml --mesh.fdsp 8 \\\n      --seed 1\n\n"
        "```sh\nFOO=1 .venv/bin/chameleon train configs/demo/train.yaml --stages.0.share 1 --bath-size 2\n"
        "chameleon bench train demo --stepps 3; chameleon bench --steps 3; chameleon prepare prepare_stf\n```\n"
        "and set `--optimizer.rate 3`."
    )
    assert mistakes(typed(page)) == [
        "chameleon train --bath-size", "chameleon bench train --stepps", "chameleon bench",
        "chameleon prepare prepare_stf", "chameleon train --mesh.fdsp", "configs/none.yaml", "chameleon trane",
        "--mesh.fdsp", "--optimizer.rate",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_on_a_page_are_shell(page):
    for script in fences(page.read_text(encoding="utf-8"), "sh", "bash"):
        result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{result.stderr}\n{script}"


def manifests() -> list[dict]:
    text = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    return [manifest for body in fences(text, "yaml") for manifest in yaml.safe_load_all(body)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_on_a_page_can_be_read(page):
    for body in fences(page.read_text(encoding="utf-8"), "yaml"):
        assert all(isinstance(document, dict | list) for document in yaml.safe_load_all(body))


def test_manifests_start_as_many_processes_as_they_say():
    kinds = set()
    for manifest in manifests():
        assert (manifest["kind"], manifest["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
        (job,) = manifest["spec"]["replicatedJobs"]
        spec = job["template"]["spec"]
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        command = container["command"]
        assert spec["parallelism"] == spec["completions"]
        assert spec["backoffLimit"] == 0  # one failed pod ends the job, so that the JobSet starts all again
        assert mistakes(" ".join(command)) == []
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        devices = math.prod(int(command[command.index(key) + 1]) for key in ("--mesh.data", "--mesh.fsdp"))
        ((resource, count),) = container["resources"]["limits"].items()
        kinds.add(resource)
        if resource == "google.com/tpu":
            topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
            assert math.prod(map(int, topology.split("x"))) == spec["parallelism"] * count
            assert devices == spec["parallelism"] * count * job["replicas"]
        else:
            variables = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
            assert set(ENVIRONMENT.values()) <= set(variables)
            assert int(variables["CHAMELEON_PROCESSES"]) == spec["parallelism"]
            name = manifest["metadata"]["name"]
            host, port = variables["CHAMELEON_COORDINATOR"].split(":")
            assert host == f"{name}-{job['name']}-0-0.{name}"
            assert int(port) > 1023
            assert job["replicas"] == 1
            assert devices == spec["parallelism"] * count
    assert kinds == {"google.com/tpu", "nvidia.com/gpu"}
