"""From the bodies of requests to what the model takes: documents, turns, options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from chameleon_jax.config import ConfigError, GenerationConfig, LimitsConfig
from chameleon_jax.document import Document
from chameleon_jax.serving.errors import RequestError, invalid, too_large
from chameleon_jax.serving.pictures import content_of, square_of
from chameleon_jax.serving.wire import ChatRequest, Content, Generated, ImagePart, ImageRequest, Message
from chameleon_jax.tokens.chat import Turn
from chameleon_jax.tokens.documents import DocumentTokenizer

MOST_STOPS, LONGEST_STOP = 16, 1000
"""Stop texts of a request, and characters of each."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


class ContentReader:
    """Reads the content of one request, within its limits.

    Args:
      fetch: gets the bytes behind an address, given it and its place in the request.
    """

    def __init__(self, tokenizer: DocumentTokenizer, limits: LimitsConfig, fetch: Callable[[str, str], bytes]):
        self._tokenizer, self._limits, self._fetch = tokenizer, limits, fetch
        self._characters = self._pictures = 0

    def document(self, content: Content | None, place: str) -> Document:
        """Text and parts of a content as a document.

        Raises:
          RequestError: if the request has too much of anything, or a picture cannot be read.
        """
        if content is None:
            return []
        if isinstance(content, str):
            return [self.text(content, place)] if content else []
        document: Document = []
        for number, part in enumerate(content):
            if isinstance(part, ImagePart):
                document.append(self.picture(part.image_url.url, f"{place}.{number}.image_url.url"))
            elif part.text:
                document.append(self.text(part.text, f"{place}.{number}.text"))
        return document

    def text(self, text: str, place: str) -> str:
        self._characters += len(text)
        if self._characters > (most := self._limits.characters):
            raise too_large(f"{place}: more than {most:,} characters of text in all", place)
        return text

    def picture(self, url: str, place: str) -> Any:
        self._count(place)
        return self._square(content_of(url, place, self._fetch), place)

    def file(self, data: bytes, place: str) -> Any:
        """The picture in a file that came with the request."""
        self._count(place)
        return self._square(data, place)

    def _count(self, place: str) -> None:
        self._pictures += 1
        if self._pictures > (most := self._limits.pictures):
            raise too_large(f"{place}: more than {most:,} pictures in one request", place)
        if self._tokenizer.image is None:
            raise RequestError(
                422, f"{place}: this model reads no pictures: {self._tokenizer.missing['image']}", "no_pictures",
                param=place,
            )  # fmt: skip

    def _square(self, data: bytes, place: str) -> Any:
        return square_of(data, place, self._tokenizer.need("image"), self._limits.pixels)


def turns_of(
    messages: Sequence[Message], reader: ContentReader, system: Literal["refuse", "first_turn"] = "refuse"
) -> list[Turn]:
    """The turns of a conversation, of which the user has the first and the last.

    Args:
      system: what to do with a system turn at the beginning.

    Raises:
      RequestError: for anything else, and as `ContentReader.document`.
    """
    turns: list[Turn] = []
    before: Document = []
    for number, message in enumerate(messages):
        place = f"messages.{number}"
        document = reader.document(message.content, f"{place}.content")
        for image, part in enumerate(message.images or []):
            document.append(reader.picture(part.image_url.url, f"{place}.images.{image}.image_url.url"))
        if message.role in ("system", "developer"):
            if system == "refuse":
                raise invalid(
                    f"{place}.role = {message.role!r}: this model was not trained on system turns; say it in the "
                    "user's first turn, or start the server with --system first_turn", f"{place}.role",
                    "no_system_turn",
                )  # fmt: skip
            if turns:
                raise invalid(f"{place}.role = {message.role!r}: must come first", f"{place}.role")
            before += document
            continue
        expected = ("user", "assistant")[len(turns) % 2]
        if message.role != expected:
            raise invalid(
                f"{place}.role = {message.role!r}: must be {expected!r}, as user and assistant take turns",
                f"{place}.role",
            )
        if not document and message.role == "user":
            raise invalid(f"{place}.content: is empty; say something, or give a picture", f"{place}.content")
        turns.append(Turn(message.role, [*before, *document]))
        before = []
    if len(turns) % 2 == 0:
        raise invalid("messages: the last must be the user's", "messages")
    return turns


