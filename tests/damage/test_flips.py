"""No flipped bit in anything that we write is read as something else; `flips.py` does the same at length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import flips


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"),
    [("checkpoint", 8), ("model", 6), ("huggingface", 4), ("meta", 4), ("prepared", 8), ("text.model", 20)],
)
def test_no_flipped_bit_is_silent(kind, count):
    outcomes, bad = flips.run(kind, count, seed=1)
    assert bad == []
    assert outcomes["found"] > 0
