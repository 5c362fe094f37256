"""Sends a model folder to the Hugging Face Hub: the files of the model and nothing else, in one commit."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_jax.errors import FileError
from chameleon_jax.weights.card import CARD, is_untouched
from chameleon_jax.weights.formats import ANY_MODEL, open_checkpoint
from chameleon_jax.weights.hub import is_remote, repository_of

_WEIGHTS = {"chameleon": "params/*", "huggingface": "model*.safetensors", "meta": "consolidated*.pth"}


class Pushed(NamedTuple):
    """What was sent.

    Attributes:
      url: of the commit.
      kept_card: whether the repository has a card already, which was not replaced by one that nobody has edited.
      left: names of files in the repository that a model of ours may have and this one has not, such as weights of an
        earlier push.
    """

    url: str
    kept_card: bool
    left: list[str]


def files_to_push(folder: str | Path) -> tuple[Path, list[str]]:
    """The folder of a model, which may be that of its run, and the names of the files in it that are the model's.

    Raises:
      FileError: if there is no model in it, or not all of it.
    """
    if is_remote(folder):
        raise FileError(f"{folder}: must be a folder of this machine; it is sent from there")
    checkpoint = open_checkpoint(folder)
    place = checkpoint.folder
    names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    names = [name for name in names if _is_of_model(name)]
    weights = _WEIGHTS[checkpoint.format]
    if not any(fnmatch.fnmatchcase(name, weights) for name in names):
        raise FileError(f"{place}: has no {weights}; `chameleon convert` writes its weights into such files")
    if checkpoint.format == "meta" and checkpoint.text and not any(name.startswith("tokenizer/") for name in names):
        raise FileError(f"{place}: its tokenizer lies in another folder; `chameleon convert` writes both into one")
    return place, names


def _is_of_model(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and any(fnmatch.fnmatchcase(name, pattern) for pattern in ANY_MODEL.contents)


def repository_to_push_to(name: str) -> str:
    """org/name of hf://org/name. Raises `FileError` for anything else, also with a revision or a folder."""
    repository = repository_of(name)
    if not repository or name.rstrip("/") != f"hf://{repository}":
        raise FileError(f"{name}: must be hf://organisation/model, where the model is sent to")
    return repository


def push(folder: Path, names: Sequence[str], name: str, *, private: bool = False) -> Pushed:
    """Sends files to a repository, which is created if there is none. Files that are there already and that this model
    does not have stay there.

    Args:
      folder, names: what `files_to_push` gave.
      name: hf://org/name.
      private: create a private repository.

    Raises:
      FileError: if nobody is logged in, the token may not write there, the repository is public though it should be
        private, or the network fails. Nothing is changed then, but that the repository may have been created.
    """
    repository = repository_to_push_to(name)
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, get_token
    except ModuleNotFoundError:
        raise FileError(
            f"{name}: sending to the Hugging Face Hub needs huggingface_hub; pip install 'chameleon-jax[released]'"
        ) from None
    if not get_token():
        raise FileError(f"{name}: nobody is logged in; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="chameleon_jax")
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        there = api.model_info(repository)
    except Exception as error:
        raise FileError(f"{name}: {_why(error)}") from None
    if private and not there.private:
        raise FileError(f"{name}: is public already, so nothing was sent; make it private on the Hub, or choose a name")
    before = sorted(file.rfilename for file in there.siblings or ())
    kept = CARD in names and CARD in before and is_untouched((folder / CARD).read_bytes())
    sent = [each for each in names if not (kept and each == CARD)]
    operations = [CommitOperationAdd(each, str(folder / each)) for each in sent]
    try:
        commit = api.create_commit(repository, operations, commit_message="Upload of a model by chameleon_jax")
    except Exception as error:
        raise FileError(f"{name}: {_why(error)}") from None
    left = [each for each in before if each not in names and _is_of_model(each)]
    return Pushed(str(commit.commit_url), kept, left)


def _why(error: Exception) -> str:
    """Explains in one line why sending failed and what to do."""
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if status == 401:
        return "the token is not valid; log in with `hf auth login`, or set HF_TOKEN"
    if status in (403, 404):
        return f"the token may not write there; it needs the right to write to this organisation ({reason})"
    if isinstance(error, ValueError) and status is None:
        return f"the Hub refuses it: {reason}"
    return (
        f"could not be sent to the Hugging Face Hub ({reason}). Check the network and try again: large files that were "
        "sent whole are not sent again"
    )
