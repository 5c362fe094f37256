"""Writes the .npz files beside it: tiny random Chameleons of others, their inputs and outputs.

    python tests/data/make_transformers_fixtures.py [folder]

Needs torch and transformers (5.23.0 wrote the committed files). The language models and the image encoder are those of
Hugging Face transformers. It has no image decoder, so the whole VQGAN is written out here once more, in plain torch and
from the specification (sections 3.2 to 3.4); its encoder has to agree with that of transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IMAGE_NAMES = tuple(f"IMGIMG{letter}Z" for letter in "ABCDEFGH")
NAMES = {
    name: token
    for token, name in enumerate(
        ["<s>", "<pad>", "</s>", "<unk>", *IMAGE_NAMES, "<eoss>", "<racm3:break>", "<reserved08706>", "<image>"]
        + [f"word{number}" for number in range(48)]
    )
}
"""A vocabulary in the released order. transformers sets the logits of image codes to a very negative number, so they
cannot be compared."""
NOT_WRITTEN = tuple(token for name, token in NAMES.items() if not name.startswith("word") and name != "</s>")
"""What our text mode does not write; transformers is told to suppress it."""
NEW_TOKENS = 32


class LanguageModel(NamedTuple):
    """Sizes, mostly in the words of transformers' ChameleonConfig.

    The query heads form as many groups as there are `rows`, each with one row of scale and bias in QK-norm, of which
    transformers keeps a copy for every head.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    model_parallel_size: int
    swin_norm: bool
    rows: int
    seed: int
    num_hidden_layers: int = 2

    @property
    def config(self) -> dict[str, Any]:
        values = {name: value for name, value in self._asdict().items() if name not in ("rows", "seed")}
        ids = {"pad_token_id": NAMES["<pad>"], "bos_token_id": NAMES["<s>"], "eos_token_id": NAMES["</s>"]}
        return {**values, **ids, "vocab_size": len(NAMES), "vocabulary_map": NAMES}


LANGUAGE_MODELS = {
    "pre_norm": LanguageModel(32, 48, 4, 4, 1, False, rows=1, seed=0),
    "swin_norm_gqa": LanguageModel(64, 80, 8, 4, 2, True, rows=2, seed=4),
    "four_shards_gqa": LanguageModel(64, 80, 8, 4, 4, True, rows=4, seed=4),
    "row_per_head_gqa": LanguageModel(64, 80, 8, 4, 1, False, rows=8, seed=0),
}

IMAGE_TOKENIZER = {
    "embed_dim": 8,
    "num_embeddings": 32,
    "latent_channels": 16,
    "resolution": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_type": "vanilla",
}

_SMALL = IMAGE_TOKENIZER | {"resolution": 16, "channel_multiplier": [1, 1, 2]}
RELATIVES = {
    "attended": _SMALL | {"attn_resolutions": [8]},
    "attended_twice": _SMALL | {"attn_resolutions": [16, 4], "num_res_blocks": 2, "channel_multiplier": [1, 2, 1]},
    "unattended": _SMALL | {"attn_type": "none"},
}
"""Others of the family: attention at some maps too, or none at all."""

RELEASED_IMAGE_TOKENIZER = {
    "embed_dim": 256,
    "num_embeddings": 8192,
    "latent_channels": 256,
    "resolution": 512,
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_type": "vanilla",
}

# ----------------------------------------------------------------------------------------------------------------------
# Language models
# ----------------------------------------------------------------------------------------------------------------------


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


