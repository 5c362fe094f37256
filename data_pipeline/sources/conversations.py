"""Kind 'conversations': a file of JSON lines, each with alternating prompts and answers. Either our own format,

    {"turns": [{"prompt": [{"image": "kite.jpg"}, "What flies here?"], "answer": "A red kite."}]}

where a prompt or an answer is text or a list of segments as in kind 'documents'; or that of LLaVA and Lumina-mGPT,

    {"conversations": [{"from": "human", "value": "<|image|>What flies?"}, {"from": "gpt", "value": "A red kite."}],
     "image": ["kite.jpg"]}

where <|image|>, <image> or ⟨image⟩ mark the places of the pictures in order; without marks they come first. The format
is read as its own tools do: a file may be one JSON array instead of lines; `images`, or `messages` with `role` and
`content`, or the speakers user and assistant mean the same; messages of gpt before the first question, and a question
without an answer at the end, are dropped; without pictures, a mark inside a text is text. A system message is put
before the first prompt. Other keys are ignored. Paths are relative to the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from chameleon_jax.config.reading import config
from chameleon_jax.document import IMAGE_MARKS, DocumentError
from data_pipeline.records import Picture, Record, Segment, Turn
from data_pipeline.sources.documents import parse_segments
from data_pipeline.sources.files import Pictures
from data_pipeline.sources.json_text import check_text, shown
from data_pipeline.sources.jsonl import JsonLinesSource
from data_pipeline.sources.source import TurnKeys, register_source

_MARK = re.compile("|".join(map(re.escape, IMAGE_MARKS)))
_EXPECTED = '{"turns": [{"prompt": …, "answer": …}, …]} or {"conversations": [{"from": "human", "value": …}, …]}'


def _turn(value: Any, number: int, picture: Callable[[str], Picture]) -> Turn:
    if not isinstance(value, dict) or value.keys() != {"prompt", "answer"}:
        raise DocumentError(f'turn {number}, {shown(value)}: must be {{"prompt": …, "answer": …}}')

    def part(name: str) -> tuple[Segment, ...]:
        segments = value[name]
        if not isinstance(segments, (str, list)):
            raise DocumentError(f"turn {number}: {name} must be text or a list of segments")
        try:
            return parse_segments([segments] if isinstance(segments, str) else segments, picture)
        except DocumentError as error:
            raise DocumentError(f"turn {number}: {name}: {error}") from None

    return Turn(part("prompt"), part("answer"))


_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


def _llava_message(value: Any, number: int) -> tuple[str, str]:
    """Speaker and text of a message."""
    found = value if isinstance(value, dict) else {}
    speaker, text = found.get("from", found.get("role")), found.get("value", found.get("content"))
    if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(text, str):
        raise DocumentError(f'message {number}, {shown(value)}: must be {{"from": "human" or "gpt", "value": "…"}}')
    if not text:
        raise DocumentError(f"message {number} is empty")
    return _SPEAKERS[speaker], check_text(text)


def _llava_turns(messages: list[Any]) -> list[tuple[str, str]]:
    """Pairs of prompt and answer."""
    said = [(number, *_llava_message(message, number)) for number, message in enumerate(messages, start=1)]
    system = ""
    if said[0][1] == "system":
        system = said.pop(0)[2] + "\n"
    if said and said[0][1] == "gpt":
        said = said[1:]
    for place, (number, speaker, _) in enumerate(said):
        expected = ("human", "gpt")[place % 2]
        if speaker != expected:
            raise DocumentError(
                f'message {number} is from {speaker}: must be {{"from": "{expected}", …}}; human and gpt take turns'
            )
    texts = [text for _, _, text in said]
    if len(texts) < 2:
        raise DocumentError(
            "there is no answer to learn from; messages must be from human and gpt in turn, and end with gpt"
        )
    texts[0] = system + texts[0]
    return list(zip(texts[::2], texts[1::2], strict=False))  # a question at the end has no answer


def _llava_files(values: dict[str, Any]) -> list[str]:
    """Paths of the pictures."""
    given = [values[key] for key in ("image", "images") if values.get(key)]
    if len(given) > 1:
        raise DocumentError("give image or images, not both")
    files = given[0] if given else []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise DocumentError("image must be a path or a list of paths")
    return files


def _llava_conversation(values: dict[str, Any], messages: Any, picture: Callable[[str], Picture]) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise DocumentError("conversations must be a list of messages, human and gpt in turn, and end with gpt")
    turns, files = _llava_turns(messages), _llava_files(values)
    texts = [text for turn in turns for text in turn]
    marks = sum(len(_MARK.findall(text)) for text in texts)
    if not files and not any(_stands_alone(text) for text in texts):
        return [Turn((prompt,), (answer,)) for prompt, answer in turns]
    if marks and marks != len(files):
        raise DocumentError(f"the messages have {marks} image marks (such as <|image|>), but image lists {len(files)}")
    pictures = map(picture, files)

    def segments(text: str) -> tuple[Segment, ...]:
        first, *rest = _MARK.split(text)
        parts = [first, *(part for piece in rest for part in (next(pictures), piece))]
        return tuple(part for part in parts if part != "")

    before = [] if marks else list(pictures)
    conversation = [Turn(segments(prompt), segments(answer)) for prompt, answer in turns]
    conversation[0] = Turn((*before, *conversation[0].prompt), conversation[0].answer)
    return conversation


def _stands_alone(text: str) -> bool:
    """Whether a text begins or ends with a mark. A mark inside it may be what the text is about."""
    text = text.strip()
    return any(text.startswith(mark) or text.endswith(mark) for mark in IMAGE_MARKS)


def parse_turns(values: Any, picture: Callable[[str], Picture]) -> list[Turn]:
    """The turns of a conversation in JSON. Raises `DocumentError` if it is none."""
    for key in ("conversations", "messages"):
        if isinstance(values, dict) and key in values:
            return _llava_conversation(values, values[key], picture)
    if not isinstance(values, dict) or values.keys() != {"turns"}:
        raise DocumentError(f"a line must be {_EXPECTED}")
    turns = values["turns"]
    if not isinstance(turns, list) or not turns:
        raise DocumentError("turns must be a list of at least one prompt and answer")
    return [_turn(turn, number, picture) for number, turn in enumerate(turns, start=1)]


@register_source
@config
class ConversationsSource(TurnKeys, JsonLinesSource):
    """Prompts and answers, of which only the answers are trained on: JSON lines in our own format or in LLaVA's."""

    kind: Literal["conversations"] = "conversations"

    patterns: ClassVar[tuple[str, ...]] = (*JsonLinesSource.patterns, "*.json", "*.json.gz", "*.json.zst")
    arrays: ClassVar[bool] = True

    def parse(self, values: Any, id: str, place: str, picture: Pictures) -> Record:
        return Record(id, place, turns=tuple(parse_turns(values, picture)))
