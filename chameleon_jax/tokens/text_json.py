"""Text tokenizers in the JSON format of Hugging Face's `tokenizers`, which the released models use."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.errors import FileError, printable
from chameleon_jax.runtime.reading import parse_json, read_bytes
from chameleon_jax.tokens.json_checks import check_tokenizer
from chameleon_jax.tokens.text import TextTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary, VocabularyError, bracketed, check_ids, text_names

LARGEST_FILE = 16 << 20
"""Most bytes of a file; the released one has 7 MB."""
_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")


class JSONTokenizer(TextTokenizer):
    """A byte-pair encoding over bytes (as in GPT-2) or with byte fallback (as in Llama). Its pieces are the text tokens
    of the file, numbered in order of their ids.

    Decoding reproduces the text byte for byte, unless the file normalises it. Only `encode` needs the package
    `tokenizers`.

    Attributes:
      json: parsed content of the file.
      names: id of every token in it, by name.
    """

    file_name = "text.json"

    def __init__(self, source: str | bytes | Mapping[str, Any], where: str = "text tokenizer"):
        """Args:
        source: the file's text or its parsed content.
        where: the file's name, for error messages.

        Raises:
          FileError: if it is damaged or another kind of tokenizer.
          VocabularyError: if its ids are invalid.
        """
        if isinstance(source, Mapping):
            source = json.dumps(source, ensure_ascii=False)
        self.model = source.encode() if isinstance(source, str) else source
        self._where = where
        try:
            self.json = parse_json(self.model)
        except ValueError as error:
            raise FileError(f"{where}: cannot be read as JSON: {error}") from None
        names, special = _token_names(self.json, where)
        check_tokenizer(self.json, where)
        self.names = names
        self._pieces = text_names(names, special)
        self._text_ids = np.asarray([names[name] for name in self._pieces], np.int32)
        text = set(self._pieces)
        self.other_names = {name: token for name, token in names.items() if name not in text}
        if not self._pieces:
            raise VocabularyError(f"{where}: has no text tokens among its {len(names)} tokens")

    @classmethod
    def load(cls, path: str | Path) -> JSONTokenizer:
        """Raises `FileError` if the file is missing or cannot be used."""
        if not Path(path).exists():
            raise FileError(f"{path}: no such text tokenizer")
        return cls(read_bytes(path, LARGEST_FILE), str(path))

    @property
    def piece_names(self) -> list[str]:
        return self._pieces

    @functools.cached_property
    def _bytes_of_piece(self) -> list[bytes]:
        if _is_byte_level(self.json):
            return [_bytes_of_symbols(name) for name in self._pieces]
        marks = _space_marks(self.json)
        return [_bytes_with_fallback(name, marks) for name in self._pieces]

    @functools.cached_property
    def _single_bytes(self) -> frozenset[int]:
        return frozenset(content[0] for content in self._bytes_of_piece if len(content) == 1)

    @functools.cached_property
    def _backend(self) -> Any:
        """The tokenizer of `tokenizers`, with every token that is not text marked as special."""
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise FileError(
                f"{self._where}: reading text needs the package `tokenizers`: pip install 'chameleon-jax[released]'"
            ) from None
        added = [
            {**token, "special": token["content"] in self.other_names} for token in self.json.get("added_tokens") or []
        ]
        unused = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
        with self._explained("cannot use it"):
            backend = tokenizers.Tokenizer.from_str(json.dumps({**self.json, "added_tokens": added, **unused}))
        backend.encode_special_tokens = True  # names typed as text are text
        return backend

    @contextlib.contextmanager
    def _explained(self, failure: str) -> Iterator[None]:
        """Turns errors of `tokenizers` into `FileError`, including panics, which are not subclasses of Exception."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            raise FileError(f"{self._where}: the package `tokenizers` {failure}: {printable(error)}") from None

    @functools.cached_property
    def _piece_of_id(self) -> np.ndarray:
        table = np.full(max(self._text_ids.max(), *self.other_names.values(), 0) + 1, -1, np.int32)
        table[self._text_ids] = np.arange(len(self._text_ids))
        return table

    def _encode(self, text: str) -> Sequence[int]:
        return self._encode_many([text])[0]

    def _encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
        for text in texts if len(self._single_bytes) < 256 else ():
            if lost := set(text.encode()) - self._single_bytes:
                raise ValueError(f"the text tokenizer has no piece for the byte 0x{min(lost):02X}")
        backend = self._backend
        with self._explained("fails on a text"):
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [self._pieces_of(encoding) for encoding in encodings]

    def _pieces_of(self, encoding: Any) -> np.ndarray:
        pieces = self._piece_of_id[np.asarray(encoding.ids, np.int64)]
        if (pieces < 0).any():
            place = int((pieces < 0).argmax())
            token = self._backend.id_to_token(encoding.ids[place])
            raise ValueError(f"the text tokenizer gives {token!r}, which is not a text token")
        return pieces


