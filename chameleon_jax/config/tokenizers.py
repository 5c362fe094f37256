"""Training of the text tokenizer and of the image tokenizer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from chameleon_jax.config.models import DType, ImageTokenizerConfig, ImageTokenizerExecutionConfig
from chameleon_jax.config.reading import config, require, require_seed
from chameleon_jax.config.resuming import Adjustable, ChangesRounding
from chameleon_jax.config.training import OptimizerConfig, RunConfig


@config
class TextTokenizerConfig:
    """A SentencePiece byte-pair encoding."""

    vocab_size: int
    """Text pieces, the 256 bytes among them."""
    character_coverage: float = 0.9999
    """Share of all characters that get a piece of their own; the others are encoded as bytes."""
    max_lines: int = 1_000_000
    """Lines to train on, sampled at random if there are more."""
    seed: int = 0
    """Of the lines that are sampled."""

    def __post_init__(self):
        require_seed(self.seed, bits=32)
        require(
            self.vocab_size > 257, "vocab_size", self.vocab_size, "must be above 257: 256 bytes and some characters"
        )
        require(self.max_lines > 100, "max_lines", self.max_lines, "must be above 100, SentencePiece's least")
        require(
            0.98 <= self.character_coverage <= 1,
            "character_coverage",
            self.character_coverage,
            "must be from 0.98 to 1, as SentencePiece asks",
        )


@config
class ImageTokenizerOptimizerConfig(OptimizerConfig):
    """The optimizer of an image tokenizer: that of a Transformer with defaults of its own."""

    name: Literal["adamw", "muon"] = "adamw"
    """'muon' orthogonalises the updates of all convolutions but those that read and write pixels. It learns much more
    from a step; at small sizes on a CPU the step takes a quarter longer."""
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "exponential", "linear", "constant"] = "cosine"
    warmup_steps: int = 50
    final_fraction: float = 0.05
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0


@config
class PerceptualConfig:
    """LPIPS (Zhang et al. 2018), a distance between pictures as people see them, as a part of the loss."""

    weight: float = 0.0
    """Of the distance in the loss. 0: none; 1 in taming-transformers."""
    vgg: str = ""
    """VGG16 of torchvision: vgg16-397923af.pth."""
    heads: str = ""
    """The learned weights of LPIPS for VGG16: weights/v0.1/vgg.pth of the lpips package."""
    dtype: DType = "float32"
    """Type of its convolutions."""

    def __post_init__(self):
        require(self.weight >= 0, "weight", self.weight, "must be 0 or more")
        for name in ("vgg", "heads"):
            missing = self.weight > 0 and not getattr(self, name)
            require(not missing, name, "", "must be a file, as weight is above 0")


@config
class DiscriminatorConfig:
    """A discriminator that learns to tell reconstructions from pictures, and the loss of the tokenizer against it."""

    weight: float = 0.0
    """Of the adversarial loss of the tokenizer. 0: no discriminator; 0.8 with `adaptive` in taming-transformers, 0.5
    without in LlamaGen."""
    adaptive: bool = True
    """Multiply the weight by the ratio of the gradients of the other losses and of the adversarial one, at the last
    layer of the decoder (Esser et al. 2021, equation 7); of each part with `accumulation`."""
    start_step: int = 0
    """Steps before the discriminator and the loss against it take part."""
    loss: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    channels: int = 64
    """Width of the first convolution; it doubles up to eight times."""
    stages: int = 3
    """Convolutions with stride 2. It scores patches of 16, 34, 70 or 142 pixels with 1, 2, 3 or 4 of them."""
    norm: Literal["group", "batch"] = "group"
    """'batch', as in taming-transformers, makes scores depend on the other pictures of the part of a batch."""
    r1: float = 0.0
    """Weight of half the squared gradient of its scores of pictures (Mescheder et al. 2018)."""
    lecam: float = 0.0
    """Weight of the regularisation of Tseng et al. 2021, which keeps scores near each other; 0.001 in MaskGIT."""
    lecam_decay: float = 0.999
    """Of the moving averages of scores for `lecam`."""
    dtype: DType = "float32"
    """Type of its convolutions."""
    optimizer: ImageTokenizerOptimizerConfig = ImageTokenizerOptimizerConfig()

    def __post_init__(self):
        for name in ("weight", "start_step", "r1", "lecam"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        for name in ("channels", "stages"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(self.optimizer.name == "adamw", "optimizer.name", self.optimizer.name, "must be 'adamw' here")
        require(0 <= self.lecam_decay < 1, "lecam_decay", self.lecam_decay, "must be in [0, 1)")
        require(not (self.r1 and self.norm == "batch"), "r1", self.r1,
                "must be 0 with norm = 'batch', where scores do not depend on one picture alone")  # fmt: skip


@config
class ReconstructionsConfig:
    """Held-out pictures above what the tokenizer in training makes of them, in <output>/samples and the trackers."""

    every: int = 0
    """Steps between samples, which are also drawn after the last step; 0: never."""
    pictures: int = 8
    """The first ones of each held-out source, at most a batch."""

    def __post_init__(self):
        require(self.every >= 0, "every", self.every, "must be 0 or more")
        require(self.pictures > 0, "pictures", self.pictures, "must be at least 1")


@config
class ImageTokenizerTrainConfig(RunConfig):
    """Training of the image tokenizer: a whole run."""

    _: dataclasses.KW_ONLY
    output: Adjustable[str] = ""
    """Folder for checkpoints, metrics.jsonl and, at the end, the tokenizer. `chameleon train-image-tokenizer` has this
    key beside `tokenizer`."""
    model: ImageTokenizerConfig
    batch_size: int
    """Pictures per step, over all devices."""
    execution: ChangesRounding[ImageTokenizerExecutionConfig] = ImageTokenizerExecutionConfig()
    optimizer: ImageTokenizerOptimizerConfig = ImageTokenizerOptimizerConfig()
    reconstruction: Literal["l1", "l2"] = "l2"
    """Error of pixels in the loss: absolute or squared."""
    perceptual: PerceptualConfig = PerceptualConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    codebook: Literal["ema", "rotation", "learned", "sim_vq", "ibq"] = "ema"
    """How codes are learned. 'ema': as moving averages of their latents (van den Oord et al. 2017, appendix A.1), codes
    out of use being restarted. 'rotation': the same with gradients that are rotated from code to latent (Fifty et al.
    2024). 'learned': by gradient descent, as in VQGAN. 'sim_vq': as a learned linear map of a table that stays as it is
    (Zhu et al. 2024). 'ibq': with gradients for all codes through a softmax (Shi et al. 2024). What is written is a
    plain table of codes with any of them."""
    commitment: float = 0.25
    """Weight of mean |sg(code) - z|^2, which keeps the encoder near its codes: beta of the paper."""
    legacy_beta: bool = False
    """With a codebook that is learned by gradients: apply beta to mean |code - sg(z)|^2 instead, as
    taming-transformers does by default."""
    codebook_decay: float = 0.99
    """Of the moving averages ('ema', 'rotation'). At first (1 + step) / (10 + step), unless `initial` is given."""
    restart_below: float = 0.05
    """A code whose use is below this share of the mean is restarted at a latent of the current batch ('ema',
    'rotation')."""
    entropy: float = 0.0
    """Weight of the entropy loss (Yu et al. 2023), which wants each latent near one code and all codes in use."""
    temperature: float = 1.0
    """Of the softmax over codes, of -|z - code|^2 / temperature, for `entropy` and 'ibq'."""
    initial: str = ""
    """Image tokenizer to start from, in any format that can be read. It must have the sizes of `model`, apart from the
    resolution."""
    trainable: Literal["all", "decoder"] = "all"
    """'decoder': encoder and codebook stay as they are, so that pictures keep their codes."""
    samples: Adjustable[ReconstructionsConfig] = ReconstructionsConfig()

    moved_keys: ClassVar[dict[str, str]] = {
        name: f"optimizer.{name}"
        for name in ("learning_rate", "final_fraction", "warmup_steps", "b1", "b2", "clip_norm")
    }

    @property
    def has_averages(self) -> bool:
        """Whether codes follow moving averages of their latents."""
        return self.codebook in ("ema", "rotation")

    def __post_init__(self):
        super().__post_init__()
        for name in ("commitment", "entropy"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        require(self.temperature > 0, "temperature", self.temperature, "must be positive")
        require(0 < self.codebook_decay < 1, "codebook_decay", self.codebook_decay, "must be in (0, 1)")
        require(
            0 < self.restart_below < 1,
            "restart_below",
            self.restart_below,
            "must be in (0, 1): a code that is never used again would fade into NaN",
        )
        require(
            self.trainable == "all" or self.initial != "",
            "trainable",
            self.trainable,
            "goes with `initial`, whose encoder and codebook it keeps",
        )
