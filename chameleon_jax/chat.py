"""Conversations with a model: what was said so far is the prompt of what it says next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chameleon_jax import display
from chameleon_jax.document import Document, DocumentError, as_document
from chameleon_jax.generation.modality import IN_TEXT, place_after
from chameleon_jax.tokens.chat import ChatTemplate, Turn, after_answer, encode_turns

if TYPE_CHECKING:
    from chameleon_jax.chameleon import Chameleon
    from chameleon_jax.config import GenerationConfig
    from chameleon_jax.generation.answer import Answer
    from chameleon_jax.generation.stream import Stream


class Chat:
    """A conversation, as `Chameleon.chat` begins it. A notebook shows it as a page.

    What the model reads of its own answers is what it wrote, token for token.

    Attributes:
      turns: what user and assistant have said, in order.
    """

    def __init__(self, model: Chameleon, config: GenerationConfig, template: ChatTemplate, turns: Sequence[Turn] = ()):
        """Args:
        config: options of the answers; their form is 'chat' whatever it says.
        template: how turns are joined.
        turns: what was said before; the last turn is the assistant's.

        Raises:
          DocumentError: if user and assistant do not take turns.
        """
        if len(turns) % 2:
            raise DocumentError(f"{len(turns)} turns: the last must be the assistant's, as the user says the next")
        self._model, self._config, self._template = model, config, template
        self._ids = encode_turns(model.tokenizer, turns, template)
        self.turns = list(turns)

    def say(self, document: Document, config: GenerationConfig | None = None) -> Answer:
        """The model's answer to the user's next turn.

        Args:
          document: a list of texts and pictures; a lone text or picture is one too.
          config: options of this answer alone.

        Raises:
          DocumentError: if the turn is empty, or the conversation leaves no room for an answer.
        """
        return self.stream(document, config).answer()

    def stream(self, document: Document, config: GenerationConfig | None = None, *, preview_every: int = 0) -> Stream:
        """`say` as a stream. Both turns are part of the conversation when the stream is at its end, not if it is closed
        before."""
        model, document = self._model, as_document(document)
        if not any(document):
            raise DocumentError("the turn is empty; say something, or give a picture")
        prompt = np.concatenate([self._ids, model.encode(document), [model.vocabulary.end_of_turn]])
        config = dataclasses.replace(config or self._config, form="chat")
        stream = model.stream(None, config, prompt_ids=prompt, preview_every=preview_every)

        def go_on(answer: Answer) -> None:
            self._ids = np.append(self._after(answer), after_answer(self._template, model.vocabulary))
            self.turns += [Turn("user", document), Turn("assistant", answer)]

        stream.on_finish(go_on)
        return stream

    def _after(self, answer: Answer) -> np.ndarray:
        """Prompt and answer, without the token that ended it, a picture that is not whole, or a stop text."""
        vocabulary, text, ids = self._model.vocabulary, self._model.tokenizer.text, answer.ids
        if len(ids) and ids[-1] in (vocabulary.eos, vocabulary.end_of_turn):
            ids = ids[:-1]
        whole = np.concatenate([answer.prompt_ids, ids]).astype(np.int32)
        if place_after(vocabulary, whole) != IN_TEXT:
            return whole[: np.flatnonzero(whole == vocabulary.begin_image)[-1]]
        ends = np.flatnonzero(ids == vocabulary.end_image)
        last_text = ids[ends[-1] + 1 :] if len(ends) else ids
        shown = answer[-1] if answer and isinstance(answer[-1], str) else ""
        pieces = vocabulary.piece_of_id[last_text]
        if text is not None and text.decode(pieces[pieces >= 0]) != shown:  # it went on to a stop text
            return np.concatenate([whole[: len(whole) - len(last_text)], self._model.encode(shown)])
        return whole

    def _repr_html_(self) -> str:
        return "".join(f"<p><b>{turn.role}</b></p>{display.to_html(turn.document)}" for turn in self.turns)
