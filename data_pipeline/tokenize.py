"""Tokenizes records: ids, and the weight of each in the loss.

Records are taken in groups that bound memory. Of each picture only the square that the image tokenizer reads is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chameleon_jax.document import DocumentError
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.image import to_square
from chameleon_jax.tokens.vocabulary import IMAGE, Vocabulary
from data_pipeline.forms import documents_of, names_in
from data_pipeline.near_duplicates import HASHES, NOTHING, NearDuplicatesConfig, picture_signature, text_signature
from data_pipeline.pictures import augmented, decode_picture
from data_pipeline.records import Picture, Record, Rejected, Segment
from data_pipeline.sources.source import SourceConfig, TurnKeys
from data_pipeline.tokenized import TokenizedDocument

if TYPE_CHECKING:
    from PIL.Image import Image

RECORDS_AT_A_TIME = 512
CHARACTERS_AT_A_TIME = 1 << 20
PIXELS_AT_A_TIME = 1 << 24
"""Limits of a group. A record that exceeds one is in a group of its own."""

EncodeSquares = Callable[[np.ndarray], np.ndarray]
"""Squares uint8 `[n, resolution, resolution, 3]`, whose memory is used again, to codes int32 `[n, codes_per_image]`."""


MOST_REMEMBERED = 1 << 14
"""Pictures whose codes are remembered."""


def remember_codes(encode: EncodeSquares) -> EncodeSquares:
    """`encode`, except that pictures which come again are not encoded again: sources may show each picture many times.

    The first `MOST_REMEMBERED` pictures are remembered, by a hash of their squares. If fewer than that have come again
    by then, remembering ends, as hashing takes time. The codes are the same as without it.
    """
    known: dict[bytes, np.ndarray] = {}
    again, ended = 0, False

    def encode_new(squares: np.ndarray) -> np.ndarray:
        nonlocal again, ended
        if len(known) >= MOST_REMEMBERED > again:
            ended = True
            known.clear()  # 64 MiB where a picture has 1,024 codes
        if ended or len(squares) == 1:  # one alone is encoded by a program of its own, which may round differently
            return encode(squares)
        keys = [hashlib.blake2b(square, digest_size=16).digest() for square in squares]
        new = {key: place for place, key in enumerate(keys) if key not in known}
        again += len(keys) - len(new)
        places = list(new.values()) * (2 if len(new) == 1 else 1)
        found = dict(zip(new, encode(squares[places]), strict=False)) if new else {}
        codes = np.stack([found[key] if key in found else known[key] for key in keys])
        known.update(itertools.islice(found.items(), MOST_REMEMBERED - len(known)))
        return codes

    return encode_new


class _Document(NamedTuple):
    """A document of which the texts and squares wait to be encoded. Documents have one part, conversations two for each
    turn; True stands for a picture."""

    id: str
    number: int
    parts: list[list[str | bool]]
    is_conversation: bool
    digest: int
    signature: bytes


def _loss_mask(ids: np.ndarray, source: SourceConfig, vocabulary: Vocabulary) -> np.ndarray:
    """bool `[n]`: the tokens that `source.loss` selects."""
    if source.loss == "all":
        return np.ones(len(ids), bool)
    if source.loss == "last_image":
        places = np.arange(len(ids))
        begin, end = (places[ids == id].max(initial=-1) for id in (vocabulary.begin_image, vocabulary.end_image))
        return (begin < places) & (places <= end)
    is_image = (vocabulary.modality[ids] == IMAGE) | (ids == vocabulary.end_image)
    return is_image if source.loss == "image" else ~is_image


def join_turns(
    turns: Sequence[tuple[np.ndarray, np.ndarray]], source: TurnKeys, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A conversation as one document: prompt, end of turn, answer, end of turn, prompt, …, answer, end of sequence.

    Answers, with the token that ends each, have loss weight 1; prompts, with the end of turn after each,
    `source.prompt_loss`. With a single turn this is the paper's format (section 3), which leaves open how several are
    joined.

    Args:
      turns: for each turn, the ids of its prompt and of its answer, int32 `[n]`.
    Returns:
      ids int32 `[n]`, weights float32 `[n]`, and the number of tokens up to the end of each turn, int32 `[turns]`.
    """
    answer_end = {"separator": vocabulary.end_of_turn, "eos": vocabulary.eos}[source.answer_end]
    parts, weights = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for number, (prompt, answer) in enumerate(turns, start=1):
        end = vocabulary.eos if number == len(turns) else answer_end
        parts += [prompt, [vocabulary.end_of_turn], answer, [end]]
        weights += [np.full(len(prompt) + 1, source.prompt_loss), np.ones(len(answer) + 1)]
    ids = np.concatenate(parts).astype(np.int32)
    ends = np.cumsum([len(prompt) + len(answer) + 2 for prompt, answer in turns])
    return ids, np.concatenate(weights).astype(np.float32) * _loss_mask(ids, source, vocabulary), ends.astype(np.int32)


