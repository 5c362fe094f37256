"""Text that every Python carries: the prose of its language reference, and the source code of its library.

The text is that of the running interpreter, so it differs a little between Python versions.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

HELD_OUT_SHARE = 0.1


def _held_out(name: str) -> bool:
    """The same tenth of all names for ever, whatever else is added."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


def _topics_without_repeats() -> Iterator[tuple[str, str]]:
    """Topics of the reference; a paragraph that stood in an earlier topic is left out.

    Many topics quote each other at length, so without this the held-out part would have been seen in training.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name, text in sorted(topics.items()):
        kept = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < 40 or words not in seen:
                kept.append(paragraph)
            seen.add(words)
        if any(len(paragraph) >= 40 for paragraph in kept):
            yield name, "\n\n".join(kept)


def _library_files() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            yield path.stem, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # the few files in another encoding are no loss to a text corpus


class _PythonText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    texts: Callable[[], Iterator[tuple[str, str]]]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"name": np.str_, "text": np.str_}),
            homepage="https://docs.python.org/3/",
            license="PSF-2.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        texts = [(name, text) for name, text in self.texts() if text.strip()]
        return {
            "train": self._generate_examples((n, t) for n, t in texts if not _held_out(n)),
            "test": self._generate_examples((n, t) for n, t in texts if _held_out(n)),
        }

    def _generate_examples(self, texts: Iterator[tuple[str, str]]):
        for name, text in texts:
            yield name, {"name": name, "text": text}


class PythonReference(_PythonText):
    """The prose of Python's language reference (pydoc_data.topics), without repeated paragraphs, split by topic."""

    VERSION = tfds.core.Version("1.0.0")
    texts = staticmethod(_topics_without_repeats)


class PythonStdlib(_PythonText):
    """The top-level modules of Python's standard library as source code, split by file."""

    VERSION = tfds.core.Version("1.0.0")
    texts = staticmethod(_library_files)
