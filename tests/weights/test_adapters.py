"""Adapters alone, as files in PEFT's layout: written, read back, added to a model, refused where they do not fit."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_models import TRANSFORMER, released_model, transformer_params

from chameleon_jax.config import LoRAConfig
from chameleon_jax.errors import FileError
from chameleon_jax.models.lora import is_adapter, merge
from chameleon_jax.weights.adapters import add_adapters, read_adapters, write_adapters
from chameleon_jax.weights.layout import transformer_entries
from chameleon_jax.weights.safetensors import read_safetensors, write_safetensors
from chameleon_jax.weights.sources import leaves_of, tree_of

LORA = LoRAConfig(rank=3, alpha=6.0, targets=("q", "k", "o", "gate", "down"))
PARAMS = transformer_params(TRANSFORMER, lora=LORA)
BASE = tree_of({name: leaf for name, leaf in leaves_of(PARAMS).items() if not is_adapter(name)})


@pytest.fixture
def folder(tmp_path):
    write_adapters(tmp_path / "adapters", LORA, PARAMS, "models/base")
    return tmp_path / "adapters"


def test_they_come_back_as_they_were_and_add_up_to_the_merged_model(folder):
    lora, adapters = read_adapters(folder.parent, TRANSFORMER)  # the folder of the run will do
    assert lora == LORA
    written = {name: np.asarray(leaf) for name, leaf in leaves_of(PARAMS).items() if is_adapter(name)}
    assert leaves_of(adapters).keys() == written.keys()
    for name, leaf in leaves_of(adapters).items():
        np.testing.assert_array_equal(leaf, written[name])
    added = add_adapters(jax.tree.map(jax.numpy.copy, BASE), TRANSFORMER, folder)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), added, merge(PARAMS, LORA))


def test_to_peft_they_mean_the_same(folder):
    """W + alpha / r B A, with every matrix as transformers keeps it."""
    header = json.loads((folder / "adapter_config.json").read_text())
    assert (header["peft_type"], header["r"], header["lora_alpha"]) == ("LORA", 3, 6.0)
    assert header["target_modules"] == ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    assert header["base_model_name_or_path"] == "models/base"
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    base, merged = leaves_of(BASE), leaves_of(merge(PARAMS, LORA))
    adapted = 0
    for entry in transformer_entries(TRANSFORMER, "H1"):
        name = f"base_model.model.{entry.key.removesuffix('.weight')}"
        before, after = (
            entry.fold(np.asarray(each[entry.leaf] if entry.layer is None else each[entry.leaf][entry.layer]))
            for each in (base, merged)
        )
        if f"{name}.lora_A.weight" in tensors:
            a, b = (tensors.pop(f"{name}.lora_{factor}.weight").view() for factor in "AB")
            before = before + 6.0 / 3 * b @ a
            adapted += 1
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5, err_msg=entry.key)
    assert adapted == len(LORA.targets) * TRANSFORMER.num_layers
    assert not tensors


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"mlp_dim": 32}, r"down_proj\.lora_A\.weight has shape \(3, 24\), .*rank 3 .*need \(3, 32\).*another model"),
        ({"num_layers": 3}, r"layers\.2\.\S+ is missing"),
        ({"num_layers": 1}, r"layers\.1\..* is not a parameter of this model"),
    ],
)
def test_another_model_is_refused_in_one_line(folder, model, message):
    with pytest.raises(FileError, match=message) as error:
        read_adapters(folder, dataclasses.replace(TRANSFORMER, **model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 4}, r"has shape \(3, 16\), but adapters of rank 4 for this model need \(4, 16\)"),
        ({"r": 0}, "r = 0"),
        ({"r": "3"}, "r = 3"),
        ({"lora_alpha": float("nan")}, "lora_alpha = 'nan'"),
        ({"peft_type": "IA3"}, "peft_type LORA"),
        ({"use_dora": True}, "use_dora = 'True': only False"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"target_modules": [["q_proj"]]}, "must be some of q_proj"),
        ({"target_modules": "all-linear"}, "target_modules = 'all-linear': must be some of q_proj"),
        ({"target_modules": ["lm_head"]}, "target_modules"),
    ],
)
def test_what_is_not_known_of_peft_is_refused_in_one_line(folder, change, message):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FileError, match=message) as error:
        read_adapters(folder, TRANSFORMER)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "holds infinite values or NaN"), (1, "is of type int32")])
def test_adapters_of_no_finite_numbers_are_refused(folder, value, message):
    path = folder / "adapter_model.safetensors"
    values = {name: np.array(tensor.view()) for name, tensor in read_safetensors(path).items()}
    name = next(iter(values))
    values[name][0] = value
    content = path.read_bytes()
    if value == 1:  # the same bytes under another type
        path.write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    else:
        specs = {name: (value.shape, value.dtype) for name, value in values.items()}
        write_safetensors(path, specs, values.__getitem__)
    with pytest.raises(FileError, match=message):
        read_adapters(folder, TRANSFORMER)


def test_a_folder_without_adapters_is_named(tmp_path):
    with pytest.raises(FileError, match=r"adapter_config\.json: no such file"):
        read_adapters(tmp_path, TRANSFORMER)


@pytest.mark.torch
def test_peft_itself_computes_the_same_and_its_own_files_are_read(tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import chameleon_jax

    model = released_model()
    model.save(tmp_path / "base", "huggingface")
    drawn = transformer_params(model.config, seed=3, lora=LORA)
    adapted = tree_of({**leaves_of(drawn), **leaves_of(model.params)})
    write_adapters(tmp_path / "adapters", LORA, adapted, "base")
    theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapters")).eval()
    theirs.save_pretrained(tmp_path / "again")

    ids = np.random.default_rng(0).integers(0, model.vocabulary.size, (2, 9))
    text = np.setdiff1d(np.arange(model.vocabulary.size), model.vocabulary.image_ids)  # pictures they mask
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()[..., text]
    for adapters in ("adapters", "again"):
        ours = chameleon_jax.load(tmp_path / "base", dtype="float32", adapters=tmp_path / adapters)
        np.testing.assert_allclose(np.asarray(ours.logits(ids))[..., text], expected, rtol=1e-4, atol=1e-4)