def as_float16(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays = {key: value.numpy() for key, value in weights.items()}
    assert all(np.array_equal(value, value.astype(np.float16)) for value in arrays.values())
    return {key: value.astype(np.float16) for key, value in arrays.items()}


def transformers_model(name: str):
    """One of `LANGUAGE_MODELS` with random weights."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    sizes = LANGUAGE_MODELS[name]
    image = {**IMAGE_TOKENIZER, "channel_multiplier": [1], "resolution": 16, "num_embeddings": len(IMAGE_NAMES)}
    config = ChameleonConfig(**sizes.config, attn_implementation="eager", vq_config=image)
    model = ChameleonForConditionalGeneration(config).eval()
    randomize(model, sizes.seed)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                for parameter in norm.parameters():
                    heads = max(1, parameter.shape[0] // sizes.rows)
                    parameter.copy_(parameter[::heads].repeat_interleave(heads, 0))
        model.lm_head.weight[NAMES["</s>"]] *= 0.5  # so that long texts are written
    return model


def answers(model) -> dict[str, np.ndarray]:
    """`input_ids` and float32 `logits`; and the greedy `continuation_…` of prompts that begin with <s>."""
    import torch

    rng = np.random.default_rng(0)
    input_ids = torch.from_numpy(rng.integers(0, len(NAMES), (2, 16)))
    words = [token for name, token in NAMES.items() if name.startswith("word")]
    prompts = [[NAMES["<s>"], *rng.choice(words, length).tolist()] for length in (0, 4, 19)]
    with torch.no_grad():
        arrays = {"input_ids": input_ids.numpy().astype(np.int32), "logits": model(input_ids=input_ids).logits.numpy()}
    for number, prompt in enumerate(prompts):
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            suppress_tokens=list(NOT_WRITTEN),
            output_scores=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(output.scores).topk(2).values
        assert (best[..., 0] - best[..., 1]).min() > 1e-3, "a near tie; another seed"
        arrays[f"prompt_{number}"] = np.asarray(prompt, np.int32)
        arrays[f"continuation_{number}"] = output.sequences[0, len(prompt) :].numpy().astype(np.int32)
    return arrays


def language_model(name: str) -> dict[str, np.ndarray]:
    """The language model's weights as transformers names them, its config.json, and `answers`."""
    model = transformers_model(name)
    weights = {key: value for key, value in model.state_dict().items() if "vqmodel" not in key}
    return {**as_float16(weights), "config": np.array(model.config.to_json_string()), **answers(model)}


# ----------------------------------------------------------------------------------------------------------------------
# Image tokenizer: the VQGAN in plain torch, by the names of the released file
# ----------------------------------------------------------------------------------------------------------------------


def vqgan_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of vqgan.ckpt."""
    z, width = sizes["latent_channels"], sizes["base_channels"]
    widths = [width * multiplier for multiplier in sizes["channel_multiplier"]]
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, into: int, out: int, side: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, side, side), (out,)

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def res_block(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", into, out, 3)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", into, out, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    def middle(name: str, channels: int) -> None:
        res_block(f"{name}.block_1", channels, channels)
        if sizes["attn_type"] == "vanilla":
            attention(f"{name}.attn_1", channels)
        res_block(f"{name}.block_2", channels, channels)

    def is_attended(level: int) -> bool:
        return sizes["resolution"] // 2**level in sizes.get("attn_resolutions", [])

    conv("encoder.conv_in", 3, widths[0], 3)
    into = widths[0]
    for level, out in enumerate(widths):
        for block in range(sizes["num_res_blocks"]):
            res_block(f"encoder.down.{level}.block.{block}", into, out)
            if is_attended(level):
                attention(f"encoder.down.{level}.attn.{block}", out)
            into = out
        if level < len(widths) - 1:
            conv(f"encoder.down.{level}.downsample.conv", out, out, 3)
    middle("encoder.mid", widths[-1])
    norm("encoder.norm_out", widths[-1])
    conv("encoder.conv_out", widths[-1], z, 3)

    conv("decoder.conv_in", z, widths[-1], 3)
    middle("decoder.mid", widths[-1])
    into = widths[-1]
    for level in reversed(range(len(widths))):
        for block in range(sizes["num_res_blocks"] + 1):
            res_block(f"decoder.up.{level}.block.{block}", into, widths[level])
            if is_attended(level):
                attention(f"decoder.up.{level}.attn.{block}", widths[level])
            into = widths[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", into, into, 3)
    norm("decoder.norm_out", widths[0])
    conv("decoder.conv_out", widths[0], 3, 3)

    shapes["quantize.embedding.weight"] = (sizes["num_embeddings"], sizes["embed_dim"])
    conv("quant_conv", z, sizes["embed_dim"], 1)
    conv("post_quant_conv", sizes["embed_dim"], z, 1)
    return shapes


def random_vqgan(sizes: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Weights, exact in float16, that keep activations of size 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in vqgan_shapes(sizes).items():
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 4:
            values *= np.prod(shape[1:]) ** -0.5
        elif len(shape) == 1:
            values = values * 0.2 + float("norm" in name.split(".")[-2] and name.endswith("weight"))
        weights[name] = values.astype(np.float16).astype(np.float32)
    return weights


class _Network:
    """The VQGAN's building blocks (specification, section 3.2)."""

    def __init__(self, weights: dict[str, Any], sizes: dict[str, Any]):
        self.weights, self.sizes = weights, sizes

    def conv(self, name: str, x, **options):
        import torch.nn.functional as F

        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)

    def norm(self, name: str, x):
        import torch.nn.functional as F

        return F.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6)

    def res_block(self, name: str, x):
        h = self.norm(f"{name}.norm1", x)
        h = self.conv(f"{name}.conv1", h * h.sigmoid(), padding=1)
        h = self.norm(f"{name}.norm2", h)
        h = self.conv(f"{name}.conv2", h * h.sigmoid(), padding=1)
        if f"{name}.nin_shortcut.weight" in self.weights:
            x = self.conv(f"{name}.nin_shortcut", x)
        return x + h

    def level_block(self, level: str, block: int, x):
        x = self.res_block(f"{level}.block.{block}", x)
        attention = f"{level}.attn.{block}"
        return self.attention(attention, x) if f"{attention}.q.weight" in self.weights else x

    def attention(self, name: str, x):
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")  # [B, c, h w]
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
        return x + self.conv(f"{name}.proj_out", (v @ weights.transpose(1, 2)).reshape(x.shape))

    def middle(self, name: str, x):
        x = self.res_block(f"{name}.block_1", x)
        if self.sizes["attn_type"] == "vanilla":
            x = self.attention(f"{name}.attn_1", x)
        return self.res_block(f"{name}.block_2", x)

    def out(self, name: str, x):
        h = self.norm(f"{name}.norm_out", x)
        return self.conv(f"{name}.conv_out", h * h.sigmoid(), padding=1)

    def encoder(self, x):
        import torch.nn.functional as F

        x = self.conv("encoder.conv_in", x, padding=1)
        last = len(self.sizes["channel_multiplier"]) - 1
        for level in range(last + 1):
            for block in range(self.sizes["num_res_blocks"]):
                x = self.level_block(f"encoder.down.{level}", block, x)
            if level < last:
                x = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        return self.out("encoder", self.middle("encoder.mid", x))

    def decoder(self, x):
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", x, padding=1))
        for level in reversed(range(len(self.sizes["channel_multiplier"]))):
            for block in range(self.sizes["num_res_blocks"] + 1):
                x = self.level_block(f"decoder.up.{level}", block, x)
            if level > 0:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x, padding=1)
        return self.out("decoder", x)


