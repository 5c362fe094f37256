"""Kind 'conversations': JSON lines, each with alternating prompts and answers. Either our own format,

    {"turns": [{"prompt": [{"image": "kite.jpg"}, "What flies here?"], "answer": "A red kite."}]}

where a prompt or an answer is text or a list of segments as in kind 'documents'; or that of LLaVA and Lumina-mGPT,

    {"conversations": [{"from": "human", "value": "<|image|>What flies?"}, {"from": "gpt", "value": "A red kite."}],
     "image": ["kite.jpg"]}

or messages of a chat, whose content may be a list, in which a picture has a path (or base64) of its own or is the next
of `images`:

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What flies?"}]},
                  {"role": "assistant", "content": "A red kite."}], "images": ["kite.jpg"]}

In texts that are not in lists <|image|>, <image> or ⟨image⟩ mark the places of the pictures in order; without marks
they come first; without pictures, a mark inside a text is text. A system message is put before the first prompt, and a
question without an answer at the end is dropped. So is, in `conversations` alone, what gpt says before the first
question, as by LLaVA's own tools. Other keys are ignored. A file may be one JSON array instead of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from chameleon_jax.config.reading import config
from chameleon_jax.document import IMAGE_MARKS, DocumentError
from data_pipeline.records import Picture, Record, Segment, Turn
from data_pipeline.sources.documents import parse_segments
from data_pipeline.sources.json_text import check_text, shown
from data_pipeline.sources.jsonl import JsonLinesSource
from data_pipeline.sources.named_pictures import MARK, has_marks, name_of, names_of
from data_pipeline.sources.source import TurnKeys, register_source

_EXPECTED = (
    '{"turns": [{"prompt": …, "answer": …}, …]}, {"conversations": [{"from": "human", "value": …}, …]} or '
    '{"messages": [{"role": "user", "content": …}, …]}'
)


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


_SPEAKERS = {
    "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "system": "system"
}  # fmt: skip


class _Part(NamedTuple):
    """A part of a message: a text, in which marks may stand for pictures, or a picture, which may be named."""

    kind: Literal["text", "marked text", "picture"]
    value: str = ""


class _Message(NamedTuple):
    number: int
    speaker: str
    parts: list[_Part]


def _message(value: Any, number: int) -> _Message:
    found = value if isinstance(value, dict) else {}
    speaker, content = found.get("from", found.get("role")), found.get("value", found.get("content"))
    if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(content, (str, list)):
        names = ("role", "user", "assistant", "content") if "role" in found else ("from", "human", "gpt", "value")
        expected = '{{"{}": "{}" or "{}", "{}": "…"}}'.format(*names)
        raise DocumentError(f"message {number}, {shown(value)}: must be {expected}")
    if isinstance(content, str):
        kind = "marked text" if has_marks(content) else "text"
        parts = [_Part(kind, check_text(content))]
    else:
        parts = [_part(each, number) for each in content]
    if all(part.kind != "picture" and (not part.value or part.value.isspace()) for part in parts):
        raise DocumentError(f"message {number} is empty")
    return _Message(number, _SPEAKERS[speaker], parts)


def _part(value: Any, number: int) -> _Part:
    """A part of the content of a message that is a list."""
    found = value if isinstance(value, dict) else {"type": "text", "text": value}
    if found.get("type") == "text" and isinstance(found.get("text"), str):
        return _Part("text", check_text(found["text"]))
    if found.get("type") in ("image", "image_url"):
        return _Part("picture", name_of(found))
    expected = '{"type": "text", "text": "…"} or {"type": "image"}'
    raise DocumentError(f"message {number}, {shown(value)}: must be {expected}")


def _take_turns(messages: list[_Message]) -> Iterator[tuple[list[_Part], list[_Part]]]:
    """Pairs of prompt and answer."""
    system: list[_Part] = []
    if messages and messages[0].speaker == "system":
        system = [*messages[0].parts, _Part("text", "\n")]
        messages = messages[1:]
    for place, message in enumerate(messages):
        expected = ("human", "gpt")[place % 2]
        if message.speaker != expected:
            raise DocumentError(
                f"message {message.number} is from {message.speaker}: must be from {expected}; human and gpt (user and "
                "assistant) take turns, and human begins"
            )
    if len(messages) < 2:
        raise DocumentError(
            "there is no answer to learn from; messages must be from human and gpt in turn, and end with gpt"
        )
    for prompt, answer in zip(messages[::2], messages[1::2], strict=False):  # a question at the end has no answer
        yield system + prompt.parts, answer.parts
        system = []


def _chat(values: Mapping[str, Any], messages: list[_Message], picture: Callable[[str], Picture]) -> list[Turn]:
    turns, files = list(_take_turns(messages)), names_of(values)
    parts = [part for message in messages for part in message.parts]  # also of a question that has no answer
    marked = [part.value for part in parts if part.kind == "marked text"]
    marks_count = bool(files) or any(map(_stands_alone, marked))
    places = sum(part == _Part("picture") for part in parts)
    places += sum(len(MARK.findall(text)) for text in marked) if marks_count else 0
    if places and places != len(files):
        raise DocumentError(f"the messages have {places} image marks (such as <|image|>), but image lists {len(files)}")
    pictures = map(picture, files)

    def segments(parts: list[_Part]) -> tuple[Segment, ...]:
        found: list[Segment] = []
        for part in parts:
            if part.kind == "picture":
                found.append(picture(part.value) if part.value else next(pictures))
            elif part.kind == "marked text" and marks_count:
                first, *rest = MARK.split(part.value)
                found += [first, *(segment for text in rest for segment in (next(pictures), text))]
            else:
                found.append(part.value)
        return _join(found)

    before = [] if places else list(pictures)
    conversation = [Turn(segments(prompt), segments(answer)) for prompt, answer in turns]
    conversation[0] = Turn((*before, *conversation[0].prompt), conversation[0].answer)
    return conversation


def _join(segments: list[Segment]) -> tuple[Segment, ...]:
    """Neighbouring texts as one."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and isinstance(segment, str) and isinstance(joined[-1], str):
            joined[-1] += segment
        elif segment != "":
            joined.append(segment)
    return tuple(joined)