class _Opened:
    """A record, of which each picture is read once, and decoded once if it is used several times in a row."""

    def __init__(self, record: Record, source: SourceConfig):
        self.record, self.source = record, source
        known = {id(segment) for segment in record.all_segments}
        fields = [record.fields[name] for name in names_in(source.form) if name in record.fields]
        self._fields = [field for field in fields if id(field) not in known]  # what only templates use
        self._files: dict[int, bytes] = {}
        self._last: tuple[int, Image] | None = None

    def _read(self, picture: Picture) -> bytes:
        if id(picture) not in self._files:
            self._files[id(picture)] = picture.read()
        return self._files[id(picture)]

    def image(self, picture: Picture) -> Image:
        if self._last is None or self._last[0] != id(picture):
            self._last = (id(picture), decode_picture(Picture(picture.name, self._read(picture)), self.source))
        return self._last[1]

    def digest(self) -> bytes:
        """Hash of the contents as they were read, before a form or augmentation changes them."""
        digest = hashlib.blake2b(digest_size=8)
        turns = self.record.turns
        parts = [part for turn in turns for part in turn] if turns else [self.record.segments]
        for part in (*parts, self._fields):
            digest.update(f"{len(part)} of {len(parts)} ".encode())
            for segment in part:
                is_text = isinstance(segment, str)
                content = segment.encode(errors="surrogatepass") if is_text else self._read(segment)
                digest.update(f"{is_text} {len(content)} ".encode())
                digest.update(content)
        return digest.digest()

    def signature(self, compared: NearDuplicatesConfig) -> bytes:
        """For `near_duplicates`."""
        segments, text = [*self.record.all_segments, *self._fields], b""
        if compared.text is not None:
            text = text_signature("\n".join(each for each in segments if isinstance(each, str))) or bytes(4 * HASHES)
        pictures = [] if compared.pictures is None else [each for each in segments if not isinstance(each, str)]
        return text + b"".join(picture_signature(self.image(picture)) for picture in pictures)


class _Squares:
    """Squares of pictures, in memory that is used again for those of the next group."""

    def __init__(self, side: int):
        self._memory = np.empty((0, side, side, 3), np.uint8)
        self.count = 0

    def add(self, square: np.ndarray) -> None:
        if self.count == len(self._memory):
            more = np.empty((max(self.count, 16), *square.shape), np.uint8)
            self._memory = np.concatenate([self._memory, more])
        self._memory[self.count] = square
        self.count += 1

    def all(self) -> np.ndarray:
        return self._memory[: self.count]