def vqgan_latents(weights: dict[str, Any], sizes: dict[str, Any], pixels):
    """Latents [B, e, g, g] before they are rounded to codes, of pixels [B, 3, h, w]."""
    network = _Network(weights, sizes)
    return network.conv("quant_conv", network.encoder(pixels))


def vqgan_codes(weights: dict[str, Any], latents):
    """The nearest code of each latent, [B, g g], in raster order. Distances are summed in float64."""
    z = latents.permute(0, 2, 3, 1).flatten(1, 2).double()
    codebook = weights["quantize.embedding.weight"].double()
    distances = z.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * z @ codebook.T
    return distances.argmin(-1)


def vqgan_pixels(weights: dict[str, Any], sizes: dict[str, Any], codes):
    """Pictures [B, 3, h, w] of codes [B, g g], before they are clamped."""
    network, side = _Network(weights, sizes), int(codes.shape[1] ** 0.5)
    z = weights["quantize.embedding.weight"][codes].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return network.decoder(network.conv("post_quant_conv", z))


def with_codes_among(weights: dict[str, Any], latents, seed: int) -> dict[str, Any]:
    """The weights with codes like these latents, as in a trained tokenizer, so that many are used."""
    import torch

    spread = latents.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    count, width = weights["quantize.embedding.weight"].shape
    rng = np.random.default_rng(seed)
    codes = spread.mean(0) + spread.std(0) * rng.standard_normal((count, width), np.float32)
    kept = rng.choice(len(spread), min(count, len(spread)) // 2, replace=False)
    codes[: len(kept)] = spread[kept] + 0.1 * spread.std(0)
    return {**weights, "quantize.embedding.weight": torch.from_numpy(codes.astype(np.float16).astype(np.float32))}


def image_tokenizer(sizes: dict[str, Any] = IMAGE_TOKENIZER, pictures: int = 2) -> dict[str, np.ndarray]:
    """Weights of a VQGAN by their released names; and `pixels` in [-1, 1], `latents` before rounding and `codes`, and
    `decoded`, the pictures of the codes. Pixels and latents have their channels last.

    Latents and codes agree with those of transformers, or it fails.
    """
    import torch

    side = sizes["resolution"]
    pixels = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (pictures, 3, side, side)).astype(np.float32))
    weights = {key: torch.from_numpy(value) for key, value in random_vqgan(sizes, seed=1).items()}
    with torch.no_grad():
        latents = vqgan_latents(weights, sizes, pixels)
        weights = with_codes_among(weights, latents, seed=2)
        codes = vqgan_codes(weights, latents)
        decoded = vqgan_pixels(weights, sizes, codes)
        _require_like_transformers(weights, sizes, pixels, latents, codes)
    last = lambda x: np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())  # noqa: E731
    return {
        **as_float16(weights),
        "pixels": last(pixels),
        "latents": last(latents),
        "codes": codes.numpy().astype(np.int32),
        "decoded": last(decoded),
    }


