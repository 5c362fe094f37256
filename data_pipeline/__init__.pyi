from data_pipeline.config import DataCommand, ImageTokenizerCommand, PrepareCommand, SourceConfig, TextTokenizerCommand
from data_pipeline.datasets import open_dataset
from data_pipeline.loader import PreparedData
from data_pipeline.mixture import mix
from data_pipeline.packing import Piece, pack
from data_pipeline.records import Picture, Record, Rejected, Shard, Turn
from data_pipeline.sources import ConversationsSource, DocumentsSource, TextSource, register_source
from data_pipeline.unpacking import unpack

__all__ = [
    "ConversationsSource",
    "DataCommand",
    "DocumentsSource",
    "ImageTokenizerCommand",
    "Picture",
    "Piece",
    "PrepareCommand",
    "PreparedData",
    "Record",
    "Rejected",
    "Shard",
    "SourceConfig",
    "TextSource",
    "TextTokenizerCommand",
    "Turn",
    "mix",
    "open_dataset",
    "pack",
    "register_source",
    "unpack",
]
