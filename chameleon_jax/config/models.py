"""The networks: what their parameters are, and how the Transformer runs."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from chameleon_jax.config.reading import config, require
from chameleon_jax.config.resuming import Adjustable

DType = Literal["float32", "bfloat16"]


def _require_sizes(config: Any, **largest: int) -> None:
    """Raises `ConfigError` unless each size is from 1 to its limit, which leaves room for any model of this decade but
    refuses numbers that would exhaust the memory before anyone checks whether there are weights of such a size."""
    for name, most in largest.items():
        value = getattr(config, name)
        require(value > 0, name, value, "must be at least 1")
        require(value <= most, name, value, f"must be at most {most}")


@config
class LoRAConfig:
    """Low-rank adapters beside the weight matrices (LoRA, Hu et al. 2021): y = W x + (alpha / rank) B A x."""

    rank: int = 0
    """Inner size of the adapters; 0: none."""
    alpha: float = 16.0
    """Scale of what they add, divided by the rank."""
    targets: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Which matrices of each layer have one."""

    def __post_init__(self):
        require(0 <= self.rank <= 2**16, "rank", self.rank, f"must be from 0 to {2**16}")
        require(self.alpha > 0, "alpha", self.alpha, "must be positive")
        require(len(set(self.targets)) == len(self.targets) > 0, "targets", self.targets, "must name each matrix once")


@config
class TransformerConfig:
    """The architecture of the unified Transformer (paper section 2.3, table 1): what its parameters are and mean.

    Model folders hold this and nothing else of how a model was trained. See `ExecutionConfig` for how it runs.
    """

    vocab_size: int | None = 65536
    """Rows of the embedding: text pieces, image codes and special tokens of one vocabulary. null, or left out in a YAML
    file of `chameleon train`: as many as the model of `initial` has, or else as the prepared data needs, rounded up to
    a multiple of 128."""
    d_model: int = 4096
    """Width of the residual stream."""
    num_layers: int = 32
    num_heads: int = 32
    """Query heads."""
    num_kv_heads: int = 32
    """Key/value heads; fewer than `num_heads` is grouped-query attention."""
    head_dim: int = 128
    mlp_dim: int = 11008
    """Hidden width of the SwiGLU feed-forward."""
    qk_norm: bool = True
    """LayerNorm on queries and keys (section 2.3: without it the 7B model diverges)."""
    qk_norm_groups: int = 1
    """Heads of a group share one scale and bias. Released: 1 for 7B, 4 for 34B (one per model-parallel shard). More
    groups than key/value heads give each key/value head its own."""
    norm_order: Literal["pre", "swin"] = "pre"
    """'pre': h + F(norm(h)), as in Llama and the 7B. 'swin': h + norm(F(h)), as in the 34B."""
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    init_std: float = 0.02
    """Standard deviation of the matrices before the first step."""
    context_length: Adjustable[int | None] = 4096
    """Tokens of the longest rows that it was trained on. null, or left out in a YAML file of `chameleon train`: that of
    the prepared data or of the model of `initial`, whichever is longer."""

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Older files also say how the model was trained and run, which is no part of it."""
        return {name: value for name, value in values.items() if name not in ONCE_IN_MODEL}

    def __post_init__(self):
        _require_sizes(
            self, d_model=2**20, num_layers=2**10, num_heads=2**12, num_kv_heads=2**12, head_dim=2**12, mlp_dim=2**22,
            **({} if self.vocab_size is None else {"vocab_size": 2**24}),
            **({} if self.context_length is None else {"context_length": 2**30}),
        )  # fmt: skip
        require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"must divide num_heads = {self.num_heads}",
        )
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "must be even, RoPE rotates pairs of channels")
        require(
            self.qk_norm_groups > 0
            and self.num_heads % self.qk_norm_groups == 0
            and 0 in (self.num_kv_heads % self.qk_norm_groups, self.qk_norm_groups % self.num_kv_heads),
            "qk_norm_groups",
            self.qk_norm_groups,
            f"must divide num_heads = {self.num_heads}, and divide num_kv_heads = {self.num_kv_heads} or be a "
            "multiple of it",
        )
        for name in ("norm_eps", "rope_theta", "init_std"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")


@config
class ExecutionConfig:
    """How a Transformer runs, chosen for the hardware at hand. But for rounding, its numbers depend on none of this."""

    param_dtype: DType = "float32"
    """Type in which parameters are kept."""
    compute_dtype: DType = "float32"
    """Type of the matrix products; norms, softmax, RoPE, logits and losses are float32 throughout."""
    attention: Literal["auto", "xla", "blockwise", "splash", "cudnn"] = "auto"
    """Attention of whole rows. 'xla' keeps all scores of a layer, in memory quadratic in the length; 'blockwise'
    computes them block by block, twice, in linear memory. 'splash' is a kernel for TPUs, 'cudnn' one for NVIDIA's
    Hopper and newer, both fast and in linear memory. 'auto' takes the kernel where it can run, else 'xla' up to 1024
    tokens and 'blockwise' beyond. The numbers are the same but for rounding."""
    remat: Literal["none", "full", "save_attention", "save_projections", "offload"] = "none"
    """What the backward pass recomputes to save memory. 'full': each layer, from its input; about a third more work.
    'save_attention' saves the result of attention, 'save_projections' also queries, keys and values. 'offload' saves
    these in the host's memory, where the platform can."""
    unroll: int = 1
    """Layers per iteration of the loop over layers, as in `jax.lax.scan`. More take longer to compile and copy less
    between iterations, which can make small models a little faster on a CPU."""

    def __post_init__(self):
        _require_sizes(self, unroll=2**31)

    def remat_outside_loop(self, num_layers: int) -> bool:
        """Whether remat recomputes layers outside of a loop: XLA unrolls a loop of a single iteration, and JAX unrolls
        the layers that are left over. Inside a loop, XLA cannot merge the recomputation with the first computation."""
        return self.remat != "none" and (self.unroll > 1 or num_layers == 1)


