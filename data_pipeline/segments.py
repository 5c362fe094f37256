"""The texts and the pictures of some sources, for tokenizers to learn from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from chameleon_jax.config import ConfigError
from chameleon_jax.runtime.progress import progress_bar
from chameleon_jax.tokens.image import resize_and_crop
from data_pipeline.sources import SourceConfig


def read_texts(sources: Iterable[SourceConfig], datasets: str) -> list[str]:
    """All texts of the documents of `sources`.

    Raises:
      ConfigError: if there are none.
    """
    documents = (document for source in sources for document in source.documents(datasets))
    texts = [segment for document in documents for segment in document if isinstance(segment, str) and segment]
    if not texts:
        raise ConfigError("sources: their documents hold no text")
    return texts


def read_pictures(sources: Iterable[SourceConfig], datasets: str, resolution: int) -> np.ndarray:
    """All pictures of the documents of `sources`, cropped to squares, uint8 `[n, resolution, resolution, 3]`.

    Raises:
      ConfigError: if there are none.
    """
    pixels = []
    with progress_bar("read pictures", None) as bar:
        for source in sources:
            for document in source.documents(datasets):
                images = [segment for segment in document if not isinstance(segment, str)]
                pixels += [np.asarray(resize_and_crop(image, resolution)) for image in images]
                bar.update(len(pixels))
    if not pixels:
        raise ConfigError("sources: their documents hold no pictures")
    return np.stack(pixels)
