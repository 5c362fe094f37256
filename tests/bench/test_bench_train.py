"""`chameleon bench train`: what it prints, what it feeds the step, and the sizes of its presets."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest

from chameleon_jax.bench.train import random_batch, speed, train_config
from chameleon_jax.config import BenchTrainConfig, TransformerConfig, find_configs, read_config
from chameleon_jax.console.cli import main
from chameleon_jax.weights.checkpoint import abstract_params

PRESETS = find_configs() / "bench"
TINY = (
    "{model: {vocab_size: 32, d_model: 8, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 4, mlp_dim: 8}, "
    "batch_size: 8, length: 16, documents: 2, padding: 0.1, optimizer: {warmup_steps: 3}, steps: 2, repeats: 3}"
)


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def test_prints_every_figure_as_json_and_writes_a_trace(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("chameleon_jax.bench.train.matmul_flops", lambda dtype, size: 5e9)
    assert main(["bench", "train", tiny, "--repeats", "2", "--profile", str(tmp_path / "trace")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["config"]["repeats"] == len(figures["tokens_per_second"]["all"]) == 2
    assert figures["tokens_per_second"]["min"] <= figures["tokens_per_second"]["median"]
    assert figures["parameters"] == 2 * 32 * 8 + 4 * 8 * 8 + 3 * 8 * 8 + 3 * 8 + 4 * 4
    assert 0 < figures["loss"]["last"] < figures["loss"]["first"] < 10
    assert figures["first_step_seconds"] > figures["step_seconds"] > 0
    assert figures["memory"]["host_peak_gib"] > 0.1
    assert figures["peak_flops"] == 5e9
    assert figures["peak_flops_source"].startswith("measured in this run: float32 product")
    rate = figures["tokens_per_second"]["median"]
    assert figures["mfu"] == pytest.approx(rate * figures["flops_per_token"] / 5e9, rel=1e-3)
    assert {"processor", "devices", "versions"} <= set(figures)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_rates_follow_from_seconds_by_hand():
    model = TransformerConfig(
        vocab_size=100, d_model=10, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20
    )
    config = BenchTrainConfig(model, batch_size=2, length=50, steps=5)
    weights = 3 * (10 * 4 * 6 * 2 + 10 * 2 * 6 * 2 + 3 * 10 * 20) + 10 * 100
    per_token = 6 * weights + 3 * 3 * 2 * 50 * 4 * 6  # attention over half the row: 2 products x 2 FLOPs x 25 keys
    figures = speed(config, [1.0, 4.0, 2.0], peak=1e9, source="by hand")
    assert figures["flops_per_token"] == per_token
    assert figures["tokens_per_second"] == {"median": 250, "min": 125, "max": 500, "all": [500, 125, 250]}
    assert figures["step_seconds"] == 0.4
    assert figures["tflops_per_second"] == pytest.approx(250 * per_token / 1e12, rel=1e-4)
    assert figures["mfu"] == pytest.approx(250 * per_token / 1e9, rel=1e-3)


def test_rows_hold_documents_of_both_modalities_and_padding(tiny):
    config = read_config(BenchTrainConfig, tiny)
    batch = random_batch(config)
    assert all(values.shape == (8, 16) for values in batch)
    np.testing.assert_array_equal(batch.segment_ids[0], [1] * 7 + [2] * 8 + [0])
    np.testing.assert_array_equal(batch.positions[0], [*range(7), *range(8), 0])
    np.testing.assert_array_equal(batch.loss_weights[0], [1] * 6 + [0] + [1] * 7 + [0, 0])
    np.testing.assert_array_equal(batch.targets[:, :-1], batch.inputs[:, 1:])
    assert batch.inputs[batch.segment_ids == 1].max() < 28 <= batch.inputs[batch.segment_ids == 2].min()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("demo", 2_558_144),
        ("cpu_25m", 34_089_472),
        ("1b", 1_501_673_472),
        ("7b", 7_013_158_912),
        ("7b_80gb", 7_013_158_912),
    ],
)
def test_presets_have_the_parameters_they_claim(name, parameters):
    config = read_config(BenchTrainConfig, PRESETS / f"{name}.yaml")
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config.model))) == parameters
    train_config(config)


def test_all_presets_are_tested_above():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == {"demo", "cpu_25m", "1b", "7b", "7b_80gb"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "CONFIG = 'nothing': must be a YAML file or one of 1b, 7b, 7b_80gb, "),
        (["{tiny}", "--documents", "99"], "documents = 99: must be at most the 15 tokens of a row"),
        (["{tiny}", "--batch-size", "12"], "batch_size = 12: must be a multiple of 8"),
        (["{tiny}", "--loss-chunk", "3"], "loss_chunk = 3: must divide the length of the rows, 16"),
        (["{tiny}", "--optimizer.moment-dtype", "int8"], "moment_dtype = 'int8': must be one of 'float32', 'bfloat16'"),
    ],
)
def test_mistakes_are_one_line(tiny, arguments, message, capsys):
    assert main(["bench", "train", *(argument.format(tiny=tiny) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("chameleon bench train: ")
    assert message in said
    assert said.count("\n") == 1
