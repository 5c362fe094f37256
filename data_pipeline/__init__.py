"""From files of any kind to Batches: sources of Documents, tokenizing, packing, mixtures, loading.

`data_pipeline.prepare.prepare` writes packed rows, as `chameleon prepare` does; `PreparedData` reads them as Batches.
With `keep: pictures` it writes pictures, which `PreparedPictures` reads.
"""

from chameleon_jax.runtime.lazy_names import lazy_names

HOMES = {
    "data_pipeline.config": (
        "DataCommand", "ImageTokenizerCommand", "PoolConfig", "PrepareCommand", "SourceConfig",
        "TextTokenizerCommand",
    ),
    "data_pipeline.datasets": ("open_dataset",),
    "data_pipeline.loader": ("PreparedData",),
    "data_pipeline.picture_loader": ("PreparedPictures",),
    "data_pipeline.mixture": ("Mixture", "TokenShare", "token_shares"),
    "data_pipeline.pools": ("PoolSource", "write_pool"),
    "data_pipeline.records": ("Picture", "Record", "Rejected", "Shard", "Turn"),
    "data_pipeline.sources": ("ConversationsSource", "DocumentsSource", "TextSource", "register_source"),
    "data_pipeline.tokenized": ("TokenizedDocument",),
    "data_pipeline.unpacking": ("unpack",),
}  # fmt: skip
"""Where the public names are defined; `__init__.pyi` says the same to type checkers."""

__all__, __getattr__, __dir__ = lazy_names(__name__, HOMES)
