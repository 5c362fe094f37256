from data_pipeline.config import (
    DataCommand,
    ImageTokenizerCommand,
    PoolConfig,
    PrepareCommand,
    SourceConfig,
    TextTokenizerCommand,
)
from data_pipeline.datasets import open_dataset
from data_pipeline.loader import PreparedData
from data_pipeline.mixture import Mixture, TokenShare, token_shares
from data_pipeline.picture_loader import PreparedPictures
from data_pipeline.pools import PoolSource, write_pool
from data_pipeline.records import Picture, Record, Rejected, Shard, Turn
from data_pipeline.sources import ConversationsSource, DocumentsSource, TextSource, register_source
from data_pipeline.tokenized import TokenizedDocument
from data_pipeline.unpacking import unpack

__all__ = [
    "ConversationsSource",
    "DataCommand",
    "DocumentsSource",
    "ImageTokenizerCommand",
    "Mixture",
    "Picture",
    "PoolConfig",
    "PoolSource",
    "PrepareCommand",
    "PreparedData",
    "PreparedPictures",
    "Record",
    "Rejected",
    "Shard",
    "SourceConfig",
    "TextSource",
    "TextTokenizerCommand",
    "TokenShare",
    "TokenizedDocument",
    "Turn",
    "open_dataset",
    "register_source",
    "token_shares",
    "unpack",
    "write_pool",
]
