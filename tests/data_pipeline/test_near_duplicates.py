"""Near duplicates are found, whatever the order in which documents come, and the first of them stays."""

from __future__ import annotations

import io
import random
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from chameleon_jax.errors import ConfigError
from data_pipeline.near_duplicates import (
    NearDuplicatesConfig,
    near_duplicates,
    picture_signature,
    text_signature,
)

pytest.importorskip("datasketch")
pytest.importorskip("imagehash")


def words(seed: int, count: int = 120) -> list[str]:
    return random.Random(seed).choices([f"word{number}" for number in range(2000)], k=count)


def texts_and_copies() -> list[str]:
    """30 texts, then the first 10 of them with one word changed, spaced and written otherwise."""
    texts = [words(seed) for seed in range(30)]
    changed = [[*text[:60], "changed", *text[61:]] for text in texts[:10]]
    return [" ".join(text) for text in texts] + ["\n ".join(text).title() for text in changed]


def photos() -> list[Image.Image]:
    """Large soft shapes, which differ."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)
    return [Image.fromarray(each).resize((160, 120), Image.Resampling.BICUBIC) for each in noise]


def altered(image: Image.Image) -> Image.Image:
    """The same picture, smaller, slightly blurred and saved as JPEG."""
    file = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(1)).resize((100, 75)).save(file, "JPEG", quality=80)
    return Image.open(file)


def jaccard(one: str, other: str) -> float:
    """Of 5-grams of words, exactly."""
    sets = [{tuple(text.casefold().split()[i : i + 5]) for i in range(len(text.split()) - 4)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_texts_of_nearly_the_same_words_leave_whatever_their_order():
    texts = texts_and_copies()
    assert jaccard(texts[0], texts[30]) == pytest.approx(111 / 121)
    documents = [(number, text_signature(text), b"") for number, text in enumerate(texts)]
    expected = list(range(30, 40))
    for seed in range(5):
        random.Random(seed).shuffle(documents)
        assert near_duplicates(documents, NearDuplicatesConfig(text=0.8)) == expected
    backwards = [(39 - number, text, pictures) for number, text, pictures in documents]
    assert near_duplicates(backwards, NearDuplicatesConfig(text=0.8)) == list(range(30, 40)), "the first stays"


def test_limit_of_similarity_is_that_of_the_words():
    base = words(0, 1000)
    documents = [(0, text_signature(" ".join(base)), b"")]
    documents += [
        (number, text_signature(" ".join([*base[: 1000 - cut], *words(number, cut)])), b"")
        for number, cut in enumerate((30, 60, 200, 400), start=1)  # similarities of about 0.94, 0.89, 0.66, 0.43
    ]
    assert near_duplicates(documents, NearDuplicatesConfig(text=0.8)) == [1, 2]
    assert near_duplicates(documents, NearDuplicatesConfig(text=0.55)) == [1, 2, 3]


def test_pictures_that_look_the_same_leave_whatever_their_order():
    pictures = photos()
    signatures = [picture_signature(each) for each in [*pictures, *map(altered, pictures[:6])]]
    documents = [(number, b"", signature) for number, signature in enumerate(signatures)]
    documents += [(100, b"", signatures[0] + signatures[1]), (101, b"", signatures[12] + signatures[13])]
    documents += [(102, b"", signatures[1] + signatures[0])]
    for seed in range(3):
        random.Random(seed).shuffle(documents)
        found = near_duplicates(documents, NearDuplicatesConfig(pictures=6))
        assert found == [12, 13, 14, 15, 16, 17, 101], "all pictures of a document must be the same, in the same order"


def test_everything_that_is_compared_must_be_the_same():
    text, other = text_signature("a " * 50), text_signature("b " * 50)
    first, second = map(picture_signature, photos()[:2])
    documents = [(0, text, first), (1, text, second), (2, other, first), (3, text, first), (4, text, b"")]
    assert near_duplicates(documents, NearDuplicatesConfig(pictures=2)) == [2, 3]
    assert near_duplicates(documents, NearDuplicatesConfig(pictures=2, text=0.8)) == [3]
    assert near_duplicates([*documents, (5, text, b"")], NearDuplicatesConfig(text=0.8)) == [5], "captions may repeat"
    assert near_duplicates(documents, NearDuplicatesConfig()) == []


@pytest.mark.parametrize("bits", range(9))
def test_hashes_within_the_bits_are_found_and_others_are_not(bits):
    """Against the distances of all pairs."""
    rng = np.random.default_rng(bits)
    hashes = rng.integers(0, 2**63, 40, np.uint64)
    flipped = [value ^ np.bitwise_or.reduce(np.uint64(1) << rng.permutation(64)[: n % 12].astype(np.uint64))
               for n, value in enumerate(hashes)]  # fmt: skip
    values = [*hashes, *flipped]
    documents = [(number, b"", value.tobytes()) for number, value in enumerate(values)]
    expected = [j for j in range(80) if any(int(values[i] ^ values[j]).bit_count() <= bits for i in range(j))]
    assert near_duplicates(documents, NearDuplicatesConfig(pictures=bits)) == expected


def test_no_documents_and_no_words():
    settings = NearDuplicatesConfig(text=0.8, pictures=4)
    assert near_duplicates([], settings) == []
    assert text_signature(" \n") == b""
    assert near_duplicates([(0, b"", b""), (1, b"", b"")], settings) == []
    short = text_signature("A red kite.")
    assert near_duplicates([(0, short, b""), (1, short, b"")], settings) == [1]


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r"needs the package imagehash; pip install 'chameleon-jax\[dedup\]'"):
        picture_signature(Image.new("L", (8, 8)))


def test_limits_that_cannot_be_are_one_line():
    with pytest.raises(ConfigError, match=r"^text = 0\.1: must be from 0\.5 to 1, or null$"):
        NearDuplicatesConfig(text=0.1)
    with pytest.raises(ConfigError, match=r"^pictures = 20: must be 0 to 8, or null$"):
        NearDuplicatesConfig(pictures=20)