def _require_like_transformers(weights: dict[str, Any], sizes: dict[str, Any], pixels, latents, codes) -> None:
    from transformers.models.chameleon import ChameleonVQVAE, ChameleonVQVAEConfig

    model = ChameleonVQVAE(ChameleonVQVAEConfig(**sizes)).eval()
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("decoder.")})
    theirs = model.quant_conv(model.encoder(pixels))
    np.testing.assert_allclose(theirs.numpy(), latents.numpy(), rtol=0, atol=5e-5)
    *_, their_codes = model.quantize(theirs)
    np.testing.assert_array_equal(their_codes.reshape(codes.shape).numpy(), codes.numpy())


CODEBOOK = "quantize.embedding.weight"
ANSWERS = ("pixels", "latents", "codes", "decoded")
"""What `image_tokenizer` returns besides weights."""


def main(folder: Path) -> None:
    for name in LANGUAGE_MODELS:
        np.savez_compressed(folder / f"transformers_{name}.npz", **language_model(name))
    np.savez_compressed(folder / "transformers_image_tokenizer.npz", **image_tokenizer())
    for name, sizes in RELATIVES.items():  # all other weights are drawn anew from their seed
        kept = {key: value for key, value in image_tokenizer(sizes).items() if key in (*ANSWERS, CODEBOOK)}
        np.savez_compressed(folder / f"transformers_image_tokenizer_{name}.npz", **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
