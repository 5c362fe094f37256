"""Near duplicates: texts of nearly the same words, by MinHash, and pictures that look the same, by perceptual hash.

A unit computes a signature of each document; when all units are done, the signatures of all are compared. The answer
depends on the set of documents alone, not on the order in which units ran. Memory is some 600 bytes a document if texts
are compared, and 100 if only pictures are: a million texts take 0.6 GB.
"""

from __future__ import annotations

import array
import functools
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from chameleon_jax.config.reading import config, require
from chameleon_jax.document import to_rgb
from chameleon_jax.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

HASHES = 128
"""Numbers of a text's signature. The estimate of a similarity of 0.8 is off by 0.035 (standard deviation)."""
WORDS = 5
"""Words of the n-grams that texts are compared by."""
_FOUND = 0.99
"""Probability that two texts just as similar as the limit are compared at all."""
_AT_A_TIME = 10_000
"""n-grams that are hashed together, and pairs of documents that are compared together: some 10 MB."""


@config
class NearDuplicatesConfig:
    """Of documents that are nearly the same, the first stays. Documents with pictures are compared by their pictures,
    and by their text if `text` is given too; documents without, by their text. Needs the extra `dedup`."""

    text: float | None = None
    """Share of common 5-grams of words, among those of both texts, from which texts are nearly the same, such as 0.8;
    null: texts are not compared."""
    pictures: int | None = None
    """Bits, of 64, by which the perceptual hashes of pictures that look the same may differ, such as 4; null: pictures
    are not compared."""

    def __post_init__(self):
        require(self.text is None or 0.5 <= self.text <= 1, "text", self.text, "must be from 0.5 to 1, or null")
        require(self.pictures is None or 0 <= self.pictures <= 8, "pictures", self.pictures, "must be 0 to 8, or null")


NOTHING = NearDuplicatesConfig()
"""Nothing is compared."""


def check_installed(settings: NearDuplicatesConfig) -> None:
    """Raises `ConfigError` if a package is missing that computing the signatures takes."""
    for limit, package in ((settings.text, "datasketch"), (settings.pictures, "imagehash")):
        if limit is not None:
            _library(package)


def text_signature(text: str) -> bytes:
    """A MinHash of the text, `HASHES` numbers of 4 bytes; b"" if it has no words. Case and white space are ignored."""
    words = text.casefold().split()
    if not words:
        return b""
    minhash = _minhash().copy()
    starts = iter(range(max(1, len(words) - WORDS + 1)))
    while some := list(itertools.islice(starts, _AT_A_TIME)):
        shingles = {" ".join(words[start : start + WORDS]) for start in some}
        minhash.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
    return minhash.hashvalues.astype("<u4").tobytes()


def picture_signature(image: Image) -> bytes:
    """The perceptual hash of a picture (of its coarse pattern of light and dark), 8 bytes."""
    bits = _library("imagehash").phash(to_rgb(image)).hash
    return np.packbits(bits.ravel()).tobytes()


def split_signature(signature: bytes, settings: NearDuplicatesConfig) -> tuple[bytes, bytes]:
    """Signatures of text and pictures from both joined; that of the text, zeros if there is none, is there if texts are
    compared."""
    end = 4 * HASHES if settings.text is not None else 0
    return signature[:end], signature[end:]


def near_duplicates(documents: Iterable[tuple[int, bytes, bytes]], settings: NearDuplicatesConfig) -> list[int]:
    """The documents that are nearly the same as one with a smaller number.

    Args:
      documents: for each its number, unlike all others, the signature of its text, and those of its pictures joined.
        Signatures that `settings` does not compare are ignored. In any order: the answer is the same.

    Returns:
      numbers, in rising order.
    """
    numbers, counts, texts, pictures = array.array("q"), array.array("q"), bytearray(), bytearray()
    for number, text, hashes in documents:
        numbers.append(number)
        counts.append(len(hashes) // 8)
        pictures += hashes
        if settings.text is not None:
            texts += text or bytes(4 * HASHES)
    numbers, counts = np.array(numbers, np.int64), np.array(counts, np.int64)
    texts = np.frombuffer(texts, "<u4").reshape(-1, HASHES)  # [documents or 0, HASHES]; 0 where there is no text
    begins, pictures = np.cumsum(counts) - counts, np.frombuffer(pictures, "<u8")
    dropped = np.zeros(len(numbers), bool)

    def same_text(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        return (texts[some] == texts[others]).mean(axis=1) >= settings.text

    def same_pictures(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        places = np.arange(counts[some[0]])  # all have as many
        differ = np.bitwise_count(pictures[begins[some, None] + places] ^ pictures[begins[others, None] + places])
        same = (differ <= settings.pictures).all(axis=1)
        return same if settings.text is None else same & same_text(some, others)

    if settings.text is not None:
        documents = np.flatnonzero((counts == 0) & texts.any(axis=1))
        for keys in _text_keys(texts, documents, settings.text):
            _drop(dropped, documents, keys, numbers, same_text)
    if settings.pictures is not None:
        for count in np.unique(counts[counts > 0]):
            documents = np.flatnonzero(counts == count)
            for keys in _picture_keys(pictures[begins[documents]], settings.pictures):
                _drop(dropped, documents, keys, numbers, same_pictures)
    return sorted(numbers[dropped].tolist())


def _text_keys(texts: np.ndarray, documents: np.ndarray, limit: float) -> Iterator[np.ndarray]:
    """Keys, uint64 `[n]` each time, such that similar texts have one of them in common (locality-sensitive hashing: the
    signature is cut into bands, Leskovec et al., Mining of Massive Datasets, section 3.4)."""
    found = lambda rows: 1 - (1 - limit**rows) ** (HASHES // rows)  # noqa: E731  (probability, at the limit)
    rows = max(rows for rows in range(1, HASHES + 1) if found(rows) >= _FOUND)
    for begin in range(0, HASHES - rows + 1, rows):
        key = np.zeros(len(documents), np.uint64)
        for place in range(begin, begin + rows):
            key = key * np.uint64(0x9E3779B97F4A7C15) + texts[documents, place]
        yield key


def _picture_keys(hashes: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    """The same for hashes that differ in up to `bits` bits: cut into one part more, they have one in common."""
    borders = np.linspace(0, 64, bits + 2).astype(np.uint64)
    for begin, end in itertools.pairwise(borders):
        yield hashes << (np.uint64(64) - end) >> (np.uint64(64) - end + begin)


def _drop(
    dropped: np.ndarray,
    documents: np.ndarray,
    keys: np.ndarray,
    numbers: np.ndarray,
    alike: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Marks documents that are like one with the same key and a smaller number."""
    order = np.lexsort((numbers[documents], keys))
    documents, keys = documents[order], keys[order]
    while len(documents):  # each time, all with the same key are compared with the first of them, which then leaves
        is_first = np.append(True, keys[1:] != keys[:-1])
        others = np.flatnonzero(~is_first)
        firsts = np.flatnonzero(is_first)[np.cumsum(is_first) - 1][others]
        same = np.zeros(len(others), bool)
        for begin in range(0, len(others), _AT_A_TIME):
            some = slice(begin, begin + _AT_A_TIME)
            same[some] = alike(documents[firsts[some]], documents[others[some]])
        dropped[documents[others[same]]] = True
        documents, keys = documents[others[~same]], keys[others[~same]]


@functools.cache
def _minhash():
    return _library("datasketch").MinHash(num_perm=HASHES, scheme="affine32")


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"near_duplicates: needs the package {name}; pip install 'chameleon-jax[dedup]'") from None
