"""The Hugging Face Hub is asked only for hf://…, and exactly the files of one format are fetched.

A stand-in for the Hub copies from a folder what the patterns let through, as the real one does.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import released_model

from chameleon_jax.chameleon import load
from chameleon_jax.errors import FileError
from chameleon_jax.runtime import distributed
from chameleon_jax.weights import hub
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint
from chameleon_jax.weights.safetensors import read_safetensors, write_safetensors
from chameleon_jax.weights.torch_writing import write_torch_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories are folders under `root`; what is fetched stays in a cache, as with the real one."""

    def __init__(self, root: Path, cache: Path):
        self.root, self.cache = root, cache
        self.revisions: list[str | None] = []
        self.fails: Exception | None = None

    def snapshot_download(self, repo: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        self.revisions.append(revision)
        if self.fails is not None:
            raise self.fails
        source = self.root / repo.split("/")[1]
        target = self.cache / repo / "snapshots" / COMMIT
        for file in source.rglob("*"):
            name = file.relative_to(source).as_posix()
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name)
        return str(target)

    def fetched(self, repo: str) -> set[str]:
        folder = self.cache / repo / "snapshots" / COMMIT
        return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def values_of(folder: Path) -> dict[str, np.ndarray]:
    return {key: np.array(tensor.view()) for key, tensor in read_safetensors(folder / "model.safetensors").items()}


def write_pickle(path: Path, values: dict[str, np.ndarray]) -> None:
    write_torch_file(path, {key: (value.shape, value.dtype) for key, value in values.items()}, values.__getitem__)


def write_parts(folder: Path, name: str, index: str, write) -> None:
    """Weights in two files and their index."""
    values = values_of(folder)
    places = {key: name.format(1 + (number % 2)) for number, key in enumerate(values)}
    for file in set(places.values()):
        write(folder / file, {key: values[key] for key, place in places.items() if place == file})
    (folder / index).write_text(json.dumps({"weight_map": places}))


def as_safetensors(path: Path, values: dict[str, np.ndarray]) -> None:
    write_safetensors(path, {key: (value.shape, value.dtype) for key, value in values.items()}, values.__getitem__)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    released_model().save(root / "whole", "huggingface")
    opened = open_checkpoint(root / "whole")
    write_checkpoint(opened, root / "ours", "chameleon")
    (root / "meta/models").mkdir(parents=True)
    write_checkpoint(opened, root / "meta/models/7b", "meta")
    shutil.move(root / "meta/models/7b/tokenizer", root / "meta/tokenizer")

    bin_parts = ("pytorch_model-0000{}-of-00002.bin", "pytorch_model.bin.index.json", write_pickle)
    for name in ("bin", "bin-parts", "both"):
        shutil.copytree(root / "whole", root / name)
    write_pickle(root / "bin/pytorch_model.bin", values_of(root / "bin"))
    write_parts(root / "bin-parts", *bin_parts)
    write_parts(root / "both", *bin_parts)
    write_parts(root / "both", "model-0000{}-of-00002.safetensors", "model.safetensors.index.json", as_safetensors)
    for name in ("bin", "bin-parts", "both"):
        (root / name / "model.safetensors").unlink()

    for name in ("whole", "bin", "bin-parts", "both", "meta"):  # what else lies in repositories
        for file in ("README.md", "modeling_chameleon.py", "training_args.bin", "onnx/model.onnx", "tf_model.h5"):
            (root / name / file).parent.mkdir(exist_ok=True)
            (root / name / file).write_text("not to be fetched")
    return root


@pytest.fixture
def fake(repositories, tmp_path, monkeypatch) -> FakeHub:
    module = types.ModuleType("huggingface_hub")
    fake = FakeHub(repositories, tmp_path / "cache")
    module.snapshot_download = fake.snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return fake


BESIDE = {"config.json", "tokenizer.json", "image_decoder/model.safetensors"}
TOKENIZER = {f"tokenizer/{file}" for file in ("text_tokenizer.json", "vqgan.yaml", "vqgan.ckpt")}


