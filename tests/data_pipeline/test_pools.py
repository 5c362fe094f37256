"""Pools hold every document once, in the ratio that is asked for, and their files are the same every time."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import pair, source, text, write_prepared
from tiny_models import scrambled_vocabulary

from chameleon_jax.config import ConfigError, from_dict
from data_pipeline import pools as pools_module
from data_pipeline.config import PoolConfig, PrepareCommand
from data_pipeline.loader import PreparedData
from data_pipeline.pools import PoolSource, pools_of, write_pool

VOCABULARY = scrambled_vocabulary(num_pieces=400, num_codes=60, seed=5)
CODES = 10


def stage_1(scale: int, rng: np.random.Generator) -> list[PoolSource]:
    """The paper's first stage with rows of 4,096 / `scale`: texts of very different lengths, pairs of 1,071 tokens, and
    documents with several pictures."""
    codes = 1024 // scale
    texts = (text(number, int(size) + 2, VOCABULARY) for number, size in
             enumerate(np.exp(rng.normal(6, 1.1, 3000)) / scale))  # fmt: skip
    pairs = (pair(number, int(size), codes, VOCABULARY) for number, size in enumerate(rng.poisson(43 / scale, 1400)))
    interleaved = []
    for number in range(90):
        parts = [pair(1000 * number + nth, int(rng.integers(0, 300 / scale)), codes, VOCABULARY)
                 for nth in range(rng.integers(1, 6))]  # fmt: skip
        ids = np.concatenate([*(part.ids[:-1] for part in parts), [VOCABULARY.eos]])
        interleaved.append(
            parts[0]._replace(id=f"interleaved:{number}", ids=ids, weights=np.ones(len(ids), np.float32))
        )
    return [source("text", texts, 2.9), source("pairs", pairs, 1.5), source("interleaved", interleaved, 0.4)]


def test_stage_1_of_the_paper_fills_rows_and_keeps_its_shares(tmp_path):
    """Everywhere in the pool: in each fifth of it. Scaled down by 8, rows of 512."""
    sources = stage_1(8, np.random.default_rng(0))
    entry = write_prepared(tmp_path / "rows", VOCABULARY, 512, {"web": sources}) and PreparedData(tmp_path / "rows")
    pool, entry = entry.rows("sources", "web"), entry.header["sources"]["web"]
    batch = pool.batch(np.arange(len(pool)))
    assert (batch.segment_ids > 0).mean() > 0.98
    of_sources, total = entry["sources"], entry["tokens"]
    assert total == sum(each["tokens"] for each in of_sources.values())
    for each, asked in zip(of_sources.values(), (2.9, 1.5, 0.4), strict=True):
        assert each["tokens"] / total == pytest.approx(asked / 4.8, rel=0.01)
        assert each["share"] == pytest.approx(asked / 4.8)
    is_image = VOCABULARY.modality[batch.targets] == 2
    image_shares = [part.mean() for part in np.array_split(is_image, 5)]
    assert image_shares == pytest.approx([np.mean(image_shares)] * 5, rel=0.1)
    assert entry["image_tokens"] == is_image.sum()
    assert entry["weight"] == batch.loss_weights.sum()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_every_token_of_every_document_is_in_the_rows_once(seed, tmp_path_factory):
    """Of one source, all of them; of several, those of the first that runs out."""
    rng, length = np.random.default_rng(seed), int(np.random.default_rng(seed).integers(CODES + 2, 60))
    texts = [text(number, int(rng.integers(0, 2 * length)), VOCABULARY) for number in range(rng.integers(1, 30))]
    pairs = [pair(100 + number, int(rng.integers(0, 15)), CODES, VOCABULARY) for number in range(rng.integers(1, 30))]
    several = [source("text", texts), source("pairs", pairs, float(rng.choice([0.3, 1, 3])))]
    folder = write_prepared(
        tmp_path_factory.mktemp("pool") / "rows", VOCABULARY, length, {"one": [source("text", texts)], "web": several}
    )
    data = PreparedData(folder)
    for name, documents in (("one", texts), ("web", [*texts, *pairs])):
        rows, entry = data.rows("sources", name), data.header["sources"][name]
        batch = rows.batch(np.arange(len(rows)))
        used = batch.segment_ids > 0
        assert (batch.inputs[batch.positions == 0][used[batch.positions == 0]] == VOCABULARY.bos).all()
        found = Counter(zip(batch.targets[used].tolist(), batch.loss_weights[used].tolist(), strict=True))
        packed = documents
        if name == "web":
            counts = [entry["sources"][part]["documents"] for part in ("text", "pairs")]
            assert counts[0] == len(texts) or counts[1] == len(pairs)
            packed = [*texts[: counts[0]], *pairs[: counts[1]]]
        assert found == sum((Counter(zip(d.ids.tolist(), d.weights.tolist(), strict=True)) for d in packed), Counter())
        assert entry["tokens"] == used.sum() - len(packed)
        blocks = batch.targets == VOCABULARY.begin_image
        assert (batch.targets[np.nonzero(blocks)[0], np.nonzero(blocks)[1] + CODES + 1] == VOCABULARY.end_image).all()
        assert blocks.sum() == entry["pictures"] == sum(d.pictures for d in packed)


def test_source_with_more_epochs_is_used_again_until_another_runs_out(tmp_path):
    few, many = [text(n, 20, VOCABULARY) for n in range(5)], [text(100 + n, 20, VOCABULARY) for n in range(40)]
    for epochs, expected in ((1, (5, 5)), (3, (15, 15)), (100, (40, 40))):
        sources = [source("few", few, epochs=epochs), source("many", many)]
        entry = write_pool("pool", sources, 64, VOCABULARY, "split", tmp_path)
        counts = [each["documents"] for each in entry["sources"].values()]
        assert counts == pytest.approx(expected, abs=1)


def test_files_are_the_same_every_time_and_hold_a_number_of_rows_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(pools_module, "ROWS_PER_FILE", 7)
    documents = [text(number, 30, VOCABULARY) for number in range(40)]
    entries = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_prepared(folder, VOCABULARY, 64, {"pool": [source("text", documents)]})
        data = PreparedData(folder)
        entry = data.header["sources"]["pool"]
        assert sum(entry["file_rows"]) == entry["rows"] == len(data.rows("sources", "pool"))
        assert max(entry["file_rows"]) == 7
        assert {file.name for file in folder.iterdir()} == {"dataset.json", *entry["files"]}
        entries.append((entry, [(folder / file).read_bytes() for file in entry["files"]]))
        reversed_rows = data.rows("sources", "pool").batch(np.arange(entry["rows"])[::-1])
        assert (reversed_rows.inputs[::-1] == data.rows("sources", "pool").batch(np.arange(entry["rows"])).inputs).all()
    assert entries[0] == entries[1]


def test_what_is_not_packed_is_named(tmp_path):
    long, short = text(0, 100, VOCABULARY), text(1, 10, VOCABULARY)
    chat = text(2, 99, VOCABULARY)._replace(turn_ends=np.array([80, 100]))
    rejected = []
    entry = write_pool("pool", [source("mixed", [long, short, chat], epochs=2)], 64, VOCABULARY, "reject", tmp_path,
                       lambda *of: rejected.append(of))  # fmt: skip
    assert rejected == [
        ("mixed", "text:0", "it takes 101 tokens, more than the 64 of a row"),
        ("mixed", "text:2", "its first turn takes more than the 64 tokens of a row"),
    ]
    assert (entry["documents"], entry["documents_rejected"], entry["conversations_skipped"]) == (2, 1, 1)


def test_counts_of_a_conversation_are_those_of_the_turns_that_are_kept(tmp_path):
    one, other = pair(0, 20, CODES, VOCABULARY), pair(1, 20, CODES, VOCABULARY)
    ids = np.concatenate([one.ids, other.ids])
    chat = one._replace(ids=ids, weights=np.ones(len(ids), np.float32), turn_ends=np.array([33, 66]), pictures=2,
                        text_bytes=90)  # fmt: skip
    entry = write_pool("pool", [source("chat", [chat])], 40, VOCABULARY, "split", tmp_path)
    figures = {
        name: entry[name] for name in ("pictures", "text_bytes", "text_tokens", "image_tokens", "tokens", "weight")
    }
    assert figures == {
        "pictures": 1,
        "text_bytes": 45,
        "text_tokens": 20,
        "image_tokens": 10,
        "tokens": 32,
        "weight": 33,
    }
    assert entry["turns_dropped"] == 1


SOURCES = [{"kind": "documents", "name": name, "path": name} for name in ("text", "pairs", "chat")]


def command(*pools: dict) -> PrepareCommand:
    return from_dict(
        PrepareCommand,
        {"output": "o", "sequence_length": 64, "sources": SOURCES, "tokenizer": "model", "pools": list(pools)},
    )


def test_sources_that_no_pool_names_are_pools_of_their_own():
    web = {"name": "web", "sources": {"text": 2.9, "pairs": 1.5}, "epochs": {"pairs": 2}}
    assert pools_of(command(web)) == [
        PoolConfig("web", {"text": 2.9, "pairs": 1.5}, {"pairs": 2}),
        PoolConfig("chat", {"chat": 1.0}),
    ]


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        (
            [{"name": "web", "sources": {"txt": 1}}],
            r"pools\.0\.sources\.txt = 1\.0: no such source; .* text, pairs, chat",
        ),
        ([{"name": "chat", "sources": {"text": 1}}], "pools = .*: names must differ"),
        (
            [{"name": "web", "sources": {"text": 0}}],
            "sources = .*: must name at least one source, with weights above 0",
        ),
        ([{"name": "web", "sources": {"text": 1}, "epochs": {"chat": 2}}], r"epochs\.chat = 2: must be one of text"),
        ([{"name": "web", "sources": {"text": 1}, "epochs": {"text": 0}}], r"epochs\.text = 0: must be at least 1"),
        ([{"name": "a/b", "sources": {"text": 1}}], "name = 'a/b': must consist of letters"),
    ],
)
def test_pools_that_make_no_sense_are_refused(pools, message):
    with pytest.raises(ConfigError, match=message):
        command(*pools)


def test_header_is_plain_json(tmp_path):
    entry = write_pool("pool", [source("a", [text(0, 9, VOCABULARY)]), source("b", [text(1, 9, VOCABULARY)])], 64,
                       VOCABULARY, "split", tmp_path)  # fmt: skip
    assert json.loads(json.dumps(entry)) == entry
