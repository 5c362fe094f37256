"""Answers: documents that a model wrote, with what is known about how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

from chameleon_jax import display

if TYPE_CHECKING:
    from PIL.Image import Image

Reason = Literal["stop", "length", "context", "cancelled"]


class Answer(list):
    """A document, equal to the plain list of its texts and pictures. A notebook shows it as a page.

    Attributes:
      reason: why it ended. 'stop': the model ended it, or a stop text or id did; 'length': it has `max_new_tokens` of
        text; 'context': no room is left; 'cancelled'.
      prompt_ids: int32 `[n]`, the prompt, with what form and mode put around it.
      ids: int32 `[n]`, the tokens written, with the one that ended it.
      logprobs: float32 `[n]`, log-probability of each under the model, before temperature and filters; 0 where there
        is no choice.
      text_tokens: how many of `ids` are not of pictures.
      seconds_to_first: from the request to the first token, in seconds.
      seconds: from the request to the last token.
    """

    def __init__(self, segments: Iterable[str | Image] = ()):
        super().__init__(segments)
        self.reason: Reason = "stop"
        self.prompt_ids = self.ids = np.zeros(0, np.int32)
        self.logprobs = np.zeros(0, np.float32)
        self.text_tokens = 0
        self.seconds_to_first = self.seconds = 0.0

    @property
    def text(self) -> str:
        """All its text, without the pictures."""
        return "".join(segment for segment in self if isinstance(segment, str))

    @property
    def pictures(self) -> list[Image]:
        return [segment for segment in self if not isinstance(segment, str)]

    def _repr_html_(self) -> str:
        return display.to_html(self)
