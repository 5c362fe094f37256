"""Rows come back from their bytes as plain Python derives them, and damage in them is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon_jax.batch import Batch
from data_pipeline.rows import Piece, to_batch, to_bytes

PAD = 1


def random_rows(rng: np.random.Generator, length: int, vocab_size: int) -> list[list[Piece]]:
    rows = []
    for _ in range(rng.integers(1, 5)):
        row, room = [], length
        while room and (not row or rng.random() < 0.6):
            places = int(rng.integers(1, room + 1))
            weights = np.append(0, rng.choice([0, 1, 1, 1, 0.25], places).cumprod())
            row.append(Piece(rng.integers(0, vocab_size, places + 1, np.int32), weights.astype(np.float32)))
            room -= places
        rows.append(row)
    return rows


def derived(pieces: list[Piece], length: int) -> dict[str, list]:
    """The arrays of a row, token by token."""
    row = {name: [] for name in Batch._fields}
    for segment, (ids, weights) in enumerate(pieces, start=1):
        for position in range(len(ids) - 1):
            row["inputs"].append(int(ids[position]))
            row["targets"].append(int(ids[position + 1]))
            row["loss_weights"].append(float(weights[position + 1]))
            row["positions"].append(position)
            row["segment_ids"].append(segment)
    rest = length - len(row["inputs"])
    filler = {"inputs": PAD, "targets": PAD}
    return {name: values + [filler.get(name, 0)] * rest for name, values in row.items()}


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 40), vocab_size=st.sampled_from([30, 65536, 70000]))
def test_batch_is_what_plain_python_derives(seed, length, vocab_size):
    rows = random_rows(np.random.default_rng(seed), length, vocab_size)
    batch = to_batch([to_bytes(row, vocab_size) for row in rows], length, vocab_size, PAD)
    expected = [derived(row, length) for row in rows]
    for name, field in batch._asdict().items():
        assert field.dtype == (np.float32 if name == "loss_weights" else np.int32)
        assert field.tolist() == [row[name] for row in expected]


def test_a_full_row_takes_two_bytes_a_token_and_a_few_more():
    piece = Piece(np.full(4097, 65535, np.int32), np.ones(4097, np.float32))
    assert len(to_bytes([piece], 65536)) == 2 * 4096 + 24
    assert len(to_bytes([piece], 65537)) == 4 * 4096 + 24


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (0, 0, "the tables of its documents and weights do not fit its size"),
        (0, 2**32 - 1, "the tables of its documents and weights do not fit its size"),
        (1, 2**31, "the tables of its documents and weights do not fit its size"),
        (2, 0, "its documents must take 1 to 8 places"),
        (2, 2**32 - 1, "its documents must take 1 to 8 places"),
        (2, 4, "its weights are not those of its documents"),
        (3, 2, "its weights are not those of its documents"),
        (slice(2, 4), 5, "it has 28 bytes instead of 32"),
        (4, np.float32(-1).view("<u4"), "loss weights must be finite and 0 or more"),
        (4, np.float32(np.nan).view("<u4"), "loss weights must be finite and 0 or more"),
        (5, 40, "inputs must be ids from 0 to 29"),
        (5, 40 << 16, "targets must be ids from 0 to 29"),
    ],
)
def test_damage_is_named(word, value, message):
    good = to_bytes([Piece(np.arange(4, dtype=np.int32), np.array([0, 1, 1, 1], np.float32))], 30)
    words = np.frombuffer(good, "<u4").copy()
    words[word] = value
    with pytest.raises(ValueError, match=message):
        to_batch([good, words.tobytes()], 8, 30, PAD)
    with pytest.raises(ValueError, match="no row has 26 bytes"):
        to_batch([good[:-2]], 8, 30, PAD)
