"""Generation: what is asked for, how tokens are sampled, and the engine that serves it."""

from __future__ import annotations

from typing import Any, Literal

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
    top_k: int = 0
    """Sample from this many of the most likely tokens; 0: from all."""
    min_p: float = 0.0
    """Sample from tokens at least this many times as likely as the most likely one; 0: from all."""

    def __post_init__(self):
        require(self.temperature >= 0, "temperature", self.temperature, "must be 0 (greedy) or more")
        _require_in_range(self.temperature, "temperature", "must be 0 (greedy) or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must be in (0, 1]")
        require(self.top_k >= 0, "top_k", self.top_k, "must be at least 1, or 0 for all tokens")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "must be in [0, 1]")


_PICTURES = {"text": "no picture", "image": "exactly one picture"}


@config
class GenerationConfig:
    """How to continue a prompt. The defaults are those of the released code, with pictures switched on and its
    repetition penalty off."""

    mode: Literal["auto", "interleaved", "text", "image"] = "auto"
    """'interleaved': text and pictures, as the model decides. 'text': no pictures. 'image': exactly one picture.
    'auto': 'interleaved' if the model can draw, 'text' otherwise."""
    form: Literal["completion", "chat"] = "completion"
    """'completion': continue the prompt. 'chat': put an end-of-turn token after the prompt, so that a model tuned on
    dialogues answers it. The answer ends where the model ends its turn."""
    max_new_tokens: int = 256
    """Maximum number of text tokens to generate. Pictures do not count."""
    max_images: int | None = None
    """Maximum number of pictures to generate. null: as many as fit into the context."""
    context_length: int | None = None
    """Maximum number of tokens of prompt and answer together, pictures included. A picture is started only if it and
    one more token still fit, as in the released code. null: that of the model, the longest rows it was trained on."""
    text: SamplingConfig = SamplingConfig()
    image: SamplingConfig = SamplingConfig()
    repetition_penalty: float = 1.0
    """Above 1, text tokens that already occur in the prompt or the answer become less likely; 1 is off. Image codes are
    never penalised. The default of the released code is 1.2."""
    text_guidance: float = 3.0
    """Guidance scale of the text before a picture; 1 is off. The default is for models trained long on many captions;
    one that was trained briefly draws better near 1."""
    image_guidance: float = 1.2
    """Guidance scale of the pictures before a picture; 1 is off, which is a third cheaper."""
    seed: int = 0
    """Any integer below 2^63, also negative."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, which does not include them."""
    stop_ids: tuple[int, ...] = ()
    """Ids of text or special tokens that end the answer, besides end of sequence."""

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Older files may say null for the default."""
        return {name: value for name, value in values.items() if (name, value) != ("max_new_tokens", None)}

    def __post_init__(self):
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "must be at least 1")
        if self.max_images is not None:
            require(self.max_images >= 0, "max_images", self.max_images, "must be 0 or more, or null")
            fits = {"text": self.max_images == 0, "image": self.max_images == 1}.get(self.mode, True)
            require(fits, "max_images", self.max_images, f"mode {self.mode!r} writes {_PICTURES.get(self.mode)}")
        if self.context_length is not None:
            require(self.context_length > 1, "context_length", self.context_length, "must be at least 2, or null")
        require(abs(self.seed) < 2**63, "seed", self.seed, "must be below 2^63")
        require(all(self.stop), "stop", self.stop, "must not hold an empty text")
        require(min(self.stop_ids, default=0) >= 0, "stop_ids", self.stop_ids, "must be 0 or more each")
        require(
            self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "must be positive; 1 is off"
        )
        _require_in_range(self.repetition_penalty, "repetition_penalty", "must be positive; 1 is off")
        for name in ("text_guidance", "image_guidance"):
            value = getattr(self, name)
            require(value >= 0, name, value, "must be 0 or more; 1 is off")
            _require_in_range(value, name, "must be 0 or more; 1 is off")


@config
class GenerateOptions:
    """`chameleon generate`: what is no option of generation itself."""

    prompt_file: str = ""
    """A text file to read the prompt from; - is standard input, and so is - as the prompt."""
    n: int = 1
    """Number of answers."""
    json: bool = False
    """One JSON object with the answers instead of lines for people."""

    def __post_init__(self):
        require(0 < self.n <= 10_000, "n", self.n, "must be from 1 to 10,000")


WeightType = Literal["as_is", "bfloat16", "int8"]


@config
class EngineConfig:
    """How requests share the memory and the time of a generation engine. Answers depend on none of it, but for the
    rounding that `weights` and `cache` choose."""

    rows: int = 8
    """Requests that run at the same time. Each takes up to three lanes of the KV cache while it draws."""
    queue: int = 256
    """Most requests that wait for a row; one more is refused."""
    steps: int = 8
    """Tokens of text written by each call of the compiled program. More need fewer calls; new requests wait longer."""
    window: int = 1
    """Image codes guessed at a time by speculative Jacobi decoding; 1: none. The picture is the same."""
    weights: WeightType = "as_is"
    """Type in which the weights are kept for decoding. 'as_is': that of the parameters. 'int8': with a scale for each
    output channel."""
    cache: Literal["as_is", "int8"] = "as_is"
    """Type of the KV cache. 'as_is': that of the computation."""

    def __post_init__(self):
        for name in ("rows", "queue", "steps", "window"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
