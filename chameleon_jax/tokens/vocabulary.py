"""Which ids are text, image codes and special tokens. Built from tables or names; no id is hard-coded anywhere."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from chameleon_jax.errors import ChameleonError

if TYPE_CHECKING:
    from chameleon_jax.tokens.text import TextTokenizer

SPECIAL, TEXT, IMAGE = 0, 1, 2
"""Kinds of tokens, as in `Vocabulary.modality`."""
MODALITIES = ("special", "text", "image")

SPECIAL_NAMES = {
    "bos": "<s>",
    "pad": "<pad>",
    "eos": "</s>",
    "begin_image": "<racm3:break>",
    "end_image": "<eoss>",
    "end_of_turn": "<reserved08706>",
}
"""Name of each special token in the released models. Those of begin and end of image do not say what they mean."""

PLACEHOLDER, RELEASED_PLACEHOLDER = "<image>", "<reserved08707>"
"""The token that Hugging Face's code replaces by image codes: its name in Hugging Face's files and in Meta's."""

IMAGE_PREFIX = "IMGIMG"
_IMAGE_NAME = re.compile(IMAGE_PREFIX + "(A|[B-J][A-J]{0,8})Z")
_LARGEST_ID = 2**24
"""A larger id means damaged input; tables of that length would fill the memory."""


class VocabularyError(ChameleonError, ValueError):
    """Names or ids that do not form a vocabulary."""


def image_code_name(code: int) -> str:
    """Released name of an image code: its decimal digits as letters, `IMGIMGCFZ` for 25."""
    return IMAGE_PREFIX + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def image_code(name: str) -> int | None:
    """The image code with this name; None if it is not the name of one."""
    match = _IMAGE_NAME.fullmatch(name)
    return int("".join(str(ord(letter) - ord("A")) for letter in match[1])) if match else None


def check_ids(names: Mapping[str, Any], where: str) -> None:
    """Raises `VocabularyError` unless every name has its own id, a whole number from 0 up."""
    name_of_id: dict[int, str] = {}
    for name, token in names.items():
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < _LARGEST_ID:
            raise VocabularyError(
                f"{where}: id {token!r} of {name!r} must be a whole number from 0 to {_LARGEST_ID - 1}"
            )
        if name_of_id.setdefault(int(token), name) != name:
            raise VocabularyError(f"{where}: {name_of_id[int(token)]!r} and {name!r} both have id {token}")


def bracketed(names: Iterable[str]) -> set[str]:
    """Names that start with `<`, except `<` itself: Meta's rule for special tokens."""
    return {name for name in names if name.startswith("<") and name != "<"}


def text_names(names: Mapping[str, int], special: Collection[str] | None = None) -> list[str]:
    """The names of text pieces, in order of their ids.

    Image codes are recognised by the prefix of their names. `special` are the names of special tokens; by default, as
    in Meta's code, all that start with `<` except `<` itself.
    """
    special = bracketed(names) if special is None else set(special)
    special |= set(SPECIAL_NAMES.values())
    text = [name for name in names if name not in special and not name.startswith(IMAGE_PREFIX)]
    return sorted(text, key=names.__getitem__)


