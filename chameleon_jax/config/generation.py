"""Generation: how tokens are drawn and pictures guided."""

from __future__ import annotations

from typing import Literal

from chameleon_jax.config.reading import config, require


def _require_in_range(value: float, key: str, allowed: str) -> None:
    """Raises unless `value` is 0 or neither so small nor so large that logits in float32 would not survive it."""
    require(value == 0 or 1e-30 <= abs(value) <= 1e30, key, value, f"{allowed}, and from 1e-30 to 1e30")


@config
class SamplingConfig:
    """How one token is drawn."""

    temperature: float = 0.7
    """0 takes the most likely token."""
    top_p: float = 0.9
    """Draw from the most likely tokens that together have this probability; 1 draws from all."""

    def __post_init__(self):
        require(self.temperature >= 0, "temperature", self.temperature, "must be 0 (greedy) or more")
        _require_in_range(self.temperature, "temperature", "must be 0 (greedy) or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must be in (0, 1]")


@config
class GenerationConfig:
    """What is written after a prompt. Defaults are those of the released code, with pictures switched on and
    its repetition penalty off."""

    mode: Literal["auto", "interleaved", "text", "image"] = "auto"
    """'interleaved': text and pictures as the model likes. 'text': no pictures. 'image': exactly one picture. 'auto':
    'interleaved' if the model can draw, 'text' otherwise."""
    form: Literal["completion", "chat"] = "completion"
    """'completion': the model goes on where the prompt stops. 'chat': an end-of-turn token is put after the prompt, so
    that a model tuned on dialogues answers it."""
    max_new_tokens: int | None = None
    """Most tokens to write; a picture counts its codes and two marks, and is begun only if it and one more token still
    fit, as in the released code. null: 256 tokens of text and, unless the mode is 'text', one picture, as far as
    `context_length` lets them; in mode 'image' the picture alone."""
    context_length: int = 4096
    """Most tokens of prompt and answer together: what the released models were trained on, and memory grows with the
    square. Raise it for a model trained on longer rows."""
    text: SamplingConfig = SamplingConfig()
    image: SamplingConfig = SamplingConfig()
    repetition_penalty: float = 1.0
    """Above 1, text tokens that the prompt or the answer already holds become less likely; 1 is off. Pictures are never
    penalised. The released code's default is 1.2; ours is off, since results with it are other results."""
    text_guidance: float = 3.0
    """How strongly a picture follows the text before it; 1 is off."""
    image_guidance: float = 1.2
    """How strongly a picture follows the pictures before it; 1 is off and a third cheaper."""
    seed: int = 0
    """Any whole number below 2^63, negative ones too."""

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
