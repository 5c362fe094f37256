"""Which ids are text, image codes and special tokens. Built from tables; no id is written anywhere else."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

SPECIAL, TEXT, IMAGE = 0, 1, 2
"""What kind of token an id is, as `Vocabulary.modality` gives it."""
MODALITIES = ("special", "text", "image")


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The one vocabulary of text pieces and image codes.

    Image ids and text ids may stand in any order and place; everything goes through the two tables.
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

    @classmethod
    def in_released_order(cls, num_pieces: int, num_codes: int) -> Vocabulary:
        """The released layout in another size: <s> <pad> </s> <unk>, image codes, end and begin of image, end of
        turn, then text. Piece 0 of a SentencePiece model is its own <unk>, so it takes id 3."""
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

    @functools.cached_property
    def size(self) -> int:
        """Rows the model's embedding needs."""
        specials = [self.bos, self.pad, self.eos, self.begin_image, self.end_image, self.end_of_turn]
        return int(max(*specials, self.text_ids.max(), self.image_ids.max())) + 1

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
        tables = {name: np.asarray(values[name], np.int32) for name in ("text_ids", "image_ids")}
        return cls(**{**values, **tables})
