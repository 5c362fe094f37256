"""How far several people agree, and how far a share of a sample can be trusted."""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal values: 1 is agreement, 0 what chance gives.

    From the coincidences of values, as in Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.

    Args:
      units: what was judged; of each, the values that people gave, in any order. Units with fewer than two say nothing.

    Returns:
      None if it is not defined: no unit has two values, or all values are the same.
    """
    observed = 0.0
    totals: collections.Counter[Hashable] = collections.Counter()
    for values in units:
        if len(values) < 2:
            continue
        counts = collections.Counter(values)
        totals += counts
        # pairs of unequal values, each person's with each other's
        observed += sum(count * (len(values) - count) for count in counts.values()) / (len(values) - 1)
    total = totals.total()
    expected = sum(count * (total - count) for count in totals.values())
    return 1 - observed * (total - 1) / expected if expected else None


def wilson_interval(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), with 95 % confidence by default.

    `successes` may hold halves, for ties: the interval is then wider than it need be, as a half varies less than
    whole successes and failures do.
    """
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
