"""`chameleon push` against a small server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_models import released_model

from chameleon_jax.chameleon import load
from chameleon_jax.console.cli import main

constants = pytest.importorskip("huggingface_hub.constants")
TOKEN = "hf_of_the_tests"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories in memory: what creating them, looking them up and committing to them need."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def _answer(self, content, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        repository = self.server.repositories.get(self.path.removeprefix("/api/models/").partition("?")[0])
        if repository is None:
            self._answer({"error": "not there"}, 404)
            return
        files = [{"rfilename": name} for name in repository["files"]]
        self._answer({"id": "someone/model", "private": repository["private"], "siblings": files})

    def do_PUT(self):
        content = self._body()
        assert self.path == f"/large/{hashlib.sha256(content).hexdigest()}"
        self.server.large[self.path.removeprefix("/large/")] = content
        self._answer({})

    def do_POST(self):
        hub, body = self.server, self._body()
        path = self.path.partition("?")[0]
        hub.asked.append(path)
        if hub.status or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "not yours"}, hub.status or 401)
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            is_new = name not in hub.repositories
            hub.repositories.setdefault(name, {"private": wanted.get("visibility") == "private", "files": {}})
            self._answer({"url": f"{hub.address}/{name}", "name": name}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            assert header["library_name"] == "chameleon_jax"
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            modes = [
                {"path": each["path"], "uploadMode": "lfs" if each["size"] > 4096 else "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {"oid": each["oid"], "size": each["size"],
                 "actions": {"upload": {"href": f"{hub.address}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]  # fmt: skip
            self._answer({"transfer": "basic", "objects": objects})
        else:
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repositories[name]["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repositories[name]["files"][value["path"]] = hub.large[value["oid"]]
            self._answer({"commitUrl": f"{hub.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model in each format, with what else may lie in its folder."""
    root = tmp_path_factory.mktemp("push")
    model = released_model()
    for format in ("chameleon", "huggingface", "meta"):
        model.save(root / format / "model", format)
        for name in (".env", ".cache/token", "checkpoints/4/state", "notes.txt", "args.bin", "tokenizer/.lock"):
            (root / format / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / format / "model" / name).write_text("not to be sent")
    return root


@pytest.mark.parametrize("format", ["chameleon", "huggingface", "meta"])
def test_what_is_sent_is_the_model_and_nothing_else(hub, saved, tmp_path, format, capsys):
    folder = saved / format / "model"
    assert main(["push", str(folder), "hf://someone/model", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert hub.asked == []
    assert main(["push", str(folder), "hf://someone/model"]) == 0
    assert f"{hub.address}/someone/model/commit/" in capsys.readouterr().out
    files = hub.repositories["someone/model"]["files"]
    for name, content in files.items():
        assert name in listed
        assert content == (folder / name).read_bytes()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert not any(b"not to be sent" in content for content in files.values())
    assert "README.md" in files
    ids = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(load(tmp_path).logits(ids), load(folder).logits(ids))


def test_repository_is_private_if_asked_and_never_public_then(hub, saved, capsys):
    folder = str(saved / "huggingface" / "model")
    assert main(["push", folder, "hf://someone/model", "--private"]) == 0
    assert hub.repositories["someone/model"]["private"] is True
    hub.repositories["someone/public"] = {"private": False, "files": {}}
    assert main(["push", folder, "hf://someone/public", "--private"]) == 1
    assert "hf://someone/public: is public already, so nothing was sent" in capsys.readouterr().err
    assert hub.repositories["someone/public"]["files"] == {}


def test_card_of_the_repository_is_replaced_only_by_one_that_was_edited(hub, saved, tmp_path, capsys):
    released_model().save(tmp_path / "model")
    files = {"README.md": b"written on the Hub"}
    hub.repositories["someone/model"] = {"private": False, "files": files}
    assert main(["push", str(tmp_path / "model"), "hf://someone/model"]) == 0
    assert files["README.md"] == b"written on the Hub"
    assert "someone/model has a README.md, which stays" in capsys.readouterr().err
    card = tmp_path / "model/README.md"
    card.write_text(card.read_text().replace("Transformer", "model"))
    assert main(["push", str(tmp_path / "model"), "hf://someone/model"]) == 0
    assert files["README.md"] == card.read_bytes()


def test_files_of_an_earlier_push_are_named_and_stay(hub, saved, capsys):
    files = {"params/d/of-earlier-weights": b"1", "results.csv": b"of others"}
    hub.repositories["someone/model"] = {"private": False, "files": files}
    for _ in range(2):  # what the first push sent is not counted by the second
        assert main(["push", str(saved / "chameleon" / "model"), "hf://someone/model"]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "someone/model has params/d/of-earlier-weights, which this model does not have" in said
    assert {"params/d/of-earlier-weights", "results.csv"} < files.keys()


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "the token is not valid"), (403, "the token may not write there"), (500, "Check the network")],
)
def test_refusal_of_the_hub_is_one_line(hub, saved, status, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.status = status
    assert main(["push", str(saved / "meta" / "model"), "hf://someone/model", "-q"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("chameleon push: hf://someone/model: ")
    assert message in said
    assert said.count("\n") == 1


def test_mistakes_are_one_line_and_nothing_is_asked(hub, saved, tmp_path, capsys, monkeypatch):
    def says(*words: object) -> str:
        assert main(["push", *map(str, words)]) in (1, 2)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    folder = saved / "huggingface" / "model"
    assert "is not a model folder (there is no such folder" in says(tmp_path / "gone", "hf://someone/model")
    assert "is not a model folder (expected config.json" in says(tmp_path, "hf://someone/model")
    for name in ("someone/model", "hf://model", "hf://someone/model@v1", "hf://someone/model/folder"):
        assert "must be hf://organisation/model" in says(folder, name)
    assert "must be a folder of this machine" in says("hf://someone/other", "hf://someone/model")
    assert "NAME is missing" in says(folder)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "nobody is logged in; log in with `hf auth login`, or set HF_TOKEN" in says(
        folder, "hf://someone/model", "-q"
    )
    assert hub.asked == []


def test_model_that_is_not_whole_in_its_folder_is_refused(saved, tmp_path, capsys):
    root = tmp_path / "release"
    shutil.copytree(saved / "meta" / "model", root / "models/7b")
    shutil.move(root / "models/7b/tokenizer", root / "tokenizer")
    assert main(["push", str(root), "hf://someone/model", "--dry-run"]) == 1
    assert "its tokenizer lies in another folder; `chameleon convert` writes both" in capsys.readouterr().err
