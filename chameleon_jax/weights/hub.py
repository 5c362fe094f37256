"""Models on the Hugging Face Hub, named hf://org/name, hf://org/name@revision or hf://org/name/folder.

Only the files of one format are downloaded, those that our readers open, and nothing is executed. huggingface_hub
caches them, resumes interrupted downloads, and locks what it writes, so that the processes of one host download each
file once.
"""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from chameleon_jax.errors import FileError
from chameleon_jax.runtime.cloud import as_path, download, explain_cloud_errors, finish, is_cloud
from chameleon_jax.runtime.distributed import broadcast_from_first
from chameleon_jax.runtime.files import read_json
from chameleon_jax.runtime.folders import recover
from chameleon_jax.runtime.progress import console
from chameleon_jax.weights.huggingface import DECODER_FILE
from chameleon_jax.weights.meta import TEXT_FILE
from chameleon_jax.weights.taming import IMAGE_CONFIG_FILE, IMAGE_FILE

_NAME = re.compile(
    r"hf:/{1,2}(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.%-]+))?(?P<inside>(/[\w-][\w.-]*)*)/?"
)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Fetched(NamedTuple):
    """A model from the Hub, in the local cache.

    Attributes:
      folder: the local folder.
      format: the format of its files; 'image tokenizer' if it holds nothing else.
      weights: for Hugging Face's format, name of the weights file or of its index.
    """

    folder: Path
    format: str
    weights: str = ""


def is_remote(name: str | Path) -> bool:
    return str(name).startswith("hf:/")  # a Path has lost one of the two


def repository_of(name: str | Path) -> str:
    """org/name of hf://org/name…; '' of anything else."""
    found = _NAME.fullmatch(str(name))
    return found["repo"] if found else ""


def _fetch_model(name: str | Path) -> Path:
    """Downloads a model, or the model of a training run, from a bucket."""
    places = [as_path(name), as_path(name) / "model", as_path(name) / "run" / "model"]
    with explain_cloud_errors(name):
        signs = ("config.json", "params.json", f"tokenizer/{TEXT_FILE}", IMAGE_FILE)
        found = [folder for folder in places if any((folder / sign).exists() for sign in signs)]
    for folder in places:
        finish(folder)
    if not found:
        raise FileError(f"{name}: holds no model")
    return download(found[0])


def require_folder(name: str | Path) -> Path:
    """The local folder of a model; a model in a bucket is downloaded.

    Raises:
      FileError: if there is none. The message suggests hf:// if the name looks like one on the Hub.
    """
    if is_cloud(name):
        return _fetch_model(name)
    folder, text = Path(name), str(name)
    recover(folder)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileError(f"{text}: is a file; expected a folder")
    hint = ""
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
        hint = f"; for a model on the Hugging Face Hub write hf://{text}"
    raise FileError(f"{text}: is not a model folder (there is no such folder{hint})")