def _image_names(names: Iterable[str], where: str) -> list[str]:
    """Names of image codes in order of their codes, which is not alphabetical."""
    found = {}
    for name in names:
        if name.startswith(IMAGE_PREFIX):
            code = image_code(name)
            if code is None:
                raise VocabularyError(
                    f"{where}: {name!r} starts like an image code but is not named like one, as "
                    f"{image_code_name(25)!r} is for code 25"
                )
            found[code] = name
    for code in range(max(len(found), 1)):
        if code not in found:
            raise VocabularyError(
                f"{where}: has {len(found)} image codes, but none named {image_code_name(code)!r} (code {code})"
            )
    return [found[code] for code in range(len(found))]


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """One vocabulary of text pieces, image codes and special tokens.

    Text ids and image ids may be in any order and range; everything goes through the two tables.

    Raises:
      VocabularyError: if two tokens have the same id, an id is negative, or there is no text or no image code.
    """

    bos: int
    pad: int
    eos: int
    begin_image: int
    end_image: int
    end_of_turn: int
    text_ids: np.ndarray
    """int32 `[pieces]`: id of each piece of the text tokenizer."""
    image_ids: np.ndarray
    """int32 `[codes]`: id of each image code."""

    def __post_init__(self):
        if len(self.text_ids) == 0 or len(self.image_ids) == 0:
            raise VocabularyError("the vocabulary has no text or no image codes")
        ids, counts = np.unique(self._all_ids, return_counts=True)
        if counts.max() > 1:
            raise VocabularyError(f"id {ids[counts.argmax()]} stands for {counts.max()} tokens of the vocabulary")
        if ids[0] < 0 or ids[-1] >= _LARGEST_ID:
            raise VocabularyError(f"ids {ids[0]} to {ids[-1]} of the vocabulary: must be from 0 to {_LARGEST_ID - 1}")

    @classmethod
    def in_released_order(cls, num_pieces: int, num_codes: int) -> Vocabulary:
        """The layout of the released models for other sizes: <s> <pad> </s> <unk>, image codes, end and begin of image,
        end of turn, text. Piece 0 of a SentencePiece model is its <unk>, which therefore has id 3."""
        after_codes = 4 + num_codes
        text_ids = np.concatenate([[3], np.arange(after_codes + 3, after_codes + 2 + num_pieces)])
        return cls(
            bos=0,
            pad=1,
            eos=2,
            end_image=after_codes,
            begin_image=after_codes + 1,
            end_of_turn=after_codes + 2,
            text_ids=text_ids.astype(np.int32),
            image_ids=np.arange(4, after_codes, dtype=np.int32),
        )

    @classmethod
    def from_names(cls, names: Mapping[str, int], where: str, special: Collection[str] | None = None) -> Vocabulary:
        """Builds a vocabulary from the ids of all names; text pieces are numbered in order of their ids.

        Args:
          names: id of every token, by name.
          where: where the names come from, for error messages.
          special: names of tokens that are neither text nor image codes; by default Meta's rule (`text_names`).

        Raises:
          VocabularyError: if a special token or an image code is missing, a name or an id is invalid, two names have
            the same id, or there is no text.
        """
        check_ids(names, where)
        for role, name in SPECIAL_NAMES.items():
            if name not in names:
                raise VocabularyError(f"{where}: has no token {name!r}, the {role} of the vocabulary")
        text, image = text_names(names, special), _image_names(names, where)
        if not text:
            raise VocabularyError(f"{where}: has no text tokens among its {len(names)} tokens")
        return cls(
            **{role: int(names[name]) for role, name in SPECIAL_NAMES.items()},
            text_ids=np.asarray([names[name] for name in text], np.int32),
            image_ids=np.asarray([names[name] for name in image], np.int32),
        )

    def names(self, text: TextTokenizer) -> dict[str, int]:
        """Ids by name: special tokens, image codes, text pieces, and any other tokens in the file of `text`.

        The placeholder for image codes that Hugging Face's code needs is named `<image>`: it is `<reserved08707>` in
        the released models, or the `<unk>` piece of a SentencePiece model, which never encodes text.

        Raises:
          VocabularyError: if `text` is not the text tokenizer of this vocabulary, or one name stands for two ids.
        """
        if len(text.piece_names) != len(self.text_ids):
            raise VocabularyError(
                f"the vocabulary has ids for {len(self.text_ids)} text pieces, but the text tokenizer has "
                f"{len(text.piece_names)}"
            )
        own = [(name, getattr(self, role)) for role, name in SPECIAL_NAMES.items()]
        own += [(image_code_name(code), token) for code, token in enumerate(self.image_ids.tolist())]
        own += zip(text.piece_names, self.text_ids.tolist(), strict=True)
        names = dict(text.other_names)
        for name, token in own:
            if names.setdefault(name, token) != token:
                raise VocabularyError(f"{name!r} would be the name of two tokens, ids {names[name]} and {token}")
        if PLACEHOLDER not in names:
            renamed = "<unk>" if "<unk>" in text.piece_names else RELEASED_PLACEHOLDER
            names = {PLACEHOLDER if name == renamed else name: token for name, token in names.items()}
        check_ids(names, "the vocabulary")
        _image_names(names, "the vocabulary")  # raises if a text piece is named like an image code
        return names

    @functools.cached_property
    def _all_ids(self) -> np.ndarray:
        return np.concatenate([[getattr(self, role) for role in SPECIAL_NAMES], self.text_ids, self.image_ids])

    @functools.cached_property
    def size(self) -> int:
        """Number of rows that the model's embedding needs."""
        return int(self._all_ids.max()) + 1

    def _inverse(self, ids: np.ndarray) -> np.ndarray:
        table = np.full(self.size, -1, np.int32)
        table[ids] = np.arange(len(ids))
        return table

    @functools.cached_property
    def piece_of_id(self) -> np.ndarray:
        """int32 `[size]`: text piece of each id, -1 for other ids."""
        return self._inverse(self.text_ids)

    @functools.cached_property
    def code_of_id(self) -> np.ndarray:
        """int32 `[size]`: image code of each id, -1 for other ids."""
        return self._inverse(self.image_ids)

    @functools.cached_property
    def modality(self) -> np.ndarray:
        """int8 `[size]`: SPECIAL, TEXT or IMAGE for each id."""
        table = np.full(self.size, SPECIAL, np.int8)
        table[self.text_ids] = TEXT
        table[self.image_ids] = IMAGE
        return table

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vocabulary:
        """Builds the vocabulary that `to_dict` described.

        Raises:
          VocabularyError: if a value is invalid.
          KeyError, TypeError: if a key is missing or unknown.
        """
        arrays = {name: np.asarray(value) for name, value in values.items()}
        for name, array in arrays.items():
            is_table = name.endswith("_ids")
            if array.dtype.kind != "i" or array.ndim != is_table or array.max() >= _LARGEST_ID:
                raise VocabularyError(f"{name} must be {'ids' if is_table else 'an id'} from 0 to {_LARGEST_ID - 1}")
        tables = {name: arrays[name].astype(np.int32) for name in ("text_ids", "image_ids")}
        return cls(**{**values, **tables})
