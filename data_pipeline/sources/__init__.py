"""Where records come from: one file per kind of source.

Here are the kinds that read people's own files; those of the demo are in `data_pipeline.datasets`.
"""

from data_pipeline.sources.conversations import ConversationsSource
from data_pipeline.sources.documents import DocumentsSource
from data_pipeline.sources.folder import FolderSource
from data_pipeline.sources.parquet import ParquetSource
from data_pipeline.sources.source import SourceConfig, TurnKeys, register_source
from data_pipeline.sources.table import TableSource
from data_pipeline.sources.text_files import TextSource
from data_pipeline.sources.tfds import TfdsSource
from data_pipeline.sources.webdataset import WebDatasetSource

__all__ = [
    "ConversationsSource",
    "DocumentsSource",
    "FolderSource",
    "ParquetSource",
    "SourceConfig",
    "TableSource",
    "TextSource",
    "TfdsSource",
    "TurnKeys",
    "WebDatasetSource",
    "register_source",
]