def _stands_alone(text: str) -> bool:
    """Whether a text begins or ends with a mark. A mark inside it may be what the text is about."""
    text = text.strip()
    return text.startswith(IMAGE_MARKS) or text.endswith(IMAGE_MARKS)


def parse_turns(values: Any, picture: Callable[[str], Picture]) -> list[Turn]:
    """The turns of a conversation in any of the formats.

    Raises:
      DocumentError: if it is none.
    """
    values = values if isinstance(values, dict) else {}
    for key in ("conversations", "messages"):
        if key not in values:
            continue
        if not isinstance(values[key], list) or not values[key]:
            raise DocumentError(f"{key} must be a list of messages, human and gpt in turn, and end with gpt")
        messages = [_message(message, number) for number, message in enumerate(values[key], start=1)]
        if key == "conversations":  # LLaVA's tools skip what gpt says first
            begin = int(messages[0].speaker == "system")
            if len(messages) > begin and messages[begin].speaker == "gpt":
                del messages[begin]
        return _chat(values, messages, picture)
    if values.keys() != {"turns"}:
        raise DocumentError(f"a line must be {_EXPECTED}")
    turns = values["turns"]
    if not isinstance(turns, list) or not turns:
        raise DocumentError("turns must be a list of at least one prompt and answer")
    return [_turn(turn, number, picture) for number, turn in enumerate(turns, start=1)]


@register_source
@config
class ConversationsSource(TurnKeys, JsonLinesSource):
    """Prompts and answers, of which only the answers are trained on: JSON lines in our own format, in LLaVA's, or
    messages of a chat."""

    kind: Literal["conversations"] = "conversations"

    patterns: ClassVar[tuple[str, ...]] = (*JsonLinesSource.patterns, "*.json", "*.json.gz", "*.json.zst")
    arrays: ClassVar[bool] = True

    def parse(self, values: Any, id: str, place: str, picture: Callable[[str], Picture]) -> Record:
        return Record(id, place, turns=tuple(parse_turns(values, picture)))
