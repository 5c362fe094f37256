"""Krippendorff's alpha and Wilson's interval, on published examples and against SciPy."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from chameleon_jax.evaluation.agreement import krippendorff_alpha, wilson_interval

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), sections A, B and C: a line for each observer.
EXAMPLES = {
    ("0100000010", "1110010000"): 0.095,
    ("aabbdcccedda", "babbbcccedd" + "d"): 0.692,
    ("123321412...", "1233224125.3", ".3332342251.", "1233244125" + "1."): 0.743,
}


def units(*observers: str) -> list[str]:
    """What was said of each unit; a point is nothing."""
    return ["".join(values).replace(".", "") for values in zip(*observers, strict=True)]


@pytest.mark.parametrize(("observers", "alpha"), EXAMPLES.items())
def test_alpha_is_that_of_the_published_examples(observers, alpha):
    assert krippendorff_alpha(units(*observers)) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_perfect_and_of_systematic_disagreement():
    assert krippendorff_alpha(["aa", "bb", "cc"]) == 1
    # 2 units of 2: D_o = 1, D_e = 2 * 2 * 2 / (4 * 3) = 2/3
    assert krippendorff_alpha(["ab", "ab"]) == pytest.approx(1 - 1 / (2 / 3))


@pytest.mark.parametrize("values", [[], ["a", "b"], ["aa", "aaa"]])
def test_alpha_that_is_not_defined_is_none(values):
    assert krippendorff_alpha(values) is None


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (1, 1), (13, 40), (616, 1048)])
def test_interval_is_that_of_scipy(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx(tuple(expected), abs=1e-6)


def test_interval_with_half_a_success_lies_between_its_neighbours():
    below, half, above = (wilson_interval(count, 10) for count in (4, 4.5, 5))
    assert below < half < above
