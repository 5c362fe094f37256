"""Models opened by our own loader give the numbers of Hugging Face transformers for the same files.

The committed arrays were written by `tests/data/make_transformers_fixtures.py`. The tests marked `torch` make them
live, have transformers itself write the folder, and so also notice if the files no longer are what that script writes.

transformers sets the logits of image codes to a very negative number, so these columns are not compared.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import chameleon_jax
from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import GenerationConfig, SamplingConfig
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.programs import make_weights
from chameleon_jax.weights.safetensors import write_safetensors

DATA = Path(__file__).parent.parent / "data"

spec = importlib.util.spec_from_file_location("make_transformers_fixtures", DATA / "make_transformers_fixtures.py")
fixtures = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
spec.loader.exec_module(fixtures)

NAMES = fixtures.NAMES
IMAGE_CODES = [NAMES[name] for name in fixtures.IMAGE_NAMES]
WRITTEN = sorted(set(NAMES.values()) - set(fixtures.NOT_WRITTEN))
GREEDY = SamplingConfig(temperature=0.0)


def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"transformers_{name}.npz") as file:
        return dict(file)


def write_folder(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """The weights and the config.json of a fixture as transformers lays them out."""
    weights = {key: value for key, value in arrays.items() if key.startswith(("model.", "lm_head."))}
    folder.mkdir()
    specs = {key: (value.shape, value.dtype) for key, value in weights.items()}
    write_safetensors(folder / "model.safetensors", specs, weights.__getitem__)
    (folder / "config.json").write_text(str(arrays["config"]))
    return folder


@pytest.fixture(params=fixtures.LANGUAGE_MODELS)
def opened(request, tmp_path) -> tuple[str, Chameleon, dict[str, np.ndarray]]:
    """A stored model: its name, the model as our loader opens it, and what transformers answered."""
    arrays = stored(request.param)
    return request.param, chameleon_jax.load(write_folder(tmp_path / "model", arrays)), arrays


@pytest.fixture(params=fixtures.LANGUAGE_MODELS)
def opened_live(request, tmp_path) -> tuple[str, Chameleon, dict[str, np.ndarray]]:
    """The same, with answers made now and a folder written by transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = fixtures.transformers_model(request.param)
    model.save_pretrained(tmp_path / "model")
    return request.param, chameleon_jax.load(tmp_path / "model"), fixtures.answers(model)


# ----------------------------------------------------------------------------------------------------------------------
# Language model
# ----------------------------------------------------------------------------------------------------------------------


def check_logits(model: Chameleon, answers: dict[str, np.ndarray]) -> None:
    comparable = np.setdiff1d(np.arange(model.config.vocab_size), IMAGE_CODES)
    expected = answers["logits"][..., comparable]
    assert np.std(expected) > 0.5  # logits as large as a trained model's, not a comparison of near-zeros
    logits = np.asarray(model.logits(answers["input_ids"]))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[..., comparable], expected, rtol=0, atol=1e-4)


def check_sizes(name: str, model: Chameleon) -> None:
    sizes, config = fixtures.LANGUAGE_MODELS[name], model.config
    assert (config.d_model, config.mlp_dim, config.num_layers) == (
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.num_hidden_layers,
    )
    assert (config.num_heads, config.num_kv_heads) == (sizes.num_attention_heads, sizes.num_key_value_heads)
    assert config.norm_order == ("swin" if sizes.swin_norm else "pre")
    assert model.execution.param_dtype == model.execution.compute_dtype == "float32"


def test_logits_of_the_opened_folder_are_those_of_transformers(opened):
    name, model, arrays = opened
    check_sizes(name, model)
    check_logits(model, arrays)


def test_heads_of_a_shard_share_a_row_and_other_heads_keep_their_own(opened):
    name, model, arrays = opened
    sizes, attention = fixtures.LANGUAGE_MODELS[name], model.params["layers"]["attention"]
    assert model.config.qk_norm_groups == sizes.rows
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        for norm, heads in (("q_norm", sizes.num_attention_heads), ("k_norm", sizes.num_key_value_heads)):
            rows = np.asarray(attention[norm][ours])
            assert rows.shape[1] == min(sizes.rows, heads)
            assert len(np.unique(rows[0], axis=0)) == rows.shape[1], "rows that are alike would show nothing"
            for layer in range(sizes.num_hidden_layers):
                expected = arrays[f"model.layers.{layer}.self_attn.{norm}.{theirs}"].astype(np.float32)
                np.testing.assert_array_equal(np.repeat(rows[layer], heads // rows.shape[1], axis=0), expected)


def test_row_for_every_head_is_kept_though_the_file_speaks_of_one_shard(tmp_path):
    """Fine-tuning transformers' model lets the heads of a shard drift apart."""
    arrays = stored("row_per_head_gqa")
    assert '"model_parallel_size": 1,' in str(arrays["config"])
    config = chameleon_jax.load(write_folder(tmp_path / "model", arrays)).config
    assert config.qk_norm_groups == config.num_heads > config.num_kv_heads


def check_greedy_text(model: Chameleon, answers: dict[str, np.ndarray]) -> None:
    """Prompts of different lengths in one batch, against transformers one by one.

    Text mode may write text and the end of sequence. transformers masks image codes by itself, and was told to suppress
    the special tokens that are left (`suppress_tokens`), so both choose among the same ids.
    """
    vocabulary = model.vocabulary
    assert sorted([*vocabulary.text_ids.tolist(), vocabulary.eos]) == WRITTEN
    numbers = range(sum(key.startswith("prompt_") for key in answers))
    config = GenerationConfig(mode="text", max_new_tokens=fixtures.NEW_TOKENS, text=GREEDY)
    weights = make_weights(model.params, model.config, Columns.build(vocabulary, 1), dtype="float32")
    engine = Engine(model.config, weights, vocabulary, 1, context_length=128, rows=len(numbers))
    handles = [engine.submit(answers[f"prompt_{number}"], config) for number in numbers]
    lengths = [len(answers[f"continuation_{number}"]) for number in numbers]
    assert sorted(lengths)[1] >= 24, "too short to show anything"
    for number, handle in enumerate(handles):
        expected = answers[f"continuation_{number}"].tolist()
        assert len(set(expected)) > 4, "a text that repeats a word or two shows nothing"
        assert handle.result().ids.tolist() == expected


def test_greedy_text_is_that_of_transformers(opened):
    _, model, arrays = opened
    check_greedy_text(model, arrays)


def test_one_stored_text_ends_early():
    """So that the end of a text is compared too."""
    lengths = [len(arrays["continuation_0"]) for arrays in map(stored, fixtures.LANGUAGE_MODELS)]
    assert min(lengths) < fixtures.NEW_TOKENS == max(lengths)


@pytest.mark.torch
def test_live_folder_of_transformers_gives_its_logits_and_its_text(opened_live):
    name, model, answers = opened_live
    check_sizes(name, model)
    assert model.config.qk_norm_groups == fixtures.LANGUAGE_MODELS[name].rows
    check_logits(model, answers)
    check_greedy_text(model, answers)