@pytest.mark.parametrize(
    ("name", "format", "weights"),
    [
        ("whole", "huggingface", {*BESIDE, "model.safetensors"}),
        ("bin", "huggingface", {*BESIDE, "pytorch_model.bin"}),
        ("bin-parts", "huggingface", {*BESIDE, "pytorch_model.bin.index.json",
                                      *(f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))}),
        ("both", "huggingface", {*BESIDE, "model.safetensors.index.json",
                                 *(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))}),
        ("meta", "meta", {*TOKENIZER, *(f"models/7b/{file}" for file in (
            "params.json", "consolidate_params.json", "consolidated.00.pth", "consolidated.01.pth"))}),
    ],
)  # fmt: skip
def test_exactly_the_files_of_one_format_are_fetched(fake, name, format, weights):
    opened = open_checkpoint(f"hf://someone/{name}")
    assert (opened.format, opened.missing) == (format, {})
    assert fake.fetched(f"someone/{name}") == weights
    assert fake.revisions[1:] == [COMMIT] * (len(fake.revisions) - 1)  # one commit, whatever is pushed meanwhile


def test_our_own_format_is_fetched_whole(fake, repositories):
    assert open_checkpoint("hf://someone/ours").missing == {}
    there = {
        file.relative_to(repositories / "ours").as_posix() for file in (repositories / "ours").rglob("*")
        if file.is_file()
    }  # fmt: skip
    assert fake.fetched("someone/ours") == there - {"README.md"}


def test_model_of_the_hub_is_that_of_the_folder(fake, repositories):
    ids = np.arange(12).reshape(2, 6)
    expected = load(repositories / "whole").logits(ids)
    np.testing.assert_array_equal(load("hf://someone/bin").logits(ids), expected)


def test_safetensors_are_read_where_another_tool_fetched_both(fake):
    fake.snapshot_download("someone/both", allow_patterns=["*"])
    assert open_checkpoint("hf://someone/both").missing == {}


def test_folder_and_revision_of_a_repository(fake):
    assert open_checkpoint("hf://someone/meta@refs%2Fpr%2F1/models/7b").missing == {}
    assert fake.revisions[0] == "refs/pr/1"
    fake.revisions.clear()
    assert open_checkpoint(Path("hf://someone/whole@v1")).format == "huggingface"  # a Path loses a slash
    assert fake.revisions[0] == "v1"


def test_image_tokenizer_alone_is_fetched_for_another_model(fake, repositories, tmp_path):
    bare = shutil.copytree(repositories / "whole", tmp_path / "bare")
    shutil.rmtree(bare / "image_decoder")
    opened = open_checkpoint(bare, "hf://someone/meta/tokenizer")
    assert opened.missing == {}
    assert fake.fetched("someone/meta") == {"tokenizer/vqgan.yaml", "tokenizer/vqgan.ckpt"}


def test_repository_of_several_models_asks_for_one_and_fetches_none(fake, repositories, tmp_path):
    fake.root = shutil.copytree(repositories, tmp_path / "more")
    shutil.copytree(fake.root / "meta/models/7b", fake.root / "meta/models/30b")
    with pytest.raises(FileError, match=r"holds 2 models; give one of them, such as hf://someone/meta@v1/models/30b$"):
        open_checkpoint("hf://someone/meta@v1")
    assert fake.fetched("someone/meta") == {"models/7b/params.json", "models/30b/params.json"}


def test_repository_without_a_model_says_so(fake, tmp_path):
    fake.root = tmp_path / "other"
    (fake.root / "notes").mkdir(parents=True)
    (fake.root / "notes/README.md").write_text("no model")
    with pytest.raises(FileError, match=r"^hf://someone/notes: holds no model in a format that can be read"):
        open_checkpoint("hf://someone/notes")