ONCE_IN_MODEL = {
    **{field.name: f"execution.{field.name}" for field in dataclasses.fields(ExecutionConfig)},
    "dropout": "dropout",
    "lora": "lora",
}
"""Keys that older versions had in `model`, and where they are in the config of a run."""
MOVED_KEYS = {f"model.{name}": key for name, key in ONCE_IN_MODEL.items()}


LARGEST_ATTENDED_MAP = 128
"""Side of a map whose attention has 2^28 scores."""


@config
class ImageTokenizerConfig:
    """The VQGAN that turns a picture into codes and back. The defaults are the released tokenizer."""

    resolution: int = 512
    """Height and width of a picture in pixels."""
    space_to_depth: int = 1
    """Side of the pixel squares folded into channels before the first convolution. Released: 1. A larger one keeps a
    small tokenizer fast on a CPU, where convolutions at full resolution are slow."""
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level as a multiple of `channels`; the picture is halved between levels."""
    num_res_blocks: int = 2
    """Residual blocks per encoder level; the decoder has one more."""
    latent_channels: int = 256
    """Channels of the encoder output (`z_channels`)."""
    code_dim: int = 256
    num_codes: int = 8192
    norm_groups: int = 32
    """Groups of GroupNorm. Released: 32."""
    attn_resolutions: tuple[int, ...] = ()
    """Sides of the maps at which attention follows each residual block, as in Esser et al.'s models; the picture's own
    map is resolution / space_to_depth wide. Released: none, attention is in the middle alone."""
    attn_type: Literal["vanilla", "none"] = "vanilla"
    """'none' leaves out all attention, that in the middle too."""
    independent_patches: bool = False
    """Whether the encoder sees the pixels of one code at a time, so that equal patches have equal codes wherever they
    are, and a change in one place changes the codes of that place. Released: false. Pictures from codes are worse, and
    a small Transformer learns the codes with far fewer examples. The decoder sees all codes either way."""

    @property
    def maps(self) -> tuple[int, ...]:
        """Side of the map at each level, from the picture's down to the grid of codes."""
        return tuple(self.resolution // self.space_to_depth // 2**n for n in range(len(self.channel_multipliers)))

    @property
    def downsampling(self) -> int:
        """Pixels per code along each side."""
        return self.space_to_depth * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along each side of a picture."""
        return self.resolution // self.downsampling

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    def __post_init__(self):
        _require_sizes(
            self, resolution=2**13, space_to_depth=2**6, channels=2**12, num_res_blocks=2**3, latent_channels=2**13,
            code_dim=2**13, num_codes=2**22,
        )  # fmt: skip
        require(self.num_codes > 1, "num_codes", self.num_codes, "must be at least 2")
        require(
            len(self.channel_multipliers) > 0 and min(self.channel_multipliers) > 0,
            "channel_multipliers",
            list(self.channel_multipliers),
            "must be a list of positive whole numbers",
        )
        require(
            len(self.channel_multipliers) <= 10 and max(self.channel_multipliers) * self.channels <= 2**15,
            "channel_multipliers",
            list(self.channel_multipliers),
            f"must be at most 10, and none above {2**15 // self.channels} (2^15 / channels)",
        )
        require(
            self.resolution % self.downsampling == 0,
            "resolution",
            self.resolution,
            f"must be a multiple of space_to_depth x 2^(levels - 1) = {self.downsampling}",
        )
        require(
            self.codes_per_image <= 2**16, "resolution", self.resolution,
            f"must give at most {2**16} codes a picture, not {self.codes_per_image}",
        )  # fmt: skip
        require(
            self.norm_groups > 0 and self.channels % self.norm_groups == 0,
            "norm_groups",
            self.norm_groups,
            f"must divide channels = {self.channels}",
        )
        require(
            set(self.attn_resolutions) <= set(self.maps),
            "attn_resolutions",
            list(self.attn_resolutions),
            f"must be among the sides of its maps, {', '.join(map(str, self.maps))}",
        )
        require(
            self.attn_type == "vanilla" or not self.attn_resolutions,
            "attn_resolutions",
            list(self.attn_resolutions),
            "goes with attn_type 'vanilla'",
        )
        attended = max((*self.attn_resolutions, self.grid if self.attn_type == "vanilla" else 0))
        require(
            attended <= LARGEST_ATTENDED_MAP,
            "attn_resolutions" if attended in self.attn_resolutions else "resolution",
            list(self.attn_resolutions) if attended in self.attn_resolutions else self.resolution,
            f"attention over a map of {attended} x {attended} has {attended**4 >> 20} million scores a picture; maps "
            f"with attention may have sides up to {LARGEST_ATTENDED_MAP}",
        )


@config
class ImageTokenizerExecutionConfig:
    """How the image tokenizer's network runs in training. Pictures become codes in float32 at the highest precision
    elsewhere, whatever it was trained in: a code is an argmin, and lower precision picks other codes."""

    compute_dtype: DType = "float32"
    """Type of the convolutions and of the maps between them; norms, softmax, latents and the search for the nearest
    code are float32 throughout."""
    precision: Literal["default", "high", "highest"] = "highest"
    """Of float32 products on TPUs and GPUs, as in `jax.lax.Precision`: one, three or six passes in bfloat16 on a TPU,
    TensorFloat-32 or float32 on a GPU. Says nothing about the search for the nearest code, which is at the highest."""
    remat: Literal["none", "save_convolutions", "blocks"] = "none"
    """What the backward pass recomputes to save memory. 'blocks': each residual and attention block, from its input;
    about a third more work. 'save_convolutions': norms and attention, but no 3 x 3 convolution; each residual block
    keeps two maps instead of one."""


@config
class PreprocessingConfig:
    """How a picture of any size and mode becomes the square that the image tokenizer reads."""

    style: Literal["meta", "huggingface"] = "meta"
    """Whose arithmetic: that of the released code, or that of transformers' Chameleon processor. They give different
    codes for the same picture, so use the one the model was trained with."""
    fit: Literal["crop", "pad"] = "crop"
    """'crop': the shorter side fills the square, the centre is kept. 'pad': the whole picture is kept, with borders, as
    for the prompts of supervised fine-tuning (paper section 3)."""
    pad_colour: tuple[int, ...] = (255, 255, 255)
    """Red, green and blue of the borders, 0 to 255."""

    def __post_init__(self):
        require(
            len(self.pad_colour) == 3 and all(0 <= value <= 255 for value in self.pad_colour),
            "pad_colour",
            list(self.pad_colour),
            "must be three whole numbers from 0 to 255",
        )
