"""What the Markdown files and the site tell people to type exists: commands, keys, scripts, manifests, links."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
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
HOOKS = ROOT / "docs" / "hooks"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.md")]
)
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


# ----------------------------------------------------------------------------------------------------------------------
# Links, and the site
# ----------------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_on_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", re.sub(r"`[^`]*`", "", text)):
        if page.parent == ROOT / "docs" and path.startswith("reference/"):
            continue  # of pages that are made from the code; building the site checks them
        target = Path(os.path.normpath(page.parent / path)) if path else page
        assert target.exists(), path
        assert target.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


@pytest.fixture(scope="module")
def hooks():
    """The modules that make the parts of the site that are not written by hand."""
    pytest.importorskip("mkdocs")
    sys.path.insert(0, str(HOOKS))
    try:
        yield {path.stem: importlib.import_module(path.stem) for path in HOOKS.glob("*.py")}
    finally:
        sys.path.remove(str(HOOKS))
        for path in HOOKS.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_ours_on_a_page_exist(page):
    if page.name == "CONTRIBUTING.md":
        return  # it names files that are to be added
    code = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    paths = [
        path
        for each in code
        for path in re.findall(r"(?<![\w/.$])(?:chameleon_jax|data_pipeline|tests)/[\w./-]+", each)
    ]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_navigation_lists_every_page_once():
    def listed(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in listed(each)]

    pages = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(pages) == len(set(pages))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    made = {"contributing.md", "changelog.md"} | {
        f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    assert {page for page in pages if not page.startswith("reference/")} == written | made


def test_reference_of_commands_is_that_of_the_command_line(hooks):
    page = hooks["reference"].commands()
    assert mistakes(typed(page)) == []
    headings = re.findall(r"^## chameleon (.*)", page, re.MULTILINE)
    assert headings == [name for name, command in COMMANDS.items() if command.listed] + ["completion"]
    assert "`--worker`\n:   Number of this worker and how many there are, as 3/16" in page


def test_reference_of_keys_has_every_key_with_its_default(hooks):
    page = hooks["reference"].keys()
    names = re.findall(r"^## (\w+)", page, re.MULTILINE)
    assert len(names) == len(set(names))  # they are anchors
    sections = dict(re.findall(r"^## (\w+) \{.*?\}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for command in COMMANDS.values():
        for cls in filter(None, (command.config, command.options)):
            for field in dataclasses.fields(cls):
                assert f"\n`{field.name}`: " in sections[cls.__name__]
    assert "`learning_rate`: number, default `0.0001`" in sections["OptimizerConfig"]
    assert "[`FilterConfig`](#filterconfig)" in sections["SourceConfig"]
    assert "`captions`: `txt` or `json` or" in sections["FolderSource"]


def test_notebooks_are_shown_with_their_outputs(hooks):
    pictures: list[bytes] = []
    cell = {
        "cell_type": "code", "source": ["print('<a>')\n", "draw()"],
        "outputs": [
            {"output_type": "stream", "name": "stdout", "text": ["<a>\n", "\n", "b"]},
            {"output_type": "display_data", "data": {"image/png": "aGk=", "text/plain": "<Figure>"}},
        ],
    }  # fmt: skip
    shown = hooks["notebooks"]._cell(cell, "01_", pictures)
    assert shown.startswith("```python\nprint('<a>')\ndraw()\n```")
    assert "&lt;a&gt;&#10;&#10;b</pre>" in shown
    assert '<img src="01_0.png"' in shown
    assert pictures == [b"hi"]


def test_links_lead_to_the_pages_that_are_made_of_files(hooks):
    rewritten = hooks["links"].rewritten
    assert rewritten("[a](../CONTRIBUTING.md#set-up), [b](data.md#text)", "start.md") == (
        "[a](contributing.md#set-up), [b](data.md#text)"
    )
    assert rewritten("[c](../notebooks/01_inference.ipynb), [d](../configs/pretrain_7b.yaml)", "start.md") == (
        "[c](notebooks/01_inference.md), [d](reference/recipes.md#pretrain-7b)"
    )
    assert rewritten("[e](docs/launch.md) [f](README.md)", "contributing.md") == "[e](launch.md) [f](index.md)"
    code = "[g](../chameleon_jax/batch.py)"
    assert rewritten(code, "start.md") == "g"
    assert rewritten(code, "start.md", "https://x.org/y") == "[g](https://x.org/y/blob/main/chameleon_jax/batch.py)"


def test_what_a_page_would_load_from_elsewhere_is_found(hooks, tmp_path):
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://fonts.org/a.css"><script src="//cdn.org/b.js"></script>'
        '<a href="https://arxiv.org">the paper</a><img src="c.png"><img src="http://d.org/d.png">'
    )
    (tmp_path / "e.css").write_text("@import 'https://f.org/g.css'; a { background: url(h.svg) }")
    assert hooks["offline"].fetched_from_elsewhere(tmp_path) == [
        "a.html: https://fonts.org/a.css", "a.html: //cdn.org/b.js", "a.html: http://d.org/d.png",
        "e.css: https://f.org/g.css",
    ]  # fmt: skip


@pytest.mark.slow
def test_site_is_built_without_warnings_and_has_what_it_promises(tmp_path):
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    page = (tmp_path / "reference/chameleon_jax.html").read_text(encoding="utf-8")
    assert 'id="chameleon_jax.chameleon.Chameleon.generate_many"' in page
    notebook = (tmp_path / "notebooks/02_train_your_own.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="(02_\w+\.png)"', notebook)
    assert len(pictures) == 5
    assert all((tmp_path / "notebooks" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert "--leaf: #1a6b50" in (tmp_path / "site.css").read_text(encoding="utf-8")
    # Search also works from the disk, where a browser fetches no JSON and starts no worker.
    index = (tmp_path / "search/search_index.js").read_text(encoding="utf-8").removeprefix("var __index = ")
    assert any(each["location"] == "launch.html#slurm-gpu-nodes" for each in json.loads(index)["docs"])
    assert '<script src="../iframe-worker.js">' in page
