"""Conversations: a file of JSON lines, each prompts and answers in turn. Either our own form,

    {"turns": [{"prompt": [{"image": "kite.jpg"}, "What flies here?"], "answer": "A red kite."}]}

where a prompt or an answer is a text or a list of segments as in kind 'documents', or that of LLaVA and Lumina-mGPT,

    {"conversations": [{"from": "human", "value": "<|image|>What flies?"}, {"from": "gpt", "value": "A red kite."}],
     "image": ["kite.jpg"]}

where <|image|>, <image> or ⟨image⟩ mark the pictures in order and other keys mean nothing. Paths are relative to the
file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_jax.config import SourceConfig
from chameleon_jax.document import IMAGE_MARKS, Document, DocumentError, open_image
from data_pipeline.sources.jsonl import check_text, parse_document, read_lines

_MARK = re.compile("|".join(map(re.escape, IMAGE_MARKS)))
_EXPECTED = '{"turns": [{"prompt": …, "answer": …}, …]} or {"conversations": [{"from": "human", "value": …}, …]}'


class Turn(NamedTuple):
    prompt: Document
    answer: Document


Conversation = list[Turn]


def as_document(conversation: Conversation) -> Document:
    """All that is said, in order."""
    return [segment for turn in conversation for part in turn for segment in part]


def _turn(value: Any, number: int, folder: Path) -> Turn:
    if not isinstance(value, dict) or value.keys() != {"prompt", "answer"}:
        raise DocumentError(f'turn {number}, {json.dumps(value)[:80]}: must be {{"prompt": …, "answer": …}}')

    def part(name: str) -> Document:
        segments = value[name]
        if not isinstance(segments, (str, list)):
            raise DocumentError(f"turn {number}: {name} must be text or a list of segments")
        try:
            return parse_document([segments] if isinstance(segments, str) else segments, folder)
        except DocumentError as error:
            raise DocumentError(f"turn {number}: {name}: {error}") from None

    return Turn(part("prompt"), part("answer"))


def _llava_message(value: Any, number: int) -> str:
    speaker = ("human", "gpt")[(number - 1) % 2]
    if not isinstance(value, dict) or value.get("from") != speaker or not isinstance(value.get("value"), str):
        raise DocumentError(
            f'message {number}, {json.dumps(value)[:80]}: must be {{"from": "{speaker}", "value": "…"}}; human and gpt '
            "take turns"
        )
    if not value["value"]:
        raise DocumentError(f"message {number} is empty")
    return check_text(value["value"])


def _llava_conversation(values: dict[str, Any], folder: Path) -> Conversation:
    messages, files = values["conversations"], values.get("image") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise DocumentError("conversations must be a list of messages, human and gpt in turn, and end with gpt")
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise DocumentError("image must be a path or a list of paths")
    texts = [_llava_message(message, number) for number, message in enumerate(messages, start=1)]
    marks = sum(len(_MARK.findall(text)) for text in texts)
    if marks != len(files):
        raise DocumentError(f"the messages have {marks} image marks (such as <|image|>), but image lists {len(files)}")
    pictures = (open_image(folder / file) for file in files)

    def document(text: str) -> Document:
        first, *rest = _MARK.split(text)
        parts = [first, *(part for piece in rest for part in (next(pictures), piece))]
        return [part for part in parts if part != ""]

    documents = [document(text) for text in texts]
    return [Turn(*pair) for pair in zip(documents[::2], documents[1::2], strict=True)]


def _conversation(values: Any, folder: Path) -> Conversation:
    if isinstance(values, dict) and "conversations" in values:
        return _llava_conversation(values, folder)
    if not isinstance(values, dict) or values.keys() != {"turns"}:
        raise DocumentError(f"a line must be {_EXPECTED}")
    turns = values["turns"]
    if not isinstance(turns, list) or not turns:
        raise DocumentError("turns must be a list of at least one prompt and answer")
    return [_turn(turn, number, folder) for number, turn in enumerate(turns, start=1)]


def read_conversations(source: SourceConfig) -> Iterator[Conversation]:
    """Conversations of the file in order; bad lines are errors, as `jsonl.read_lines` says them."""
    return read_lines(source, _conversation)
