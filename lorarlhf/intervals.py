"""95% intervals of what was measured on a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SAMPLES = 1000  # of the bootstrap
Z = 1.959964  # 97.5th percentile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[[np.ndarray], float], items: np.ndarray, seed: int = 0) -> Estimate:
    """A statistic of [N, ...] items and the 2.5th and 97.5th percentile over samples of them (Efron 1979)."""
    generator = np.random.default_rng(seed)
    drawn = (items[generator.integers(len(items), size=len(items))] for _ in range(SAMPLES if len(items) else 0))
    defined = [value for value in map(statistic, drawn) if not math.isnan(value)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined else (math.nan, math.nan)
    return Estimate(statistic(items), float(low), float(high))


def mean(values: np.ndarray, of: int = 1) -> Estimate:
    """The mean of [N] numbers with Student's interval (1908), which is not defined for one number.

    Args:
        of: so many intervals are made, and all together are to hold in 95 of 100 cases: each is wider (Bonferroni).
    """
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else math.nan, math.nan, math.nan)
    from scipy.stats import t  # slow to import

    value, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf(1 - 0.025 / of, len(values) - 1)) * error
    return Estimate(value, value - half, value + half)


def wilson(share: float, of: int) -> Estimate:
    """A share of `of` independent outcomes with its score interval (Wilson 1927), sound near 0 and 1 and for few.

    Outcomes of a half (ties) vary less than the interval allows for: it is then a little wide.
    """
    if not of:
        return Estimate(math.nan, math.nan, math.nan)
    scale = 1 + Z**2 / of
    middle = (share + Z**2 / (2 * of)) / scale
    half = Z * math.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2)) / scale
    # At 0 and 1 one end is the share itself, but for rounding.
    return Estimate(share, min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))
