"""What clients send: bodies of requests as OpenAI's API has them, with fields of our own, and what to say of others.

None means that a request does not say. What only OpenAI's service has use for is ignored; what would change an answer
and cannot be done is refused, as is any name that is not known.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from chameleon_jax.config.reading import shortened
from chameleon_jax.errors import printable
from chameleon_jax.serving.errors import RequestError, invalid

IGNORED = frozenset((
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "parallel_tool_calls", "moderation",
))  # fmt: skip
"""Names that change no answer."""
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "complexity": (), "frame_count": (), "frame_duration_ms": (),
    "frequency_penalty": (0,), "function_call": ("none", "auto"), "functions": ([],), "logit_bias": ({},),
    "prediction": (),
    "presence_penalty": (0,), "reasoning_effort": ("none",), "response_format": ({"type": "text"},), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "top_logprobs": (0,), "verbosity": ("medium",),
    "web_search_options": (), "svg": (),
}  # fmt: skip
"""Names of what cannot be done, with the values that ask for nothing."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageURL(Strict):
    url: str
    detail: str | None = None
    """Ignored: a picture always has the same number of codes."""


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = str | list[Part]


class Sampling(Strict):
    """How image codes are sampled; see `SamplingConfig`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Ignored."""


class Asked(Strict):
    """A request to a model."""

    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, values: Any) -> Any:
        """Leaves out what is ignored; refuses what cannot be done."""
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in HARMLESS:
                if value is not None and not any(value == fine for fine in HARMLESS[name]):
                    raise invalid(f"{name} = {shortened(value)}: this server cannot do that", name, "unsupported")
            elif name not in IGNORED:
                kept[name] = value  # is refused
        return kept


class Generated(Asked):
    """A request that has something written. Names that OpenAI's API does not have are those of `GenerationConfig`."""

    n: int | None = Field(None, ge=1)
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: str | list[str] | None = None
    stop_ids: list[int] | None = None
    max_tokens: int | None = Field(None, ge=1)
    repetition_penalty: float | None = None
    modalities: list[Literal["text", "image"]] | None = None
    """What may be written. text and image: in any order; image alone: exactly one picture."""
    image: Sampling | None = None
    max_images: int | None = None
    text_guidance: float | None = None
    guidance_scale: float | None = None
    """Another name of text_guidance."""
    image_guidance: float | None = None
    pictures_in: Literal["content", "images"] | None = None
    partial_images: int | None = Field(None, ge=0, le=16)
    """Previews of each picture in a stream."""


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    images: list[ImagePart] | None = None
    """Pictures behind the content, where an answer had its own."""
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    tool_calls: list[Any] | None = Field(None, max_length=0)


class ChatRequest(Generated):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None


class CompletionRequest(Generated):
    prompt: str | list[str] | list[int] | list[list[int]] | list[Part] = ""
    """One prompt or several, as text or ids; or one of texts and pictures, as the content of a chat message."""
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)


class ImageRequest(Asked):
    prompt: str
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    size: str | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=16)
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    background: Literal["opaque", "auto"] | None = None
    quality: str | None = None
    """Ignored, as is style."""
    style: str | None = None
    negative_prompt: str | None = None
    """What guidance leads away from, in the place of nothing."""
    guidance_scale: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


class TokenizeRequest(Asked):
    content: Content | None = None
    messages: list[Message] | None = None
    """A conversation instead, with the tokens that separate turns."""
    add_special_tokens: bool | None = None
    """Whether content has begin of sequence before it, as prompts do; by default it has."""


class DetokenizeRequest(Asked):
    tokens: list[int] | None = None
    codes: list[list[int]] | None = None
    """Image codes instead, a list for each picture."""


# ----------------------------------------------------------------------------------------------------------------------
# What is wrong with a body
# ----------------------------------------------------------------------------------------------------------------------


def explain(errors: Sequence[Mapping[str, Any]], body: Any, fields: Sequence[str] = ()) -> RequestError:
    """One line for what pydantic says of a body: the error that lies deepest in it, as the others are those of other
    forms that it might have had.

    Args:
      errors: as pydantic lists them.
      body: the parsed body.
      fields: names that the body may have.
    """
    if isinstance(body, bytes):
        return RequestError(415, "the body must be JSON, with Content-Type: application/json", "unsupported_media_type")
    error = max(errors, key=lambda error: len(_path(error["loc"], body)))
    kind, place = error["type"], [str(part) for part in _path(error["loc"], body)]
    if kind == "json_invalid":
        return invalid(f"the body is no JSON: {error.get('ctx', {}).get('error', '')}", code="invalid_json")
    if kind in ("missing", "extra_forbidden"):
        place = [*place[: -1 if kind == "extra_forbidden" else None], str(error["loc"][-1])]
    path = printable(".".join(place))
    if kind == "missing":
        return invalid(f"{path}: is missing" if path != "body" else "the body is missing: expected JSON", path)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], fields, n=1) if len(place) == 1 else []
        hint = f"; did you mean {near[0]}?" if near else "; /docs lists all"
        return invalid(f"{path}: there is no such key{hint}", path, "unknown_parameter")
    message = error["msg"].replace("Input should", "must").replace("Input must", "must")
    return invalid(f"{path or 'the body'} = {shortened(error['input'])}: {message}", path or None)


def _path(place: Sequence[int | str], body: Any) -> list[int | str]:
    """The part of an error's place that leads into the body, without the names of types that pydantic puts between."""
    path: list[int | str] = []
    for part in place:
        is_key = isinstance(body, dict) and isinstance(part, str) and part in body
        if is_key or (isinstance(body, list) and isinstance(part, int) and part < len(body)):
            path, body = [*path, part], body[part]
    return path
