"""Our own model folders hold the architecture; those of older versions, which also say how a model was run, open."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import scrambled_tokenizer, transformer_for, transformer_params

import chameleon_jax
from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import ConfigError, ExecutionConfig, LoRAConfig, TransformerConfig
from chameleon_jax.errors import FileError
from chameleon_jax.runtime.headers import read_header, with_checksum
from chameleon_jax.weights.native import write_trained

TOKENIZER = scrambled_tokenizer()
TRANSFORMER = transformer_for(TOKENIZER.vocabulary)
FIVE = np.asarray([[3, 1, 4, 1, 5]])
ONCE_IN_MODEL = {
    "dropout": 0.1, "lora": {"rank": 0, "alpha": 16.0, "targets": ["q", "k", "v", "o", "gate", "up", "down"]},
    "param_dtype": "float32", "compute_dtype": "bfloat16", "attention": "splash", "remat": "full", "unroll": 2,
}  # fmt: skip
"""What older versions wrote of a model trained on a TPU."""


@pytest.fixture(scope="module")
def params():
    return jax.device_put(transformer_params(TRANSFORMER), jax.devices()[0])


@pytest.fixture
def trained(tmp_path, params) -> Path:
    """The model that a run writes at its end."""
    TOKENIZER.save(tmp_path / "tokenizer")
    write_trained(tmp_path / "model", TRANSFORMER, LoRAConfig(), params, tmp_path / "tokenizer", None)
    return tmp_path / "model"


def model_section(folder: Path) -> dict:
    return read_header(folder / "config.json")["model"]


def test_a_model_folder_holds_the_architecture_and_nothing_else_of_the_training(trained, params, tmp_path):
    Chameleon(TRANSFORMER, params, TOKENIZER, execution=ExecutionConfig(remat="full")).save(tmp_path / "saved")
    for folder in (trained, tmp_path / "saved"):
        assert model_section(folder).keys() == {field.name for field in dataclasses.fields(TransformerConfig)}
        assert not ONCE_IN_MODEL.keys() & model_section(folder).keys()


def test_a_model_trained_with_splash_answers_with_the_logits_of_five_tokens(trained, params):
    expected = Chameleon(TRANSFORMER, params).logits(FIVE)
    header = read_header(trained / "config.json")
    header["model"] |= ONCE_IN_MODEL
    (trained / "config.json").write_text(json.dumps(with_checksum(header)))
    for folder in (trained, trained.parent):
        model = chameleon_jax.load(folder)
        assert model.config == TRANSFORMER
        assert model.execution == ExecutionConfig()  # of the type of its files
        np.testing.assert_array_equal(model.logits(FIVE), expected)
    model.save(trained.parent / "again")
    assert model_section(trained.parent / "again") == {
        name: value for name, value in header["model"].items() if name not in ONCE_IN_MODEL
    }


def test_a_kernel_that_was_asked_for_by_name_is_refused_where_it_cannot_run(params):
    model = Chameleon(TRANSFORMER, params, TOKENIZER, execution=ExecutionConfig(attention="splash"))
    with pytest.raises(ConfigError, match=r"^execution\.attention = 'splash': rows of 5 on 1 devices .*; use 'auto'"):
        model.logits(FIVE)


def test_context_length_and_chat_template_are_kept_and_older_folders_open(params, tmp_path):
    config = dataclasses.replace(TRANSFORMER, context_length=256)
    Chameleon(config, params, TOKENIZER, chat_template="lumina").save(tmp_path / "model")
    model = chameleon_jax.load(tmp_path / "model")
    assert (model.config.context_length, model.chat_template) == (256, "lumina")
    header = read_header(tmp_path / "model" / "config.json")
    del header["model"]["context_length"], header["chat_template"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(with_checksum(header)))
    older = chameleon_jax.load(tmp_path / "model")
    assert (older.config.context_length, older.chat_template) == (4096, None)
    without = {"model": header["model"] | {"context_length": None}}
    for change, message in (({"chat_template": "alpaca"}, "'alpaca': must be one of meta, lumina"), (without, "null")):
        (tmp_path / "model" / "config.json").write_text(json.dumps(with_checksum(header | change)))
        with pytest.raises(FileError, match=message):
            chameleon_jax.load(tmp_path / "model")
