"""A progress bar over bytes counts up to its total, never back, and says nothing where there is little to wait for."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chameleon_jax.runtime import progress
from chameleon_jax.runtime.progress import bytes_bar

MIB = 1 << 20
SMALLEST = 256 * MIB


def shown(size: int, pieces: Iterable[int]) -> tuple[list[int], list[int]]:
    """Totals of the bars that were opened, and every number that was shown on them."""
    totals: list[int] = []
    numbers: list[int] = []

    class Bar:
        def update(self, done: int) -> None:
            numbers.append(done)

    @contextlib.contextmanager
    def progress_bar(title: str, total: int):
        totals.append(total)
        yield Bar()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "progress_bar", progress_bar)
        with bytes_bar("load", size) as count:
            for piece in pieces:
                count(piece)
    return totals, numbers


def cuts(size: int, points: list[float]) -> list[int]:
    """`size` bytes in pieces, cut at shares of it."""
    places = [0, *sorted(int(point * size) for point in points), size]
    return [after - before for before, after in itertools.pairwise(places)]


@given(st.integers(SMALLEST, 10**13), st.lists(st.floats(0, 1), max_size=50))
def test_bytes_count_up_to_the_total(size, points):
    totals, numbers = shown(size, cuts(size, points))
    assert totals == [size >> 20]
    assert numbers[-1] == size >> 20
    assert all(before < after for before, after in itertools.pairwise(numbers))
    assert numbers[0] > 0


@given(st.lists(st.integers(0, SMALLEST), max_size=30))
def test_more_bytes_than_announced_never_pass_the_total(pieces):
    _, numbers = shown(SMALLEST, [*pieces, SMALLEST, *pieces])
    assert numbers[-1] == 256
    assert numbers == sorted(set(numbers))


def test_small_pieces_are_shown_once_a_mebibyte():
    """Weights report millions of pieces; a terminal need not be told of each."""
    _, numbers = shown(SMALLEST, [1000] * (SMALLEST // 1000 + 1))
    assert numbers == list(range(1, 257))


@pytest.mark.parametrize("size", [0, 1, SMALLEST - 1])
def test_small_amounts_show_nothing(size):
    assert shown(size, [size, 5]) == ([], [])


def test_without_a_terminal_the_last_line_says_all(monkeypatch):
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), force_terminal=False, width=200))
    with bytes_bar("load chameleon-7b", 14 * 10**9) as count:
        for _ in range(1000):
            count(14 * 10**6)
    lines = progress.console.file.getvalue().splitlines()
    assert lines[-1].split("  ")[0] == "load chameleon-7b, MiB: 13351/13351"
    assert len(lines) == 1, "lines come every ten seconds"
