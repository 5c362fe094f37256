"""Chat templates: how the turns of a conversation become one sequence of ids.

In every template a conversation begins with begin of sequence, and end of turn follows each prompt; the model then
writes its answer. No role names, spaces or line breaks are inserted. Templates differ in the token after an answer:

- 'meta': end of sequence. Meta's models, which were tuned on single turns, and what `chameleon prepare` writes with
  `answer_end: eos`, its default.
- 'lumina': end of turn. Lumina-mGPT, and what `chameleon prepare` writes with `answer_end: separator`, but for the last
  answer of a row, which ends with end of sequence.

An answer ends at either token, whatever the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from chameleon_jax.document import Document, DocumentError
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary

ChatTemplate = Literal["meta", "lumina"]
TEMPLATES: tuple[ChatTemplate, ...] = ("meta", "lumina")
TEMPLATE_OF_END: dict[str, ChatTemplate] = {"eos": "meta", "separator": "lumina"}
"""The template of conversations that were prepared with this `answer_end`."""


class Turn(NamedTuple):
    """What one side of a conversation says."""

    role: Literal["user", "assistant"]
    document: Document


def after_answer(template: ChatTemplate, vocabulary: Vocabulary) -> int:
    """Id of the token that follows an answer before the next prompt."""
    return vocabulary.eos if template == "meta" else vocabulary.end_of_turn


def encode_turns(tokenizer: DocumentTokenizer, turns: Sequence[Turn], template: ChatTemplate) -> np.ndarray:
    """Ids int32 `[n]` of a conversation: begin of sequence, and each turn with the token that ends it.

    Raises:
      DocumentError: if user and assistant do not take turns, user first, or a document cannot be encoded.
    """
    vocabulary = tokenizer.need("vocabulary")
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise DocumentError(f"turn {number} is of {turn.role!r}: must be of {expected!r}; they take turns")
    ends = {"user": vocabulary.end_of_turn, "assistant": after_answer(template, vocabulary)}
    encoded = tokenizer.encode_many([turn.document for turn in turns])
    parts = [part for ids, turn in zip(encoded, turns, strict=True) for part in (ids, [ends[turn.role]])]
    return np.concatenate([[vocabulary.bos], *parts]).astype(np.int32)
