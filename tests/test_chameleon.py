"""A model written to disk is the same model when it is opened, and what cannot be opened is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import random_picture, scrambled_tokenizer, transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon, load
from chameleon_jax.config import ConfigError, GenerationConfig, SamplingConfig
from chameleon_jax.document import DocumentError
from chameleon_jax.files import FileError
from chameleon_jax.generation import engine
from chameleon_jax.tokens.documents import DocumentTokenizer

HOT = SamplingConfig(temperature=1.5, top_p=1.0)
CONFIG = GenerationConfig(max_new_tokens=24, text=HOT, image=HOT, text_guidance=1.0, image_guidance=1.0)
PROMPTS = [["A handwritten three: "], [random_picture(1), " Which digit is this?"], []]


@pytest.fixture(scope="module")
def model() -> Chameleon:
    tokenizer = scrambled_tokenizer()
    config = transformer_for(tokenizer.vocabulary)
    params = transformer_params(config, seed=1)
    params["output"] = params["output"].at[:, tokenizer.vocabulary.begin_image].multiply(3.0)
    return Chameleon(config, params, tokenizer)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    model.save(folder)
    return folder


def copy_of(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def frozen(documents: list) -> list:
    return [[part if isinstance(part, str) else part.tobytes() for part in document] for document in documents]


def test_opened_model_is_the_saved_one(model, saved):
    loaded = load(saved)
    assert loaded.config == model.config
    assert jax.tree.structure(loaded.params) == jax.tree.structure(model.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    ids = model.encode(PROMPTS[1])
    np.testing.assert_array_equal(loaded.encode(PROMPTS[1]), ids)
    np.testing.assert_array_equal(loaded.logits(ids[None]), model.logits(ids[None]))
    assert frozen([loaded.generate(PROMPTS[1], CONFIG)]) == frozen([model.generate(PROMPTS[1], CONFIG)])


def test_parameters_of_another_precision_come_back(model, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params)
    config = dataclasses.replace(model.config, param_dtype="bfloat16")
    Chameleon(config, half, model.tokenizer).save(tmp_path / "half")
    loaded = load(tmp_path / "half")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, half)


def test_answers_are_text_and_pictures(model):
    documents = model.generate_many([PROMPTS[0]] * 12, CONFIG)
    parts = [part for document in documents for part in document]
    assert {type(part) is str for part in parts} == {True, False}
    for part in parts:
        assert isinstance(part, str) or part.size == (16, 16)
    assert len({str(document) for document in frozen(documents)}) > 6


def test_answer_depends_on_the_seed(model):
    first, again, other = (
        frozen([model.generate(PROMPTS[0], dataclasses.replace(CONFIG, seed=seed))]) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_new_seed_is_not_compiled_anew(model):
    """Compiling takes minutes for a large model; drawing again must not."""
    model.generate(PROMPTS[0], dataclasses.replace(CONFIG, seed=100))
    compiled = engine.generate_ids._cache_size()
    model.generate(PROMPTS[0], dataclasses.replace(CONFIG, seed=101))
    assert engine.generate_ids._cache_size() == compiled


def test_text_mode_writes_no_picture(model):
    for document in model.generate_many([PROMPTS[1]] * 6, dataclasses.replace(CONFIG, mode="text")):
        assert all(isinstance(part, str) for part in document)


def test_image_mode_writes_one_picture(model):
    config = dataclasses.replace(CONFIG, mode="image", max_new_tokens=5)
    for document in model.generate_many(PROMPTS, config):
        assert [part.size for part in document] == [(16, 16)]


def test_picture_that_cannot_fit_is_refused(model):
    config = dataclasses.replace(CONFIG, mode="image", max_new_tokens=4)
    with pytest.raises(ConfigError, match=r"max_new_tokens = 4: .*needs 5"):
        model.generate(PROMPTS[0], config)


def test_no_prompts_give_no_answers(model):
    assert model.generate_many([], CONFIG) == []


def test_prompt_of_something_else_is_refused(model):
    with pytest.raises(DocumentError, match="not int"):
        model.generate(["what is", 3], CONFIG)


def test_folder_of_a_run_opens_its_model(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run" / "model")
    assert load(tmp_path / "run").config == load(saved).config


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "is not a model folder"),
        (["checkpoints"], "training has not finished"),
        (["model"], "is not a model folder"),
    ],
)
def test_folder_without_a_model_is_named(tmp_path, made, message):
    folder = tmp_path / "run"
    for name in made:
        (folder / name).mkdir(parents=True)
    with pytest.raises(FileError, match=message) as caught:
        load(folder)
    assert str(caught.value).startswith(f"{folder}: ")


def test_interrupted_saving_leaves_no_folder(model, tmp_path, monkeypatch):
    def interrupted(tokenizer, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(DocumentTokenizer, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def changed_header(saved: Path, tmp_path: Path, change) -> Path:
    folder = copy_of(saved, tmp_path)
    header = json.loads((folder / "config.json").read_text())
    change(header)
    (folder / "config.json").write_text(json.dumps(header))
    return folder


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda header: header.update(format_version=7), FileError, r"config\.json: format_version 7 is newer"),
        (lambda header: header.pop("format_version"), FileError, r"config\.json: has no format_version"),
        (lambda header: header.pop("model"), ConfigError, r"config\.json: model = None: must be a mapping"),
        (
            lambda header: header["model"].update(heads=3),
            ConfigError,
            r"config\.json: model\.heads: there is no such key",
        ),
        (lambda header: header["model"].update(mlp_dim=25), FileError, r"layers/mlp/.*has shape .*the config expects"),
        (lambda header: header["model"].update(qk_norm=False), FileError, r"k_norm.*the config expects no such array"),
    ],
)
def test_header_that_does_not_fit_is_named(saved, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        load(changed_header(saved, tmp_path, change))


def test_vocabulary_larger_than_the_model_is_refused(saved, tmp_path):
    """Ids past the embedding would be clamped to its last row without a word."""
    folder = copy_of(saved, tmp_path)
    path = folder / "tokenizer" / "vocabulary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "text_ids": [token + 100 for token in values["text_ids"]]}))
    with pytest.raises((FileError, ConfigError), match="vocab"):
        load(folder)


@pytest.mark.parametrize("damage", ["deleted", "emptied"])
@pytest.mark.parametrize(
    "name", ["params", "tokenizer/text.model", "tokenizer/vocabulary.json", "tokenizer/image/params"]
)
def test_damaged_part_is_named(saved, tmp_path, name, damage):
    folder = copy_of(saved, tmp_path)
    path = folder / name
    if damage == "emptied":
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            file.write_bytes(b"")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(FileError, match=name):
        load(folder)
