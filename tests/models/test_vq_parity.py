"""The image tokenizer, opened from a Meta folder, gives the numbers of a VQGAN that somebody else wrote.

Its encoder and its codes are compared with Hugging Face transformers. Nobody's library has the decoder: it is compared
with plain torch in `tests/data/make_transformers_fixtures.py`, written from the specification and by the names of the
released file, whose encoder agrees with that of transformers. The tests marked `torch` make these numbers live and have
torch write the file.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from chameleon_jax.config import ImageTokenizerConfig
from chameleon_jax.models.vq import VQModel
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.weights.image_tokenizer import read_image_tokenizer
from chameleon_jax.weights.layout import image_tokenizer_entries
from chameleon_jax.weights.torch_writing import write_torch_file

DATA = Path(__file__).parent.parent / "data"

spec = importlib.util.spec_from_file_location("make_transformers_fixtures", DATA / "make_transformers_fixtures.py")
fixtures = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
spec.loader.exec_module(fixtures)


def write_config(folder: Path, sizes: dict[str, Any]) -> None:
    """vqgan.yaml with the fields of the released one (specification, section 3.1)."""
    ddconfig = {
        "double_z": False,
        "z_channels": sizes["latent_channels"],
        "resolution": sizes["resolution"],
        "in_channels": 3,
        "out_ch": 3,
        "ch": sizes["base_channels"],
        "ch_mult": sizes["channel_multiplier"],
        "num_res_blocks": sizes["num_res_blocks"],
        "attn_resolutions": sizes.get("attn_resolutions", []),
        "dropout": 0.0,
    }
    if sizes["attn_type"] != "vanilla":
        ddconfig["attn_type"] = sizes["attn_type"]
    params = {"embed_dim": sizes["embed_dim"], "n_embed": sizes["num_embeddings"], "ddconfig": ddconfig}
    model = {"target": "vqgan.VQModel", "params": {**params, "lossconfig": {"target": "loss"}, "ckpt_path": "x.ckpt"}}
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": model}))


def weights_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value.astype(np.float32) for key, value in arrays.items() if key not in fixtures.ANSWERS}


def check(tokenizer: ImageTokenizer, answers: dict[str, np.ndarray], different: int) -> None:
    """Latents, codes (of which `different` or more are used) and pixels are those of the others."""

    @jax.jit
    def encode(params, pixels):
        apply = functools.partial(VQModel(tokenizer.config).apply, {"params": params}, pixels)
        return apply(method="latents"), apply(method="encode")

    latents, codes = encode(tokenizer.params, answers["pixels"])
    assert 0.3 < np.std(answers["latents"]) < 3
    np.testing.assert_allclose(latents, answers["latents"], rtol=0, atol=1e-4)
    assert len(np.unique(answers["codes"])) >= different
    np.testing.assert_array_equal(codes, answers["codes"])
    assert 0.3 < np.std(answers["decoded"]) < 3
    np.testing.assert_allclose(tokenizer.decode_codes(answers["codes"]), answers["decoded"], rtol=0, atol=1e-4)


def test_latents_codes_and_pixels_are_those_of_others(tmp_path):
    with np.load(DATA / "transformers_image_tokenizer.npz") as file:
        arrays = dict(file)
    weights = weights_of(arrays)
    write_config(tmp_path, fixtures.IMAGE_TOKENIZER)
    specs = {key: (value.shape, value.dtype) for key, value in weights.items()}
    write_torch_file(tmp_path / "vqgan.ckpt", specs, weights.__getitem__, top="state_dict")
    tokenizer = read_image_tokenizer(tmp_path)
    check(tokenizer, arrays, different=24)
    np.testing.assert_array_equal(tokenizer.encode_pixels(arrays["pixels"]), arrays["codes"])


@pytest.mark.parametrize("name", fixtures.RELATIVES)
def test_relatives_with_more_attention_or_none_give_the_numbers_of_others(tmp_path, name):
    sizes = fixtures.RELATIVES[name]
    with np.load(DATA / f"transformers_image_tokenizer_{name}.npz") as file:
        arrays = dict(file)
    weights = fixtures.random_vqgan(sizes, seed=1)
    weights[fixtures.CODEBOOK] = arrays[fixtures.CODEBOOK].astype(np.float32)
    write_config(tmp_path, sizes)
    specs = {key: (value.shape, value.dtype) for key, value in weights.items()}
    write_torch_file(tmp_path / "vqgan.ckpt", specs, weights.__getitem__, top="state_dict")
    check(read_image_tokenizer(tmp_path), arrays, different=8)


@pytest.mark.torch
@pytest.mark.parametrize("name", fixtures.RELATIVES)
def test_live_relatives_give_the_numbers_of_others(tmp_path, name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    arrays = fixtures.image_tokenizer(fixtures.RELATIVES[name])
    write_config(tmp_path, fixtures.RELATIVES[name])
    save_with_torch(tmp_path, weights_of(arrays))
    check(read_image_tokenizer(tmp_path), arrays, different=8)


def save_with_torch(folder: Path, weights: dict[str, np.ndarray]) -> None:
    """As the released file, with the leftovers of training that such files have."""
    import torch

    tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
    tensors["loss.discriminator.main.0.weight"] = torch.ones(3, 3)
    torch.save({"state_dict": tensors, "epoch": 3, "global_step": 1000}, folder / "vqgan.ckpt")


@pytest.mark.torch
def test_live_latents_codes_and_pixels_are_those_of_others(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    arrays = fixtures.image_tokenizer()
    write_config(tmp_path, fixtures.IMAGE_TOKENIZER)
    save_with_torch(tmp_path, weights_of(arrays))
    check(read_image_tokenizer(tmp_path), arrays, different=24)


def test_names_and_shapes_of_the_released_file_are_those_of_the_plain_network():
    shapes = fixtures.vqgan_shapes(fixtures.RELEASED_IMAGE_TOKENIZER)
    assert len(shapes) == 293
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 68_718_467
    assert {entry.key: entry.stored for entry in image_tokenizer_entries(ImageTokenizerConfig())} == shapes


@pytest.mark.torch
@pytest.mark.slow
def test_layers_of_the_released_size_give_the_numbers_of_others(tmp_path):
    """At half the resolution, which is a quarter of the time."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    sizes = {**fixtures.RELEASED_IMAGE_TOKENIZER, "resolution": 256}
    arrays = fixtures.image_tokenizer(sizes, pictures=1)
    write_config(tmp_path, sizes)
    save_with_torch(tmp_path, weights_of(arrays))
    tokenizer = read_image_tokenizer(tmp_path)
    (tmp_path / "vqgan.ckpt").unlink()  # 275 MB
    answers = {key: arrays[key] for key in fixtures.ANSWERS}
    del arrays
    gc.collect()
    check(tokenizer, answers, different=100)
