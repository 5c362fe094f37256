"""From answers and their events to what clients read: OpenAI's objects, with pictures as data URLs."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import json
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chameleon_jax.generation.events import Event, PictureDone, PictureProgress, TextPiece
from chameleon_jax.serving.pictures import PictureFormat, to_base64, to_url
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import TEXT

if TYPE_CHECKING:
    from PIL.Image import Image

    from chameleon_jax.document import Document
    from chameleon_jax.generation.answer import Answer

PicturesIn = Literal["content", "images"]


@dataclasses.dataclass(frozen=True)
class Head:
    """What all objects about one request have in common."""

    model: str
    seed: int
    """Of the random numbers: with it the same request gets the same answer."""
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def of(self, kind: str, prefix: str) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "seed": self.seed,
        }


def parts_of(document: Document) -> list[dict[str, Any]]:
    """Texts and pictures in order, as the content of a message."""
    return [
        {"type": "text", "text": segment} if isinstance(segment, str) else image_part(segment) for segment in document
    ]


def image_part(image: Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": to_url(image)}}


def finish_reason(answer: Answer) -> str:
    """OpenAI's word for why an answer ended."""
    return "stop" if answer.reason == "stop" else "length"


def usage_of(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    """Tokens of prompts and answers, of which there are `n` to each prompt, in order; prompts count once."""
    prompt = sum(len(answer.prompt_ids) for answer in answers[::n])
    written = sum(len(answer.ids) for answer in answers)
    text = sum(answer.text_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "completion_tokens_details": {"text_tokens": text, "image_tokens": written - text},
    }


# ----------------------------------------------------------------------------------------------------------------------
# Chat
# ----------------------------------------------------------------------------------------------------------------------


def chat_completion(
    head: Head,
    answers: Sequence[Answer],
    pictures_in: PicturesIn,
    usage: dict[str, Any],
    logprobs: Sequence[dict[str, Any] | None],
) -> dict[str, Any]:
    """A whole `chat.completion`. Where an answer has no picture, its content is a text, as clients expect it."""
    choices = []
    for index, answer in enumerate(answers):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.pictures and pictures_in == "content":
            message["content"] = parts_of(answer)
        elif answer.pictures:
            message["images"] = [image_part(picture) for picture in answer.pictures]
        choices.append({
            "index": index, "message": message, "finish_reason": finish_reason(answer), "logprobs": logprobs[index]
        })  # fmt: skip
    return {**head.of("chat.completion", "chatcmpl"), "choices": choices, "usage": usage}


def chat_chunk(
    head: Head,
    index: int,
    delta: dict[str, Any],
    *,
    finish: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A `chat.completion.chunk` with one choice."""
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return {**head.of("chat.completion.chunk", "chatcmpl"), "choices": [choice]}


def usage_chunk(head: Head, kind: str, prefix: str, usage: dict[str, Any]) -> dict[str, Any]:
    """The last chunk of a stream whose usage was asked for."""
    return {**head.of(kind, prefix), "choices": [], "usage": usage}


def delta_of(event: Event) -> dict[str, Any] | None:
    """What an event adds to a message: text, a picture, or a preview of one; None if nothing that clients see."""
    match event:
        case TextPiece(text):
            return {"content": text}
        case PictureProgress(number, written, of, preview):
            shown = {} if preview is None else {"image_url": {"url": to_url(preview)}}
            return {"partial_image": {"index": number - 1, "written": written, "of": of, **shown}}
        case PictureDone(number, picture):
            return {"images": [{**image_part(picture), "index": number - 1}]}
    return None


def has_picture(event: Event) -> bool:
    """Whether `delta_of` encodes a picture, which takes a while."""
    return isinstance(event, PictureDone) or (isinstance(event, PictureProgress) and event.preview is not None)


class TokenLogprobs:
    """Log-probabilities of the text tokens of an answer, given out with the text that they make up: that is held back
    while it may be the beginning of a stop text, or is no whole character. Image codes have none."""

    def __init__(self, tokenizer: DocumentTokenizer):
        self._tokenizer = tokenizer
        self._entries: collections.deque[dict[str, Any]] = collections.deque()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ahead = 0  # characters that were shown without their tokens

    def add(self, ids: np.ndarray, logprobs: np.ndarray) -> None:
        """More tokens: int32 and float32 `[n]`."""
        vocabulary, pieces = self._tokenizer.need("vocabulary"), self._tokenizer.need("text")
        for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True):
            if vocabulary.modality[token] == TEXT:
                content = pieces.decode_bytes([int(vocabulary.piece_of_id[token])])
                self._entries.append({
                    "token": content.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(content),
                    "top_logprobs": [],
                })  # fmt: skip

    def take(self, text: str | None = None) -> list[dict[str, Any]]:
        """Those of the next text that is shown; None: all that are left."""
        taken = []
        self._ahead += len(text or "")
        while self._entries and (text is None or self._ahead > 0):
            taken.append(self._entries.popleft())
            self._ahead -= len(self._decoder.decode(bytes(taken[-1]["bytes"])))
        return taken


# ----------------------------------------------------------------------------------------------------------------------
# Completions
# ----------------------------------------------------------------------------------------------------------------------


def text_completion(
    head: Head,
    answers: Sequence[Answer],
    usage: dict[str, Any],
    logprobs: Sequence[list[dict[str, Any]] | None],
    echoes: Sequence[str],
) -> dict[str, Any]:
    """A whole `text_completion`. Answers with pictures have all of it as `content`, beside the text.

    Args:
      echoes: what stands before each answer, often nothing.
    """
    choices = []
    for index, answer in enumerate(answers):
        choice = text_choice(index, echoes[index] + answer.text, finish_reason(answer), logprobs[index])
        choices.append({**choice, "content": parts_of(answer)} if answer.pictures else choice)
    return {**head.of("text_completion", "cmpl"), "choices": choices, "usage": usage}


def text_choice(
    index: int, text: str, finish: str | None, logprobs: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    older = None
    if logprobs is not None:
        starts = np.cumsum([0, *(len(entry["token"]) for entry in logprobs)]).tolist()
        older = {
            "tokens": [entry["token"] for entry in logprobs],
            "token_logprobs": [entry["logprob"] for entry in logprobs],
            "top_logprobs": None,
            "text_offset": starts[:-1],
        }
    return {"index": index, "text": text, "finish_reason": finish, "logprobs": older}


def text_chunk(head: Head, choice: dict[str, Any]) -> dict[str, Any]:
    return {**head.of("text_completion", "cmpl"), "choices": [choice]}


# ----------------------------------------------------------------------------------------------------------------------
# Pictures
# ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """The form in which pictures are given."""

    form: PictureFormat = "png"
    quality: int | None = None

    def of(self, image: Image) -> str:
        return to_base64(image, self.form, self.quality)


def image_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """`usage_of` in the words of the images API."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
        "input_tokens_details": {"text_tokens": usage["prompt_tokens"], "image_tokens": 0},
    }


def images_response(
    head: Head, pictures: Iterable[Image], size: str, file: PictureFile, usage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "created": head.created, "data": [{"b64_json": file.of(picture)} for picture in pictures],
        "output_format": file.form, "size": size, "background": "opaque", "usage": image_usage(usage),
        "model": head.model, "seed": head.seed,
    }  # fmt: skip


def image_event(
    head: Head, index: int, picture: Image, size: str, file: PictureFile, *, partial: int | None = None
) -> dict[str, Any]:
    """An `image_generation.partial_image`, or `image_generation.completed` without its usage.

    Args:
      index: of the picture among the `n` of the request.
      partial: which of its previews it is; None: it is whole.
    """
    event = {
        "type": f"image_generation.{'completed' if partial is None else 'partial_image'}",
        "b64_json": file.of(picture), "created_at": head.created, "size": size, "quality": "auto",
        "background": "opaque", "output_format": file.form, "index": index, "seed": head.seed,
    }  # fmt: skip
    return event if partial is None else {**event, "partial_image_index": partial}


# ----------------------------------------------------------------------------------------------------------------------
# Streams
# ----------------------------------------------------------------------------------------------------------------------


def server_sent(data: dict[str, Any] | str, event: str = "") -> bytes:
    """One event of a stream: JSON, or `[DONE]`."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{f'event: {event}' + chr(10) if event else ''}data: {text}\n\n".encode()