def fetch(name: str) -> Fetched:
    """Downloads a model, or finds it in the cache.

    All processes of a run must call it. The first downloads; the others then find the same commit in the cache, or
    download it if their host has a cache of its own.

    Raises:
      FileError: if the name is malformed, or there is no such model, no access, no network or no disk space.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise FileError(f"{name}: must be hf://organisation/model, optionally followed by @revision or /folder")
    revision = urllib.parse.unquote(found["revision"]) if found["revision"] else None
    repository = _Repository(name, found["repo"], revision, found["inside"].strip("/"))
    fetched = None

    def commit() -> str:
        nonlocal fetched
        fetched = repository.fetch()
        return repository.commit or ""

    repository.commit = broadcast_from_first(commit) or None
    return fetched or repository.fetch()


class _Repository:
    """One repository on the Hub. `commit` is known after the first download."""

    def __init__(self, name: str, repo: str, revision: str | None, inside: str):
        self.name, self.repo, self.revision, self.inside = name, repo, revision, inside
        self.commit: str | None = None

    def fetch(self) -> Fetched:
        console.print(f"{self.name}: looking it up on the Hugging Face Hub")
        params = "params.json"
        first = ["config.json", _INDEX, params, f"models/*/{params}", IMAGE_CONFIG_FILE]
        folder = self._download(first)
        header = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
        if isinstance(header, dict) and "format_version" in header:
            return Fetched(self._download(["*.json", "params/*", "tokenizer/*"]), "chameleon")
        if header is not None and (fetched := self._huggingface(folder)):
            return fetched
        models = sorted(file.parent.relative_to(folder) for file in folder.glob(f"models/*/{params}"))
        if (folder / params).is_file() or len(models) == 1:
            return self._meta(models[0].as_posix() if models else "")
        if models:
            raise FileError(
                f"{self.name}: holds {len(models)} models; give one of them, such as hf://{self._place(models[0])}"
            )
        if (folder / IMAGE_CONFIG_FILE).is_file():
            return Fetched(self._download([IMAGE_CONFIG_FILE, IMAGE_FILE]), "image tokenizer")
        raise FileError(
            f"{self.name}: holds no model in a format that can be read (config.json and safetensors or "
            f"{_PICKLE}, params.json and consolidated*.pth, or our own)"
        )

    def _place(self, folder: Path) -> str:
        revision = f"@{urllib.parse.quote(self.revision, safe='')}" if self.revision else ""
        return "/".join(part for part in (f"{self.repo}{revision}", self.inside, folder.as_posix()) if part)

    def _huggingface(self, folder: Path) -> Fetched | None:
        """Downloads safetensors if there are any, else pickles."""
        beside = ["config.json", "tokenizer.json", "chameleon_jax.json", DECODER_FILE]
        if (folder / _INDEX).is_file():
            return Fetched(self._download([*beside, _INDEX, *_files_of(folder / _INDEX)]), "huggingface", _INDEX)
        folder = self._download([*beside, _SINGLE])
        if (folder / _SINGLE).is_file():
            return Fetched(folder, "huggingface", _SINGLE)
        folder = self._download([*beside, _PICKLE_INDEX])
        if (folder / _PICKLE_INDEX).is_file():
            files = _files_of(folder / _PICKLE_INDEX)
            return Fetched(self._download([*beside, _PICKLE_INDEX, *files]), "huggingface", _PICKLE_INDEX)
        folder = self._download([*beside, _PICKLE])
        return Fetched(folder, "huggingface", _PICKLE) if (folder / _PICKLE).is_file() else None

    def _meta(self, inside: str) -> Fetched:
        """Downloads the weights in one folder, and the tokenizer beside them or up to two folders above."""
        weights = "/".join(part for part in (self.inside, inside) if part)
        own = ("params.json", "consolidate_params.json", "chameleon_jax.json", "consolidated*.pth")
        parts = weights.split("/") if weights else []
        above = ["/".join(parts[:depth]) for depth in range(max(0, len(parts) - 2), len(parts) + 1)]
        tokenizer = [f"tokenizer/{file}" for file in (TEXT_FILE, IMAGE_CONFIG_FILE, IMAGE_FILE)]
        wanted = [_join(weights, file) for file in own] + [_join(place, file) for place in above for file in tokenizer]
        return Fetched(self._download(wanted, from_root=True) / inside, "meta")

    def _download(self, patterns: list[str], from_root: bool = False) -> Path:
        """Downloads the matching files and returns their folder, which may be empty."""
        try:
            from huggingface_hub import snapshot_download
        except ModuleNotFoundError:
            raise FileError(
                f"{self.name}: fetching from the Hugging Face Hub needs huggingface_hub; pip install "
                "'chameleon-jax[released]'"
            ) from None
        wanted = patterns if from_root else [_join(self.inside, pattern) for pattern in patterns]
        revision = self.commit or self.revision
        options = {"revision": revision} if revision else {}
        try:
            snapshot = Path(snapshot_download(self.repo, allow_patterns=wanted, **options))
        except Exception as error:
            raise FileError(f"{self.name}: {_why(error, self)}") from None
        if re.fullmatch(r"[0-9a-f]{40}", snapshot.name):
            self.commit = snapshot.name  # pinned from here on, whatever is pushed in the meantime
        return snapshot / self.inside


def _join(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _files_of(index: Path) -> list[str]:
    """The files that an index names."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    names = set(places.values()) if isinstance(places, dict) else set()
    return sorted(name for name in names if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name))


def _why(error: Exception, repository: _Repository) -> str:
    """Explains in one line why a download failed and what to do.

    Errors are recognised by class name, as huggingface_hub has moved the classes between versions.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if "GatedRepoError" in kinds or (status in (401, 403) and "RepositoryNotFoundError" not in kinds):
        return (
            f"access must be granted: accept its terms at https://huggingface.co/{repository.repo}, then log in "
            "with `hf auth login` or set HF_TOKEN"
        )
    if "RevisionNotFoundError" in kinds:
        return f"it has no revision {repository.revision!r} on the Hugging Face Hub"
    if "RepositoryNotFoundError" in kinds or status == 404:
        return (
            "there is no such model on the Hugging Face Hub, or it is private; if so, log in with `hf auth login` or "
            "set HF_TOKEN"
        )
    if isinstance(error, OSError) and error.errno:
        return f"could not be written into the cache of huggingface_hub ({reason})"
    return (
        f"could not be downloaded from the Hugging Face Hub ({reason}). Check the network and try again: the download "
        "resumes where it stopped. Or give a local folder"
    )
