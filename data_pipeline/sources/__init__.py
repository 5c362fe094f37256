"""Where records come from: one file per kind of source.

Here are the kinds that read people's own files; those of the demo are in `data_pipeline.datasets`.
"""

from data_pipeline.sources.conversations import ConversationsSource
from data_pipeline.sources.documents import DocumentsSource
from data_pipeline.sources.source import SourceConfig, TurnKeys, register_source

__all__ = ["ConversationsSource", "DocumentsSource", "SourceConfig", "TurnKeys", "register_source"]
