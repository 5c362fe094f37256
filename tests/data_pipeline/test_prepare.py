"""Preparing makes a folder that is whole or not there, and says what is in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import image_tokenizer, joined_tokenizer, random_picture, released_model

from chameleon_jax.chameleon import Chameleon
from chameleon_jax.config import ConfigError, from_dict
from chameleon_jax.console import commands
from chameleon_jax.console.commands import open_tokenizer
from chameleon_jax.tokens.documents import DocumentTokenizer, save_image_tokenizer
from chameleon_jax.tokens.vocabulary import IMAGE, TEXT
from data_pipeline.accounting import TooManyRejected
from data_pipeline.config import PrepareCommand
from data_pipeline.loader import PreparedData
from data_pipeline.prepare import prepare as prepare_rows
from data_pipeline.sources import DocumentsSource, SourceConfig


def prepare(command: PrepareCommand, tokenizer: DocumentTokenizer | None = None) -> dict:
    return prepare_rows(command, tokenizer or joined_tokenizer())


def documents_of(path: str) -> list:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_header_counts_what_is_in_the_rows(prepared, command):
    data = PreparedData(prepared)
    vocabulary = data.tokenizer().vocabulary
    assert data.header["vocab_size"] == vocabulary.size
    for part, sources in (("sources", command.sources), ("held_out", command.held_out)):
        assert list(data.header[part]) == [source.name for source in sources]
        for source in sources:
            entry, documents = data.header[part][source.name], documents_of(source.path)
            rows = data.rows(part, source.name)
            targets = np.stack([rows[index]["targets"] for index in range(len(rows))])
            counted = np.stack([rows[index]["loss_weights"] for index in range(len(rows))]) > 0
            texts = [segment for document in documents for segment in document if isinstance(segment, str)]
            assert entry["documents"] == len(documents) == (targets[counted] == vocabulary.eos).sum()
            assert entry["pictures"] == sum(map(len, documents)) - len(texts)
            assert entry["pictures"] == (targets[counted] == vocabulary.begin_image).sum()
            assert entry["text_bytes"] == sum(len(text.encode()) for text in texts)
            modality = vocabulary.modality[targets[counted]]
            assert entry["text_tokens"] == (modality == TEXT).sum()
            assert entry["image_tokens"] == (modality == IMAGE).sum() == 4 * entry["pictures"]
            assert entry["tokens"] == counted.sum() - entry["documents"]
            assert from_dict(SourceConfig, entry["source"]) == source


def test_rows_hold_the_documents(prepared, command):
    """Text comes back word for word, and each picture as its codes draw it."""
    data = PreparedData(prepared)
    tokenizer = data.tokenizer()
    rows = data.rows("held_out", "unseen")
    found = []
    for index in range(len(rows)):
        row = rows[index]
        for segment in range(1, row["segment_ids"].max() + 1):
            found.append(tokenizer.decode(row["targets"][row["segment_ids"] == segment]))
    found.sort(key=lambda document: document[1])
    assert [text for _, text in found] == [text for _, text in documents_of(command.held_out[0].path)]
    for number, (picture, _) in enumerate(found):
        codes = tokenizer.image.tokenize([random_picture(1000 + number)])
        (expected,) = tokenizer.image.detokenize(codes)
        assert picture.tobytes() == expected.tobytes()


def test_preparing_twice_gives_the_same_rows(prepared, own_command):
    assert prepare(own_command)["fingerprint"] == PreparedData(prepared).fingerprint


def test_moved_files_are_not_read_again(prepared, own_command, tmp_path):
    """And runs go on with the rows, as their fingerprint is the same."""
    shutil.copytree(prepared, own_command.output)
    done = {path.name: path.stat().st_mtime_ns for path in Path(own_command.output, "units").glob("*.json")}
    folder = tmp_path / "elsewhere"
    shutil.copytree(Path(own_command.sources[0].path).parent, folder, ignore=shutil.ignore_patterns("rows"))
    moved = [
        tuple(dataclasses.replace(source, path=str(folder / Path(source.path).name)) for source in sources)
        for sources in (own_command.sources, own_command.held_out)
    ]
    header = prepare(dataclasses.replace(own_command, sources=moved[0], held_out=moved[1]))
    assert header["fingerprint"] == PreparedData(prepared).fingerprint
    again = {path.name: path.stat().st_mtime_ns for path in Path(own_command.output, "units").glob("*.json")}
    assert again == done
    assert len(done) == 3


def test_fingerprint_differs_with_the_documents(prepared, own_command, tmp_path):
    lines = Path(own_command.sources[1].path).read_text()
    changed = tmp_path / "prose.jsonl"
    changed.write_text(lines.replace("The fox said 7 ", "The fox said 8 "))
    mixed, prose = own_command.sources
    command = dataclasses.replace(own_command, sources=(mixed, dataclasses.replace(prose, path=str(changed))))
    header, before = prepare(command), PreparedData(prepared).header
    assert header["sources"]["prose"]["sha256"] != before["sources"]["prose"]["sha256"]
    assert header["sources"]["mixed"]["sha256"] == before["sources"]["mixed"]["sha256"]
    assert header["fingerprint"] != before["fingerprint"]


def test_fingerprint_differs_with_the_image_tokenizer(prepared, own_command):
    """Rows of text alone are the same, but the model would draw with other codes."""
    folder = Path(own_command.output).parent / "other_image_tokenizer"
    save_image_tokenizer(image_tokenizer(seed=1), folder)
    text_only = dataclasses.replace(own_command, sources=own_command.sources[1:], held_out=())
    first = prepare(text_only)
    changed = dataclasses.replace(text_only, image_tokenizer=str(folder), output=f"{own_command.output}-2")
    other = prepare(changed, open_tokenizer(changed))
    assert first["fingerprint"] != other["fingerprint"]


def test_row_that_cannot_hold_a_picture_is_refused_at_once(own_command):
    with pytest.raises(ConfigError, match=r"sequence_length = 5: must be at least 6.*4 codes"):
        prepare(dataclasses.replace(own_command, sequence_length=5))
    assert not Path(own_command.output).exists()


def test_row_of_just_one_picture_works(own_command):
    header = prepare(dataclasses.replace(own_command, sequence_length=6))
    assert header["sources"]["mixed"]["pictures"] > 0
    data = PreparedData(own_command.output)
    rows, begin_image = data.rows("sources", "mixed"), data.tokenizer().vocabulary.begin_image
    assert (
        sum((rows[index]["targets"] == begin_image).sum() for index in range(len(rows)))
        == header["sources"]["mixed"]["pictures"]
    )


@pytest.fixture(scope="module")
def model() -> Chameleon:
    return released_model()


@pytest.mark.parametrize("format", ["chameleon", "huggingface", "meta", "tokenizer"])
def test_model_of_any_format_keeps_its_ids(tmp_path, model, format):
    folder = tmp_path / "model"
    if format == "tokenizer":
        model.tokenizer.save(folder)
    else:
        model.save(folder, format)
    random_picture(3).save(tmp_path / "kite.png")
    (tmp_path / "kites.jsonl").write_text('["A red kite ", {"image": "kite.png"}, " over <s> 1984."]')
    source = DocumentsSource(name="kites", path=str(tmp_path / "kites.jsonl"))
    command = PrepareCommand(
        tokenizer=str(folder), output=str(tmp_path / "rows"), sequence_length=60, sources=(source,)
    )
    prepare(command, open_tokenizer(command))
    data = PreparedData(tmp_path / "rows")
    assert data.tokenizer().vocabulary.to_dict() == model.vocabulary.to_dict()
    row = data.rows("sources", "kites")[0]
    targets = row["targets"][row["segment_ids"] > 0]
    document = ["A red kite ", random_picture(3), " over <s> 1984."]
    assert targets.tolist() == [*model.encode(document), model.vocabulary.eos]


def test_model_without_image_tokenizer_prepares_text_and_says_what_pictures_need(own_command, tmp_path, model):
    whole = model.tokenizer
    missing = {"image": "no vqgan.ckpt in models/7b"}
    DocumentTokenizer(whole.text, None, whole.vocabulary, codes_per_image=16, missing=missing).save(tmp_path / "text")
    command = dataclasses.replace(
        own_command, text_tokenizer="", image_tokenizer="", tokenizer=str(tmp_path / "text"), sequence_length=10,
        held_out=(),
    )  # fmt: skip
    mixed, prose = command.sources
    tokenizer = open_tokenizer(command)
    header = prepare(dataclasses.replace(command, sources=(prose,)), tokenizer)
    assert header["tokenizer"]["image"] is None
    assert PreparedData(command.output).tokenizer().missing == missing
    with pytest.raises(TooManyRejected, match=r"^sources\.mixed: .*no image tokenizer: no vqgan\.ckpt in"):
        prepare(dataclasses.replace(command, sources=(prose, mixed)), tokenizer)


def test_source_without_documents_is_named(own_command, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    source = DocumentsSource(name="empty", path=str(tmp_path / "empty.jsonl"))
    with pytest.raises(ConfigError, match=r"sources\.empty: has no documents"):
        prepare(dataclasses.replace(own_command, sources=(source,)))


def test_bad_documents_leave_the_old_rows_as_they_were(own_command, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('["good"]\n["bad", 3]\n')
    prepare(own_command)
    output = Path(own_command.output)

    def contents() -> dict[Path, bytes]:
        files = [path for path in output.rglob("*") if path.is_file() and path.name != "prepare.json"]
        return {path: path.read_bytes() for path in files}

    before = contents()
    source = DocumentsSource(name="bad", path=str(bad))
    with pytest.raises(TooManyRejected, match=r"sources\.bad: 1 of 2 .*The first: bad\.jsonl, line 2: 3: a segment is"):
        prepare(dataclasses.replace(own_command, sources=(*own_command.sources, source)))
    after = contents()
    assert before.items() <= after.items()
    assert {path.parent.name for path in after.keys() - before.keys()} == {"units", "rows"}
    (line,) = (output / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["place"] == "bad.jsonl, line 2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "rows"]


def test_documents_that_are_cut_and_pictures_that_lose_their_text_are_counted_and_said(own_command, tmp_path, capsys):
    """A picture has six tokens."""
    random_picture(1).save(tmp_path / "1.png")
    picture = {"image": "1.png"}
    long, short = tmp_path / "long.jsonl", tmp_path / "short.jsonl"
    long.write_text("\n".join(map(json.dumps, (["A fox. ", picture], [picture, " A dog."], [picture], ["!"]))))
    short.write_text("\n".join(map(json.dumps, (["!"], [picture]))))
    sources = tuple(DocumentsSource(name=path.stem, path=str(path)) for path in (long, short))
    command = dataclasses.replace(own_command, sources=sources, held_out=(), sequence_length=7)
    prepare(command)
    header = PreparedData(command.output).header["sources"]
    assert header["long"]["documents_cut"] == 2
    assert "pictures_cut_off" not in header["long"]  # a piece of text stays with each
    assert "sources.long: 2 of 4 documents are longer than a row (7 tokens) and were cut" in capsys.readouterr().err

    figures = commands.prepare(dataclasses.replace(command, sequence_length=6))
    assert (figures["documents_cut"], figures["pictures_cut_off"]) == (
        4,
        2,
    )  # of some only the end of sequence is cut off
    said = capsys.readouterr().err
    assert "warning: sources.long: 3 of 4 documents are longer than a row (6 tokens) and were cut; 2 of 3 " in said
    assert "2 of 3 pictures lost the text beside them; give a longer sequence_length" in said
    header = PreparedData(command.output).header["sources"]
    assert (header["long"]["documents_cut"], header["long"]["pictures_cut_off"]) == (3, 2)
    assert (header["short"]["documents_cut"], header["short"].get("pictures_cut_off", 0)) == (1, 0)
