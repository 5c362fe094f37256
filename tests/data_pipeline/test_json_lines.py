"""Files of JSON lines: every record once, however they are cut, compressed or damaged."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_jax.config import from_dict
from data_pipeline.records import Record, Rejected, Shard
from data_pipeline.sources import DocumentsSource, SourceConfig, jsonl

GOOD = b'["good"]'
HUMAN, GPT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def read(path, content: bytes, kind: str = "documents") -> list[Record | Rejected]:
    path.write_bytes(content)
    return list(from_dict(SourceConfig, {"kind": kind, "path": str(path)}).read_all())


def said(records: list[Record | Rejected]) -> list:
    return [record.reason if isinstance(record, Rejected) else record.segments for record in records]


# ----------------------------------------------------------------------------------------------------------------------
# Shards
# ----------------------------------------------------------------------------------------------------------------------

lines = st.one_of(
    st.text("aé☃\n\r \u2028", max_size=6).map(lambda text: json.dumps([text or "-"], ensure_ascii=False).encode()),
    st.sampled_from([b"", b"  ", b"\xff", b"[", b"\r"]),
)


@settings(max_examples=150)
@given(st.lists(lines, max_size=12), st.booleans(), st.sets(st.integers(1, 150)))
def test_records_are_the_same_whatever_shards_a_file_is_cut_into(tmp_path_factory, content, ends_in_line_end, cuts):
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_bytes(b"\n".join(content) + b"\n" * ends_in_line_end)
    size = path.stat().st_size
    source = DocumentsSource(path=str(path))
    whole = list(source.read(Shard("cut.jsonl", "", files=("cut.jsonl",))))
    expected = [(at, line) for at, line in lines_by_hand(path.read_bytes()) if line.strip()]
    assert [record.id for record in whole] == [f"cut.jsonl@{at}" for at, _ in expected]
    bounds = [0, *sorted(cut for cut in cuts if cut < size), size]
    parts = [
        record
        for begin, end in itertools.pairwise(bounds)
        for record in source.read(Shard("part", "", begin, end, files=("cut.jsonl",)))
    ]
    assert [(record.id, *said([record])) for record in parts] == [(record.id, *said([record])) for record in whole]


def lines_by_hand(content: bytes) -> list[tuple[int, bytes]]:
    parts = content.split(b"\n")
    starts = itertools.accumulate((len(part) + 1 for part in parts[:-1]), initial=0)
    return list(zip(starts, parts, strict=True))


def test_large_file_is_read_in_shards_and_grows_at_its_end_only(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "SHARD_BYTES", 1 << 17)
    rows = [[f"{number} " + "x" * 90] for number in range(4000)]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DocumentsSource(path=str(path))
    shards = source.shards()
    assert [shard.name for shard in shards] == [f"long.jsonl@{number << 17}" for number in range(4)]
    assert [list(record.segments) for record in source.records()] == rows
    at = [place for place, line in lines_by_hand(path.read_bytes()) if line]
    first = [place for place in at if place < 1 << 17]
    *_, last = source.read(shards[0])
    assert last.place == f"long.jsonl, line {len(first)}"
    assert next(iter(source.read(shards[1]))).place == f"long.jsonl, byte {at[len(first)]:,}"
    with path.open("a") as file:
        file.write('["more"]\n')
    again = source.shards()
    assert [shard.identity for shard in again[:2]] == [shard.identity for shard in shards[:2]]
    assert again[3].identity != shards[3].identity


def test_shards_do_not_depend_on_where_the_files_lie(tmp_path):
    named = []
    for folder in ("here", "there"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        for name in ("b.jsonl", "sub/a.jsonl", "c.jsonl.gz", ".hidden.jsonl", "notes.txt"):
            (tmp_path / folder / name).write_bytes(GOOD)
        named.append(DocumentsSource(path=str(tmp_path / folder)).shards())
        os.utime(tmp_path / folder / "b.jsonl", (0, 0))
    assert named[0] == named[1]
    assert [shard.name for shard in named[0]] == ["b.jsonl", "c.jsonl.gz", "sub/a.jsonl"]
    (tmp_path / "there/b.jsonl").write_bytes(b'["Good"]')
    changed = DocumentsSource(path=str(tmp_path / "there")).shards()
    assert [new == old for new, old in zip(changed, named[0], strict=True)] == [False, True, True]
    pattern = DocumentsSource(path=str(tmp_path / "here/**/[ab].jsonl"))
    assert [record.id for record in pattern.records()] == ["b.jsonl@0", "sub/a.jsonl@0"]


# ----------------------------------------------------------------------------------------------------------------------
# Compressed and encoded files
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, zstandard.compress, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
     lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:])],
    ids=["gzip", "zstd", "gzip of two members", "zstd of two frames"],
)  # fmt: skip
def test_compressed_file_has_the_records_of_the_plain_one(tmp_path, compress):
    content = "".join(json.dumps([f"Zeile {number} ä"]) + "\n" for number in range(3000)).encode()
    plain = read(tmp_path / "a.jsonl", content)
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.jsonl"):  # what it is called makes no difference
        packed = read(tmp_path / name, compress(content))
        assert [record.segments for record in packed] == [record.segments for record in plain]
        assert [record.id.split("@")[1] for record in packed] == [record.id.split("@")[1] for record in plain]


@pytest.mark.parametrize(("compress", "name"), [(gzip.compress, "gzip"), (zstandard.compress, "Zstandard")])
def test_truncated_or_damaged_file_gives_what_comes_before(tmp_path, compress, name):
    content = b"".join(b'["%d %s"]\n' % (number, os.urandom(40).hex().encode()) for number in range(20_000))
    packed = compress(content)
    *before, last = read(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2])
    assert 1000 < len(before) < 20_000
    assert [json.dumps(record.segments) for record in before] == content.decode().splitlines()[: len(before)]
    place = f"a.jsonl.gz, all behind line {len(before)}"
    assert last == Rejected("a.jsonl.gz@end", place, f"the {name} file is truncated")
    damaged = bytearray(packed)
    damaged[len(packed) // 2 : len(packed) // 2 + 99] = bytes(99)
    *_, last = read(tmp_path / "a.jsonl.gz", bytes(damaged))
    assert last.reason.startswith(f"the {name} file is damaged")


def test_byte_order_marks_and_utf_16_are_understood(tmp_path):
    text = '["größer ☃"]\n["next"]\n'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        records = read(tmp_path / "a.jsonl", text.encode(encoding))
        assert said(records) == [("größer ☃",), ("next",)]
    big = "\ufeff".encode("utf-16-be") + text.encode("utf-16-be")
    assert said(read(tmp_path / "a.jsonl", gzip.compress(big))) == [("größer ☃",), ("next",)]
    *good, last = said(read(tmp_path / "a.jsonl", big[:-1]))
    assert good == [("größer ☃",)]
    assert last.startswith("not valid UTF-16")
    without_mark = said(read(tmp_path / "a.jsonl", text.encode("utf-16-le")))
    assert {type(each) for each in without_mark} == {str}
    assert "holds NUL bytes; text in UTF-16 must begin with its byte-order mark" in without_mark[0]


# ----------------------------------------------------------------------------------------------------------------------
# Lines that are no records
# ----------------------------------------------------------------------------------------------------------------------

CHAT = [
    ({"messages": [GPT, HUMAN, GPT]}, "message 1 is from gpt: must be from human"),
    ({"messages": [HUMAN, {**GPT, "content": ""}]}, "message 2 is empty"),
    ({"messages": [HUMAN, {**GPT, "content": [{"type": "text", "text": " "}]}]}, "message 2 is empty"),
    ({"messages": [{**HUMAN, "content": "<image> and <image>"}, GPT], "images": ["a.png"]}, "2 image marks"),
    ({"messages": [{**HUMAN, "content": "<image>"}, GPT], "images": ["a.png", "b.png"]}, "1 image marks"),
    ({"messages": [{**HUMAN, "content": [{"type": "image"}]}, GPT]}, "1 image marks"),
    ({"messages": [{**HUMAN, "content": [{"type": "audio"}]}, GPT]}, 'message 1, {"type": "audio"}: must be'),
]
DOCUMENTS = [
    (b'["caf\xe9"]', "not valid UTF-8 at byte 5"),
    (b'["a\0b"]', "holds NUL bytes"),
    (b'["a\\u0000b"]', "holds a NUL character"),
    (b'["", " "]', "the document is empty"),
    (b'{"text": " "}', "no text, caption or image in an object with the keys"),
    (b'{"texts": ["a", null], "images": [null]}', "texts has 2 places, but images 1"),
    (b'{"texts": ["a", null], "images": [null, null]}', "place 2 of texts and images must have a value in one of them"),
    (b'{"texts": [null], "images": ["https://example.com/a.png"]}', "is not fetched; download pictures first"),
    (b'{"text_list": ["a"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}', "from 0 to 0"),
    (b'{"text_list": [], "image_info": []}', "the document is empty"),
    (b'{"text": ["a"]}', 'text must be a text, not ["a"]'),
    (b'{"text": "<image><image>", "images": ["a.png"]}', "the text has 2 image marks"),
    (b'{"text": "<image>", "images": ["a.png", 3]}', "image must be a path or a list of paths"),
    (b'{"image": "data:image/png;base64,iVBOR*", "text": "a"}', "a.jsonl, line 2, picture 1: not valid base64"),
]


@pytest.mark.parametrize(
    ("kind", "line", "reason"),
    [("documents", *each) for each in DOCUMENTS]
    + [("conversations", json.dumps(line).encode(), reason) for line, reason in CHAT],
)
def test_bad_line_is_rejected_and_the_others_are_read(tmp_path, kind, line, reason):
    good = GOOD if kind == "documents" else json.dumps({"messages": [HUMAN, GPT]}).encode()
    first, bad, last = read(tmp_path / "a.jsonl", b"\n".join((good, line, good)), kind)
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert (bad.id, bad.place) == (f"a.jsonl@{len(good) + 1}", "a.jsonl, line 2")
    assert reason in bad.reason
    assert "\n" not in bad.reason


def test_long_line_is_skipped_in_bounded_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'\n["')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"]\n' + GOOD)
    tracemalloc.start()
    first, long, last = DocumentsSource(path=str(path)).read_all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first.segments == last.segments == ("good",)
    assert long == Rejected(
        "a.jsonl@9", "a.jsonl, line 2", "longer than 16,777,216 bytes; cut it into several documents"
    )
    assert last.id == f"a.jsonl@{9 + 2 + (100 << 20) + 3}"
    assert peak < 64 << 20


def test_bomb_of_one_line_is_skipped_in_bounded_memory(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(bytes(200 << 20) + b"\n" + GOOD))
    tracemalloc.start()
    bomb, last = DocumentsSource(path=str(tmp_path / "a.jsonl.zst")).read_all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bomb, Rejected)
    assert last.segments == ("good",)
    assert peak < 128 << 20


def test_records_of_equal_ids_are_told_apart(tmp_path):
    line = b'{"id": 7, "text": "good"}\n'
    records = read(tmp_path / "a.jsonl", line * 3)
    assert [record.segments for record in records] == [("good",)] * 3
    assert len({record.id for record in records}) == 3
    assert records[0].fields["id"] == "7"


@pytest.mark.parametrize(
    "token", ["<s>", "</s>", "<pad>", "<image>", "<|image|>", "⟨image⟩", "⟨eos⟩", "<reserved08706>"]
)
def test_names_of_special_tokens_in_texts_stay_text(tmp_path, token):
    from tiny_models import image_tokenizer, text_tokenizer

    from chameleon_jax.tokens.documents import DocumentTokenizer

    text = f"In HTML {token} is a word."
    (document,) = read(tmp_path / "a.jsonl", json.dumps({"text": text}).encode())
    content = [{"type": "text", "text": text}]
    chat = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": text}]}
    (conversation,) = read(tmp_path / "a.jsonl", json.dumps(chat).encode(), "conversations")
    assert document.segments == conversation.turns[0].prompt == conversation.turns[0].answer == (text,)
    tokenizer = DocumentTokenizer.join(text_tokenizer(), image_tokenizer())
    assert set(tokenizer.encode([text]).tolist()) <= set(tokenizer.vocabulary.text_ids.tolist())
