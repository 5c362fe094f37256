"""Image tokenizers alone: written in every format, read from everybody's files, and opened by transformers and torch.

That the numbers of taming-transformers' and Meta's files mean the same network is tested in `models/test_vq_parity.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from tiny_models import image_tokenizer

from chameleon_jax.config import ConfigError, ImageTokenizerConfig, PreprocessingConfig
from chameleon_jax.console.cli import main
from chameleon_jax.errors import ChameleonError
from chameleon_jax.models import vq
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.weights.checkpoint import ConversionError
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer, write_image_tokenizer
from chameleon_jax.weights.initial import initial_image_tokenizer
from chameleon_jax.weights.safetensors import read_safetensors, write_safetensors
from chameleon_jax.weights.sources import leaves_of
from chameleon_jax.weights.torch_files import read_torch_file
from chameleon_jax.weights.torch_writing import write_torch_file

FORMATS = ("chameleon", "huggingface", "meta")
PADDED = PreprocessingConfig(fit="pad", pad_colour=(1, 2, 3))


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    """Of the released kind, with attention at its larger map as well."""
    config = ImageTokenizerConfig(
        resolution=8, channels=32, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8, code_dim=4,
        num_codes=16, attn_resolutions=(8,),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = vq.abstract_params(config)
    return ImageTokenizer(config, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes))


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    """The tokenizer in each format."""
    base = tmp_path_factory.mktemp("image_tokenizer")
    for format in FORMATS:
        write_image_tokenizer(tokenizer, base / format, format)
    return base


def check_same(found: ImageTokenizer, expected: ImageTokenizer, decoder: bool = True) -> None:
    """Bit for bit."""
    assert (found.config, found.can_decode) == (expected.config, decoder)
    assert found.preprocessing == expected.preprocessing
    ours, theirs = leaves_of(found.params), leaves_of(expected.params)
    assert set(ours) == {name for name in theirs if decoder or not name.startswith("decoder/")}
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], strict=True)


def refusal(*arguments: Any, reads: Any = read_image_tokenizer) -> str:
    with pytest.raises(ChameleonError) as caught:
        reads(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Every format
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_it_comes_back_bit_for_bit(tokenizer, saved, format):
    check_same(read_image_tokenizer(saved / format), tokenizer)
    assert (format == "chameleon") != (saved / format / "checklist.chk").is_file()


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_decoder_and_with_another_preprocessing(tokenizer, tmp_path, format):
    params = {name: part for name, part in tokenizer.params.items() if name != "decoder"}
    half = ImageTokenizer(tokenizer.config, params, PADDED)
    if format == "meta":
        with pytest.raises(ConversionError, match="lack the image decoder, which Meta's format needs"):
            write_image_tokenizer(half, tmp_path / "out", format)
        assert list(tmp_path.iterdir()) == []
        return
    write_image_tokenizer(half, tmp_path / "out", format)
    whole = ImageTokenizer(tokenizer.config, tokenizer.params, PADDED)
    check_same(read_image_tokenizer(tmp_path / "out"), whole, decoder=False)


@pytest.mark.parametrize("format", ["huggingface", "meta"])
def test_of_another_kind_is_written_in_our_format_alone(tmp_path, format):
    with pytest.raises(ConversionError, match=r"space_to_depth = 4 \(must be 1\), norm_groups = 4 \(must be 32\)"):
        write_image_tokenizer(image_tokenizer(), tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_replaced(tokenizer, saved):
    with pytest.raises(ChameleonError, match="is there already; choose another folder"):
        write_image_tokenizer(tokenizer, saved / "meta", "meta")


def test_the_folder_of_a_release_and_of_a_run_have_one_too(tokenizer, saved, tmp_path):
    shutil.copytree(saved / "meta", tmp_path / "release" / "tokenizer")
    shutil.copytree(saved / "chameleon", tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints").mkdir()
    for folder in ("release", "run"):
        check_same(read_image_tokenizer(tmp_path / folder), tokenizer)


def test_convert_writes_an_image_tokenizer_alone(saved, tmp_path, capsys):
    def convert(*arguments: Any) -> int:
        return main(["convert", *map(str, arguments)])

    names = ["meta", "huggingface", "chameleon"]
    for source, format in zip([saved / "chameleon", *(tmp_path / name for name in names)], names, strict=False):
        assert convert(source, tmp_path / format, "--format", format) == 0
    for file in ("meta/vqgan.ckpt", "meta/vqgan.yaml", "huggingface/model.safetensors", "huggingface/config.json"):
        assert (tmp_path / file).read_bytes() == (saved / file).read_bytes()
    capsys.readouterr()
    assert convert(saved / "meta", tmp_path / "out", "--format", "meta", "--shards", "2") == 2
    assert "shards = 2: " in (said := capsys.readouterr().err)
    assert "is an image tokenizer alone, without a Transformer" in said


@pytest.mark.parametrize("format", FORMATS)
def test_inspect_describes_an_image_tokenizer_alone(saved, format, capsys):
    assert main(["inspect", str(saved / format)]) == 0
    said = capsys.readouterr().out
    assert "8 x 8 pixels to 16 codes of 16, with decoder, float32" in said
    assert "attn_resolutions [8]" in said
    assert main(["inspect", str(saved / format), "--json", "true"]) == 0
    assert json.loads(capsys.readouterr().out)["image_tokenizer"]["parameters"] > 100_000
    assert main(["inspect", str(saved / format), "--verify", "true"]) == 0
    said = capsys.readouterr().out
    assert "image tokenizer: " in said
    assert ("MD5 checksums: " in said) == (format != "chameleon")


@pytest.mark.parametrize(
    ("format", "file"), [("huggingface", "image_decoder/model.safetensors"), ("meta", "vqgan.ckpt")]
)
def test_damage_of_an_image_tokenizer_alone_is_found(saved, tmp_path, format, file, capsys):
    folder = shutil.copytree(saved / format, tmp_path / format)
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2 & ~63 : (len(content) // 2 & ~63) + 64] = b"\xff" * 64  # NaN
    (folder / file).write_bytes(content)
    assert main(["inspect", str(folder), "--verify", "true"]) == 1
    assert capsys.readouterr().out.count("DAMAGED") == 2
    assert "infinite values or NaN" in refusal(folder)


@pytest.mark.parametrize("command", [["convert", "--format", "meta", "org/name", "out"], ["inspect", "org/name"]])
def test_a_folder_that_is_not_there_is_still_looked_for_on_the_hub(command, capsys):
    assert main(command) == 1
    assert "for a model on the Hugging Face Hub write hf://org/name" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# Files of taming-transformers
# ----------------------------------------------------------------------------------------------------------------------


def tensors(saved: Path) -> dict[str, np.ndarray]:
    content = read_torch_file(saved / "meta" / "vqgan.ckpt")["state_dict"]
    return {key: np.array(tensor.view()) for key, tensor in content.items()}


def params_of(saved: Path) -> dict[str, Any]:
    return yaml.safe_load((saved / "meta" / "vqgan.yaml").read_text())["model"]["params"]


def write_taming(folder: Path, saved: Path, extra: dict[str, np.ndarray], model: dict[str, Any]) -> Path:
    folder.mkdir()
    values = tensors(saved) | extra
    specs = {key: (value.shape, value.dtype) for key, value in values.items()}
    write_torch_file(folder / "some.ckpt", specs, values.__getitem__, top="state_dict")
    content = {"model": {"base_learning_rate": 4.5e-6, "target": "taming.models.vqgan.VQModel", **model}}
    (folder / "some.yaml").write_text(yaml.safe_dump(content))
    return folder / "some.ckpt"


def test_what_only_training_uses_is_skipped_and_all_else_refused(tokenizer, saved, tmp_path):
    ones = np.ones(3, np.float32)
    training = ("loss.discriminator.main.0.weight", "loss.perceptual_loss.lin0.model.1.weight", "colorize")
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 10000}}
    params = {"params": params_of(saved) | {"lossconfig": loss, "monitor": "val/rec_loss"}}
    file = write_taming(tmp_path / "known", saved, dict.fromkeys(training, ones), params)
    check_same(read_image_tokenizer(file), tokenizer)
    check_same(read_image_tokenizer(file.parent), tokenizer)
    file = write_taming(tmp_path / "unknown", saved, {"encoder.extra.weight": ones}, params)
    assert refusal(file).startswith(f"{file}: holds encoder.extra.weight, which the config does not explain")


@pytest.mark.parametrize(
    ("model", "changes", "sizes", "message"),
    [
        ({"target": "taming.models.vqgan.GumbelVQ"}, {}, {}, "model.target = 'taming.models.vqgan.GumbelVQ': only VQM"),
        ({"target": "ldm.models.autoencoder.AutoencoderKL"}, {}, {}, "only VQModel can be read: it has no codebook"),
        ({"target": "x.Net2NetTransformer"}, {}, {}, "give the files of its first stage"),
        ({}, {"remap": "used.npy"}, {}, "model.params: remap = 'used.npy': only None is supported"),
        ({}, {}, {"double_z": True}, "double_z = 'True': only False is supported: such an encoder outputs a mean and"),
        ({}, {}, {"in_channels": 182}, "in_channels = '182': only 3 is supported"),
        ({}, {"n_embed": 32}, {}, "quantize.embedding.weight has shape (16, 4), the config expects (32, 4)"),
        ({}, {}, {"attn_resolutions": []}, "holds decoder.up.0.attn.0.k.bias and 29 more, which the"),
        ({}, {}, {"attn_resolutions": [8, 4]}, "decoder.up.1.attn.0.k.bias and 29 more missing"),
    ],
)
def test_what_is_not_such_a_network_is_refused_in_one_line(saved, tmp_path, model, changes, sizes, message):
    params = params_of(saved)
    params = params | changes | {"ddconfig": params["ddconfig"] | sizes}
    file = write_taming(tmp_path / "taming", saved, {}, {"params": params, **model})
    assert message in refusal(file)


def test_tensors_of_a_gumbel_codebook_are_refused(saved, tmp_path):
    extra = {"quantize.proj.weight": np.ones((4, 4, 1, 1), np.float32)}
    file = write_taming(tmp_path / "taming", saved, extra, {"params": params_of(saved)})
    assert f"{file}: holds quantize.proj.weight, so it is a GumbelVQ: its codes are" in refusal(file)


def test_the_config_is_found_in_a_run_beside_the_checkpoint_or_given(tokenizer, saved, tmp_path):
    run = tmp_path / "logs"
    (run / "configs").mkdir(parents=True)
    file = run / "checkpoints" / "last.ckpt"
    write_taming(file.parent, saved, {}, {"params": params_of(saved)}).rename(file)
    config = (file.parent / "some.yaml").rename(run / "configs" / "2021-project.yaml")
    for extra in (run / "configs" / "2021-lightning.yaml", file.with_name("epoch=3.ckpt")):
        extra.write_text("")
    for path in (run, file.parent, file):
        check_same(read_image_tokenizer(path), tokenizer)
    moved = config.rename(tmp_path / "given.yaml")
    (run / "configs" / "b.yaml").write_text("")
    assert "its config may be any of 2021-lightning.yaml, b.yaml; give it too" in refusal(file)
    check_same(read_image_tokenizer(file, moved), tokenizer)
    assert f"is a folder; {moved} can only be given with a checkpoint file" in refusal(run, moved)
    shutil.rmtree(run / "configs")
    assert f"{file}: there is no last.yaml beside it" in refusal(file)
    file.unlink()
    file.with_name("b.ckpt").write_text("")
    assert "holds 2 checkpoints (b.ckpt, epoch=3.ckpt); give one of them" in refusal(run)


def test_a_folder_of_something_else_says_what_was_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert "holds no image tokenizer (expected config.json and params/ (our own), vqgan.ckpt" in refusal(tmp_path)
    assert "(there is no such file or folder)" in refusal(tmp_path / "absent")
    assert "holds no image tokenizer (expected config.json" in refusal(tmp_path / "notes.txt")
    (tmp_path / "run" / "checkpoints" / "100").mkdir(parents=True)
    assert refusal(tmp_path / "run").endswith("run: holds no image tokenizer (its training has not ended)")


def test_a_damaged_config_of_our_own_is_named(saved, tmp_path):
    file = shutil.copytree(saved / "chameleon", tmp_path / "own") / "config.json"
    file.write_text(file.read_text().replace("16", "32", 1))
    assert str(file) in refusal(file.parent)
    file.write_text("{")
    assert str(file) in refusal(file.parent)


# ----------------------------------------------------------------------------------------------------------------------
# Files of torch, PyTorch Lightning and transformers themselves
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lightning(monkeypatch) -> types.ModuleType:
    """A module of PyTorch Lightning's name; such files can be read without it."""
    module = types.ModuleType("pytorch_lightning.fake")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, base in (("ModelCheckpoint", object), ("AttributeDict", dict), ("Numbers", list)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    return module


class Attack:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.torch
@pytest.mark.parametrize("old", [False, True])
def test_checkpoints_of_lightning_are_read_and_nothing_of_them_is_run(
    tokenizer, saved, lightning, tmp_path, monkeypatch, old
):
    torch = pytest.importorskip("torch")
    weights = {key: torch.from_numpy(value) for key, value in tensors(saved).items()}
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([weight])
    weight.sum().backward()
    adam.step()
    callback = lightning.ModelCheckpoint()
    callback.best = torch.tensor(0.5)
    content = {
        "epoch": 3,
        "state_dict": weights | {"loss.discriminator.main.0.weight": torch.ones(3)},
        "callbacks": {lightning.ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}, "other": callback},
        "optimizer_states": [adam.state_dict()],
        "lr_schedulers": lightning.Numbers([1, 2]),
        "hyper_parameters": lightning.AttributeDict(ch=32, args=argparse.Namespace(seed=1)),
        "score": np.float64(0.25),
    }
    path = shutil.copy(saved / "meta" / "vqgan.yaml", tmp_path / "last.yaml").with_suffix(".ckpt")
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    monkeypatch.delitem(sys.modules, lightning.__name__)
    check_same(read_image_tokenizer(path), tokenizer)
    monkeypatch.chdir(tmp_path)
    torch.save({**content, "callbacks": {"other": Attack()}, "lr_schedulers": 0, "hyper_parameters": 0}, path)
    assert "mkdir" in (said := refusal(path))
    assert "It was not run" in said
    assert not (tmp_path / "was-run").exists()


