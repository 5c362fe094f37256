"""Generation: sampling and classifier-free guidance."""

from __future__ import annotations

from typing import Literal

from chameleon_jax.config.reading import config, require


def _require_in_range(value: float, key: str, allowed: str) -> None:
    """Raises if dividing or multiplying float32 logits by `value` could overflow or underflow; 0 is allowed."""
    require(value == 0 or 1e-30 <= abs(value) <= 1e30, key, value, f"{allowed}, and from 1e-30 to 1e30")


@config
class SamplingConfig:
    """How tokens are sampled."""

    temperature: float = 0.7
    """Divides the logits; 0 is greedy."""
    top_p: float = 0.9
    """Nucleus sampling: sample from the most likely tokens whose probabilities add up to this; 1 samples from all."""

    def __post_init__(self):
        require(self.temperature >= 0, "temperature", self.temperature, "must be 0 (greedy) or more")
        _require_in_range(self.temperature, "temperature", "must be 0 (greedy) or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must be in (0, 1]")


@config
class GenerationConfig:
    """How to continue a prompt. The defaults are those of the released code, with pictures switched on and its
    repetition penalty off."""

    mode: Literal["auto", "interleaved", "text", "image"] = "auto"
    """'interleaved': text and pictures, as the model decides. 'text': no pictures. 'image': exactly one picture.
    'auto': 'interleaved' if the model can draw, 'text' otherwise."""
    form: Literal["completion", "chat"] = "completion"
    """'completion': continue the prompt. 'chat': put an end-of-turn token after the prompt, so that a model tuned on
    dialogues answers it."""
    max_new_tokens: int | None = None
    """Maximum number of tokens to generate. A picture takes its codes and two more, and is started only if it and one
    more token still fit, as in the released code. null: 256 tokens of text and, unless the mode is 'text', one picture,
    within `context_length`; in mode 'image' the picture alone."""
    context_length: int = 4096
    """Maximum number of tokens of prompt and answer together. The default is that of the released models; raise it for
    a model trained on longer rows. Memory grows with its square."""
    text: SamplingConfig = SamplingConfig()
    image: SamplingConfig = SamplingConfig()
    repetition_penalty: float = 1.0
    """Above 1, text tokens that already occur in the prompt or the answer become less likely; 1 is off. Image codes are
    never penalised. The default of the released code is 1.2."""
    text_guidance: float = 3.0
    """Guidance scale of the text before a picture; 1 is off."""
    image_guidance: float = 1.2
    """Guidance scale of the pictures before a picture; 1 is off, which is a third cheaper."""
    seed: int = 0
    """Any integer below 2^63, also negative."""

    def __post_init__(self):
        if self.max_new_tokens is not None:
            require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "must be at least 1")
        require(abs(self.seed) < 2**63, "seed", self.seed, "must be below 2^63")
        require(self.context_length > 1, "context_length", self.context_length, "must be at least 2")
        require(
            self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "must be positive; 1 is off"
        )
        _require_in_range(self.repetition_penalty, "repetition_penalty", "must be positive; 1 is off")
        for name in ("text_guidance", "image_guidance"):
            value = getattr(self, name)
            require(value >= 0, name, value, "must be 0 or more; 1 is off")
            _require_in_range(value, name, "must be 0 or more; 1 is off")
