"""From tokens to a document while they come: whole characters, stop texts across tokens, pictures with previews."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from chameleon_jax.generation.events import Event, PictureDone, PictureProgress, PictureStarted, TextPiece
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer
from chameleon_jax.tokens.text import TextTokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = 128
"""Value of pixels whose codes are not yet written."""


class TextStream:
    """Text of pieces as they come, up to the first stop text.

    Bytes are kept until their character is whole, and text is kept while it may be the beginning of a stop text. What
    is given out in pieces is, all together, what `TextTokenizer.decode` gives for the whole, or the part of it before
    the stop text that is complete first (of several complete at once, the longest).

    Attributes:
      stopped: whether a stop text was found; the stream is then at its end.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()):
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._kept = ""

    def feed(self, piece: int) -> str:
        """Text that is certain after one more piece; often none."""
        return self._take(self._decoder.decode(self._tokenizer.decode_bytes([piece])))

    def flush(self) -> str:
        """What is left at the end of a text. A character that is not whole becomes the replacement character."""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._kept = text + self._kept, ""
        return text

    def _take(self, text: str) -> str:
        text = self._kept + text
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stop if stop in text]
        if found:
            end, length = min(found)
            self.stopped, self._kept = True, ""
            return text[: end + length]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._kept = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class DocumentStream:
    """An answer put together from its tokens.

    Attributes:
      document: texts and pictures so far. Pictures are decoded one by one, so that nothing depends on what else is.
      ids: tokens so far.
      text_tokens: how many of them are not of pictures.
      stopped: whether a stop text was found, where the answer ends.
    """

    def __init__(
        self,
        tokenizer: DocumentTokenizer,
        prompt: np.ndarray,
        stop: Sequence[str] = (),
        *,
        preview_every: int = 0,
    ):
        """Args:
        tokenizer: without a text tokenizer, text is left out.
        prompt: int32 `[n]`; it may end inside a picture, which the answer then completes.
        stop: texts that end the answer.
        preview_every: codes between previews of a picture; 0: none.
        """
        self.document: list[str | Image] = []
        self.ids: list[int] = []
        self.text_tokens, self.stopped = 0, False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._preview_every = preview_every
        self._text: TextStream | None = None
        self._joins = False  # whether the next text continues the last segment
        self._codes: list[int] | None = None
        self._pictures = 0
        vocabulary = tokenizer.need("vocabulary")
        begins = np.flatnonzero(prompt == vocabulary.begin_image)
        if len(begins) and not (prompt[begins[-1] :] == vocabulary.end_image).any():
            self._codes = vocabulary.code_of_id[prompt[begins[-1] + 1 :]].tolist()

    def feed(self, ids: np.ndarray) -> Iterator[Event]:
        """Events of more tokens. Those behind a stop text are ignored."""
        vocabulary = self._tokenizer.need("vocabulary")
        before = len(self._codes) if self._codes is not None else 0
        if self._codes is not None and not self._pictures:  # the picture that the prompt began
            self._pictures = 1
            yield PictureStarted(1)
        for token in map(int, ids):
            if self.stopped:
                return
            self.ids.append(token)
            kind = vocabulary.modality[token]
            if self._codes is None:
                if token == vocabulary.begin_image:
                    yield from self._end_text()
                    if self.stopped:
                        return
                    self._codes, before = [], 0
                    self._pictures += 1
                    yield PictureStarted(self._pictures)
                else:
                    self.text_tokens += 1
                    if kind == TEXT and self._tokenizer.text is not None:
                        yield from self._more_text(int(vocabulary.piece_of_id[token]))
            elif kind == IMAGE:
                self._codes.append(int(vocabulary.code_of_id[token]))
            else:
                yield self._end_picture()
        if self._codes is not None and len(self._codes) > before:
            yield self._progress(before)

    def finish(self) -> Iterator[Event]:
        """Events at the end. A picture that is not whole is left out."""
        yield from self._end_text()

    def _more_text(self, piece: int) -> Iterator[Event]:
        if self._text is None:
            self._text, self._joins = TextStream(self._tokenizer.text, self._stop), False
        yield from self._say(self._text.feed(piece))

    def _end_text(self) -> Iterator[Event]:
        if self._text is not None and not self.stopped:
            yield from self._say(self._text.flush())
        self._text = None

    def _say(self, text: str) -> Iterator[Event]:
        self.stopped = self._text.stopped
        if text:
            if self._joins:
                self.document[-1] += text
            else:
                self.document.append(text)
            self._joins = True
            yield TextPiece(text)

    def _progress(self, before: int) -> PictureProgress:
        written, every = len(self._codes), self._preview_every
        due = every and written // every > before // every
        image = self._tokenizer.image
        preview = preview_of(image, self._codes) if due and image is not None and image.can_decode else None
        return PictureProgress(self._pictures, written, self._tokenizer.codes_per_image, preview)

    def _end_picture(self) -> PictureDone:
        codes, self._codes = np.asarray(self._codes, np.int32), None
        (picture,) = self._tokenizer.need("image").detokenize(codes[None])
        self.document.append(picture)
        return PictureDone(self._pictures, picture)


def preview_of(tokenizer: ImageTokenizer, codes: Sequence[int]) -> Image:
    """The picture that begins with `codes`, at least one, the rest grey."""
    from PIL import Image

    grid, size = tokenizer.config.grid, tokenizer.config.downsampling
    filled = list(codes)
    while len(filled) < grid * grid:  # repeated downwards, so that the last row has likely neighbours
        filled.append(filled[-grid] if len(filled) >= grid else filled[-1])
    pixels = np.array(tokenizer.detokenize(np.asarray([filled]))[0])
    written = np.arange(grid * grid).reshape(grid, grid) < len(codes)
    pixels[~written.repeat(size, 0).repeat(size, 1)] = GREY
    return Image.fromarray(pixels)
