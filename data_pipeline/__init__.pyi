from data_pipeline.config import ImageTokenizerCommand, PrepareCommand, ShowCommand, SourceConfig, TextTokenizerCommand
from data_pipeline.datasets import open_dataset
from data_pipeline.loader import PreparedData
from data_pipeline.mixture import mix
from data_pipeline.packing import Piece, pack
from data_pipeline.sources import ConversationsSource, DocumentsSource, Resize, register_source
from data_pipeline.tokenize import tokenized_pieces
from data_pipeline.unpacking import unpack

__all__ = [
    "ConversationsSource",
    "DocumentsSource",
    "ImageTokenizerCommand",
    "Piece",
    "PrepareCommand",
    "PreparedData",
    "Resize",
    "ShowCommand",
    "SourceConfig",
    "TextTokenizerCommand",
    "mix",
    "open_dataset",
    "pack",
    "register_source",
    "tokenized_pieces",
    "unpack",
]