def error_of_the_hub(name: str, *bases: str, status: int | None = None) -> Exception:
    kind: type = OSError
    for base in reversed(bases):
        kind = type(base, (kind,), {})
    error = type(name, (kind,), {})("403 Client Error\n\nmore lines")
    if status is not None:
        error.response = types.SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (error_of_the_hub("GatedRepoError", "RepositoryNotFoundError", "HfHubHTTPError", status=401),
         "access must be granted: accept its terms at https://huggingface.co/facebook/chameleon-7b, then log in"),
        (error_of_the_hub("HfHubHTTPError", status=403), "access must be granted"),
        (error_of_the_hub("RepositoryNotFoundError", "HfHubHTTPError", status=401), "there is no such model"),
        (error_of_the_hub("HfHubHTTPError", status=404), "there is no such model"),
        (error_of_the_hub("RevisionNotFoundError", "HfHubHTTPError", status=404), "it has no revision 'v9'"),
        (error_of_the_hub("LocalEntryNotFoundError", "FileNotFoundError"), "Check the network"),
        (OSError(28, "No space left on device"), "could not be written into the cache"),
    ],
)  # fmt: skip
def test_why_a_download_fails_is_one_line(fake, error, expected):
    fake.fails = error
    with pytest.raises(FileError) as caught:
        open_checkpoint("hf://facebook/chameleon-7b@v9")
    message = str(caught.value)
    assert message.startswith("hf://facebook/chameleon-7b@v9: ")
    assert expected in message
    assert "\n" not in message


def test_hub_itself_in_offline_mode_is_explained(tmp_path, monkeypatch):
    """With the package itself: nothing is in its cache and it may not ask."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileError, match=r"^hf://nobody/no-such-model: could not be downloaded .* Check the network"):
        open_checkpoint("hf://nobody/no-such-model")


def test_hub_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileError, match=r"pip install 'chameleon-jax\[released\]'"):
        open_checkpoint("hf://facebook/chameleon-7b")


@pytest.mark.parametrize("path", ["models/chameleon-7b", "gone", "deep/er/gone", "./gone", "not a name/of a model"])
def test_folder_that_is_not_there_is_named_and_the_hub_not_asked(path, fake):
    fake.fails = AssertionError("asked the network")
    hint = f"; for a model on the Hugging Face Hub write hf://{path}" if path == "models/chameleon-7b" else ""
    for read in (open_checkpoint, load):
        with pytest.raises(FileError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: is not a model folder (there is no such folder{hint})"
    with pytest.raises(FileError, match=r"\(there is no such folder\)$"):
        open_checkpoint(fake.cache / path)


@pytest.mark.parametrize(
    "name", ["hf://", "hf://alone", "hf://a/b@", "hf://a/../b", "hf://a/b/../../etc", "hf://a/b c"]
)
def test_name_that_is_none_is_refused_without_asking(fake, name):
    fake.fails = AssertionError("asked the network")
    with pytest.raises(FileError, match="must be hf://organisation/model"):
        open_checkpoint(name)


def several_processes(monkeypatch, number: int, says: list[str]) -> None:
    """This is process `number` of two; process 0 says or said what is in `says`."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_first", lambda: number == 0)

    def gather(text: str) -> list[str]:
        if number == 0:
            says[:] = [text]
        return [says[0], text]

    monkeypatch.setattr(distributed, "gather_texts", gather)


def test_one_process_downloads_and_the_others_read_the_same_commit(fake, monkeypatch):
    says: list[str] = []
    several_processes(monkeypatch, 1, [json.dumps([COMMIT, None])])
    assert hub.fetch("hf://someone/whole").format == "huggingface"
    assert set(fake.revisions) == {COMMIT}  # told by the first, and only then asked
    several_processes(monkeypatch, 0, says)
    hub.fetch("hf://someone/whole@main")
    assert json.loads(says[0]) == [COMMIT, None]


def test_failure_of_the_first_is_that_of_all_and_nobody_else_asks(fake, monkeypatch):
    says: list[str] = []
    fake.fails = error_of_the_hub("HfHubHTTPError", status=404)
    several_processes(monkeypatch, 0, says)
    with pytest.raises(FileError, match="there is no such model"):
        hub.fetch("hf://someone/gone")
    fake.revisions.clear()
    several_processes(monkeypatch, 1, says)
    with pytest.raises(FileError, match="there is no such model"):
        hub.fetch("hf://someone/gone")
    assert fake.revisions == []
