"""What is wrong with a model folder is said in one line, before any weight is read, whatever its format.

Every case damages a copy of a good folder. The message has to begin with the file to look at and to hold what a person
needs: the key, the value that was found, what was expected.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_picture, released_model

from chameleon_jax.chameleon import CannotDraw, load
from chameleon_jax.config import ConfigError, GenerationConfig
from chameleon_jax.document import DocumentError
from chameleon_jax.errors import ChameleonError, FileError
from chameleon_jax.tokens.vocabulary import VocabularyError
from chameleon_jax.weights import huggingface_writing
from chameleon_jax.weights.checkpoint import ConversionError
from chameleon_jax.weights.formats import open_checkpoint, write_checkpoint
from chameleon_jax.weights.safetensors import read_safetensors
from chameleon_jax.weights.sources import FileWeights
from chameleon_jax.weights.stored import BFLOAT16, StoredTensor
from chameleon_jax.weights.torch_files import read_torch_file
from chameleon_jax.weights.torch_writing import write_torch_file

Q = "model.layers.1.self_attn.q_proj.weight"
Q_NORM = "model.layers.0.self_attn.q_norm.weight"
GATE = "layers.1.feed_forward.w1.weight"
NORM = "layers.1.ffn_norm.weight"
NORM_WEIGHT = "model.layers.0.input_layernorm.weight"
OTHER_NORM = "model.layers.1.input_layernorm.weight"
VQ_KEY = "model.vqmodel.encoder.conv_in.weight"
ONE, SHARD = "model.safetensors", "consolidated.01.pth"
DECODER = "image_decoder/model.safetensors"
INDEX = "model.safetensors.index.json"
TEXT = "tokenizer/text_tokenizer.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """One folder for each format; 'sharded' is Hugging Face's with an index."""
    root = tmp_path_factory.mktemp("good")
    released_model().save(root / "huggingface", "huggingface")
    opened = open_checkpoint(root / "huggingface")
    write_checkpoint(opened, root / "meta", "meta")
    write_checkpoint(opened, root / "chameleon", "chameleon")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_writing, "LARGEST_FILE", 600_000)
        write_checkpoint(opened, root / "sharded", "huggingface")
    return root


def test_good_folders_open(good):
    for folder in good.iterdir():
        opened = open_checkpoint(folder)
        assert (opened.missing, opened.warnings) == ({}, [])
    assert len(list((good / "sharded").glob("model-*-of-00003.safetensors"))) == 3


def damaged(good: Path, tmp_path: Path, name: str, damage: Callable[[Path], Any]) -> Path:
    folder = shutil.copytree(good / name, tmp_path / name)
    damage(folder)
    return folder


