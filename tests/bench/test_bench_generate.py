"""`chameleon bench generate`: what it prints, the bytes it reckons with, and the sizes of its presets."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from chameleon_jax.bench.generate import make_model, random_params, step_bytes
from chameleon_jax.config import (
    BenchGenerateConfig,
    EngineConfig,
    ExecutionConfig,
    TransformerConfig,
    find_configs,
    read_config,
)
from chameleon_jax.console.cli import main
from chameleon_jax.weights.checkpoint import abstract_params

PRESETS = find_configs() / "bench" / "generate"
SIZES = TransformerConfig(vocab_size=64, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16)
TINY = (
    "{model: {vocab_size: 64, d_model: 8, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 4, mlp_dim: 8}, "
    "prompt: 5, new_tokens: 24, codes_per_image: 6, repeats: 2, rows: [2], engine: {window: 3}}"
)


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def test_prints_figures_of_everything_that_was_asked_for(tiny, capsys):
    assert main(["bench", "generate", tiny]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"] == 2 * 64 * 8 + 4 * 8 * 8 + 3 * 8 * 8 + 3 * 8 + 4 * 4
    (text,) = figures["text"]
    assert (text["rows"], len(text["tokens_per_second"]["all"])) == (2, 2)
    assert len(text["tokens_per_second_with_prompts"]["all"]) == 2
    assert sum(text["parts"].values()) == pytest.approx(text["milliseconds_per_step"], abs=1e-3)
    one_by_one, three_at_a_time = figures["pictures"]
    assert [each["window"] for each in figures["pictures"]] == [1, 3]
    assert all((each["rows"], each["lanes"]) == (2, 4) for each in figures["pictures"]), "guidance has lanes of its own"
    assert one_by_one["steps"] == 6 + 1, "the codes and the end of image"
    assert three_at_a_time["steps"] <= one_by_one["steps"]
    assert {"layers", "head", "drawing", "guidance"} == set(one_by_one["parts"])
    assert figures["prefill"]["tokens"] == 5
    assert figures["bandwidth"] > 1e8
    assert figures["memory"]["host_peak_gib"] > 0.1
    assert {"processor", "devices", "versions", "config"} <= set(figures)


def test_bytes_of_a_step_by_hand():
    matrices = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16)  # q and o; k and v; the MLP: of two layers
    others = 2 * (2 * 8 + 2 * 2 * 4) + 8  # norms, those of queries and keys with a bias
    codes, token = 8, 2 * 2 * 1 * 4  # columns of the head; numbers of keys and values a token
    config = BenchGenerateConfig(SIZES, codes_per_image=6)

    def found(**changes) -> float:
        model = make_model(dataclasses.replace(config, **changes), 1.0)
        return step_bytes(model, model.weights.image, [10, 20])

    assert found() == 4 * (matrices + others + codes * 8 + 30 * token)
    half = ExecutionConfig(param_dtype="bfloat16", compute_dtype="bfloat16")
    assert found(execution=half) == found() / 2
    scales = 2 * (4 * (8 + 2 * 4) + 4 * (8 + 2 * 16 + 8)) + 4 * codes  # of each output channel
    int8 = found(engine=EngineConfig(weights="int8"))
    assert int8 == matrices + codes * 8 + scales + 4 * (others + 30 * token)


def test_weights_depend_on_the_seed():
    one, other = (random_params(SIZES, "float32", seed)["embed"] for seed in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "parameters"), [("cpu_25m", 34_089_472), ("cpu_110m", 110_122_752), ("7b", 7_013_158_912)]
)
def test_presets_have_the_parameters_they_claim(name, parameters):
    config = read_config(BenchGenerateConfig, PRESETS / f"{name}.yaml")
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config.model))) == parameters


def test_all_presets_are_tested_above():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == {"cpu_25m", "cpu_110m", "7b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "CONFIG = 'nothing': must be a YAML file or one of 7b, cpu_110m, cpu_25m"),
        (["{tiny}", "--rows", "0"], "rows = (0,): must be numbers of at least 1"),
        (["{tiny}", "--prompt", "2"], "prompt = 2: must be at least 3"),
    ],
)
def test_mistakes_are_one_line(tiny, arguments, message, capsys):
    assert main(["bench", "generate", *(argument.format(tiny=tiny) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("chameleon bench generate: ")
    assert message in said
    assert said.count("\n") == 1
