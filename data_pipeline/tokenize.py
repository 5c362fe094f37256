"""Documents and conversations to pieces: ids, and what predicting each of them weighs in the loss."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from chameleon_jax.document import Document, DocumentError
from chameleon_jax.runtime.progress import progress_bar
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import ImageTokenizer, to_square
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT, Vocabulary
from data_pipeline.packing import Piece, pieces_of, places_to_cut
from data_pipeline.sources import ConversationsSource, SourceConfig
from data_pipeline.sources.conversations import Conversation, as_document

if TYPE_CHECKING:
    from PIL.Image import Image

    from data_pipeline.sources import Resize

T = TypeVar("T")

DOCUMENTS_AT_A_TIME = 512
BYTES_AT_A_TIME = 256 << 20
"""What documents may take together, pictures at 4 bytes a pixel and text at 16 a character; a larger one is alone."""


@dataclasses.dataclass
class Counts:
    """What of a source is in its rows, and what of it is not."""

    documents: int = 0
    pictures: int = 0
    text_bytes: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    image_tokens_learnt: int = 0
    """Image codes that count in the loss."""
    weight: float = 0.0
    """Sum of what all tokens weigh in the loss."""
    tokens: int = 0
    """All of them but begin and end of sequence."""
    conversations_skipped: int = 0
    """Conversations left out because not even their first turn fits a row."""
    turns_dropped: int = 0
    """Turns left out at the end of other conversations, because they do not fit the row."""
    documents_cut: int = 0
    """Documents longer than a row, whose pieces lie in several."""
    pictures_cut_off: int = 0
    """Pictures that such a cut leaves without any of the text beside them."""

    def add(self, document: Document, piece: Piece, vocabulary: Vocabulary) -> None:
        modality = vocabulary.modality[piece.ids]
        self.documents += 1
        self.pictures += sum(not isinstance(segment, str) for segment in document)
        self.text_bytes += sum(len(segment.encode()) for segment in document if isinstance(segment, str))
        self.text_tokens += int((modality == TEXT).sum())
        self.image_tokens += int((modality == IMAGE).sum())
        self.image_tokens_learnt += int(((modality == IMAGE) & (piece.weights > 0)).sum())
        self.weight += float(piece.weights.sum())
        self.tokens += len(piece.ids) - 1


def _learnt(ids: np.ndarray, source: SourceConfig, vocabulary: Vocabulary) -> np.ndarray:
    """Bool `[n]`: the tokens that `source.loss` asks for."""
    is_image = (vocabulary.modality[ids] == IMAGE) | (ids == vocabulary.end_image)
    return {"all": np.ones(len(ids), bool), "image": is_image, "text": ~is_image}[source.loss]


def join_turns(
    turns: Sequence[tuple[np.ndarray, np.ndarray]], length: int, source: ConversationsSource, vocabulary: Vocabulary
) -> tuple[Piece, int]:
    """A conversation as one document: prompt, end of turn, answer, end of turn, prompt, …, answer, end of sequence.

    Cutting it would leave answers without their prompts, so turns at the end that do not fit a row are left out.
    Answers and the token that ends each weigh 1, prompts and the end of turn after each `source.prompt_loss`. How the
    paper joins several turns is not known; with a single one this is its format (section 3).

    Args:
      turns: ids of prompt and answer of each.
      length: tokens of a row.

    Returns:
      the document, for `cut`, and how many turns are in it: 0 if not even the first fits.
    """
    sizes = np.cumsum([len(prompt) + len(answer) + 2 for prompt, answer in turns])
    kept = int((sizes <= length).sum())
    answer_end = {"separator": vocabulary.end_of_turn, "eos": vocabulary.eos}[source.answer_end]
    parts, weights = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for number, (prompt, answer) in enumerate(turns[:kept], start=1):
        end = vocabulary.eos if number == kept else answer_end
        parts += [prompt, [vocabulary.end_of_turn], answer, [end]]
        weights += [np.full(len(prompt) + 1, source.prompt_loss), np.ones(len(answer) + 1)]
    ids = np.concatenate(parts).astype(np.int32)
    return Piece(ids, np.concatenate(weights).astype(np.float32) * _learnt(ids, source, vocabulary)), kept


def _fitting(tokenizer: DocumentTokenizer, fit: str) -> DocumentTokenizer:
    """The tokenizer with another way of bringing pictures to size."""
    if tokenizer.image is None:
        return tokenizer
    preprocessing = dataclasses.replace(tokenizer.image.preprocessing, fit=fit)
    image = ImageTokenizer(tokenizer.image.config, tokenizer.image.params, preprocessing)
    return DocumentTokenizer(tokenizer.text, image, tokenizer.vocabulary, missing=tokenizer.missing)


def _resize(source: SourceConfig, tokenizer: DocumentTokenizer) -> Resize | None:
    """Brings pictures to size as they are opened, so that no more than one is in memory as large as it came."""
    if tokenizer.image is None:
        return None

    def resize(image: Image, part: str) -> Image:
        preprocessing = tokenizer.image.preprocessing
        if isinstance(source, ConversationsSource):
            preprocessing = dataclasses.replace(preprocessing, fit=getattr(source, f"{part}_fit"))
        return to_square(image, tokenizer.image.config.resolution, preprocessing)

    return resize


def _chunks(items: Iterator[T], document_of: Callable[[T], Document]) -> Iterator[list[T]]:
    """Documents that are tokenized together."""
    chunk, size = [], 0
    for item in items:
        chunk.append(item)
        for segment in document_of(item):
            size += 16 * len(segment) if isinstance(segment, str) else 4 * segment.width * segment.height
        if len(chunk) == DOCUMENTS_AT_A_TIME or size >= BYTES_AT_A_TIME:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode_documents(
    chunk: list[Document], source: SourceConfig, tokenizer: DocumentTokenizer
) -> Iterator[tuple[Document, Piece]]:
    for document, ids in zip(chunk, tokenizer.encode_many(chunk), strict=True):
        ids = np.append(ids, np.int32(tokenizer.vocabulary.eos))
        yield document, Piece(ids, _learnt(ids, source, tokenizer.vocabulary).astype(np.float32))


def _encode_conversations(
    chunk: list[Conversation], source: ConversationsSource, tokenizer: DocumentTokenizer, length: int, counts: Counts
) -> Iterator[tuple[Document, Piece]]:
    """Those that fit, each with its turns that fit as one Document."""
    turns = list(itertools.chain.from_iterable(chunk))
    prompts = _fitting(tokenizer, source.prompt_fit).encode_many([turn.prompt for turn in turns])
    answers = _fitting(tokenizer, source.answer_fit).encode_many([turn.answer for turn in turns])
    encoded = zip(prompts, answers, strict=True)
    for conversation in chunk:
        own = list(itertools.islice(encoded, len(conversation)))
        piece, kept = join_turns(own, length, source, tokenizer.vocabulary)
        if kept:
            counts.turns_dropped += len(conversation) - kept
            yield as_document(conversation[:kept]), piece
        else:
            counts.conversations_skipped += 1


def tokenized_pieces(
    source: SourceConfig, datasets: str, tokenizer: DocumentTokenizer, length: int, counts: Counts | None = None
) -> Iterator[Piece]:
    """Pieces of at most `length` + 1 ids, begin and end of sequence included, of all that a source holds.

    Args:
      counts: told what went by.

    Raises:
      DocumentError: naming the source, if something in it cannot be tokenized.
    """
    counts = Counts() if counts is None else counts
    chat, resize = isinstance(source, ConversationsSource), _resize(source, tokenizer)
    items = source.conversations(resize) if chat else source.documents(datasets, resize)
    with progress_bar(f"prepare {source.name}", source.count or None) as bar:
        for chunk in _chunks(items, as_document if chat else lambda document: document):
            try:
                encoded = list(
                    _encode_conversations(chunk, source, tokenizer, length, counts)
                    if chat
                    else _encode_documents(chunk, source, tokenizer)
                )
            except DocumentError as error:
                raise DocumentError(f"source {source.name}: {error}") from None
            for document, piece in encoded:
                counts.add(document, piece, tokenizer.vocabulary)
                places, cut_off = places_to_cut(piece.ids, length, tokenizer.vocabulary)
                counts.documents_cut += bool(places)
                counts.pictures_cut_off += cut_off
                yield from pieces_of(piece, places, tokenizer.vocabulary)
            bar.update(counts.documents + counts.conversations_skipped, tokens=f"{counts.tokens:,}")