def addresses_in(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """The pictures that a conversation names by the address of a server, each with its place."""
    for number, message in enumerate(messages):
        yield from addresses_in_content(message.content, f"messages.{number}.content")
        yield from addresses_in_content(message.images, f"messages.{number}.images")


def addresses_in_content(content: Content | Sequence[ImagePart] | None, place: str) -> Iterator[tuple[str, str]]:
    for number, part in enumerate(content if isinstance(content, list) else []):
        if isinstance(part, ImagePart) and part.image_url.url[:8].lower().startswith(("http://", "https://")):
            yield part.image_url.url, f"{place}.{number}.image_url.url"


# ----------------------------------------------------------------------------------------------------------------------
# Options
# ----------------------------------------------------------------------------------------------------------------------


def options_of(request: Generated, defaults: GenerationConfig, limits: LimitsConfig, seed: int) -> GenerationConfig:
    """What a request says over what the server does by default.

    Args:
      seed: of requests that have none.

    Raises:
      RequestError: for values that cannot be used.
    """
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    if stop and (len(stop) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stop)):
        raise invalid(f"stop: at most {MOST_STOPS} texts of up to {LONGEST_STOP:,} characters each", "stop")
    names = ("repetition_penalty", "image_guidance", "stop_ids")
    changes = {name: value for name in names if (value := getattr(request, name)) is not None}
    if stop is not None:
        changes["stop"] = tuple(stop)
    if (scale := request.text_guidance if request.guidance_scale is None else request.guidance_scale) is not None:
        changes["text_guidance"] = scale
    most = request.max_completion_tokens if isinstance(request, ChatRequest) else None
    most = most or request.max_tokens or defaults.max_new_tokens
    changes["max_new_tokens"] = min(most, limits.new_tokens)
    if request.modalities is not None:
        changes["mode"] = _mode(request.modalities)
    mode = changes.get("mode", defaults.mode)
    changes["max_images"] = defaults.max_images if mode == defaults.mode else None
    if request.max_images is not None:
        changes["max_images"] = request.max_images
    try:
        changes["text"] = dataclasses.replace(defaults.text, **_given(request))
        changes["image"] = dataclasses.replace(defaults.image, **(_given(request.image) if request.image else {}))
        changes["seed"] = seed if request.seed is None else request.seed
        return dataclasses.replace(defaults, **changes)
    except ConfigError as error:
        raise invalid(str(error), str(error).partition(" = ")[0]) from None


def _given(request: Any) -> dict[str, Any]:
    return {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}


def _mode(modalities: Sequence[str]) -> Literal["text", "image", "interleaved"]:
    if not modalities:
        raise invalid("modalities = []: must name text, image or both", "modalities")
    if len(set(modalities)) == 2:
        return "interleaved"
    return modalities[0]


def image_options_of(request: ImageRequest, defaults: GenerationConfig, seed: int) -> GenerationConfig:
    """The same for a request of pictures alone."""
    try:
        return dataclasses.replace(
            defaults,
            mode="image",
            max_images=None,
            stop=(),
            image=dataclasses.replace(defaults.image, **_given(request)),
            text_guidance=defaults.text_guidance if request.guidance_scale is None else request.guidance_scale,
            seed=seed if request.seed is None else request.seed,
        )
    except ConfigError as error:
        message = str(error).replace("text_guidance", "guidance_scale")
        raise invalid(message, message.partition(" = ")[0]) from None


def count_of(n: int | None, prompts: int, limits: LimitsConfig) -> int:
    """Answers to each prompt. Raises `RequestError` if they are too many."""
    n = n or 1
    if n * prompts > limits.samples:
        times = f" for {prompts} prompts" if prompts > 1 else ""
        raise invalid(f"n = {n}{times}: at most {limits.samples:,} answers are given to one request", "n")
    return n
