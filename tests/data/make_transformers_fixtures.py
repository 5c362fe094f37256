"""Writes the .npz files beside it: tiny random Chameleons of Hugging Face transformers, their inputs and outputs.

    python tests/data/make_transformers_fixtures.py [folder]

Needs torch and transformers (5.23.0 wrote the committed files). `tests/models/test_transformers_parity.py` compares our
model with the files, and with transformers itself where that is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

IMAGE_IDS = tuple(range(8, 16))
"""Ids named as image codes. transformers sets their logits to a very negative number, so they cannot be compared."""


class LanguageModel(NamedTuple):
    """Sizes in the words of transformers' ChameleonConfig."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    model_parallel_size: int
    swin_norm: bool
    num_hidden_layers: int = 2
    vocab_size: int = 48


LANGUAGE_MODELS = {
    "pre_norm": LanguageModel(32, 48, 4, 4, 1, False),
    "swin_norm_gqa": LanguageModel(64, 80, 8, 4, 2, True),
}

IMAGE_TOKENIZER = {
    "embed_dim": 8,
    "num_embeddings": 32,
    "latent_channels": 16,
    "resolution": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "attn_type": "vanilla",
}


def randomize(module, seed: int) -> None:
    """Gives every parameter random values; norms stay near 1 and 0, the rest keeps activations of size 1.

    The values are exact in float16, which halves the files.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "q_norm" not in name and "k_norm" not in name:
                value = noise * parameter[0].numel() ** -0.5
            else:
                value = noise * 0.3 + (1.0 if name.endswith("weight") else 0.0)
            parameter.copy_(value.half())


def as_float16(module) -> dict[str, np.ndarray]:
    weights = {key: value.numpy() for key, value in module.state_dict().items()}
    assert all(np.array_equal(value, value.astype(np.float16)) for value in weights.values())
    return {key: value.astype(np.float16) for key, value in weights.items() if "vqmodel" not in key}


def language_model(name: str) -> dict[str, np.ndarray]:
    """Weights in transformers' layout, `input_ids` and float32 `logits` of one of `LANGUAGE_MODELS`."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    sizes = LANGUAGE_MODELS[name]
    names = {"<image>": 7, **{f"IMGIMG{chr(ord('A') + n)}Z": id for n, id in enumerate(IMAGE_IDS)}}
    config = ChameleonConfig(
        **sizes._asdict(),
        vocabulary_map=names,
        attn_implementation="eager",
        vq_config={**IMAGE_TOKENIZER, "channel_multiplier": [1], "resolution": 16},
    )
    model = ChameleonForConditionalGeneration(config).eval()
    randomize(model, seed=0)
    with torch.no_grad():
        # The heads of a shard share one row of scale and bias; transformers stores it once per head.
        for layer in model.model.layers:
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                for parameter in norm.parameters():
                    heads = parameter.shape[0] // sizes.model_parallel_size
                    parameter.copy_(parameter[::heads].repeat_interleave(heads, 0))
        input_ids = torch.from_numpy(np.random.default_rng(0).integers(0, sizes.vocab_size, (2, 16)))
        logits = model(input_ids=input_ids).logits
    return {**as_float16(model), "input_ids": input_ids.numpy().astype(np.int32), "logits": logits.numpy()}


def image_tokenizer() -> dict[str, np.ndarray]:
    """Weights of an image tokenizer, `pixels` in [-1, 1], `latents` before rounding and `codes`. Pixels and latents
    have their channels last."""
    import torch
    from transformers.models.chameleon import ChameleonVQVAE, ChameleonVQVAEConfig

    model = ChameleonVQVAE(ChameleonVQVAEConfig(**IMAGE_TOKENIZER)).eval()
    randomize(model, seed=1)
    with torch.no_grad():
        pixels = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32))
        latents = model.quant_conv(model.encoder(pixels))
        # Codes among the latents, as in a trained tokenizer, so that many of them are used.
        spread = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        model.quantize.embedding.weight.copy_((spread[:: len(spread) // 32][:32] + 0.1).half())
        codes = model.encode(pixels, return_dict=True).image_tokens
    last = lambda x: np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())  # noqa: E731
    return {
        **as_float16(model),
        "pixels": last(pixels),
        "latents": last(latents),
        "codes": codes.reshape(2, -1).numpy().astype(np.int32),
    }


def main(folder: Path) -> None:
    for name in LANGUAGE_MODELS:
        np.savez_compressed(folder / f"transformers_{name}.npz", **language_model(name))
    np.savez_compressed(folder / "transformers_image_tokenizer.npz", **image_tokenizer())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
