"""What became of records: how many were kept and rejected, and why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from chameleon_jax.errors import printable
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT
from data_pipeline.kept_pictures import KeptPicture
from data_pipeline.tokenized import TokenizedDocument

MOST_REASONS = 100
"""Reasons of rejections that are counted apart."""


@dataclasses.dataclass
class Counts:
    """What became of the records of a unit, or of several."""

    read: int = 0
    kept: int = 0
    rejected: int = 0
    documents: int = 0
    """Documents and conversations made of the records."""
    pictures: int = 0
    text_bytes: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    """How often records were rejected, by the kind of reason."""

    def __iadd__(self, other: Counts) -> Counts:
        for field in dataclasses.fields(self):
            if field.name != "reasons":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        for reason, times in other.reasons.items():
            self._count(reason, times)
        return self

    def _count(self, reason: str, times: int = 1) -> None:
        if reason not in self.reasons and len(self.reasons) >= MOST_REASONS:
            reason = "other reasons"
        self.reasons[reason] = self.reasons.get(reason, 0) + times

    def reject(self, reason: str) -> None:
        self.rejected += 1
        self._count(kind_of_reason(reason))

    def keep(self, documents: Iterable[TokenizedDocument], modality: np.ndarray) -> None:
        self.kept += 1
        for document in documents:
            by_modality = np.bincount(modality[document.ids], minlength=3)
            self.documents += 1
            self.pictures += document.pictures
            self.text_bytes += document.text_bytes
            self.text_tokens += int(by_modality[TEXT])
            self.image_tokens += int(by_modality[IMAGE])

    def keep_pictures(self, pictures: Sequence[KeptPicture]) -> None:
        self.kept += 1
        self.documents += len(pictures)
        self.pictures += len(pictures)


def kind_of_reason(reason: str) -> str:
    """A reason without what differs from record to record: names of files, quotations, numbers."""
    # "photos/my kite.jpg: …", "kites.tar: 000017.jpg: …", "kites.parquet, row 3, image: …"
    reason = re.sub(r"^((\w+://)?[^:]*\.\w{1,7}(, [^:]*)?: )+", "", reason)
    reason = re.sub(r"(['\"]).*\1…?", "…", reason)
    return printable(re.sub(r"(?<![A-Za-z\d])\d[\d,.]*", "N", reason), 120)