def vocabulary_from_json(content: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary of a tokenizer's JSON. Text pieces are numbered as in JSONTokenizer.

    Raises:
      FileError: if it is damaged or another kind of tokenizer.
      VocabularyError: as `Vocabulary.from_names`.
    """
    names, special = _token_names(content, where)
    return Vocabulary.from_names(names, where, special)


def _token_names(content: Any, where: str) -> tuple[dict[str, int], set[str]]:
    """The id of every token, and the names of special tokens: those that the file marks as special and, if it is
    byte-level, those of Meta's rule (`bracketed`).

    Meta's rule is safe there, as `<` is split from what follows. Files with byte fallback name their bytes `<0x41>`, so
    only the marks in the file count.
    """

    def need(condition: bool, field: str, wanted: str) -> None:
        if not condition:
            raise FileError(f"{where}: {field} is missing or damaged: it must be {wanted}")

    need(isinstance(content, Mapping), "the content", "a table in the JSON of the package `tokenizers`")
    model = content.get("model")
    need(isinstance(model, Mapping), "model", "a table")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise FileError(f"{where}: model.type is {kind!r}; only byte-pair encodings, 'BPE', can be read")
    need(isinstance(model.get("vocab"), Mapping), "model.vocab", "a table of names and ids")
    need(isinstance(model.get("merges"), list), "model.merges", "a list")
    added = content.get("added_tokens") or []
    need(
        isinstance(added, list)
        and all(isinstance(token, Mapping) and isinstance(token.get("content"), str) for token in added)
        and all("id" in token for token in added),
        "added_tokens",
        "a list of tokens with id and content",
    )
    if not (_is_byte_level(content) or model.get("byte_fallback")):
        raise FileError(f"{where}: is neither byte-level nor has byte fallback, so some text could not be represented")
    names = dict(model["vocab"])
    for token in added:
        name = token["content"]
        if names.setdefault(name, token["id"]) != token["id"]:
            raise VocabularyError(
                f"{where}: {name!r} has id {names[name]} in model.vocab and id {token['id']} in added_tokens"
            )
    check_ids(names, where)
    special = {token["content"] for token in added if token.get("special")}
    return names, special | bracketed(names) if _is_byte_level(content) else special


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """All steps of a decoder or pre-tokenizer, nested ones included."""
    if isinstance(step, Mapping):
        yield step
        inner = step.get("decoders") or step.get("pretokenizers")
        for each in inner if isinstance(inner, list) else []:
            yield from _steps(each)


def _is_byte_level(content: Mapping[str, Any]) -> bool:
    steps = [*_steps(content.get("pre_tokenizer")), *_steps(content.get("decoder"))]
    return any(step.get("type") == "ByteLevel" for step in steps)


def _space_marks(content: Mapping[str, Any]) -> dict[str, str]:
    """The decoder's replacements in names of pieces, usually of the character that represents a space."""
    marks = {}
    for step in _steps(content.get("decoder")):
        if step.get("type") == "Metaspace":
            marks[step.get("replacement") or "\u2581"] = " "
        elif step.get("type") == "Replace" and "String" in step["pattern"]:
            marks[step["pattern"]["String"]] = step.get("content") or ""
    return marks


def _bytes_with_fallback(name: str, marks: Mapping[str, str]) -> bytes:
    byte = _BYTE_NAME.fullmatch(name)
    if byte:
        return bytes([int(byte[1], 16)])
    for mark, text in marks.items():
        name = name.replace(mark, text)
    return name.encode()


@functools.cache
def _byte_of_symbol() -> dict[str, int]:
    """Byte-level files represent each byte by a visible character: that of Latin-1 if visible, else one from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _bytes_of_symbols(name: str) -> bytes:
    table = _byte_of_symbol()
    return bytes(table[symbol] for symbol in name) if table.keys() >= set(name) else name.encode()
