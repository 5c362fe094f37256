"""Where Documents come from: one file per kind of source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from chameleon_jax.config import SourceConfig
from chameleon_jax.document import Document

if TYPE_CHECKING:
    from data_pipeline.sources.jsonl import OpenPicture


def open_source(source: SourceConfig, datasets: str, open_picture: OpenPicture | None = None) -> Iterator[Document]:
    """Documents of a source, the same ones in the same order every time. A conversation is one of all its turns.

    Args:
      datasets: folder where embedded data sets are built.
      open_picture: opens the picture files of kinds that name them; by default whole, as the source says.
    """
    if source.kind == "documents":
        from data_pipeline.sources.jsonl import jsonl_documents

        return jsonl_documents(source, open_picture)
    if source.kind == "conversations":
        from data_pipeline.sources.conversations import as_document, read_conversations

        return map(as_document, read_conversations(source, open_picture))
    if source.kind.startswith("digit_"):
        from data_pipeline.sources.digits import digit_documents

        return digit_documents(source, datasets)
    from data_pipeline.sources.text import text_documents

    return text_documents(source, datasets)