@pytest.mark.torch
def test_torch_opens_the_checkpoint_of_meta(tokenizer, saved):
    torch = pytest.importorskip("torch")
    content = torch.load(saved / "meta" / "vqgan.ckpt", weights_only=True)["state_dict"]
    kernel = np.asarray(tokenizer.params["decoder"]["up_0_block_1"]["conv2"]["kernel"])
    np.testing.assert_array_equal(content["decoder.up.0.block.1.conv2.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(content["quantize.embedding.weight"], tokenizer.params["codebook"])
    assert len(content) == len(leaves_of(tokenizer.params))


@pytest.mark.torch
def test_transformers_opens_it_and_gives_the_same_codes_and_its_own_files_are_read(tokenizer, saved, tmp_path):
    torch = pytest.importorskip("torch")
    chameleon = pytest.importorskip("transformers.models.chameleon")
    model, info = chameleon.ChameleonVQVAE.from_pretrained(saved / "huggingface", output_loading_info=True)
    assert not any(info.values())
    pixels = np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).image_tokens
    codes = codes.numpy().reshape(4, -1)
    assert len(np.unique(codes)) > 3
    np.testing.assert_array_equal(tokenizer.encode_pixels(pixels), codes)
    model.save_pretrained(tmp_path / "theirs")
    check_same(read_image_tokenizer(tmp_path / "theirs"), tokenizer, decoder=False)


def test_tensors_cut_out_of_a_whole_model_keep_their_prefix(tokenizer, saved, tmp_path):
    folder = shutil.copytree(saved / "huggingface", tmp_path / "cut")
    for file in ("model.safetensors", "image_decoder/model.safetensors"):
        values = {f"model.vqmodel.{key}": np.array(t.view()) for key, t in read_safetensors(folder / file).items()}
        specs = {key: (value.shape, value.dtype) for key, value in values.items()}
        write_safetensors(folder / file, specs, values.__getitem__)
    check_same(read_image_tokenizer(folder), tokenizer)
    header = json.loads((folder / "config.json").read_text()) | {"base_channels": 64, "ch": 64}
    (folder / "config.json").write_text(json.dumps(header))
    assert "model.vqmodel.decoder.conv_in.bias has shape (64,), the config expects (128,)" in refusal(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Warm start of training
# ----------------------------------------------------------------------------------------------------------------------


def test_training_can_start_from_it(tokenizer, saved):
    check_same(initial_image_tokenizer(saved / "meta", tokenizer.config), tokenizer)
    larger = dataclasses.replace(tokenizer.config, resolution=32, attn_resolutions=(32,))
    jax.tree.map(
        np.testing.assert_array_equal, initial_image_tokenizer(saved / "meta", larger).params, tokenizer.params
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 32}, "model.num_codes = 32: .*meta has 16; give the tokenizer's own sizes"),
        ({"resolution": 16}, r"model.attn_resolutions = \[8\]: attention would follow other blocks .* at resolution 8"),
    ],
)
def test_training_of_another_architecture_does_not_start_from_it(tokenizer, saved, changes, message):
    with pytest.raises(ConfigError, match=message):
        initial_image_tokenizer(saved / "meta", dataclasses.replace(tokenizer.config, **changes))


def test_training_does_not_start_without_a_decoder(saved, tokenizer, tmp_path):
    folder = shutil.copytree(saved / "huggingface", tmp_path / "half")
    shutil.rmtree(folder / "image_decoder")
    with pytest.raises(ConfigError, match="half: has no image decoder, which training needs"):
        initial_image_tokenizer(folder, tokenizer.config)