def refusal(folder: str | Path, kind: type[ChameleonError] = ChameleonError, **options: Any) -> str:
    """The one line that a folder is refused with; no weight is read before."""

    def read(*args):
        raise AssertionError("weights were read before the folder was checked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileWeights, "place", read)
        patch.setattr(FileWeights, "fetch", read)
        with pytest.raises(kind) as caught:
            open_checkpoint(folder, **options)
    assert isinstance(caught.value, (FileError, VocabularyError, ConfigError, ConversionError))
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# ----------------------------------------------------------------------------------------------------------------------
# Ways to damage a folder
# ----------------------------------------------------------------------------------------------------------------------

Damage = Callable[[Path], Any]


def removed(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def copied(source: str, target: str) -> Damage:
    return lambda folder: shutil.copy(folder / source, folder / target)


def written(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, size: int) -> Damage:
    """Keeps `size` bytes; counted from the end if negative."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def edited(name: str, change: Callable[[Any], Any]) -> Damage:
    """Changes the content of a JSON or YAML file in place, as a person may: without the hash of a header of ours."""

    def damage(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        content = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
        if isinstance(content, dict):
            content.pop("sha256", None)
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return damage


def values(name: str, **changes: Any) -> Damage:
    """Sets keys of a JSON or YAML file, `a__b` inside `a`; `...` removes one."""

    def change(content: dict[str, Any]) -> None:
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            if value is ...:
                del place[key]
            else:
                place[key] = value

    return edited(name, change)


NAMES = {"float32": "F32", "bfloat16": "BF16", "int8": "I8", "float64": "F64"}


def save_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, offset = {}, 0
    for key, value in tensors.items():
        end = offset + value.nbytes
        header[key] = {"dtype": NAMES[str(value.dtype)], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    path.write_bytes(with_length(json.dumps(header)) + b"".join(value.tobytes() for value in tensors.values()))


def save_torch(path: Path, tensors: dict[str, np.ndarray], top: str | None = None) -> None:
    specs = {key: (value.shape, value.dtype) for key, value in tensors.items()}
    write_torch_file(path, specs, tensors.__getitem__, top=top)


def arrays(path: Path) -> dict[str, np.ndarray]:
    stored = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    return {key: np.array(tensor.view()) for key, tensor in stored.get("state_dict", stored).items()}


def tensors(name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    """Changes the tensors of a file."""

    def damage(folder: Path) -> None:
        found = arrays(folder / name)
        change(found)
        if name.endswith(".safetensors"):
            save_safetensors(folder / name, found)
        else:
            save_torch(folder / name, found, top="state_dict" if name.endswith(".ckpt") else None)

    return damage


def without(name: str, key: str) -> Damage:
    return tensors(name, lambda found: found.pop(key))


def with_extra(name: str, key: str) -> Damage:
    return tensors(name, lambda found: found.update({key: np.ones(3, np.float32)}))


def reshaped(name: str, key: str) -> Damage:
    return tensors(name, lambda found: found.update({key: found[key][..., :-1].copy()}))


def quantised(name: str, key: str) -> Damage:
    return tensors(name, lambda found: found.update({key: found[key].astype(np.int8)}))


def with_length(text: str) -> bytes:
    """A safetensors header: its length and itself."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Changes the header of a safetensors file, not its data."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        (folder / name).write_bytes(with_length(json.dumps(entries)) + content[8 + length :])

    return damage


def tokens(name: str, change: Callable[[dict[str, int]], Any]) -> Damage:
    """Changes names and ids of a tokenizer's file, in both of its tables."""

    def damage(content: dict[str, Any]) -> None:
        names = {**content["model"]["vocab"], **{token["content"]: token["id"] for token in content["added_tokens"]}}
        special = [token["content"] for token in content["added_tokens"]]
        content["model"]["vocab"] = {}
        change(names)
        content["model"]["vocab"] = {key: token for key, token in names.items() if key not in special}
        content["added_tokens"] = [
            {"id": names[key], "content": key, "special": True} for key in special if key in names
        ]

    return edited(name, damage)


def renamed(name: str, old: str, new: str) -> Damage:
    return tokens(name, lambda names: names.update({new: names.pop(old)}))


def more_codes(name: str) -> Damage:
    """A tokenizer of seventeen image codes in the place of that of sixteen; no more ids than before."""

    def change(names: dict[str, int]) -> None:
        names["IMGIMGBGZ"] = names.pop(next(key for key in reversed(names) if key[0] not in "<I"))

    return tokens(name, change)


def moved_shard(name: str) -> str:
    return name.replace("01", "02")


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def long_header(folder: Path) -> None:
    with open(folder / ONE, "wb") as file:
        file.write(struct.pack("<Q", (16 << 20) + 1))
        file.truncate(32 << 20)  # no bytes on the disk


NESTED = "[" * 100_000

# (format, id, damage, the file that the message begins with, what else the message has to hold)
CASES: list[tuple[str, str, Damage, str, tuple[str, ...]]] = [
    # A safetensors file that is no whole file
    ("huggingface", "emptied weights", cut(ONE, 0), ONE, ("not a whole safetensors file", "it has 0 bytes")),
    ("huggingface", "weights cut in the length", cut(ONE, 7), ONE, ("not a whole safetensors file", "it has 7 bytes")),
    ("huggingface", "weights cut after the length", cut(ONE, 8), ONE, ("header claims", "the file has 8")),
    ("huggingface", "weights cut in the header", cut(ONE, 500), ONE, ("header claims", "the file has 500")),
    ("huggingface", "weights cut in the data", cut(ONE, 100_000), ONE, ("should end at byte", "the file has 100000")),
    ("huggingface", "weights one byte short", cut(ONE, -1), ONE, ("should end at byte", "download or copy it again")),
    ("sharded", "shard one byte short", cut("model-00002-of-00003.safetensors", -1),
     "model-00002-of-00003.safetensors", ("should end at byte",)),
    ("huggingface", "header longer than the file", written(ONE, struct.pack("<Q", 4000) + b"{}"), ONE,
     ("header claims 4000 bytes, the file has 10",)),
    ("huggingface", "header of impossible length", written(ONE, struct.pack("<Q", 2**63) + b"{}"), ONE,
     ("header claims 9223372036854775808 bytes",)),
    ("huggingface", "header is no JSON", written(ONE, with_length("{?")), ONE, ("header is not JSON",)),
    ("huggingface", "header is no text", written(ONE, struct.pack("<Q", 2) + b"\xff\xfe"), ONE, ("is not JSON",)),
    ("huggingface", "header nested a hundred thousand times",
     written(ONE, with_length(NESTED)), ONE, ("header is not JSON",)),
    ("huggingface", "header is a list", written(ONE, with_length("[]")), ONE, ("not a mapping of tensors",)),
    ("huggingface", "page of a website instead of weights", written(ONE, "<!doctype html><title>Not found</title>"),
     ONE, ("not a whole safetensors file",)),
    ("huggingface", "pointer instead of weights", written(ONE, "version https://git-lfs.github.com/spec/v1\nsize 9\n"),
     ONE, ("not a whole safetensors file",)),
    ("huggingface", "tensor that is a number", header(ONE, lambda entries: entries.update({Q: 3})), ONE,
     (f"{Q} is described as 3",)),
    ("huggingface", "tensor of an unknown type", header(ONE, lambda entries: entries[Q].update(dtype="F4")), ONE,
     (f"{Q} is described as", "F4")),
    ("huggingface", "tensor without offsets", header(ONE, lambda entries: entries[Q].pop("data_offsets")), ONE,
     (f"{Q} is described as",)),
    ("huggingface", "tensor of negative size", header(ONE, lambda entries: entries[Q].update(shape=[-1, -1024])), ONE,
     (Q, "shape (-1, -1024)")),
    ("huggingface", "tensor of half sizes", header(ONE, lambda entries: entries[Q].update(shape=[0.5, 2048])), ONE,
     (Q, "shape (0.5, 2048)")),
    ("huggingface", "shape and offsets that contradict", header(ONE, lambda entries: entries[Q].update(shape=[32, 33])),
     ONE, (Q, "shape (32, 33)", "claims bytes")),
    ("huggingface", "offsets past the end",
     header(ONE, lambda entries: entries[Q].update(data_offsets=[2**40, 2**40 + 4096])), ONE,
     (f"{Q} should end at byte",)),
    ("huggingface", "tensors in the same bytes",
     header(ONE, lambda entries: entries[OTHER_NORM].update(data_offsets=entries[NORM_WEIGHT]["data_offsets"])), ONE,
     ("layernorm.weight", "is shared with another tensor")),
    ("huggingface", "bytes of no tensor", header(ONE, lambda entries: entries.pop(Q)), ONE,
     ("comes after bytes of no tensor",)),
    ("huggingface", "bytes after the last tensor", lambda folder: append(folder / ONE, b"\0" * 8), ONE,
     ("its tensors end at byte",)),
    ("huggingface", "tensor of a million axes", header(ONE, lambda entries: entries[Q].update(shape=[1] * 10**6)), ONE,
     (Q, "1000000 axes")),
    ("huggingface", "tensor of nothing in an endless shape",
     header(ONE, lambda entries: entries.update(a={"dtype": "F32", "shape": [2**62, 4, 0], "data_offsets": [0, 0]})),
     ONE, ("a has the impossible shape",)),
    ("huggingface", "tensor of endless numbers", written(ONE, with_length('{"a": {"shape": [' + "9" * 5000 + "]}}")),
     ONE, ("header is not JSON", "a whole number of 5,000 digits")),
    ("huggingface", "one tensor described twice", written(ONE, with_length('{"a": 1, "a": 2}')), ONE,
     ("key 'a' is written twice",)),
    ("huggingface", "header of more bytes than weights need", long_header, ONE, ("more than the 16,777,216",)),
    ("huggingface", "weights are a folder", both(removed(ONE), lambda folder: (folder / ONE).mkdir()), ONE,
     ("Is a directory",)),
    # Files and the index of files
    ("sharded", "shard that is missing", removed("model-00002-of-00003.safetensors"), INDEX,
     ("model-00002-of-00003.safetensors", "no such file")),
    ("sharded", "index that names a file that is not there",
     edited(INDEX, lambda index: index["weight_map"].update({"new.weight": "x.bin"})), INDEX,
     ("1 tensor", "x.bin", "no such file")),
    ("sharded", "index that names no file",
     edited(INDEX, lambda index: index["weight_map"].update({"new.weight": ""})), INDEX, ("no such file",)),
    ("sharded", "index that names a file longer than names can be",
     edited(INDEX, lambda index: index["weight_map"].update({"new.weight": "x" * 300})), INDEX, ("xxx",)),
    ("sharded", "index that names a number", edited(INDEX, lambda index: index["weight_map"].update({Q: 3})), INDEX,
     ("no weight_map",)),
    ("sharded", "index that names a tensor its file lacks",
     edited(INDEX, lambda index: index["weight_map"].update({"lost.weight": "model-00001-of-00003.safetensors"})),
     "model-00001-of-00003.safetensors", ("lost.weight is missing", INDEX)),
    ("sharded", "index that places a tensor in another file",
     edited(INDEX, lambda index: index["weight_map"].update({Q: "model-00003-of-00003.safetensors"})),
     "model-00001-of-00003.safetensors", (Q, "places it in model-00003-of-00003.safetensors", "two models are mixed")),
    ("sharded", "file with a tensor that the index does not know",
     with_extra("model-00003-of-00003.safetensors", "other.weight"), "model-00003-of-00003.safetensors",
     ("other.weight", "the index does not know it", "two models are mixed")),
    ("sharded", "index that leaves the folder",
     edited(INDEX, lambda index: index["weight_map"].update({"new.weight": "../huggingface/model.safetensors"})), INDEX,
     ("../huggingface/model.safetensors", "no such file")),
    ("sharded", "index that names a tensor twice", written(INDEX, '{"weight_map": {"a": "x", "a": "y"}}'), INDEX,
     ("key 'a' is written twice",)),
    ("sharded", "index that is a sparse giant", lambda folder: os.truncate(folder / INDEX, 1 << 40), INDEX,
     ("more than 16,777,216 bytes",)),
    ("sharded", "index without weight_map", written(INDEX, '{"metadata": {}}'), INDEX, ("no weight_map",)),
    ("sharded", "index that is a list", written(INDEX, "[]"), INDEX, ("no weight_map",)),
    ("sharded", "index that is no JSON", cut(INDEX, 300), INDEX, ("cannot be read as JSON",)),
    ("sharded", "index nested a hundred thousand times", written(INDEX, NESTED), INDEX, ("cannot be read as JSON",)),
    ("sharded", "empty index", written(INDEX, '{"weight_map": {}}'), "", (Q_NORM, "missing")),
    ("sharded", "index and one file", copied("model-00001-of-00003.safetensors", ONE), "",
     (INDEX, ONE, "two models are mixed")),
    ("huggingface", "safetensors and a pickle", copied(ONE, "pytorch_model.bin"), "",
     (ONE, "pytorch_model.bin", "two models are mixed")),
    # Tensors
    ("huggingface", "missing tensor", without(ONE, Q), "", (f"{Q} missing", "download")),
    ("huggingface", "missing layer", tensors(ONE, lambda found: [found.pop(key) for key in list(found) if ".1." in key
     and "vqmodel" not in key]), "", ("model.layers.1.", "and 12 more missing")),
    ("huggingface", "missing QK-norm", without(ONE, Q_NORM), "", (f"{Q_NORM} is missing", "another kind of model")),
    ("huggingface", "no QK-norm of keys",
     tensors(ONE, lambda found: [found.pop(key) for key in list(found) if ".k_norm." in key]), "",
     ("self_attn.k_norm.weight", "missing")),
    ("huggingface", "QK-norm without axes",
     tensors(ONE, lambda found: found.update({Q_NORM: np.ones((), np.float32)})), ONE, (Q_NORM, "shape ()")),
    ("huggingface", "QK-norm of impossibly many rows",
     tensors(ONE, lambda found: found.update({key: np.ones((3, 4), np.float32) for key in found
                                              if ".q_norm." in key})), ONE, (Q_NORM, "shape (3, 4)")),
    ("huggingface", "QK-norm without rows",
     tensors(ONE, lambda found: found.update({key: np.ones((0, 4), np.float32) for key in found
                                              if ".q_norm." in key})), ONE, (Q_NORM, "shape (0, 4)")),
    ("huggingface", "extra tensor", with_extra(ONE, "model.layers.2.mlp.gate_proj.weight"), "",
     ("holds model.layers.2.mlp.gate_proj.weight", "the config does not explain")),
    ("huggingface", "tensor of another shape", reshaped(ONE, Q), ONE, (f"{Q} has shape (32, 31)", "expects (32, 32)")),
    ("huggingface", "quantised tensor", quantised(ONE, Q), ONE, (Q, "int8", "quantized")),
    ("meta", "missing tensor", without(SHARD, GATE), "", (f"{GATE} missing", "download")),
    ("meta", "extra tensor", with_extra(SHARD, "layers.2.feed_forward.w1.weight"), "",
     ("holds layers.2.feed_forward.w1.weight", "the config does not explain")),
    ("meta", "tensor of another shape", reshaped(SHARD, GATE), SHARD, (f"{GATE} has shape (20, 31)", "(20, 32)")),
    ("meta", "quantised tensor", quantised(SHARD, GATE), SHARD, (GATE, "int8")),
    ("meta", "norm of another shape in one shard", reshaped(SHARD, NORM), SHARD, (NORM, "has shape (31,)")),
    ("meta", "fused tensor in no layer",
     tensors(SHARD, lambda found: found.update({"attention.wqkv.weight": np.ones((32, 32), np.float32)})), "",
     ("attention.wqkv.weight", "the config does not explain")),
    # Torch's files
    *(("meta", f"weights cut at {size}", cut(SHARD, size), SHARD, (expected,)) for size, expected in
      ((0, "empty, no torch checkpoint"), (3, "torch checkpoint"), (60, "damaged"), (50_000, "damaged"),
       (-1, "damaged"))),
    ("meta", "page of a website instead of weights", written(SHARD, "<!doctype html>"), SHARD,
     ("not a torch checkpoint",)),
    ("meta", "tensors with numbers for names",
     lambda folder: save_raw(folder / SHARD, pickled_tensors(lambda tensor: {0: tensor})), SHARD,
     ("expected a mapping from names to tensors",)),
    ("meta", "plain values for tensors", lambda folder: save_raw(folder / SHARD, pickle.dumps({GATE: 3}, 2)), SHARD,
     ("expected a mapping from names to tensors",)),
    ("meta", "list of tensors", lambda folder: save_raw(folder / SHARD, pickle.dumps([], 2)), SHARD,
     ("expected a mapping from names to tensors",)),
    ("huggingface", "plain values in pytorch_model.bin",
     both(removed(ONE), lambda folder: save_raw(folder / "pytorch_model.bin", pickle.dumps({Q_NORM: 3}, 2))),
     "pytorch_model.bin", ("expected",)),
    ("huggingface", "list in pytorch_model.bin",
     both(removed(ONE), lambda folder: save_raw(folder / "pytorch_model.bin", pickle.dumps([], 2))),
     "pytorch_model.bin", ("expected a mapping from names to tensors",)),
    # Shards
    ("meta", "gap in the numbers", lambda folder: (folder / SHARD).rename(folder / moved_shard(SHARD)), "",
     ("consolidated.01.pth is missing", "consolidated.02.pth")),
    ("meta", "first shard missing", removed("consolidated.00.pth"), "", ("consolidated.00.pth is missing",)),
    ("meta", "last shard missing", removed(SHARD), "", ("model_parallel_size is 2", "there are 1")),
    ("meta", "one shard too many", copied(SHARD, moved_shard(SHARD)), "", ("model_parallel_size is 2", "there are 3")),
    ("meta", "more shards than anyone said",
     both(removed("consolidate_params.json"), copied(SHARD, moved_shard(SHARD))), "", ("n_heads = 8", "3 shards")),
    ("meta", "whole and in shards", copied(SHARD, "consolidated.pth"), "",
     ("consolidated.pth", "consolidated.00.pth", "two models are mixed")),
    # Configs
    ("huggingface", "config that is no JSON", cut("config.json", 100), "config.json", ("cannot be read as JSON",)),
    ("huggingface", "config that is no text", written("config.json", b"\xff\xfe"), "config.json", ("cannot be read",)),
    ("huggingface", "config nested a hundred thousand times", written("config.json", NESTED), "config.json",
     ("cannot be read as JSON",)),
    ("huggingface", "config that is a list", written("config.json", "[]"), "config.json",
     ("must be a mapping",)),
    ("huggingface", "config of another model", values("config.json", model_type="llama"), "config.json",
     ("model_type is 'llama'", "expected 'chameleon'")),
    ("huggingface", "config of an image tokenizer", values("config.json", model_type="chameleon_vqgan"), "config.json",
     ("model_type is 'chameleon_vqgan'",)),
    ("huggingface", "attention with bias", values("config.json", attention_bias=True), "config.json",
     ("attention_bias = True", "only False")),
    ("huggingface", "MLP with bias", values("config.json", mlp_bias=True), "config.json", ("mlp_bias = True",)),
    ("huggingface", "tied embeddings", values("config.json", tie_word_embeddings=True), "config.json",
     ("tie_word_embeddings = True",)),
    ("huggingface", "another activation", values("config.json", hidden_act="gelu"), "config.json",
     ("hidden_act = 'gelu'", "only 'silu'")),
    ("huggingface", "scaled RoPE", values("config.json", rope_parameters={"rope_type": "linear", "factor": 2.0}),
     "config.json", ("rope_parameters", "linear", "only plain RoPE")),
    ("huggingface", "scaled RoPE as of old",
     values("config.json", rope_parameters=..., rope_scaling={"type": "dynamic", "factor": 2.0}), "config.json",
     ("dynamic", "only plain RoPE")),
    ("huggingface", "RoPE that is text", values("config.json", rope_parameters="default"), "config.json",
     ("rope_parameters",)),
    ("huggingface", "more layers than weights", values("config.json", num_hidden_layers=3), "",
     ("model.layers.2.", "missing", "the config expects")),
    ("huggingface", "fewer layers than weights", values("config.json", num_hidden_layers=1), "",
     ("holds model.layers.1.", "the config does not explain")),
    ("huggingface", "layers that are text", values("config.json", num_hidden_layers="2"), "config.json",
     ("num_hidden_layers = '2'", "must be a whole number")),
    ("huggingface", "layers with a fraction", values("config.json", num_hidden_layers=2.5), "config.json",
     ("num_hidden_layers", "2.5")),
    ("huggingface", "infinitely many layers", values("config.json", num_hidden_layers=float("inf")), "config.json",
     ("num_hidden_layers", "inf")),
    ("huggingface", "no heads", values("config.json", num_attention_heads=0), "config.json",
     ("not the config of a Chameleon",)),
    ("huggingface", "heads that key/value heads do not divide", values("config.json", num_key_value_heads=3),
     "config.json", ("num_kv_heads = 3", "must divide num_heads = 8")),
    ("huggingface", "width that the weights do not have", values("config.json", hidden_size=64), ONE,
     ("has shape", "the config expects")),
    ("huggingface", "vocabulary that the weights do not have", values("config.json", vocab_size=500), ONE,
     ("model.embed_tokens.weight has shape (460, 32)", "expects (500, 32)")),
    ("huggingface", "shards that are text", values("config.json", model_parallel_size="two"), "config.json",
     ("model_parallel_size", "'two'")),
    ("huggingface", "note that is a list", written("chameleon_jax.json", "[1]"), "chameleon_jax.json",
     ("has no format_version",)),
    ("huggingface", "note that is no JSON", written("chameleon_jax.json", "{"), "chameleon_jax.json", ("JSON",)),
    ("meta", "params.json missing", removed("params.json"), "params.json", ("no such file",)),
    ("meta", "params.json that is no JSON", cut("params.json", 40), "params.json", ("cannot be read as JSON",)),
    ("meta", "params.json that is a list", written("params.json", "[]"), "params.json", ("a mapping",)),
    ("meta", "params.json without sizes", written("params.json", "{}"), "consolidated.00.pth",
     ("tok_embeddings.weight has shape (460, 16)", "expects (460, 256)")),
    ("meta", "width that the weights do not have", values("params.json", model__dim=64), "consolidated.00.pth",
     ("has shape", "the config expects")),
    ("meta", "more layers than weights", values("params.json", model__n_layers=3), "", ("layers.2.", "missing")),
    ("meta", "fewer layers than weights", values("params.json", model__n_layers=1), "",
     ("layers.1.", "does not explain")),
    ("meta", "layers with a fraction", values("params.json", model__n_layers=2.5), "params.json", ("n_layers", "2.5")),
    ("meta", "width that is text", values("params.json", model__dim="32"), "params.json",
     ("dim = '32'", "must be a whole number")),
    ("meta", "no heads", values("params.json", model__n_heads=0), "params.json", ("not the config of a Chameleon",)),
    ("meta", "heads that key/value heads do not divide", values("params.json", model__n_kv_heads=3), "params.json",
     ("num_kv_heads = 3",)),
    ("meta", "feed-forward of no width", values("params.json", model__multiple_of=0), "params.json",
     ("not the config of a Chameleon",)),
    ("meta", "feed-forward of infinite width", values("params.json", model__ffn_dim_multiplier=float("inf")),
     "params.json", ("ffn_dim_multiplier = 'inf'", "must be a number")),
    ("meta", "no QK-norm said, but stored", values("params.json", model__qk_normalization=False), "",
     ("q_normalization", "does not explain")),
    ("meta", "parallel size that contradicts the files", values("consolidate_params.json", model_parallel_size=4), "",
     ("model_parallel_size is 4", "there are 2")),
    ("meta", "consolidate_params.json that is no JSON", cut("consolidate_params.json", 5), "consolidate_params.json",
     ("cannot be read as JSON",)),
    ("meta", "consolidate_params.json that is a list", written("consolidate_params.json", "[1]"),
     "consolidate_params.json", ("a mapping",)),
    ("meta", "note that is a list", written("chameleon_jax.json", "[1]"), "chameleon_jax.json",
     ("has no format_version",)),
    # Text tokenizers
    *(
        (kind, f"{what} in the text tokenizer", damage(file), file, expected)
        for kind, file in (("huggingface", "tokenizer.json"), ("meta", TEXT), ("chameleon", "tokenizer/text.json"))
        for what, damage, expected in (
            ("no JSON", lambda file: cut(file, 500), ("cannot be read as JSON",)),
            ("nothing", lambda file: written(file, ""), ("cannot be read as JSON",)),
            ("nesting", lambda file: written(file, NESTED), ("cannot be read as JSON",)),
            ("a list", lambda file: written(file, "[]"), ("missing or damaged",)),
            ("another kind", lambda file: values(file, model__type="Unigram"), ("model.type is 'Unigram'", "'BPE'")),
            ("no names", lambda file: values(file, model__vocab=...), ("model.vocab is missing or damaged",)),
            ("negative id", lambda file: tokens(file, lambda names: names.update({"!": -3})), ("id -3 of '!'",)),
            ("text for an id", lambda file: tokens(file, lambda names: names.update({"!": "x"})), ("id 'x' of '!'",)),
            ("two ids", lambda file: edited(file, lambda content: content["model"]["vocab"].update({"<s>": 99})),
             ("'<s>' has id 99", "id 0 in added_tokens")),
            ("one id twice", lambda file: tokens(file, lambda names: names.update({"!": 0})), ("both have id 0",)),
        )
    ),
    *(
        (kind, f"{what} among the names", damage(file), file, expected)
        for kind, file in (("huggingface", "tokenizer.json"), ("meta", TEXT))
        for what, damage, expected in (
            ("missing image code", lambda file: tokens(file, lambda names: names.pop("IMGIMGDZ")),
             ("15 image codes", "'IMGIMGDZ' (code 3)")),
            ("image code with two ids",
             lambda file: edited(file, lambda content: content["model"]["vocab"].update(IMGIMGDZ=470)),
             ("'IMGIMGDZ' has id 470", "id 7 in added_tokens")),
            ("malformed image code", lambda file: renamed(file, "IMGIMGDZ", "IMGIMGKZ"), ("'IMGIMGKZ'", "not named")),
            ("image code with leading zero", lambda file: renamed(file, "IMGIMGDZ", "IMGIMGADZ"), ("'IMGIMGADZ'",)),
            *(
                (f"missing {name}", lambda file, name=name: tokens(file, lambda names: names.pop(name)),
                 (f"no token {name!r}",))
                for name in ("<s>", "<pad>", "</s>", "<racm3:break>", "<eoss>", "<reserved08706>")
            ),
        )
    ),
    ("huggingface", "tokenizer with more ids than the embedding",
     both(values("config.json", vocabulary_map=...), tokens("tokenizer.json", lambda names: names.update(new=5000))),
     "", ("its tokenizer has 5001 ids", "only 460", "two models are mixed")),
    ("meta", "tokenizer with more ids than the embedding",
     tokens(TEXT, lambda names: names.update(new=5000)), "",
     ("its tokenizer has 5001 ids", "only 460", "two models are mixed")),
    ("huggingface", "tokenizer with other image codes than the image tokenizer",
     both(values("config.json", vocabulary_map=...), more_codes("tokenizer.json")), "",
     ("names 17 image codes", "has 16", "two models are mixed")),
    ("meta", "tokenizer with other image codes than the image tokenizer", more_codes(TEXT), "",
     ("names 17 image codes", "has 16", "two models are mixed")),
    ("huggingface", "tokenizer whose ids contradict the config",
     edited("config.json", lambda content: content["vocabulary_map"].update({"IMGIMGDZ": 9, "IMGIMGFZ": 7})),
     "tokenizer.json", ("'IMGIMGDZ' has id 7, but 9 in config.json", "two models are mixed")),
    ("huggingface", "vocabulary_map without an image code",
     both(removed("tokenizer.json"), edited("config.json", lambda content: content["vocabulary_map"].pop("IMGIMGDZ"))),
     "config.json", ("vocabulary_map", "'IMGIMGDZ' (code 3)")),
    ("huggingface", "vocabulary_map with text for an id",
     both(removed("tokenizer.json"), edited("config.json", lambda content: content["vocabulary_map"].update(new="x"))),
     "config.json", ("vocabulary_map", "id 'x' of 'new'")),
    ("chameleon", "vocabulary of other ids than the text tokenizer",
     edited("tokenizer/vocabulary.json", lambda content: content["text_ids"].pop()), "tokenizer/vocabulary.json",
     ("426 text pieces", "text tokenizer 427")),
    ("chameleon", "vocabulary with other image codes than the image tokenizer",
     edited("tokenizer/vocabulary.json", lambda content: content["image_ids"].append(459)), "",
     ("names 17 image codes", "has 16")),
    ("chameleon", "vocabulary that is no JSON", cut("tokenizer/vocabulary.json", 50), "tokenizer/vocabulary.json",
     ("cannot be read as JSON",)),
    ("chameleon", "vocabulary that is a list", written("tokenizer/vocabulary.json", "[]"),
     "tokenizer/vocabulary.json", ("format_version",)),
    ("chameleon", "config nested a hundred thousand times", written("config.json", NESTED), "config.json",
     ("cannot be read as JSON",)),
    ("chameleon", "layers with a fraction", values("config.json", model__num_layers=2.5), "config.json",
     ("model.num_layers = 2.5", "a whole number")),
    # Sizes that would fill the memory of a machine, or the time of its owner
    ("huggingface", "a billion layers", values("config.json", num_hidden_layers=10**9), "config.json",
     ("num_layers = 1000000000", "must be at most 1024")),
    ("huggingface", "a thousand layers", values("config.json", num_hidden_layers=1000), "",
     ("its config has 1000 layers", "its files hold only")),
    ("huggingface", "ids by the trillion", values("config.json", vocab_size=10**12), "config.json",
     ("vocab_size = '1000000000000'",)),
    ("huggingface", "a width of thirty digits", values("config.json", hidden_size=10**30), "config.json",
     ("hidden_size",)),
    ("huggingface", "a width of five thousand digits",
     lambda folder: (folder / "config.json").write_text('{"hidden_size": ' + "9" * 5000 + "}"), "config.json",
     ("a whole number of 5,000 digits",)),
    ("meta", "a billion layers", values("params.json", model__n_layers=10**9), "params.json",
     ("num_layers = 1000000000",)),
    ("meta", "a thousand layers", values("params.json", model__n_layers=1000), "", ("its config has 1000 layers",)),
    ("meta", "feed-forward of nearly infinite width", values("params.json", model__ffn_dim_multiplier=1e300),
     "params.json", ("ffn_dim_multiplier",)),
    ("meta", "feed-forward rounded up to a billion", values("params.json", model__multiple_of=10**9), "params.json",
     ("mlp_dim",)),
    ("chameleon", "a billion layers", values("config.json", model__num_layers=10**9), "config.json",
     ("model.num_layers = 1000000000", "must be at most 1024")),
    ("chameleon", "ids by the trillion", values("config.json", model__vocab_size=10**12), "config.json",
     ("model.vocab_size",)),
]  # fmt: skip

# The same for an image tokenizer, without which the rest opens
IMAGE_CASES: list[tuple[str, str, Damage, str, tuple[str, ...]]] = [
    ("huggingface", "decoder one byte short", cut(DECODER, -1), DECODER, ("should end at byte",)),
    ("huggingface", "missing tensor of the image tokenizer", without(ONE, VQ_KEY), "", (f"{VQ_KEY} missing",)),
    ("huggingface", "image tokenizer of another shape", reshaped(ONE, VQ_KEY), ONE, (VQ_KEY, "has shape")),
    ("huggingface", "quantised image tokenizer", quantised(ONE, VQ_KEY), ONE, (VQ_KEY, "int8")),
    ("huggingface", "half a decoder", without(DECODER, "model.vqmodel.decoder.conv_in.weight"), "",
     ("model.vqmodel.decoder.conv_in.weight missing",)),
    ("meta", "missing tensor of the image tokenizer", without("tokenizer/vqgan.ckpt", "encoder.conv_in.weight"),
     "tokenizer/vqgan.ckpt", ("encoder.conv_in.weight missing",)),
    ("meta", "image tokenizer without a decoder",
     tensors("tokenizer/vqgan.ckpt", lambda found: [found.pop(key) for key in list(found) if "decoder" in key]),
     "tokenizer/vqgan.ckpt", ("decoder.", "more missing")),
    ("meta", "image tokenizer of another shape", reshaped("tokenizer/vqgan.ckpt", "encoder.conv_in.weight"),
     "tokenizer/vqgan.ckpt", ("encoder.conv_in.weight", "has shape (32, 3, 3, 2)", "expects (32, 3, 3, 3)")),
    ("meta", "quantised image tokenizer", quantised("tokenizer/vqgan.ckpt", "encoder.conv_in.weight"),
     "tokenizer/vqgan.ckpt", ("encoder.conv_in.weight", "int8")),
    ("meta", "image tokenizer cut", cut("tokenizer/vqgan.ckpt", 1000), "tokenizer/vqgan.ckpt", ("damaged",)),
    ("meta", "image tokenizer that is a list",
     lambda folder: save_raw(folder / "tokenizer/vqgan.ckpt", pickle.dumps([], 2)), "tokenizer/vqgan.ckpt",
     ("expected a mapping",)),
    ("huggingface", "vq_config with double_latent", values("config.json", vq_config__double_latent=True),
     "config.json", ("vq_config", "double_latent", "a mean and a variance")),
    ("huggingface", "vq_config with attention that the weights lack",
     values("config.json", vq_config__attn_resolutions=[8]), "", (".0.attn.0.", "missing")),
    ("huggingface", "vq_config with an unknown key", values("config.json", vq_config__extra_blocks=2), "config.json",
     ("vq_config", "unknown keys extra_blocks")),
    ("huggingface", "vq_config with linear attention", values("config.json", vq_config__attn_type="linear"),
     "config.json", ("attn_type = 'linear'", "'vanilla'")),
    ("huggingface", "vq_config whose names contradict", values("config.json", vq_config__ch=64), "config.json",
     ("base_channels = 32 but ch = 64",)),
    ("huggingface", "vq_config of grey pictures", values("config.json", vq_config__in_channels=1), "config.json",
     ("vq_config", "in_channels")),
    ("huggingface", "vq_config with impossible sizes",
     values("config.json", vq_config__base_channels=33, vq_config__ch=33), "config.json", ("vq_config", "norm_groups")),
    ("huggingface", "vq_config with sizes that are text", values("config.json", vq_config__resolution="large"),
     "config.json", ("vq_config",)),
    ("huggingface", "vq_config with half sizes", values("config.json", vq_config__num_res_blocks=1.5),
     "config.json", ("vq_config", "1.5")),
    ("huggingface", "vq_config that is a list", values("config.json", vq_config=[1]), "config.json", ("vq_config",)),
    ("huggingface", "vq_config of another tokenizer",
     values("config.json", vq_config__num_embeddings=32, vq_config__n_embed=32), ONE,
     ("model.vqmodel.quantize.embedding.weight has shape (16, 8)", "expects (32, 8)")),
    ("meta", "vqgan.yaml missing", removed("tokenizer/vqgan.yaml"), "tokenizer/vqgan.yaml", ("no such file",)),
    ("meta", "vqgan.yaml that is no YAML", written("tokenizer/vqgan.yaml", "model: [1\nx: }"), "tokenizer/vqgan.yaml",
     ("not valid YAML", "line")),
    ("meta", "vqgan.yaml with an impossible date", written("tokenizer/vqgan.yaml", "model: 2001-99-99"),
     "tokenizer/vqgan.yaml", ("YAML",)),
    ("meta", "vqgan.yaml nested ten thousand times", written("tokenizer/vqgan.yaml", "[" * 10_000),
     "tokenizer/vqgan.yaml", ("YAML",)),
    ("meta", "vqgan.yaml that is empty", written("tokenizer/vqgan.yaml", ""), "tokenizer/vqgan.yaml",
     ("must be a mapping",)),
    ("meta", "vqgan.yaml of another model", written("tokenizer/vqgan.yaml", "model: {target: x}"),
     "tokenizer/vqgan.yaml", ("model.params", "not the config of a VQGAN")),
    *(
        ("meta", f"vqgan.yaml with {key} = {value}",
         values("tokenizer/vqgan.yaml", **{f"model__params__ddconfig__{key}": value}), "tokenizer/vqgan.yaml",
         (f"{key} = ",))
        for key, value in (("resamp_with_conv", False), ("tanh_out", True), ("give_pre_end", True), ("in_channels", 1),
                           ("out_ch", 4), ("use_linear_attn", True), ("attn_type", "linear"), ("double_z", True))
    ),
    ("meta", "vqgan.yaml with an unknown key", values("tokenizer/vqgan.yaml", model__params__ddconfig__extra=1),
     "tokenizer/vqgan.yaml", ("unknown keys extra",)),
    ("meta", "vqgan.yaml with renumbered codes", values("tokenizer/vqgan.yaml", model__params__remap="used.npy"),
     "tokenizer/vqgan.yaml", ("remap = 'used.npy'",)),
    ("meta", "vqgan.yaml without a size", values("tokenizer/vqgan.yaml", model__params__ddconfig__ch=...),
     "tokenizer/vqgan.yaml", ("ch is missing",)),
    ("meta", "vqgan.yaml with sizes that are text", values("tokenizer/vqgan.yaml", model__params__ddconfig__ch="x"),
     "tokenizer/vqgan.yaml", ("ch = 'x'", "must be a whole number")),
    ("meta", "vqgan.yaml with half sizes", values("tokenizer/vqgan.yaml", model__params__ddconfig__num_res_blocks=1.5),
     "tokenizer/vqgan.yaml", ("num_res_blocks = '1.5'", "must be a whole number")),
    ("meta", "vqgan.yaml of another tokenizer", values("tokenizer/vqgan.yaml", model__params__n_embed=32),
     "tokenizer/vqgan.ckpt", ("quantize.embedding.weight has shape (16, 8)", "expects (32, 8)")),
    ("chameleon", "image tokenizer of another size",
     values("tokenizer/image/config.json", model__num_codes=32), "tokenizer/image/params", ("codebook", "(16, 8)")),
    *(
        (name, f"{key} = {value}", values(file, **{f"{place}__{theirs}": value}), file, (f"{key} = {value}",))
        for key, value in (("resolution", 32768), ("num_res_blocks", 10**9), ("num_codes", 10**9))
        for name, file, place, theirs in (
            ("meta", "tokenizer/vqgan.yaml", "model__params" + ("" if key == "num_codes" else "__ddconfig"),
             "n_embed" if key == "num_codes" else key),
            ("chameleon", "tokenizer/image/config.json", "model", key),
        )
    ),
    ("huggingface", "pictures of 2^60 pixels", values("config.json", vq_config__resolution=2**60), "config.json",
     ("resolution", "must be a whole number")),
    ("huggingface", "a billion blocks", values("config.json", vq_config__num_res_blocks=10**9), "config.json",
     ("num_res_blocks = 1000000000", "must be at most 8")),
    ("huggingface", "a hundred thousand levels",
     values("config.json", vq_config__channel_multiplier=[1] * 10**5, vq_config__ch_mult=[1] * 10**5), "config.json",
     ("channel_multipliers = [1, 1",)),
]  # fmt: skip


def save_raw(path: Path, pickled: bytes) -> None:
    """A torch file with this pickle and one storage of four numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", np.ones(4, np.float32).tobytes())


def pickled_tensors(place: Callable[[Any], Any]) -> bytes:
    """A pickle of one tensor somewhere in plain values."""
    mark = "the tensor goes here"
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x04tQ"
    opcodes = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\x04\x85K\x01\x85\x89}tR"
    return pickle.dumps(place(mark), 2).replace(pickle.dumps(mark, 2)[2:-1], opcodes)


@pytest.mark.parametrize(
    ("name", "damage", "file", "expected"),
    [pytest.param(name, *case, id=f"{name}: {title}") for name, title, *case in CASES],
)
def test_damage_is_named_before_weights_are_read(good, tmp_path, name, damage, file, expected):
    folder = damaged(good, tmp_path, name, damage)
    message = refusal(folder)
    assert message.startswith(f"{folder / file}: "), message
    assert len(message) < 1000
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("name", "damage", "file", "expected"),
    [pytest.param(name, *case, id=f"{name}: {title}") for name, title, *case in IMAGE_CASES],
)
def test_model_opens_without_an_image_tokenizer_that_cannot_be_read(good, tmp_path, name, damage, file, expected):
    folder = damaged(good, tmp_path, name, damage)
    opened = open_checkpoint(folder)
    assert opened.image_weights is None
    assert opened.text is not None
    assert list(opened.missing) == ["image"]
    reason = opened.missing["image"]
    assert opened.warnings == [f"continues without its image tokenizer: {reason}"]
    assert reason.startswith(tuple(f"it cannot be read: {folder / file}{end}" for end in (": ", ", line"))), reason
    assert len(reason) < 1000
    assert "\n" not in reason
    for part in expected:
        assert part in reason


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("huggingface", ONE, VQ_KEY),
        ("huggingface", DECODER, "model.vqmodel.decoder.conv_out.bias"),
        ("meta", "tokenizer/vqgan.ckpt", "quantize.embedding.weight"),
    ],
)
def test_nan_in_an_image_tokenizer_stops_converting(good, tmp_path, name, file, key):
    folder = damaged(good, tmp_path, name, lambda folder: poke(folder / file, key, np.nan))
    for format in ("chameleon", "huggingface", "meta"):
        with pytest.raises(FileError) as caught:
            write_checkpoint(open_checkpoint(folder), tmp_path / "out", format)
        assert str(caught.value).startswith(f"{folder / file}: {key} holds infinite values or NaN")
        assert [path.name for path in tmp_path.iterdir()] == [name], "a half-written folder was left"


def test_damage_found_while_an_image_tokenizer_is_read_leaves_the_text(good, tmp_path):
    """Not a number: found when the weights are read."""
    change = tensors(DECODER, lambda found: found["model.vqmodel.decoder.conv_in.bias"].fill(np.nan))
    folder = damaged(good, tmp_path, "huggingface", change)
    with pytest.warns(UserWarning, match="continues without its image tokenizer: it cannot be read: .*conv_in.bias"):
        model = load(folder)
    assert "decoder.conv_in.bias" in model.missing["image"]
    assert model.decode(model.encode(["A kite."])) == ["A kite."]
    with pytest.raises(CannotDraw, match=r"no image tokenizer \(it cannot be read: .*conv_in\.bias"):
        model.generate(["Draw a kite."], GenerationConfig(mode="image"))
    with pytest.raises(DocumentError, match=r"no image tokenizer: it cannot be read"):
        model.encode([random_picture(0)])


ROPE_TABLE = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize("place", ["file", "index"])
def test_tables_that_every_loader_ignores_need_no_index(good, tmp_path, place):
    name = "model-00003-of-00003.safetensors"
    folder = damaged(good, tmp_path, "sharded", with_extra(name, ROPE_TABLE) if place == "file" else values(INDEX))
    if place == "index":
        edited(INDEX, lambda index: index["weight_map"].update({ROPE_TABLE: name}))(folder)
    assert open_checkpoint(folder).ignored == ([ROPE_TABLE] if place == "file" else [])


FILES_OF_FORMATS = [
    ("huggingface", ONE), ("huggingface", "config.json"), ("huggingface", "tokenizer.json"), ("huggingface", DECODER),
    ("sharded", INDEX), ("sharded", "model-00002-of-00003.safetensors"),
    ("meta", SHARD), ("meta", "params.json"), ("meta", TEXT), ("meta", "tokenizer/vqgan.yaml"),
    ("meta", "tokenizer/vqgan.ckpt"),
    ("chameleon", "config.json"), ("chameleon", "tokenizer/vocabulary.json"), ("chameleon", "tokenizer/text.json"),
    ("chameleon", "tokenizer/image/config.json"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
@pytest.mark.parametrize(("name", "file"), FILES_OF_FORMATS)
def test_what_is_no_file_is_refused_without_waiting(good, tmp_path, monkeypatch, name, file, kind):
    folder = damaged(good, tmp_path, name, removed(file))
    monkeypatch.chdir((folder / file).parent)  # paths of sockets are short
    if kind == "pipe":
        os.mkfifo(folder / file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(Path(file).name)
    elif kind == "folder":
        (folder / file).mkdir()
    else:
        (folder / file).symlink_to("/dev/zero")
    if file == DECODER or "vqgan" in file or "image" in file:  # models open without
        message = open_checkpoint(folder).missing["image"]
    else:
        message = refusal(folder)
    assert str(folder / file) in message


def test_links_to_files_are_followed(good, tmp_path):
    """As in the cache of the Hub."""
    folder = damaged(good, tmp_path, "huggingface", lambda folder: (folder / ONE).rename(tmp_path / "blob"))
    (folder / ONE).symlink_to("../blob")
    assert open_checkpoint(folder).missing == {}


def test_pickle_that_runs_something_is_refused_and_not_run(good, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    for file in (SHARD, "tokenizer/vqgan.ckpt"):
        folder = shutil.copytree(good / "meta", tmp_path / file.replace("/", "-"))
        save_raw(folder / file, pickle.dumps({GATE: Attack()}, 2))
        message = refusal(folder, FileError) if file == SHARD else open_checkpoint(folder).missing["image"]
        assert f"{folder / file}: asks for " in message
        assert "mkdir" in message
        assert "It was not run" in message
    assert not (tmp_path / "was run").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Folders
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other"),
    [("meta", "huggingface"), ("sharded", "meta"), ("chameleon", "meta"), ("chameleon", "sharded")],
)
def test_models_of_two_formats_in_one_folder_are_refused(good, tmp_path, name, other):
    folder = shutil.copytree(good / other, tmp_path / "both")
    shutil.copytree(good / name, folder, dirs_exist_ok=True)
    message = refusal(folder, FileError)
    assert message.startswith(f"{folder}: holds files of ")
    assert "two models are mixed in one folder" in message


@pytest.mark.parametrize("content", [[], ["config.json"], ["params.json"], ["tokenizer.json", "notes.txt"]])
def test_folder_without_weights_says_what_was_expected(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("{}")
    message = refusal(tmp_path, FileError)
    assert message.startswith(f"{tmp_path}: is not a model folder (expected config.json and params/")
    assert all(name in message for name in ("safetensors", "params.json", "consolidated*.pth"))


def test_files_without_their_index_are_named(good, tmp_path):
    folder = damaged(good, tmp_path, "sharded", removed(INDEX))
    message = refusal(folder, FileError)
    assert message.startswith(f"{folder}: ")
    assert INDEX in message


def test_weights_without_their_config_are_named(good, tmp_path):
    folder = damaged(good, tmp_path, "huggingface", removed("config.json"))
    message = refusal(folder, FileError)
    assert message.startswith(f"{folder}: ")
    assert "config.json" in message


def test_file_instead_of_a_folder_is_named(good):
    path = good / "huggingface" / ONE
    assert refusal(path, FileError) == f"{path}: is a file; expected a folder"


def test_root_of_several_models_asks_for_one_of_them(good, tmp_path):
    for size in ("7b", "30b"):
        shutil.copytree(good / "meta", tmp_path / "models" / size)
    message = refusal(tmp_path, FileError)
    assert message.startswith(f"{tmp_path}: holds 2 models")
    assert str(tmp_path / "models" / "30b") in message


def test_root_of_one_model_opens_it(good, tmp_path):
    """Meta's script lays models and tokenizer side by side."""
    shutil.copytree(good / "meta", tmp_path / "models" / "7b")
    shutil.move(tmp_path / "models" / "7b" / "tokenizer", tmp_path / "tokenizer")
    opened = open_checkpoint(tmp_path)
    assert opened.missing == {}
    assert opened.text is not None


@pytest.mark.parametrize("name", ["", "huggingface", "chameleon/params"])
def test_folder_without_an_image_tokenizer_is_named(good, tmp_path, name):
    tokenizer = good / name
    if name == "huggingface":
        tokenizer = shutil.copytree(good / name, tmp_path / "no decoder")
        shutil.rmtree(tokenizer / "image_decoder")
    message = refusal(good / "meta", FileError, image_tokenizer=tokenizer)
    assert message.startswith(f"{tokenizer}: ")


def test_image_tokenizer_of_another_model_is_refused(good, tmp_path):
    """The codes of one VQGAN mean nothing to another."""
    tokenizer = shutil.copytree(good / "meta" / "tokenizer", tmp_path / "tokenizer")
    values("vqgan.yaml", model__params__n_embed=32)(tokenizer)

    def more(found: dict[str, np.ndarray]) -> None:
        found["quantize.embedding.weight"] = np.ones((32, 8), np.float32)

    tensors("vqgan.ckpt", more)(tokenizer)
    for name in ("meta", "huggingface"):
        message = refusal(good / name, FileError, image_tokenizer=tokenizer)
        assert message.startswith(f"{good / name}: ")
        assert "16 image codes" in message
        assert "has 32" in message


# ----------------------------------------------------------------------------------------------------------------------
# Numbers that are none: found when the weights are read, since that needs all of them
# ----------------------------------------------------------------------------------------------------------------------


def in_bfloat16(folder: Path) -> None:
    """Rewrites the weights of the Transformer in half the bytes."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.pth")):
        smaller = {
            key: value if "vqmodel" in key else value.astype(BFLOAT16) for key, value in arrays(file).items()
        }  # fmt: skip
        (save_safetensors if file.suffix == ".safetensors" else save_torch)(file, smaller)


def poke(file: Path, key: str, value: float) -> None:
    """Overwrites the last number of a tensor; of norms all, since their copies would differ otherwise."""
    stored = read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)
    tensor: StoredTensor = stored.get("state_dict", stored)[key]
    numbers = tensor.nbytes // tensor.dtype.itemsize if "norm" in key else 1
    with open(file, "r+b") as content:
        content.seek(tensor.offset + tensor.nbytes - numbers * tensor.dtype.itemsize)
        content.write(np.full(numbers, value, tensor.dtype).tobytes())


@pytest.mark.parametrize(
    ("name", "file", "key", "dtype"),
    [
        ("huggingface", ONE, "model.embed_tokens.weight", "float32"),
        ("huggingface", ONE, Q, "bfloat16"),
        ("huggingface", ONE, Q_NORM, "float32"),
        ("meta", SHARD, "layers.1.attention.wo.weight", "float32"),
        ("meta", SHARD, GATE, "bfloat16"),
        ("meta", "consolidated.00.pth", NORM, "bfloat16"),
    ],
)
def test_nan_and_infinity_stop_loading_and_converting(good, tmp_path, name, file, key, dtype):
    folder = damaged(good, tmp_path, name, in_bfloat16 if dtype == "bfloat16" else lambda folder: None)
    assert str(open_checkpoint(folder).weights.dtype) == dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the shards differ
        reading: list[Callable[[], Any]] = [lambda: load(folder)]
        for format in ("huggingface", "meta"):
            reading.append(lambda format=format: write_checkpoint(open_checkpoint(folder), tmp_path / "out", format))
        for value, read in zip((np.nan, np.inf, -np.inf), reading, strict=True):
            poke(folder / file, key, value)
            with pytest.raises(FileError) as caught:
                read()
            message = str(caught.value)
            assert message.startswith(f"{folder / file}: {key} holds infinite values or NaN")
            assert "\n" not in message
            assert [path.name for path in tmp_path.iterdir()] == [name], "a half-written folder was left"


def test_largest_finite_numbers_are_no_infinity(good, tmp_path):
    folder = damaged(good, tmp_path, "huggingface", in_bfloat16)
    largest = float(jnp.finfo(jnp.bfloat16).max)
    poke(folder / ONE, Q, -largest)
    assert float(load(folder).params["layers"]["attention"]["q"].min()) == -largest


# ----------------------------------------------------------------------------------------------------------------------
# Random damage
# ----------------------------------------------------------------------------------------------------------------------

FILES = (
    ("huggingface", "config.json"),
    ("huggingface", "tokenizer.json"),
    ("huggingface", ONE),
    ("sharded", INDEX),
    ("meta", "params.json"),
    ("meta", "consolidate_params.json"),
    ("meta", "tokenizer/vqgan.yaml"),
    ("chameleon", "config.json"),
    ("chameleon", "tokenizer/image/config.json"),
)


@pytest.fixture(scope="module")
def scratch(good, tmp_path_factory) -> Path:
    return shutil.copytree(good, tmp_path_factory.mktemp("scratch"), dirs_exist_ok=True)


def open_with(folder: Path, file: str, content: bytes) -> None:
    """Opens a folder with other content in one file: it opens, or is refused as it should be."""
    original = (folder / file).read_bytes()
    (folder / file).write_bytes(content)
    refused = None
    try:
        open_checkpoint(folder)
    except ChameleonError as error:
        refused = error
    finally:
        (folder / file).write_bytes(original)
    if refused is not None:
        assert isinstance(refused, (FileError, VocabularyError, ConfigError))
        assert str(folder) in str(refused)
        assert "\n" not in str(refused)


def random_damage(size: int) -> st.SearchStrategy[tuple[list[tuple[int, int]], int]]:
    flips = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=4)
    return st.tuples(flips, st.one_of(st.none(), st.integers(0, size)))


few = settings(max_examples=10)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_random_bytes_never_lead_to_another_error(scratch, name, file):
    original = (scratch / name / file).read_bytes()
    end = len(original)
    if file.endswith(".safetensors"):
        end = 8 + struct.unpack("<Q", original[:8])[0]

    @few
    @given(random_damage(end))
    def check(damage):
        flips, length = damage
        content = bytearray(original)
        for place, value in flips:
            content[place] = value
        open_with(scratch / name, file, bytes(content[:length]))

    check()


VALUES = (None, True, -1, 0, 3, 64, 2.5, 1e999, "", "x", [], [1], ["x"], [[]], {}, {"x": 1})
"""What to put in the place of a value. No larger numbers: a config of a million layers is a config."""


def places_in(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths to every value in nested tables and lists; of long ones only the first few."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items)[:40]:
        yield from places_in(value, (*path, key))


def replaced(content: Any, path: tuple, value: Any) -> Any:
    """A copy of nested tables and lists with another value at `path`."""
    if not path:
        return value
    inner = replaced(content[path[0]], path[1:], value)
    if isinstance(content, dict):
        return {**content, path[0]: inner}
    return [*content[: path[0]], inner, *content[path[0] + 1 :]]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_values_of_another_kind_never_lead_to_another_error(scratch, name, file):
    original = (scratch / name / file).read_bytes()
    weights = b""
    if file.endswith(".safetensors"):
        length = struct.unpack("<Q", original[:8])[0]
        original, weights = original[8 : 8 + length], original[8 + length :]
    content = yaml.safe_load(original) if file.endswith(".yaml") else json.loads(original)
    content.pop("sha256", None)  # else every change would be found by it

    @few
    @given(st.sampled_from(list(places_in(content))), st.sampled_from(VALUES))
    def check(path, value):
        text = json.dumps(replaced(content, path, value))
        open_with(scratch / name, file, with_length(text) + weights if weights else text.encode())

    check()
