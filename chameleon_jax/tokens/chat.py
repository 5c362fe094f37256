"""Chat templates: how the turns of a conversation become one sequence of ids.

In every template a conversation starts with begin of sequence, and each prompt ends with end of turn, after which the
model writes its answer. No role names, spaces or line breaks are inserted. Templates differ in the token after an
answer:

- 'meta': end of sequence. Used by Meta's models, which were tuned on single turns, and by data prepared with
  `answer_end: eos`, the default.
- 'lumina': end of turn. Used by Lumina-mGPT, and by data prepared with `answer_end: separator`, except that the last
  answer of a row ends with end of sequence.

In generation an answer ends at either token, whatever the template.
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
"""The template of conversations prepared with each `answer_end`."""


class Turn(NamedTuple):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    document: Document


def after_answer(template: ChatTemplate, vocabulary: Vocabulary) -> int:
    """Id of the token that follows an answer before the next prompt."""
    return vocabulary.eos if template == "meta" else vocabulary.end_of_turn


def encode_turns(tokenizer: DocumentTokenizer, turns: Sequence[Turn], template: ChatTemplate) -> np.ndarray:
    """Ids int32 `[n]` of a conversation: begin of sequence, and each turn followed by the token that ends it.

    Raises:
      DocumentError: if user and assistant do not alternate, user first, or a document cannot be encoded.
    """
    vocabulary = tokenizer.need("vocabulary")
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise DocumentError(f"turn {number} is by {turn.role!r}: must be by {expected!r}; they take turns")
    ends = {"user": vocabulary.end_of_turn, "assistant": after_answer(template, vocabulary)}
    encoded = tokenizer.encode_many([turn.document for turn in turns])
    parts = [part for ids, turn in zip(encoded, turns, strict=True) for part in (ids, [ends[turn.role]])]
    return np.concatenate([[vocabulary.bos], *parts]).astype(np.int32)
