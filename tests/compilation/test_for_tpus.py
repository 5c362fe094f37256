"""Programs that run on TPUs compile for TPUs, from a machine that has none."""

from __future__ import annotations

import functools
import importlib.util
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from tiny_models import image_tokenizer, scrambled_vocabulary

from chameleon_jax.compilation import topologies
from chameleon_jax.compilation.run import compile_train_step
from chameleon_jax.compilation.table import generate_lines
from chameleon_jax.config import (
    TrainConfig,
    TransformerConfig,
    find_configs,
    from_dict,
)
from chameleon_jax.console.cli import main
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.programs import decode, make_weights
from chameleon_jax.generation.rows import Rows
from chameleon_jax.models.decoding import Cache
from chameleon_jax.tokens.image import _method
from chameleon_jax.weights.checkpoint import abstract_params

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which `make test-all` installs"
    ),
]
MODEL = {
    "vocab_size": 512, "d_model": 256, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 128,
    "mlp_dim": 512,
}  # fmt: skip
TRAIN = {
    "data": "none", "output": "none", "steps": 8, "batch_size": 8, "sequence_length": 1024, "accumulation": 2,
    "loss_chunk": 256, "model": MODEL, "execution": {"compute_dtype": "bfloat16", "remat": "save_attention"},
    "stages": [{"share": 1.0, "weights": {"all": 1.0}}], "optimizer": {"warmup_steps": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What libtpu is told about this machine is forgotten after each test."""
    for name, value in topologies._ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def one_chip(tree: Any) -> Any:
    """Shapes and dtypes of arrays on a chip that is not there."""
    sharding = SingleDeviceSharding(_chip())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


@functools.cache
def _chip() -> Any:
    return topologies.describe_topology("v5e:1x1")[0]


def compile_for_tpu(traced: jax.stages.Traced) -> jax.stages.Compiled:
    return traced.lower(lowering_platforms=("tpu",)).compile()


def test_a_step_of_packed_and_cut_rows_keeps_what_its_attention_kernel_computed():
    """In parts, with the evaluation step beside it."""
    mesh = {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}
    compiled, report = compile_train_step(
        from_dict(TrainConfig, {**TRAIN, "mesh": mesh}), topologies.describe_topology("v5e:2x4")
    )
    calls = [line for line in compiled.as_text().splitlines() if "custom-call(" in line]
    # One scanned layer each way: 'save_attention' spares the backward pass a second forward kernel.
    assert sum("splash_mha_fwd_segmented_residuals" in line for line in calls) == 1
    assert sum("splash_mha_dkv_segmented" in line for line in calls) == 1
    assert report["memory"]["fits"] is report["evaluation_memory"]["fits"] is True
    assert 0 < report["evaluation_memory"]["temporaries"] < report["memory"]["temporaries"]
    assert report["loops_of_unknown_length"] == 0


def test_a_small_model_for_two_slices(tmp_path, capsys):
    recipe = tmp_path / "train.yaml"
    recipe.write_text(json.dumps({**TRAIN, "accumulation": 1, "sequence_length": 256, "batch_size": 16}))
    words = ["--topology", "v5e:2x4", "--slices", "2", "--mesh.data", "2", "--mesh.fsdp", "8"]
    words += ["--execution.attention", "xla", "--json", "true"]
    assert main(["compile", str(recipe), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["devices"]) == ("TPU v5e", 16)
    whole = 2 * 2 * 2 * 128  # QK-norm of two layers
    assert found["memory"]["parameters"] == 4 * ((found["parameters"] - whole) // 8 + whole)
    assert found["memory"]["fits"] is True
    assert found["memory"]["capacity"] == 16 * 2**30
    assert found["replicated"] == []
    # Weights are gathered forward and backward, and their gradients summed.
    assert "bf16" in found["collectives"]["all-gather"]["dtypes"]
    assert found["collectives"].keys() & {"reduce-scatter", "all-reduce"}
    assert found["loops_of_unknown_length"] == 0
    assert 0 < found["estimate"]["mfu_one_by_one"] < found["estimate"]["mfu_all_at_once"] <= 1


def test_decode_writes_into_its_caches():
    """With guidance, three lanes a row, they are donated, and hardly anything is held beside them."""
    config, vocabulary, rows = from_dict(TransformerConfig, MODEL), scrambled_vocabulary(200, 64), 2
    columns = Columns.build(vocabulary, 64)
    make = functools.partial(make_weights, config=config, columns=columns, dtype="bfloat16")
    weights = jax.eval_shape(make, abstract_params(config, "bfloat16"))
    empty = functools.partial(Cache.empty, config, rows, 4096, "bfloat16")
    caches = tuple(jax.eval_shape(empty) for _ in range(3))
    state = Rows.empty(rows, len(columns.text_ids), 1)
    numbers = np.int32(8), np.bool_(False)
    arguments = [one_chip(tree) for tree in (weights, columns, state, caches, *numbers)]
    memory = compile_for_tpu(decode.trace(config, *arguments, max_steps=8, window=1)).memory_analysis()
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(caches))
    assert memory.alias_size_in_bytes >= nbytes
    assert memory.temp_size_in_bytes < 0.1 * nbytes


def test_drawing_on_eight_chips(tmp_path, capsys):
    heads = {"num_heads": 8, "num_kv_heads": 8}
    recipe = tmp_path / "generate.yaml"
    recipe.write_text(json.dumps({
        "model": {**MODEL, **heads}, "codes_per_image": 64, "rows": [1],
        "execution": {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"},
    }))  # fmt: skip
    assert main(["compile", "generate", str(recipe), "--topology", "v5e:2x4", "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    memory = found["memory"]
    assert (found["device"], found["mesh"]["tensor"]) == ("TPU v5e", 8)
    assert memory["fits"] is True
    assert memory["cache"] == 2 * 2 * 2 * 4096 * 128 * 2
    assert memory["temporaries"] < memory["cache"] / 2  # they are written in place
    said = "\n".join(generate_lines(found))
    assert "fits" in said
    assert "a step, at least" in said


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_pictures_are_computed_in_float32(method):
    tokenizer = image_tokenizer()
    config, params = tokenizer.config, tokenizer.params
    pixels = jnp.zeros((1, config.resolution, config.resolution, 3))
    values = pixels if method == "encode" else jnp.zeros((1, config.codes_per_image), jnp.int32)
    text = compile_for_tpu(
        jax.jit(_method, static_argnums=(0, 1)).trace(config, method, one_chip(params), one_chip(values))
    ).as_text()
    products = [line for line in text.splitlines() if " convolution(" in line]
    assert products
    assert all("operand_precision={highest,highest}" in line and " = f32[" in line for line in products)


@pytest.mark.pod
def test_the_recipe_of_7b_for_a_pod(capsys):
    recipe = find_configs() / "pretrain_7b.yaml"
    assert main(["compile", str(recipe), "--topology", "v5p:4x4x8", "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] > 7.0e9
    assert found["memory"]["fits"] is found["evaluation_memory"]["fits"] is True
    assert found["replicated"] == []
    assert found["loops_of_unknown_length"] == 0
