"""Tokenizes documents and conversations: ids, and the weight of each in the loss."""

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
from data_pipeline.forms import documents_of
from data_pipeline.packing import Piece, pieces_of, places_to_cut
from data_pipeline.pictures import open_picture
from data_pipeline.records import Picture, Record, Rejected, Segment
from data_pipeline.sources import SourceConfig, TurnKeys

if TYPE_CHECKING:
    from PIL.Image import Image

Conversation = list[tuple[Document, Document]]  # prompts and answers
Resize = Callable[["Image", str], "Image"]

T = TypeVar("T")

DOCUMENTS_AT_A_TIME = 512
BYTES_AT_A_TIME = 256 << 20
"""Memory of the documents that are tokenized together, counting 4 bytes a pixel and 16 a character. A document that
takes more is tokenized alone."""


@dataclasses.dataclass
class Counts:
    """How much of a source went into its rows, and how much did not."""

    documents: int = 0
    pictures: int = 0
    text_bytes: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    image_tokens_learnt: int = 0
    """Image codes whose weight in the loss is above 0."""
    weight: float = 0.0
    """Sum of the loss weights of all tokens."""
    tokens: int = 0
    """All tokens except begin and end of sequence."""
    conversations_skipped: int = 0
    """Conversations dropped because even their first turn does not fit a row."""
    turns_dropped: int = 0
    """Turns dropped at the end of other conversations because they do not fit the row."""
    documents_cut: int = 0
    """Documents longer than a row, which are split over several."""
    pictures_cut_off: int = 0
    """Pictures that such a split separates from all of their text."""

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


def _loss_mask(ids: np.ndarray, source: SourceConfig, vocabulary: Vocabulary) -> np.ndarray:
    """bool `[n]`: the tokens that `source.loss` selects."""
    is_image = (vocabulary.modality[ids] == IMAGE) | (ids == vocabulary.end_image)
    return {"all": np.ones(len(ids), bool), "image": is_image, "text": ~is_image}[source.loss]


def join_turns(
    turns: Sequence[tuple[np.ndarray, np.ndarray]], length: int, source: TurnKeys, vocabulary: Vocabulary
) -> tuple[Piece, int]:
    """A conversation as one document: prompt, end of turn, answer, end of turn, prompt, …, answer, end of sequence.

    Splitting it would separate answers from their prompts, so turns at the end that do not fit a row are dropped.
    Answers, with the token that ends each, have loss weight 1; prompts, with the end of turn after each,
    `source.prompt_loss`. With a single turn this is the paper's format (section 3), which leaves open how several are
    joined.

    Args:
      turns: for each turn, the ids of its prompt and of its answer, int32 `[n]`.
      length: tokens of a row.

    Returns:
      the document, and the number of turns in it: 0 if even the first does not fit.
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
    return Piece(ids, np.concatenate(weights).astype(np.float32) * _loss_mask(ids, source, vocabulary)), kept


def _with_fit(tokenizer: DocumentTokenizer, fit: str) -> DocumentTokenizer:
    """The tokenizer with another `fit` of its preprocessing."""
    if tokenizer.image is None:
        return tokenizer
    preprocessing = dataclasses.replace(tokenizer.image.preprocessing, fit=fit)
    image = ImageTokenizer(tokenizer.image.config, tokenizer.image.params, preprocessing)
    return DocumentTokenizer(tokenizer.text, image, tokenizer.vocabulary, missing=tokenizer.missing)


def _resize(source: SourceConfig, tokenizer: DocumentTokenizer) -> Resize | None:
    """Resizes pictures as soon as they are opened, so that at most one is in memory at its original size."""
    if tokenizer.image is None:
        return None

    def resize(image: Image, part: str) -> Image:
        preprocessing = tokenizer.image.preprocessing
        if isinstance(source, TurnKeys):
            preprocessing = dataclasses.replace(preprocessing, fit=getattr(source, f"{part}_fit"))
        return to_square(image, tokenizer.image.config.resolution, preprocessing)

    return resize


def _opened(
    record: Record, source: SourceConfig, tokenizer: DocumentTokenizer, resize: Resize | None
) -> Document | Conversation:
    """The record with its pictures opened, each brought to size at once."""

    numbers, side = itertools.count(), 0 if tokenizer.image is None else tokenizer.image.config.resolution

    def document(segments: Sequence[Segment], part: str) -> Document:
        return [segment if isinstance(segment, str) else opened(segment, part) for segment in segments]

    def opened(picture: Picture, part: str) -> Image:
        image = open_picture(picture, source, 0, record.id, next(numbers), side)
        return image if resize is None else resize(image, part)

    try:
        if record.turns:
            return [(document(turn.prompt, "prompt"), document(turn.answer, "answer")) for turn in record.turns]
        return document(record.segments, "prompt")
    except DocumentError as error:
        raise DocumentError(f"{record.place}: {error}") from None


def _formed(source: SourceConfig, datasets: str) -> Iterator[Record]:
    for record in source.records(datasets):
        made = documents_of(record, source, 0)
        if isinstance(made, Rejected):
            raise DocumentError(f"{made.place}: {made.reason}")
        yield from made


def _as_document(conversation: Conversation) -> Document:
    return [segment for turn in conversation for part in turn for segment in part]


def _chunks(items: Iterator[T], document_of: Callable[[T], Document]) -> Iterator[list[T]]:
    """Groups of documents to tokenize together."""
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
        yield document, Piece(ids, _loss_mask(ids, source, tokenizer.vocabulary).astype(np.float32))


def _encode_conversations(
    chunk: list[Conversation], source: TurnKeys, tokenizer: DocumentTokenizer, length: int, counts: Counts
) -> Iterator[tuple[Document, Piece]]:
    """The conversations that fit, each as one Document of the turns that fit."""
    turns = list(itertools.chain.from_iterable(chunk))
    prompts = _with_fit(tokenizer, source.prompt_fit).encode_many([prompt for prompt, _ in turns])
    answers = _with_fit(tokenizer, source.answer_fit).encode_many([answer for _, answer in turns])
    encoded = zip(prompts, answers, strict=True)
    for conversation in chunk:
        own = list(itertools.islice(encoded, len(conversation)))
        piece, kept = join_turns(own, length, source, tokenizer.vocabulary)
        if kept:
            counts.turns_dropped += len(conversation) - kept
            yield _as_document(conversation[:kept]), piece
        else:
            counts.conversations_skipped += 1


def tokenized_pieces(
    source: SourceConfig, datasets: str, tokenizer: DocumentTokenizer, length: int, counts: Counts | None = None
) -> Iterator[Piece]:
    """All documents of a source as pieces of at most `length` + 1 ids, begin and end of sequence included.

    Args:
      datasets: folder of the embedded data sets.
      counts: is updated along the way.

    Raises:
      DocumentError: naming the source, if something in it cannot be tokenized.
    """
    counts = Counts() if counts is None else counts
    chat, resize = isinstance(source, TurnKeys), _resize(source, tokenizer)
    items = (_opened(record, source, tokenizer, resize) for record in _formed(source, datasets))
    with progress_bar(f"prepare {source.name}", source.count or None) as bar:
        for chunk in _chunks(items, _as_document if chat else lambda document: document):
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