class _Group:
    """Records that are tokenized together."""

    def __init__(
        self,
        source: SourceConfig,
        tokenizer: DocumentTokenizer,
        seed: int,
        encode: EncodeSquares | None,
        compared: NearDuplicatesConfig,
        squares: _Squares,
    ):
        self.source, self.tokenizer, self.seed, self.encode, self.compared = source, tokenizer, seed, encode, compared
        # Templates make conversations of any kind of source.
        self.turn_keys = source if isinstance(source, TurnKeys) else TurnKeys(kind=source.kind, loss=source.loss)
        self.entries: list[list[_Document] | Rejected] = []
        self.places: list[tuple[str, str]] = []
        self.squares = squares
        squares.count = 0
        self.characters = self.pixels = 0

    @property
    def is_full(self) -> bool:
        return (
            len(self.entries) >= RECORDS_AT_A_TIME
            or self.characters >= CHARACTERS_AT_A_TIME
            or self.pixels >= PIXELS_AT_A_TIME
        )

    def add(self, item: Record | Rejected) -> None:
        self.places.append((item.id, item.place))
        made = item if isinstance(item, Rejected) else documents_of(item, self.source, self.seed)
        if isinstance(made, Rejected):
            self.entries.append(made)
            return
        before = self.squares.count
        try:
            opened = _Opened(item, self.source)
            digest, signature = opened.digest(), opened.signature(self.compared)
            self.entries.append([
                self._document(record, number, digest, signature, opened) for number, record in enumerate(made)
            ])  # fmt: skip
        except DocumentError as error:
            self.squares.count = before
            self.entries.append(Rejected(item.id, item.place, str(error)))

    def _document(self, record: Record, number: int, digest: bytes, signature: bytes, opened: _Opened) -> _Document:
        parts = [record.segments] if record.segments else [part for turn in record.turns for part in turn]
        names = ["document"] if record.segments else ["prompt", "answer"] * len(record.turns)
        pictures = itertools.count()

        def read(segment: Segment, part: str) -> str | bool:
            if isinstance(segment, str):
                self.tokenizer.need("text")
                self.characters += len(segment)
                return segment
            side = self.tokenizer.need("image").config.resolution
            image = augmented(opened.image(segment), self.source, self.seed, record.id, next(pictures), side)
            self.squares.add(self._square(image, segment.name, part))
            self.pixels += side * side
            return True

        filled = [[read(segment, name) for segment in part] for part, name in zip(parts, names, strict=True)]
        if not any(segment for part in filled for segment in part):
            raise DocumentError("the document is empty")
        own = hashlib.blake2b(digest + number.to_bytes(8), digest_size=8).digest()
        return _Document(
            record.id, number, filled, bool(record.turns), int.from_bytes(own, "little"), b"" if number else signature
        )

    def _square(self, image: Image, name: str, part: str) -> np.ndarray:
        tokenizer = self.tokenizer.need("image")
        preprocessing = tokenizer.preprocessing
        if part != "document":
            preprocessing = dataclasses.replace(preprocessing, fit=getattr(self.turn_keys, f"{part}_fit"))
        try:
            return np.asarray(to_square(image, tokenizer.config.resolution, preprocessing))
        except DocumentError as error:
            raise DocumentError(f"{name}: {error}") from None

    def tokenize(self) -> Iterator[list[TokenizedDocument] | Rejected]:
        """What became of each record, in order."""
        vocabulary = self.tokenizer.vocabulary
        texts = [
            segment
            for entry in self.entries
            if not isinstance(entry, Rejected)
            for document in entry
            for part in document.parts
            for segment in part
            if isinstance(segment, str)
        ]
        pieces = iter(self._encode_texts(texts))
        codes = iter(vocabulary.image_ids[self.encode(self.squares.all())] if self.squares.count else [])
        for entry, place in zip(self.entries, self.places, strict=True):
            if isinstance(entry, Rejected):
                yield entry
                continue
            reasons: list[str] = []
            documents = [self._join(document, pieces, codes, reasons) for document in entry]
            yield Rejected(*place, reasons[0]) if reasons else documents

    def _encode_texts(self, texts: list[str]) -> list[np.ndarray | ValueError]:
        """Pieces of each text; the error instead of those that cannot be encoded."""
        if not texts:
            return []
        tokenizer = self.tokenizer.text
        try:
            return tokenizer.encode_many(texts)
        except ValueError:
            pass
        encoded: list[np.ndarray | ValueError] = []
        for text in texts:
            try:
                encoded.append(tokenizer.encode(text))
            except ValueError as error:
                encoded.append(error)
        return encoded

    def _join(
        self,
        document: _Document,
        pieces: Iterator[np.ndarray | ValueError],
        codes: Iterator[np.ndarray],
        reasons: list[str],
    ) -> TokenizedDocument | None:
        """The document in tokens. Takes its texts and pictures from `pieces` and `codes`, even if it fails."""
        vocabulary, joined = self.tokenizer.vocabulary, []
        for part in document.parts:
            ids: list[Any] = [np.zeros(0, np.int32)]
            for segment in part:
                if segment is True:
                    ids += [[vocabulary.begin_image], next(codes), [vocabulary.end_image]]
                elif isinstance(found := next(pieces), ValueError):
                    reasons.append(f"{segment[:40]!r}…: {found}")
                else:
                    ids.append(vocabulary.text_ids[found])
            joined.append(np.concatenate(ids).astype(np.int32))
        if document.is_conversation:
            turns = list(zip(joined[::2], joined[1::2], strict=True))
            ids, weights, ends = join_turns(turns, self.turn_keys, vocabulary)
        else:
            ids, ends = np.append(joined[0], np.int32(vocabulary.eos)), np.zeros(0, np.int32)
            weights = _loss_mask(ids, self.source, vocabulary).astype(np.float32)
        segments = [segment for part in document.parts for segment in part]
        pictures = sum(segment is True for segment in segments)
        text_bytes = sum(len(segment.encode(errors="replace")) for segment in segments if segment is not True)
        return TokenizedDocument(
            document.id, ids, weights, ends, pictures, text_bytes, document.digest, document.signature, document.number
        )


def tokenize(
    items: Iterable[Record | Rejected],
    source: SourceConfig,
    tokenizer: DocumentTokenizer,
    seed: int = 0,
    encode: EncodeSquares | None = None,
    compared: NearDuplicatesConfig = NOTHING,
) -> Iterator[list[TokenizedDocument] | Rejected]:
    """The documents made of each record, or why there are none; in order.

    Args:
      items: as `source.read` gives them.
      seed: of what is chosen at random.
      encode: computes the codes of pictures. Default: the image tokenizer of `tokenizer`.
      compared: what signatures of near duplicates are computed of.
    """
    if encode is None and tokenizer.image is not None:
        encode = tokenizer.image.encode_squares
    squares = _Squares(tokenizer.image.config.resolution if tokenizer.image is not None else 0)
    group = _Group(source, tokenizer, seed, encode, compared, squares)
    for item in items:
        group.add(item)
        if group.is_full:
            yield from group.tokenize()
            group = _Group(source, tokenizer, seed, encode, compared, squares)
    yield from group.tokenize()
