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

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import IMAGE_MARKS, Document, DocumentError
from data_pipeline.sources.json_array import array_items, begins_with_array
from data_pipeline.sources.jsonl import (
    JsonLinesSource,
    OpenPicture,
    check_text,
    open_records,
    parse_document,
    shown,
)
from data_pipeline.sources.source import Resize, register_source

_MARK = re.compile("|".join(map(re.escape, IMAGE_MARKS)))
_EXPECTED = '{"turns": [{"prompt": …, "answer": …}, …]} or {"conversations": [{"from": "human", "value": …}, …]}'


class Turn(NamedTuple):
    prompt: Document
    answer: Document


Conversation = list[Turn]


def as_document(conversation: Conversation) -> Document:
    """All turns of a conversation as one document."""
    return [segment for turn in conversation for part in turn for segment in part]


def _turn(value: Any, number: int, open_picture: OpenPicture) -> Turn:
    if not isinstance(value, dict) or value.keys() != {"prompt", "answer"}:
        raise DocumentError(f'turn {number}, {shown(value)}: must be {{"prompt": …, "answer": …}}')

    def part(name: str) -> Document:
        segments = value[name]
        if not isinstance(segments, (str, list)):
            raise DocumentError(f"turn {number}: {name} must be text or a list of segments")
        try:
            return parse_document([segments] if isinstance(segments, str) else segments, open_picture, name)
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


def _llava_conversation(values: dict[str, Any], messages: Any, open_picture: OpenPicture) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise DocumentError("conversations must be a list of messages, human and gpt in turn, and end with gpt")
    turns, files = _llava_turns(messages), _llava_files(values)
    texts = [text for turn in turns for text in turn]
    marks = sum(len(_MARK.findall(text)) for text in texts)
    if not files and not any(_stands_alone(text) for text in texts):
        return [Turn([prompt], [answer]) for prompt, answer in turns]
    if marks and marks != len(files):
        raise DocumentError(f"the messages have {marks} image marks (such as <|image|>), but image lists {len(files)}")
    names = iter(files)

    def document(text: str, part: str) -> Document:
        first, *rest = _MARK.split(text)
        segments = [first, *(segment for piece in rest for segment in (open_picture(next(names), part), piece))]
        return [segment for segment in segments if segment != ""]

    before = [] if marks else [open_picture(name, "prompt") for name in names]
    conversation = [Turn(document(prompt, "prompt"), document(answer, "answer")) for prompt, answer in turns]
    conversation[0] = Turn([*before, *conversation[0].prompt], conversation[0].answer)
    return conversation


def _stands_alone(text: str) -> bool:
    """Whether a text begins or ends with a mark. A mark inside it may be what the text is about."""
    text = text.strip()
    return any(text.startswith(mark) or text.endswith(mark) for mark in IMAGE_MARKS)


def _conversation(values: Any, open_picture: OpenPicture) -> Conversation:
    for key in ("conversations", "messages"):
        if isinstance(values, dict) and key in values:
            return _llava_conversation(values, values[key], open_picture)
    if not isinstance(values, dict) or values.keys() != {"turns"}:
        raise DocumentError(f"a line must be {_EXPECTED}")
    turns = values["turns"]
    if not isinstance(turns, list) or not turns:
        raise DocumentError("turns must be a list of at least one prompt and answer")
    return [_turn(turn, number, open_picture) for number, turn in enumerate(turns, start=1)]


@register_source
@config
class ConversationsSource(JsonLinesSource):
    """Prompts and answers, of which only the answers are trained on: JSON lines in our own format or in LLaVA's."""

    kind: Literal["conversations"] = "conversations"
    prompt_loss: float = 0.0
    """Weight of the prompts in the loss, 0 to 1; answers have 1."""
    answer_end: Literal["separator", "eos"] = "eos"
    """Token after each answer of a conversation except the last, which always ends with end of sequence: the separator
    (end of turn) that also follows each prompt, or end of sequence, where generation stops."""
    prompt_fit: Literal["pad", "crop"] = "pad"
    """How pictures in prompts are made square; see `fit` of the preprocessing. The defaults are the paper's (section
    3): prompts keep the whole picture, answers its centre."""
    answer_fit: Literal["pad", "crop"] = "crop"
    """The same for pictures in answers."""

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.prompt_loss <= 1, "prompt_loss", self.prompt_loss, "must be from 0 to 1")

    def conversations(self, resize: Resize | None = None) -> Iterator[Conversation]:
        """The conversations of the file in order. Raises as `read_lines` does."""
        if begins_with_array(Path(self.path)):
            return self._read_array(resize)
        return self.read_lines(_conversation, resize)

    def documents(self, datasets: str = "", resize: Resize | None = None) -> Iterator[Document]:
        """Each conversation as one document."""
        return map(as_document, self.conversations(resize))

    def _read_array(self, resize: Resize | None) -> Iterator[Conversation]:
        parse_values = self.with_pictures(_conversation, resize)
        with open_records(self.path) as file:
            items = itertools.islice(array_items(file), self.count or None)
            for number in itertools.count(1):
                try:
                    values = next(items, None)
                    conversation = None if values is None else parse_values(values)
                except DocumentError as error:
                    raise DocumentError(f"{self.path}, item {number}: {error}") from None
                if conversation is None:
                    return
                yield conversation
