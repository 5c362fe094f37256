"""Mutated lines of documents and conversations, in both forms of the latter: read as `chameleon prepare` reads them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import harness
from PIL import Image

DOCUMENT = ["A red kite. ", {"image": "kite.png"}, "Seen in May.", {"image": "a/gull.jpg"}]
TURNS = {
    "turns": [
        {"prompt": [{"image": "kite.png"}, "What flies here?"], "answer": "A red kite."},
        {"prompt": "Draw a gull.", "answer": [{"image": "a/gull.jpg"}]},
    ]
}
LLAVA = {
    "id": 7,
    "conversations": [
        {"from": "human", "value": "<|image|>What flies?"},
        {"from": "gpt", "value": "A red kite."},
        {"from": "human", "value": "<image> and this?"},
        {"from": "gpt", "value": "A gull."},
    ],
    "image": ["kite.png", "a/gull.jpg"],
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What flies?"}]},
        {"role": "assistant", "content": "A red kite."},
        {"role": "user", "content": "And <image> this?"},
        {"role": "assistant", "content": [{"type": "text", "text": "A gull."}]},
    ],
    "images": ["kite.png", {"path": "a/gull.jpg"}],
}
PAIR = {"image": "kite.png", "caption": "A red kite.", "year": 2026}
OBELICS = {"texts": ["A kite.", None, "A gull.", None], "images": [None, "kite.png", None, "a/gull.jpg"]}
MMC4 = {
    "text_list": ["A red kite.", "A gull."],
    "image_info": [{"image_name": "kite.png", "matched_text_index": 0}],
}
DOCUMENTS, CONVERSATIONS = (DOCUMENT, PAIR, OBELICS, MMC4), (TURNS, LLAVA, CHAT)
NAMES = (
    "pipe",
    "/dev/zero",
    "/dev/stdin",
    "a",
    "..",
    "",
    "kite.png\0",
    "\x1b[31m.png",
    "gone.png",
    "x" * 5000,
    "self.jsonl",
)
ODD = (
    None, True, 0, -1, 1.5, "", [], {}, "\ud800", "a\0b", "<image>" * 1000, ["a"] * 1000, {"image": 3},
    {"image": "kite.png", "x": 1}, *({"image": name} for name in NAMES),
)  # fmt: skip
KEYS = ("image", "images", "value", "from", "prompt", "answer", "text", "texts", "content", "role", "type", "messages")
TEXTS = (
    b"NaN", b"-Infinity", b"1" * 5000, b"1e999", b"[" * 5000, b'{"a":' * 3000, b"[[],[[]]]" * 500,
    b'{"image": "kite.png", "image": "gone.png"}', b"\xff\xfe", b"\0", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"\\",
    b"\\ud800", b",", b"]", b"}",
)  # fmt: skip


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where the parts of some JSON are, as keys from the outside in."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in items for place in _places(part, (*path, key)))]


def _change(value: Any, rng: random.Random) -> Any:
    """One part replaced, removed or doubled."""
    place = rng.choice(_places(value))
    if not place:
        return rng.choice((value, [value], [value, value], {"turns": value}, {"conversations": value}, rng.choice(ODD)))
    *outer, last = place
    inner = value
    for key in outer:
        inner = inner[key]
    way = rng.randrange(4)
    if way == 0:
        del inner[last]
    elif way == 1 and isinstance(inner, list):
        inner.insert(last, copy.deepcopy(inner[last]))
    elif way == 2 and isinstance(inner, dict):
        inner[rng.choice(KEYS)] = inner.pop(last)
    else:
        inner[last] = copy.deepcopy(rng.choice(ODD))
    return value


def write_case(seed: int, folder: Path) -> Path:
    rng = random.Random(seed)
    (folder / "a").mkdir()
    os.mkfifo(folder / "pipe")
    for name in ("kite.png", "a/gull.jpg"):
        Image.new("RGB", (8, 6), "red").save(folder / name)
    kinds = {"documents": DOCUMENTS, "conversations": CONVERSATIONS}
    kind = rng.choice(tuple(kinds))
    lines = []
    for _ in range(rng.randrange(1, 4)):
        value = copy.deepcopy(rng.choice(kinds[kind]))
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            value = _change(value, rng)
        line = bytearray(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass"))
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            at = rng.randrange(len(line) + 1)
            text = rng.choice(TEXTS)
            line[at : at + rng.choice((0, 0, len(text)))] = text
        if rng.random() < 0.1:
            del line[rng.randrange(len(line) + 1) :]
        lines.append(bytes(line))
    path = folder / f"{kind}.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def read_case(path: Path) -> None:
    from chameleon_jax.config import from_dict
    from chameleon_jax.document import DocumentError
    from data_pipeline.records import Rejected
    from data_pipeline.sources import SourceConfig

    rejected = []
    for record in from_dict(SourceConfig, {"kind": path.stem, "path": str(path)}).read_all():
        if isinstance(record, Rejected):
            rejected.append(record)
            continue
        assert record.all_segments
        for segment in record.all_segments:
            with contextlib.suppress(DocumentError):
                assert isinstance(segment, str) or segment.open().size == (8, 6)
    for record in rejected:
        assert path.name in record.place
        assert record.reason.isprintable()
    if rejected:
        raise DocumentError(f"{path.parent / rejected[0].place}: {rejected[0].reason}")


if __name__ == "__main__":
    harness.main(__file__)
